# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands on process templates."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fleet_core.errors import InvalidInput, NotFound
from fleet_core.names import describe, nearest
from fleet_node import declarations

from . import completion
from .commands import Noun
from .output import Column, described
from .session import Session, with_session

app = Noun()
Ids = Annotated[list[str], typer.Argument(metavar="TEMPLATE...", autocompletion=completion.templates)]


def list_templates(session: Session) -> None:
    """List the templates."""
    found = session.store.templates()
    if session.as_json:
        session.out.data({"templates": [declarations.public_template(item.to_dict()) for item in found.values()]})
        return
    columns = (Column("TEMPLATE"), Column("LABEL"), Column("RESOURCES"), Column("VARIABLES"))
    rows = []
    for name, item in found.items():
        data = item.to_dict()
        rows.append((name, data.get("label"), described("resources", data["resources"]), list(data["vars"])))
    session.out.table(columns, rows, empty="No templates. Add one with `fleet template add FILE`.")


app.command("list")(with_session(list_templates))


@app.callback(invoke_without_command=True, help="Templates: processes with variables.")
@with_session
def without_command(session: Session, context: typer.Context) -> None:
    """List them when no command is given."""
    if context.invoked_subcommand is None:
        list_templates(session)


@app.command()
@with_session
def show(
    session: Session, name: Annotated[str, typer.Argument(metavar="TEMPLATE", autocompletion=completion.templates)]
) -> None:
    """Show one template.

    Values of secrets are hidden; `fleet template export` has them.
    """
    data = declarations.public_template(_one(session, name))
    if session.as_json:
        session.out.data({"template": data})
        return
    session.out.pairs(
        {
            "Template": data["id"],
            "Label": data.get("label"),
            "Command": data["command"],
            "Resources": described("resources", data["resources"]),
            "Variables": [
                f"{key}={'(must be given)' if value is None else value}" for key, value in data["vars"].items()
            ],
            **{
                key.capitalize().replace("_", " "): described(key, value)
                for key, value in data.items()
                if key not in ("id", "label", "command", "resources", "vars")
            },
        }
    )


@app.command()
@with_session
def add(
    session: Session,
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="JSON or YAML; - reads standard input.")],
) -> None:
    """Add templates from files, or replace those of the same id."""
    items = [item for file in files for item in read(file)]
    plan = declarations.plan_templates(session.store, items)
    plan.apply(session.store)
    if session.as_json:
        session.out.data({"change": plan.change.to_dict(), "templates": [item["id"] for item in items]})
        return
    verbs = {action.split()[-1]: action.split()[0] for action in plan.change.actions}
    words = {"create": "Added", "update": "Replaced"}
    for item in items:
        verb = verbs.get(item["id"])
        session.out.line(f"{words[verb]} template {item['id']}" if verb else f"Template {item['id']} is unchanged")


def read(file: str) -> list[dict[str, Any]]:
    """Return the templates in a JSON or YAML file: one, a list, or a mapping of ids."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except OSError as error:
        kind = NotFound if isinstance(error, FileNotFoundError) else InvalidInput
        raise kind(f"template file {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"template file {file}: expected UTF-8 text") from None
    data = _parsed(file, text)
    if isinstance(data, Mapping) and "command" not in data and "id" not in data:
        inner = data.get("templates", data)
        if isinstance(inner, Mapping) and all(isinstance(item, Mapping) for item in inner.values()):
            return [{"id": name, **item} for name, item in inner.items()]
        data = inner
    if isinstance(data, Mapping):
        default = {} if file == "-" else {"id": Path(file).stem}
        return [{**default, **data}]
    if isinstance(data, list) and all(isinstance(item, Mapping) for item in data):
        return [dict(item) for item in data]
    raise InvalidInput(f"template file {file}: expected a template with id and command, found {describe(data)}")


def _parsed(file: str, text: str) -> Any:
    if text.lstrip().startswith(("{", "[")):
        try:
            return json.loads(text)
        except ValueError as error:
            if file.endswith(".json"):
                raise InvalidInput(f"template file {file}: {error}") from None
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidInput(f"template file {file}: {' '.join(str(error).split())}") from None


@app.command()
@with_session
def remove(session: Session, names: Ids) -> None:
    """Remove templates. Processes that were made from them stay as they are."""
    for name in names:
        _one(session, name)
    plan = declarations.plan_templates(session.store, [{"id": name} for name in names], present=False)
    plan.apply(session.store)
    if session.as_json:
        session.out.data({"change": plan.change.to_dict()})
        return
    for name in names:
        session.out.line(f"Removed template {name}")


@app.command()
@with_session
def export(
    session: Session,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[TEMPLATE]...", autocompletion=completion.templates)
    ] = None,
    file: Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="Write there, with mode 0600.")] = "",
) -> None:
    """Write templates as JSON that `fleet template add` reads, secrets included."""
    found = (
        [_one(session, name) for name in names]
        if names
        else [item.to_dict() for item in session.store.templates().values()]
    )
    text = json.dumps(found[0] if names and len(found) == 1 else found, indent=2, ensure_ascii=False)
    if not file:
        print(text)
        return
    write_private(Path(file), f"{text}\n")
    session.out.note(f"Wrote {len(found)} templates to {file}")


def write_private(path: Path, text: str) -> None:
    """Replace a file with text that only its owner may read."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
            out.write(text)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise InvalidInput(f"{path}: cannot be written: {error.strerror}") from None


def _one(session: Session, name: str) -> dict[str, Any]:
    item = session.store.template(name)
    if item is None:
        raise NotFound(f'template "{name}": not defined{nearest(name, session.store.templates())}')
    return item.to_dict()
