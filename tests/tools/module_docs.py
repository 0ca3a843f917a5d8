# SPDX-License-Identifier: GPL-3.0-or-later
"""Write a Markdown page for every module, plugin and role from its own documentation, and one of the life cycle.

``make docs`` writes them; ``--check`` only says which are out of date, and is part of ``make lint`` and the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fleet_core import lifecycle

REPOSITORY = Path(__file__).resolve().parents[2]
COLLECTION = "autovibe.fleet"
# What ansible-doc calls it, and where its pages go.
KINDS = {"module": "modules", "inventory": "plugins", "lookup": "plugins", "filter": "plugins", "role": "roles"}

Doc = Mapping[str, Any]


# -- markup -------------------------------------------------------------------------------------------------------


def markdown(text: str) -> str:
    """Ansible's semantic markup as Markdown: https://docs.ansible.com/ansible/latest/dev_guide/ansible_markup.html"""

    def code(match: re.Match[str]) -> str:
        content = match["code"].replace("\\)", ")").replace("\\\\", "\\")
        content = re.sub(r"^[a-z0-9_.]+#[a-z]+:(?:[a-z]+:)?", "", content)  # O(ns.col.name#module:option)
        return f"`{content}`"

    text = re.sub(r"\b(?:C|O|V|RV|E)\((?P<code>(?:\\.|[^)\\])*)\)", code, text)
    text = re.sub(r"\bL\((?P<text>[^,)]+),\s*(?P<url>[^)]+)\)", r"[\g<text>](\g<url>)", text)
    text = re.sub(r"\bR\((?P<text>[^,)]+),[^)]*\)", r"\g<text>", text)
    text = re.sub(r"\bU\((?P<url>[^)]+)\)", r"<\g<url>>", text)
    text = re.sub(r"\bM\((?P<name>[^)]+)\)", lambda match: link(match["name"], "module"), text)
    text = re.sub(r"\bP\((?P<name>[^)#]+)#(?P<kind>[^)]+)\)", lambda match: link(match["name"], match["kind"]), text)
    text = re.sub(r"\bB\(([^)]+)\)", r"**\1**", text)
    text = re.sub(r"\bI\(([^)]+)\)", r"*\1*", text)
    return text.replace("HORIZONTALLINE", "\n\n---\n\n")


def link(name: str, kind: str) -> str:
    if not name.startswith(f"{COLLECTION}.") or kind not in KINDS:
        return f"`{name}`"
    return f"[{name}](../{page_path(kind, name).as_posix()})"


def page_path(kind: str, name: str) -> Path:
    """Where a page is, seen from docs/."""
    short = name.removeprefix(f"{COLLECTION}.")
    return Path(KINDS[kind], f"{short}_{kind}.md" if KINDS[kind] == "plugins" else f"{short}.md")


def sentences(text: str | list[str] | None) -> list[str]:
    return [markdown(item).strip() for item in ([text] if isinstance(text, str) else text or [])]


def literal(value: Any) -> str:
    return f"`{value if isinstance(value, str) and value else json.dumps(value)}`"


# -- parts of a page ----------------------------------------------------------------------------------------------


def type_of(option: Doc) -> str:
    kind = option.get("type", "str")
    return f"list of {option['elements']}" if kind == "list" and option.get("elements") else str(kind)


def choices(option: Doc) -> Iterator[str]:
    found = option.get("choices")
    if isinstance(found, Mapping):
        yield "Choices:"
        for value, meaning in found.items():
            yield f"  - {literal(value)}: {' '.join(sentences(meaning))}"
    elif found:
        yield f"Choices: {', '.join(literal(value) for value in found)}."


