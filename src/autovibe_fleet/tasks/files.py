# SPDX-License-Identifier: GPL-3.0-or-later
"""Task lists in JSON and YAML files, and the schema that is published for them."""

from __future__ import annotations

import json
import re
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from fleet_core.errors import InvalidInput, NotFound
from fleet_core.task_lists import TaskList, task_list


def read(file: str) -> TaskList:
    """Return the list in a file; - is standard input. Without a name of its own it is called as the file is."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        kind = NotFound if isinstance(error, FileNotFoundError) else InvalidInput
        raise kind(f"task list {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"task list {file}: expected UTF-8 text") from None
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(file).stem).lstrip("._-")[:63]
    try:
        return task_list(_parsed(text), name="tasks" if file == "-" else stem or "tasks")
    except InvalidInput as error:
        raise InvalidInput(f"{file}: {error.message}") from None


def _parsed(text: str) -> Any:
    if text.lstrip().startswith("{"):
        try:
            return json.loads(text)
        except RecursionError:
            raise InvalidInput("expected JSON, found too many levels of it") from None
        except ValueError as error:
            wrong = error  # it may still be YAML in its flow style, or JSON with comments
    else:
        wrong = None
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if wrong is not None:
            raise InvalidInput(f"expected JSON or YAML: {wrong}") from None
        raise InvalidInput(f"expected JSON or YAML: {' '.join(str(error).split())}") from None


def schema() -> dict[str, Any]:
    """Return the JSON Schema of task lists."""
    text = resources.files("autovibe_fleet").joinpath("schemas/task_list.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
