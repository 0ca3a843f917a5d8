# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Documents of cloud-init on the control node: read with their lines, checked by its schemas, written as YAML."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

from ansible.module_utils.common.yaml import SafeDumper, SafeLoader

from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core import cloud_init
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import InvalidInput, NotFound
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.json_schema import Problem, problems
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.names import nearest

COLLECTION = Path(__file__).resolve().parents[2]
TEMPLATES = COLLECTION / "templates" / "cloud-init"
SUFFIX = ".yml.j2"
_SCHEMAS = Path(__file__).resolve().parent / "cloud_init_schemas"


@cache
def schema(name: str) -> dict[str, Any]:
    """Return one of cloud-init's schemas: cloud-config-v1, network-config-v1, network-config-v2."""
    found: dict[str, Any] = json.loads((_SCHEMAS / f"schema-{name}.json").read_text(encoding="utf-8"))
    return found


def template_path(name: str) -> Path:
    """Return the path of a shipped template. Raises NotFound with the nearest one."""
    path = TEMPLATES / f"{name}{SUFFIX}"
    known = sorted(file.name[: -len(SUFFIX)] for file in TEMPLATES.glob(f"*{SUFFIX}"))
    if name not in known:
        hint = nearest(name, known) or f"; known ones: {', '.join(known)}"
        raise NotFound(f'cloud-init template "{name}": not found{hint}')
    return path


@dataclass(frozen=True)
class Document:
    """One YAML document. lines: of its keys and items, from 1, by their paths."""

    data: Any
    lines: Mapping[tuple[Any, ...], int]

    def line(self, path: tuple[Any, ...]) -> int:
        """Return the line of a path, else of what it lies in."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)


def read_yaml(text: str, where: str) -> list[Document]:
    """Return the documents of a text, empty ones left out. Raises InvalidInput that names the line."""
    found = []
    loader = None
    try:
        loader = SafeLoader(text)
        while loader.check_node():
            node = loader.get_node()
            lines = dict(_lines(node, (), where))
            data = loader.construct_document(node)
            if data is not None:
                found.append(Document(data, lines))
    except InvalidInput:
        raise
    except Exception as error:  # PyYAML's own; it is imported by Ansible alone
        raise InvalidInput(f"{where}{_place(error)}: bad YAML: {_reason(error)}") from None
    finally:
        if loader is not None:
            loader.dispose()
    return found


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    return f" line {mark.line + 1}" if mark is not None else ""


def _reason(error: Exception) -> str:
    parts = [getattr(error, "problem", None), getattr(error, "context", None)]
    return ", ".join(str(part) for part in parts if part) or " ".join(str(error).split())


def _lines(node: Any, path: tuple[Any, ...], where: str) -> Iterator[tuple[tuple[Any, ...], int]]:
    if node is None:
        return
    yield path, node.start_mark.line + 1
    if node.id == "mapping":
        seen: dict[str, int] = {}
        for key, value in node.value:
            name = str(key.value)
            line = key.start_mark.line + 1
            if name in seen:
                raise InvalidInput(
                    f'{where} line {line}: the key "{name}" is there twice; line {seen[name]} has it, too'
                )
            seen[name] = line
            yield from _lines(value, (*path, name), where)
            yield (*path, name), line
    elif node.id == "sequence":
        for number, item in enumerate(node.value):
            yield from _lines(item, (*path, number), where)


def cloud_config(text: str, where: str, whole: bool = True) -> list[dict[str, Any]]:
    """Return the documents of cloud-config, each checked by the schema, and all together by our rules.

    whole: whether it stands alone, so that it must let somebody log in.
    Raises InvalidInput: a sentence a problem, with its line, at most five.
    """
    if not text.startswith(cloud_init.HEADER):
        raise InvalidInput(
            f"{where}: expected {cloud_init.HEADER} as the first line, found {text.split(chr(10))[0][:40]!r}"
        )
    found: list[str] = []
    documents = read_yaml(text, where)
    for document in documents:
        if not isinstance(document.data, dict):
            wrong = [Problem((), "expected a mapping of cloud-init's keys")]
        else:
            wrong = problems(schema("cloud-config-v1"), document.data)
        found += [cloud_init.sentence(where, problem, document.line) for problem in wrong]
    if not documents:
        found.append(f"{where}: expected a mapping of cloud-init's keys, found nothing")
    if not found:
        rules = cloud_init.rule_problems(cloud_init.merge([document.data for document in documents]), whole)
        found = [cloud_init.sentence(where, problem) for problem in rules]
    fail(found)
    return [document.data for document in documents]


def user_data(where: str, value: Any) -> str:
    """Return user data as text, checked: a mapping becomes cloud-config, another kind than cloud-config stays."""
    if isinstance(value, Mapping):
        data = plain(value)
        fail(
            [
                cloud_init.sentence(where, item)
                for item in cloud_init.user_data_problems(schema("cloud-config-v1"), data)
            ]
        )
        return to_yaml(data, cloud_init.HEADER)
    if not isinstance(value, str):
        raise InvalidInput(f"{where}: expected text or a mapping, found {type(value).__name__}")
    text = str(value)
    if text.startswith("Content-Type: multipart/"):
        return text
    if cloud_init.part_type(where, text) == "text/cloud-config":
        cloud_config(text, where)
    return text


def network_config(where: str, value: Any) -> str:
    """Return a network configuration as text, checked by the schema of its version."""
    schemas = {number: schema(f"network-config-v{number}") for number in (1, 2)}
    data = plain(value)
    fail([cloud_init.sentence(where, item) for item in cloud_init.network_problems(schemas, data)])
    return to_yaml(data)


def meta_data(where: str, value: Any) -> str:
    """Return meta data as text, checked."""
    data = plain(value)
    fail([cloud_init.sentence(where, item) for item in cloud_init.meta_data_problems(data)])
    return to_yaml(data)


def fail(sentences: list[str]) -> None:
    """Raise InvalidInput with these sentences, if there are any."""
    if sentences:
        more = [f"and {len(sentences) - 5} more"] if len(sentences) > 5 else []
        raise InvalidInput("; ".join([*sentences[:5], *more]))


def plain(value: Any) -> Any:
    """Return a value without Ansible's own kinds of text and mappings."""
    return json.loads(json.dumps(value, default=str))


class _Dumper(SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write equal parts in full: user data is read by people."""
        return True


def _text(dumper: Any, value: str) -> Any:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


def to_yaml(data: Any, header: str = "") -> str:
    """Return plain data as YAML, keys in their order, texts of several lines as blocks."""
    stream = StringIO()
    dumper = _Dumper(stream, default_flow_style=False, sort_keys=False, width=120, allow_unicode=True)
    try:
        dumper.open()
        dumper.represent(data)
        dumper.close()
    finally:
        dumper.dispose()
    return (header + "\n" if header else "") + stream.getvalue()
