# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of things, and what to say when one is wrong."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import InvalidInput

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def check_name(kind: str, name: object) -> str:
    """Return the name if it fits NAME, else raise InvalidInput."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        shown = repr(name) if name is None or isinstance(name, str) else describe(name)
        raise InvalidInput(
            f"{kind} name {shown}: expected a letter or digit, then at most 62 letters, digits, '.', '_' or '-'"
        )
    return name


def check_process_id(name: object) -> str:
    """Return a process id, NAME or ENVIRONMENT/NAME, if it is well formed."""
    parts = name.split("/") if isinstance(name, str) else []
    if not 1 <= len(parts) <= 2 or not all(NAME.fullmatch(part) for part in parts):
        raise InvalidInput(f"process {name!r}: expected NAME or ENVIRONMENT/NAME of letters, digits, '.', '_' and '-'")
    return str(name)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ', did you mean "x"?' for the closest known word, else one that the word begins, or an empty string."""
    known = list(known)
    found = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    if not found and len(str(word)) > 2:
        found = sorted((other for other in known if other.startswith(str(word))), key=len)[:1]
    return f', did you mean "{found[0]}"?' if found else ""


def check_keys(where: str, data: object, known: Iterable[str]) -> Mapping[str, Any]:
    """Return data if it is a mapping with known keys only; the error names the key and the nearest known one."""
    known = list(known)
    if not isinstance(data, Mapping):
        raise InvalidInput(f"{where}: expected a mapping, found {describe(data)}")
    for key in data:
        if key not in known:
            shown = key if isinstance(key, str) and key.isprintable() else describe(key)
            hint = nearest(shown, known) or f"; known keys: {', '.join(sorted(known))}"
            raise InvalidInput(f'{where}: unknown key "{shown}"{hint}')
    return data


def describe(value: object) -> str:
    """Return a short description of a value's type and content for an error message."""
    if value is None:
        return "nothing"
    try:
        text = repr(value)
    except ValueError:  # Python writes whole numbers of up to 4300 digits
        text = "of too many digits"
    except RecursionError:
        text = "that is too deep"
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def as_text(where: str, value: object) -> str:
    """Return a string; whole numbers are taken as their digits, booleans and the rest are errors."""
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):  # too many digits
            return str(value)
    raise InvalidInput(f"{where}: expected text, found {describe(value)}")


def as_text_map(where: str, value: object) -> dict[str, str]:
    """Return a mapping of text to text (numbers and booleans become text)."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{where}: expected a mapping of names to text, found {describe(value)}")
    result = {}
    for key, item in value.items():
        if isinstance(item, bool):
            item = "true" if item else "false"
        result[as_text(where, key)] = as_text(f"{where}.{key}", item)
    return result


def as_bool(where: str, value: object) -> bool:
    """Return a boolean; the words true, yes, on, 1 and their opposites are understood."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in ("true", "yes", "on", "1"):
        return True
    if word in ("false", "no", "off", "0"):
        return False
    raise InvalidInput(f"{where}: expected true or false, found {describe(value)}")


def as_int(where: str, value: object, low: int, high: int) -> int:
    """Return a whole number between low and high, both included."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise InvalidInput(f"{where}: expected a whole number, found {describe(value)}")
    try:
        number = int(value)
    except ValueError:
        raise InvalidInput(f"{where}: expected a whole number, found {describe(value)}") from None
    if not low <= number <= high:
        raise InvalidInput(f"{where}: expected a number from {low} to {high}, found {number}")
    return number
