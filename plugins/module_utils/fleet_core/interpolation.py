# SPDX-License-Identifier: GPL-3.0-or-later
"""The language of commands: ${variable}, %counter, %% for a percent sign and $${ for a literal ${.

%word counts only when word is a known counter type, so `date +%H` stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

from .errors import InvalidInput
from .names import nearest

_TOKEN = re.compile(r"\$\$\{|\$\{([^{}]*)\}|%%|%([A-Za-z_][A-Za-z0-9_]*)")
_NAME = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*\.)?[A-Za-z_][A-Za-z0-9_-]*")
_BARE = re.compile(r"\$\{([^{}]*)\}")
_DEPTH = 100
_PLAIN = re.compile(r"[A-Za-z0-9_./:@,+-]*")  # values that are data in any place of a shell text
_NESTING = re.compile(r"`|\$\(|<<|#|\$['\"]|\$\$\{")


def variables_in(text: str) -> tuple[str, ...]:
    """Return the names of the ${variables} in text, in order, each once."""
    return tuple(dict.fromkeys(token.group(1) for token in _TOKEN.finditer(text) if token.group(1) is not None))


def counters_in(text: str, counters: Collection[str]) -> tuple[str, ...]:
    """Return the counter types that text claims with %counter, in order, each once."""
    return tuple(dict.fromkeys(token.group(2) for token in _TOKEN.finditer(text) if token.group(2) in counters))


def resolve_variables(
    variables: Mapping[str, str], known: Mapping[str, str], where: str = "variables"
) -> dict[str, str]:
    """Return the variables with the ${references} between them replaced, and the known values.

    known: values that are final already, such as claimed resources. They win over variables of the same name.
    Raises InvalidInput that names an undefined variable or every member of a cycle.
    """
    done: dict[str, str] = dict(known)

    def value_of(name: str, path: tuple[str, ...]) -> str:
        if name in done:
            return done[name]
        if name in path:
            circle = " -> ".join((*path[path.index(name) :], name))
            raise InvalidInput(f"{where}: the variables refer to each other in a cycle: {circle}")
        if len(path) == _DEPTH:
            raise InvalidInput(f'{where}: variables refer to each other more than {_DEPTH} deep, from "{path[0]}" on')
        if name not in variables:
            user = f' (used by "{path[-1]}")' if path else ""
            raise InvalidInput(f'{where}: undefined variable "{name}"{user}{nearest(name, (*variables, *done))}')
        done[name] = _replace(variables[name], lambda other, _at: value_of(other, (*path, name)), {}, where)
        return done[name]

    for name in variables:
        value_of(name, ())
    return done


def interpolate(
    text: str, values: Mapping[str, str], counters: Mapping[str, str] | None = None, where: str = "text"
) -> str:
    """Return text with ${name} and %counter replaced, %% as a percent sign and $${ as ${.

    values: the variables. counters: claimed value of each counter type that text may name.
    Raises InvalidInput that names an undefined variable, with the nearest defined one.
    """
    return _replace(text, lambda name, _at: _look_up(name, values, where), counters or {}, where)


def interpolate_shell(
    text: str, values: Mapping[str, str], counters: Mapping[str, str] | None = None, where: str = "command"
) -> str:
    """Return shell text in which every replaced value is data, whatever characters it holds.

    The value is quoted as its place asks: bare, inside double quotes or inside single quotes (POSIX shell, 2.2).
    Where the text holds what makes that place uncertain, such as $( ), a here-document or a comment, the value comes
    in a shell variable instead: an expanded variable is never read as shell text again.
    """
    states = _quote_states(text)
    assigned: list[str] = []

    def quoted(name: str, at: int) -> str:
        value = _look_up(name, values, where)
        if _PLAIN.fullmatch(value) is None and _NESTING.search(text):
            assigned.append(f"fleet_{len(assigned) + 1}={_single_quoted(value)}")
            reference = f"${{fleet_{len(assigned)}}}"
            return {"": f'"{reference}"', '"': reference, "'": f"'\"{reference}\"'"}[states[at]]
        if states[at] == '"':
            return re.sub(r'([\\"$`])', r"\\\1", value)
        return _single_quoted(value) if not states[at] else value.replace("'", "'\\''")

    filled = _replace(text, quoted, counters or {}, where)
    return f"{' '.join(assigned)}; {filled}" if assigned else filled


def _single_quoted(value: str) -> str:
    escaped = value.replace("'", "'\\''")
    return f"'{escaped}'"


def split_command(
    text: str,
    values: Mapping[str, str],
    counters: Mapping[str, str] | None = None,
    whole: Collection[str] = (),
    where: str = "command",
) -> tuple[str, ...]:
    """Return the argument vector of a command that runs without a shell.

    Words are split before values go in, so a value with spaces stays one argument. As in a shell, a word that is
    nothing but an unquoted ${name} may become several arguments, or none; names in whole (claimed resources) never do.
    """
    words: list[str] = []
    for word, bare in _words(text, where):
        alone = _BARE.fullmatch(word) if bare else None
        if alone is not None and alone.group(1) not in whole:
            value = _look_up(alone.group(1), values, where)
            words.extend(part for part, _bare in _words(value, f"{where}: variable {alone.group(1)!r}"))
        else:
            words.append(interpolate(word, values, counters, where))
    if not words:
        raise InvalidInput(f"{where}: expected a program, found nothing")
    return tuple(words)


def _look_up(name: str, values: Mapping[str, str], where: str) -> str:
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{where}: ${{{name}}} is not a variable: expected ${{name}} or ${{process.name}}")
    if name not in values:
        raise InvalidInput(f'{where}: undefined variable "{name}"{nearest(name, values)}')
    return values[name]


def _replace(text: str, value_of: Callable[[str, int], str], counters: Mapping[str, str], where: str) -> str:
    def token(found: re.Match[str]) -> str:
        whole = found.group(0)
        if whole in ("%%", "$${"):
            return whole[1:]
        if found.group(1) is not None:
            return str(value_of(found.group(1), found.start()))
        return counters.get(found.group(2), whole)

    return _TOKEN.sub(token, text)


def _quote_states(text: str) -> list[str]:
    """Return for each position the quote it stands in: an empty string, a single or a double quote."""
    states, state, escaped = [], "", False
    for character in text:
        states.append(state)
        if escaped:
            escaped = False
        elif character == "\\" and state != "'":
            escaped = True
        elif character in "'\"" and state in ("", character):
            state = "" if state else character
    return states


def _words(text: str, where: str) -> list[tuple[str, bool]]:
    """Return (word, bare) pairs, quotes removed as POSIX shells do; bare words held no quote or backslash."""
    words: list[tuple[str, bool]] = []
    current: list[str] = []
    state, bare, started = "", True, False
    position = 0
    while position < len(text):
        character = text[position]
        position += 1
        if state == "'" or (state == '"' and character != "\\"):
            if character == state:
                state = ""
            else:
                current.append(character)
        elif character == "\\":
            following = text[position : position + 1]
            if not following:
                raise InvalidInput(f"{where}: nothing follows the last backslash")
            if state == '"' and following not in '\\"$`\n':
                current.append(character)
            elif following == "\n":
                following = ""
            current.append(following)
            position += 1
            bare, started = False, True
        elif character in "'\"":
            state, bare, started = character, False, True
        elif character in " \t\r\n":
            if started:
                words.append(("".join(current), bare))
            current, bare, started = [], True, False
        else:
            current.append(character)
            started = True
    if state:
        raise InvalidInput(f"{where}: a {state} quote is not closed")
    if started:
        words.append(("".join(current), bare))
    return words