def options(found: Mapping[str, Doc], indent: int = 0) -> Iterator[str]:
    """A list item for an option (or a returned value), its own suboptions below it."""
    for name, option in sorted(found.items(), key=lambda item: (not item[1].get("required", False), item[0])):
        facts = [type_of(option)]
        if option.get("required"):
            facts.append("**required**")
        if option.get("default") is not None:
            facts.append(f"default {literal(option['default'])}")
        if option.get("aliases"):
            facts.append(f"alias {', '.join(literal(alias) for alias in option['aliases'])}")
        if option.get("returned"):
            facts.append(f"returned: {markdown(option['returned'])}")
        if option.get("version_added"):
            facts.append(f"since {option['version_added']}")
        yield " " * indent + f"- **`{name}`** ({', '.join(facts)})"
        margin = " " * (indent + 2)
        for line in sentences(option.get("description")):
            yield ""
            yield margin + line
        yield ""
        yield from (margin + line for line in choices(option))
        if option.get("sample") is not None:
            yield ""
            yield margin + f"Sample: `{json.dumps(option['sample'], default=str)}`"
        inner = option.get("suboptions") or option.get("options") or option.get("contains")
        if inner:
            yield ""
            yield from options(inner, indent + 2)
        yield ""


def attributes(found: Mapping[str, Doc]) -> Iterator[str]:
    yield "| attribute | support | what it means |"
    yield "|---|---|---|"
    for name, attribute in sorted(found.items()):
        meaning = sentences(attribute.get("description")) + sentences(attribute.get("details"))
        support = attribute.get("support") or attribute.get("membership") or attribute.get("platforms") or ""
        shown = ", ".join(support) if isinstance(support, list) else support
        yield f"| `{name}` | {shown} | {' '.join(meaning)} |"
    yield ""


def see_also(found: list[Doc]) -> Iterator[str]:
    for item in found:
        description = " ".join(sentences(item.get("description")))
        if "module" in item:
            target = link(item["module"], "module")
        elif "plugin" in item:
            target = link(item["plugin"], item.get("plugin_type", "lookup"))
        elif "link" in item:
            target = f"[{item['name']}]({item['link']})"
        else:
            target = item.get("ref", "")
        yield f"- {target}{': ' + description if description else ''}"
    yield ""


def code_block(text: str, language: str = "yaml") -> Iterator[str]:
    yield f"```{language}"
    yield text.strip("\n")
    yield "```"
    yield ""


def plugin_page(kind: str, name: str, data: Doc) -> Iterator[str]:
    doc = data["doc"]
    title = name if kind == "module" else f"{name} ({kind})"
    yield f"# {title}"
    yield ""
    yield f"{markdown(doc['short_description']).rstrip('.')}. Since {doc.get('version_added', '0.1.0')}."
    yield ""
    for line in sentences(doc["description"]):
        yield f"- {line}"
    yield ""
    if doc.get("requirements"):
        yield "## Requirements"
        yield ""
        yield from (f"- {line}" for line in sentences(doc["requirements"]))
        yield ""
    if doc.get("options"):
        yield "## Parameters"
        yield ""
        yield from options(doc["options"])
    if doc.get("attributes"):
        yield "## Attributes"
        yield ""
        yield from attributes(doc["attributes"])
    if doc.get("notes"):
        yield "## Notes"
        yield ""
        yield from (f"- {line}" for line in sentences(doc["notes"]))
        yield ""
    if data.get("examples"):
        yield "## Examples"
        yield ""
        yield from code_block(re.sub(r"^---\n", "", data["examples"].lstrip("\n")))
    if data.get("return"):
        yield "## Return values"
        yield ""
        yield from options(data["return"])
    if doc.get("seealso"):
        yield "## See also"
        yield ""
        yield from see_also(doc["seealso"])


def role_page(name: str, data: Doc) -> Iterator[str]:
    yield f"# {name} (role)"
    yield ""
    for entry, spec in sorted(data["entry_points"].items(), key=lambda item: item[0] != "main"):
        if entry != "main":
            yield f"## Entry point `{entry}`"
            yield ""
        yield f"{markdown(spec.get('short_description', '')).rstrip('.')}."
        yield ""
        for line in sentences(spec.get("description")):
            yield f"- {line}"
        yield ""
        if spec.get("options"):
            yield "## Variables" if entry == "main" else "### Variables"
            yield ""
            yield from options(spec["options"])


