# SPDX-License-Identifier: GPL-3.0-or-later
"""YAML read strictly: a key that stands twice is an error, and errors are one sentence with line and column."""

from __future__ import annotations

from typing import Any

import yaml

from fleet_core.errors import InvalidInput


class _Loader(yaml.SafeLoader):
    """The safe loader, without keys that stand twice. Not libyaml's, which a deep text makes crash."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key, _value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f'key "{key.value}" stands twice', key.start_mark
                    )
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def documents(text: str) -> list[Any]:
    """Return the documents of a YAML text, empty ones left out. Raises InvalidInput."""
    try:
        return [data for data in yaml.load_all(text, Loader=_Loader) if data is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = " ".join(part for part in (error.context, error.problem) if part)
        raise InvalidInput(f"{where}{' '.join(problem.split())}") from None
    except yaml.YAMLError as error:
        raise InvalidInput(f"expected YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InvalidInput("expected YAML that is less deep") from None
    except (ValueError, OverflowError, TypeError) as error:  # of a date or a number that Python cannot hold
        raise InvalidInput(f"expected YAML: {' '.join(str(error).split())}") from None


def dump(value: Any) -> str:
    """Return YAML for people: keys in their order, texts of many lines as blocks."""
    return str(
        yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, default_flow_style=False)
    )


class _Dumper(yaml.SafeDumper):
    """Writes texts of many lines as blocks, and lists indented below their key."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        return super().increase_indent(flow, False)


def _text(dumper: Any, text: str) -> Any:
    style = "|" if "\n" in text and not any(line.endswith(" ") for line in text.split("\n")) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
