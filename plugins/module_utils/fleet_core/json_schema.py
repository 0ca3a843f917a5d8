# SPDX-License-Identifier: GPL-3.0-or-later
"""JSON Schema as cloud-init uses it (drafts 4 to 7), with errors that are sentences.

A subset: `format`, remote references and annotations count for nothing. KEYWORDS are those that are understood.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from .names import describe, nearest

Path = tuple[Union[str, int], ...]
KEYWORDS = frozenset(
    (
        *("$ref", "type", "enum", "const", "allOf", "anyOf", "oneOf", "not", "properties", "patternProperties"),
        *("additionalProperties", "required", "minProperties", "maxProperties", "items", "additionalItems"),
        *("minItems", "maxItems", "uniqueItems", "minimum", "maximum", "pattern", "minLength", "maxLength"),
    )
)
_WORDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "nothing",
}


@dataclass(frozen=True)
class Problem:
    """path: keys and indices from the root to what is wrong; an unknown key is its last part. text: what is wrong."""

    path: Path
    text: str
    is_type: bool = False


def name_of(path: Path) -> str:
    """Return a path as people write it: users[0].name."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def problems(schema: Mapping[str, Any], value: Any) -> list[Problem]:
    """Return what is wrong with a value, in the order of the schema; nothing if it is valid."""
    return list(_Check(schema).problems(schema, value, ()))