# -- all pages ----------------------------------------------------------------------------------------------------


def ansible_doc(kind: str, names: list[str]) -> dict[str, Any]:
    program = Path(sys.executable).with_name("ansible-doc")
    environment = {**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(
        [str(program), "--json", "--type", kind, *names],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"ansible-doc --type {kind}: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def names_of(kind: str) -> list[str]:
    if kind == "role":
        specs = sorted(REPOSITORY.glob("roles/*/meta/argument_specs.yml"))
        return [f"{COLLECTION}.{spec.parents[1].name}" for spec in specs]
    folder = REPOSITORY / "plugins" / ("modules" if kind == "module" else kind)
    names: set[str] = set()
    for file in (*folder.glob("*.py"), *folder.glob("*.yml")):
        if file.stem.startswith("_"):
            continue
        names.update(filters_in(file) if kind == "filter" else {file.stem})
    return [f"{COLLECTION}.{name}" for name in sorted(names)]


def filters_in(file: Path) -> set[str]:
    """One Python file may hold several filters; those are documented in a YAML file each."""
    if file.suffix == ".yml" or "DOCUMENTATION" in file.read_text(encoding="utf-8"):
        return {file.stem}
    return set()


def pages() -> dict[Path, str]:
    """Every generated page by its path below docs/."""
    found: dict[Path, str] = {}
    index: dict[str, list[str]] = {}
    for kind in KINDS:
        names = names_of(kind)
        if not names:
            continue
        for name, data in sorted(ansible_doc(kind, names).items()):
            lines = role_page(name, data) if kind == "role" else plugin_page(kind, name, data)
            path = page_path(kind, name)
            text = "\n".join(lines)
            found[path] = re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
            summary = data["entry_points"]["main"] if kind == "role" else data["doc"]
            short = markdown(summary.get("short_description", "")).rstrip(".")
            index.setdefault(KINDS[kind], []).append(f"| [{name}]({path.name}) | {short} |")
    for folder, rows in index.items():
        head = [f"# {folder.capitalize()}", "", "Written by `make docs` from their own documentation.", ""]
        found[Path(folder, "README.md")] = "\n".join([*head, "| name | what it does |", "|---|---|", *rows]) + "\n"
    found[Path("lifecycle.md")] = lifecycle_page()
    return found


def lifecycle_page() -> str:
    lines = [
        "# The life cycle of a process",
        "",
        "Written by `make docs` from the table in `plugins/module_utils/fleet_core/lifecycle.py`. An arrow is an",
        "event; behind the slash is what it makes fleetd do. An event that has no arrow is an error.",
        "",
        *code_block(lifecycle.diagram(), "mermaid"),
        "| state | event | next state | actions |",
        "|---|---|---|---|",
    ]
    for (state, event), (following, actions) in lifecycle.TABLE.items():
        lines.append(f"| {state} | `{event}` | {following} | {', '.join(actions)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a page is out of date")
    arguments = parser.parse_args()
    docs = REPOSITORY / "docs"
    wanted = pages()
    generated = [path for folder in set(KINDS.values()) for path in (docs / folder).glob("*.md")]
    generated += [path for path in [docs / "lifecycle.md"] if path.exists()]
    existing = {path.relative_to(docs): path.read_text(encoding="utf-8") for path in generated}
    stale = sorted(path for path in wanted.keys() | existing.keys() if wanted.get(path) != existing.get(path))
    if arguments.check:
        for path in stale:
            print(f"docs/{path}: out of date; run `make docs`")
        return 1 if stale else 0
    for path in stale:
        if path in wanted:
            (docs / path).parent.mkdir(exist_ok=True)
            (docs / path).write_text(wanted[path], encoding="utf-8")
        else:
            (docs / path).unlink()
        print(f"docs/{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