class _Check:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self.root = root

    def problems(self, schema: Any, value: Any, path: Path) -> Iterator[Problem]:
        if schema is True or schema is False:
            if not schema:
                yield Problem(path, f"expected nothing, found {describe(value)}")
            return
        reference = schema.get("$ref")
        if reference is not None:  # what stands beside it does not count in these drafts
            yield from self.problems(self._resolve(reference), value, path)
            return
        wanted = schema.get("type")
        if wanted is not None:
            kinds = [wanted] if isinstance(wanted, str) else wanted
            if not any(_is(kind, value) for kind in kinds):
                yield Problem(path, f"expected {_any_of(kinds)}, found {describe(value)}", is_type=True)
                return
        yield from self._plain(schema, value, path)
        if isinstance(value, Mapping):
            yield from self._mapping(schema, value, path)
        elif isinstance(value, (list, tuple)):
            yield from self._list(schema, value, path)
        for part in schema.get("allOf", ()):
            yield from self.problems(part, value, path)
        for key in ("anyOf", "oneOf"):
            if key in schema:
                yield from self._choice(schema[key], key == "oneOf", value, path)
        if "not" in schema and not list(self.problems(schema["not"], value, path)):
            yield Problem(path, f"not allowed here: {describe(value)}")

    def _resolve(self, reference: str) -> Any:
        found: Any = self.root
        for part in reference.lstrip("#").split("/"):
            found = found[part.replace("~1", "/").replace("~0", "~")] if part else found
        return found

    def _plain(self, schema: Mapping[str, Any], value: Any, path: Path) -> Iterator[Problem]:
        if "enum" in schema and not any(_same(value, option) for option in schema["enum"]):
            shown = ", ".join(_shown(option) for option in schema["enum"])
            hint = nearest(value, [str(option) for option in schema["enum"]]) if isinstance(value, str) else ""
            yield Problem(path, f"expected {shown}, found {describe(value)}{hint}")
        if "const" in schema and not _same(value, schema["const"]):
            yield Problem(path, f"expected {_shown(schema['const'])}, found {describe(value)}")
        if isinstance(value, str):
            if "pattern" in schema and not re.search(schema["pattern"], value):
                yield Problem(path, f"expected text that fits {schema['pattern']}, found {describe(value)}")
            yield from _bounds(schema, "Length", "characters", len(value), path)
        if _is("number", value):
            low, high = schema.get("minimum"), schema.get("maximum")
            if low is not None and value < low:
                yield Problem(path, f"expected {low} or more, found {value}")
            if high is not None and value > high:
                yield Problem(path, f"expected {high} or less, found {value}")

    def _mapping(self, schema: Mapping[str, Any], value: Mapping[Any, Any], path: Path) -> Iterator[Problem]:
        known = schema.get("properties", {})
        patterns = schema.get("patternProperties", {})
        rest = schema.get("additionalProperties", True)
        for key, item in value.items():
            here = (*path, key if isinstance(key, int) and not isinstance(key, bool) else str(key))
            if key in known:
                yield from self.problems(known[key], item, here)
            fitting = [part for pattern, part in patterns.items() if re.search(pattern, str(key))]
            for part in fitting:
                yield from self.problems(part, item, here)
            if key in known or fitting:
                continue
            if rest is False:
                hint = nearest(str(key), known)
                if not hint and 0 < len(known) <= 12:
                    hint = f"; known keys: {', '.join(sorted(known))}"
                yield Problem(here, f'unknown key "{key}"{hint}')
            elif isinstance(rest, Mapping):
                yield from self.problems(rest, item, here)
        for key in schema.get("required", ()):
            if key not in value:
                yield Problem(path, f'the key "{key}" is missing')
        yield from _bounds(schema, "Properties", "keys", len(value), path)

    def _list(self, schema: Mapping[str, Any], value: Sequence[Any], path: Path) -> Iterator[Problem]:
        items = schema.get("items")
        for number, item in enumerate(value):
            if isinstance(items, list):
                part = items[number] if number < len(items) else schema.get("additionalItems", True)
            else:
                part = True if items is None else items
            yield from self.problems(part, item, (*path, number))
        yield from _bounds(schema, "Items", "items", len(value), path)
        if schema.get("uniqueItems"):
            for number, item in enumerate(value):
                if any(_same(item, other) for other in value[:number]):
                    yield Problem((*path, number), f"{describe(item)} is there twice")
                    break

    def _choice(self, options: Sequence[Any], one: bool, value: Any, path: Path) -> Iterator[Problem]:
        found = [list(self.problems(option, value, path)) for option in options]
        fitting = sum(1 for wrong in found if not wrong)
        if fitting == 1 or (fitting and not one):
            return
        if fitting:
            yield Problem(path, f"fits {fitting} forms of which it may have one: {describe(value)}")
            return
        # The form that was meant has the right type; what is wrong lies inside, and there is least of it.
        meant = [wrong for wrong in found if not any(item.is_type and item.path == path for item in wrong)]
        if meant:
            yield from min(meant, key=lambda wrong: (len(wrong), -max(len(item.path) for item in wrong)))
            return
        kinds = [kind for option in options for kind in self._kinds(option)]
        yield Problem(path, f"expected {_any_of(kinds)}, found {describe(value)}", is_type=True)

    def _kinds(self, schema: Any) -> list[str]:
        if not isinstance(schema, Mapping):
            return []
        if "$ref" in schema:
            return self._kinds(self._resolve(schema["$ref"]))
        wanted = schema.get("type", [])
        kinds = [wanted] if isinstance(wanted, str) else list(wanted)
        return kinds + [
            kind for key in ("anyOf", "oneOf") for part in schema.get(key, ()) for kind in self._kinds(part)
        ]


def _is(kind: str, value: Any) -> bool:
    if kind == "null":
        return value is None
    if kind == "boolean":
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if kind == "integer":
        return isinstance(value, int)
    if kind == "number":
        return isinstance(value, (int, float))
    if kind == "string":
        return isinstance(value, str)
    return isinstance(value, Mapping) if kind == "object" else isinstance(value, (list, tuple))


def _same(one: Any, other: Any) -> bool:
    """Equality in which true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _shown(option: Any) -> str:
    if isinstance(option, bool) or option is None:
        return {True: "true", False: "false", None: "null"}[option]
    return f'"{option}"' if isinstance(option, str) else str(option)


def _any_of(kinds: Sequence[str]) -> str:
    words = list(dict.fromkeys(_WORDS.get(kind, kind) for kind in kinds)) or ["something else"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _bounds(schema: Mapping[str, Any], suffix: str, noun: str, count: int, path: Path) -> Iterator[Problem]:
    low, high = schema.get(f"min{suffix}"), schema.get(f"max{suffix}")
    if low is not None and count < low:
        yield Problem(path, f"expected {low} or more {noun}, found {count}")
    if high is not None and count > high:
        yield Problem(path, f"expected {high} or fewer {noun}, found {count}")
