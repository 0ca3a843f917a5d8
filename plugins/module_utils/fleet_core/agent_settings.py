# SPDX-License-Identifier: GPL-3.0-or-later
"""How an agent is run: limits, pauses, verification, workspace, schedule and the options of its runner.

Every value has a reader that takes plain data and names the key that is wrong.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from .errors import InvalidInput
from .names import as_int, as_text, as_text_map, check_keys, describe, nearest
from .processes import hide, is_secret
from .quantities import parse_duration
from .schedules import parse_cron

WORKSPACES = ("folder", "worktree", "clone")
WATCHDOG_ACTIONS = ("report", "stop")
_MOST = 10**9
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|[^/:]+:")
_COUNT = re.compile(r"\d+|true|false", re.IGNORECASE)
_COUNTED = re.compile(r"tokens$|token_(limit|budget|count)$|^(no|max|min)_.*token", re.IGNORECASE)


@dataclass(frozen=True)
class RunLimits:
    """What ends a run; 0 means no limit. duration, iteration_timeout: seconds. cost: USD.

    iterations, tokens: of the whole run. turns: of one iteration, counted by the runner.
    """

    iterations: int = 0
    duration: float = 0.0
    cost: float = 0.0
    tokens: int = 0
    turns: int = 0
    iteration_timeout: float = 3600.0


@dataclass(frozen=True)
class Backoff:
    """Seconds before the next attempt after a failed iteration: doubled each time, up to max_delay.

    jitter: the part of a delay, 0 to 1, that is drawn by chance.
    """

    delay: float = 5.0
    max_delay: float = 300.0
    jitter: float = 0.2


@dataclass(frozen=True)
class CircuitBreaker:
    """failures in a row open it (0: never); it waits pause seconds and tries once. trips openings fail the run."""

    failures: int = 3
    pause: float = 300.0
    trips: int = 3


@dataclass(frozen=True)
class Completion:
    """phrase: what the agent writes when all is done."""

    phrase: str = ""


@dataclass(frozen=True)
class Verification:
    """command: shell text that the fleet runs in the workspace; exit code 0 means done. timeout: seconds."""

    command: str = ""
    timeout: float = 600.0


@dataclass(frozen=True)
class Watchdog:
    """What counts as no progress; 0 means not watched.

    commits: iterations without a new commit. repeats: the same tool call in a row. silence: seconds without output.
    action: report, or stop the run.
    """

    commits: int = 0
    repeats: int = 0
    silence: float = 0.0
    action: str = "report"


@dataclass(frozen=True)
class Workspace:
    """Where the agent works: a folder, or a git worktree or clone of repository made for each run.

    path: the folder, or where the worktree or clone is made; empty: a folder of the fleet's own.
    base: the commit to begin from, by default the repository's HEAD. branch: by default agent/NAME/run-N.
    """

    kind: str = "folder"
    path: str = ""
    repository: str = ""
    base: str = ""
    branch: str = ""


@dataclass(frozen=True)
class Schedule:
    """When runs begin by themselves. cron: five fields. every: seconds between the beginnings."""

    cron: str = ""
    every: float = 0.0


@dataclass(frozen=True)
class RunnerOptions:
    """What is passed to the runner. executable: a path or a name. arguments: further ones. config: its own settings."""

    executable: str = ""
    permission_mode: str = ""
    system_prompt: str = ""
    arguments: tuple[str, ...] = ()
    config: Mapping[str, str] = field(default_factory=dict)


def keys_of(kind: Any) -> tuple[str, ...]:
    """Return the names of the fields of one of these values."""
    return tuple(part.name for part in fields(kind))


def changed_fields(value: Any) -> dict[str, Any]:
    """Return the fields of a value that differ from their defaults, as plain data."""
    found = {}
    for part in fields(value):
        default = part.default_factory() if part.default_factory is not MISSING else part.default
        given = getattr(value, part.name)
        if given != default:
            found[part.name] = plain(given)
    return found


def plain(value: Any) -> Any:
    """Return JSON-ready data; whole numbers without a fraction, so that equal values look equal."""
    if isinstance(value, float) and value == int(value):
        return int(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


def run_limits(where: str, data: object) -> RunLimits:
    """Return the limits of a run from a mapping."""
    given = _mapping(where, data, RunLimits)
    return RunLimits(
        iterations=_count(where, given, "iterations", 0),
        duration=_seconds(where, given, "duration", 0.0),
        cost=_number(where, given, "cost", 0.0),
        tokens=_count(where, given, "tokens", 0, 2**53),
        turns=_count(where, given, "turns", 0),
        iteration_timeout=_seconds(where, given, "iteration_timeout", RunLimits.iteration_timeout),
    )


def backoff(where: str, data: object) -> Backoff:
    """Return the pauses after failures from a mapping."""
    given = _mapping(where, data, Backoff)
    delay = _seconds(where, given, "delay", Backoff.delay)
    longest = _seconds(where, given, "max_delay", max(delay, Backoff.max_delay))
    if longest < delay:
        raise InvalidInput(f"{where}: expected a max_delay of at least the delay, {delay:g} s, found {longest:g} s")
    return Backoff(delay, longest, _number(where, given, "jitter", Backoff.jitter, 1.0))


def circuit_breaker(where: str, data: object) -> CircuitBreaker:
    """Return the circuit breaker from a mapping."""
    given = _mapping(where, data, CircuitBreaker)
    trips = _count(where, given, "trips", CircuitBreaker.trips)
    failures = _count(where, given, "failures", CircuitBreaker.failures)
    return CircuitBreaker(failures, _seconds(where, given, "pause", CircuitBreaker.pause), trips)


def completion(where: str, data: object) -> Completion:
    """Return the completion from its phrase, or from a mapping."""
    given = _mapping(where, {"phrase": data} if isinstance(data, str) else data, Completion)
    return Completion(line(f"{where}: phrase", given.get("phrase")))


def verification(where: str, data: object) -> Verification:
    """Return the verification from its command, or from a mapping."""
    given = _mapping(where, {"command": data} if isinstance(data, str) else data, Verification)
    command = without_password(f"{where}: command", text(f"{where}: command", given.get("command")).strip())
    return Verification(command, _seconds(where, given, "timeout", Verification.timeout))


def watchdog(where: str, data: object) -> Watchdog:
    """Return the watchdog from a mapping."""
    given = _mapping(where, data, Watchdog)
    return Watchdog(
        commits=_count(where, given, "commits", 0),
        repeats=_count(where, given, "repeats", 0),
        silence=_seconds(where, given, "silence", 0.0),
        action=one_of(f"{where}: action", given.get("action"), WATCHDOG_ACTIONS),
    )


def workspace(where: str, data: object, folder: str = "") -> Workspace:
    """Return the workspace from a mapping. folder: what relative paths are relative to."""
    given = _mapping(where, data, Workspace)
    kind = one_of(f"{where}: kind", given.get("kind"), WORKSPACES)
    texts = {key: line(f"{where}: {key}", given.get(key)) for key in ("path", "repository", "base", "branch")}
    if kind == "folder":
        for key in ("repository", "base", "branch"):
            if texts[key]:
                raise InvalidInput(f'{where}: {key}: expected kind "worktree" or "clone" beside it, found "folder"')
    elif not texts["repository"]:
        raise InvalidInput(f'{where}: expected a repository for kind "{kind}", found nothing')
    for key in ("repository", "base", "branch"):
        if texts[key].startswith("-"):
            raise InvalidInput(f'{where}: {key}: expected no "-" at the beginning, found "{texts[key]}"')
    for key in ("base", "branch"):
        if re.search(r"\s", texts[key]):
            raise InvalidInput(f'{where}: {key}: expected a name without spaces, found "{texts[key]}"')
    without_password(f"{where}: repository", texts["repository"])
    if texts["repository"] and not _REMOTE.match(texts["repository"]):
        texts["repository"] = anchored(f"{where}: repository", texts["repository"], folder)
    elif kind == "worktree" and texts["repository"]:
        raise InvalidInput(
            f'{where}: repository: expected a folder on this host for kind "worktree", found "{texts["repository"]}"'
        )
    texts["path"] = anchored(f"{where}: path", texts["path"], folder)
    return Workspace(kind=kind, **texts)


def schedule(where: str, data: object) -> Schedule:
    """Return the schedule from a mapping with cron or every."""
    given = _mapping(where, data, Schedule)
    cron, every = line(f"{where}: cron", given.get("cron")), _seconds(where, given, "every", 0.0)
    if cron and every:
        raise InvalidInput(f'{where}: expected "cron" or "every", found both')
    if cron:
        parse_cron(f"{where}: cron", cron)
    elif 0 < every < 1:
        raise InvalidInput(f"{where}: every: expected at least 1 s, found {every:g} s")
    return Schedule(" ".join(cron.split()), every)


def runner_options(where: str, data: object, folder: str = "") -> RunnerOptions:
    """Return the runner's options from a mapping. Secrets are refused: arguments are visible to every user."""
    given = _mapping(where, data, RunnerOptions)
    executable = line(f"{where}: executable", given.get("executable"))
    arguments = texts(f"{where}: arguments", given.get("arguments"))
    _without_secrets(f"{where}: arguments", arguments)
    config = text_map(f"{where}: config", given.get("config"))
    for name, value in config.items():
        last = name.rpartition(".")[2].strip('"')
        if _gives_secret(last, value) and not last.lower().endswith("env_key"):
            raise InvalidInput(f'{where}: config: "{name}" looks like a secret; put it into a file of env_files')
    return RunnerOptions(
        executable=anchored(f"{where}: executable", executable, folder) if "/" in executable else executable,
        permission_mode=line(f"{where}: permission_mode", given.get("permission_mode")),
        system_prompt=body(f"{where}: system_prompt", given.get("system_prompt")),
        arguments=arguments,
        config=config,
    )


def environment(where: str, data: object) -> dict[str, str]:
    """Return environment variables. Those that look like secrets are refused: definitions are stored and shown."""
    found = text_map(where, data)
    for name, value in found.items():
        if not re.fullmatch(r"[^\s=]+", name):
            raise InvalidInput(f"{where}: expected a name without spaces and '=', found {name!r}")
        if _gives_secret(name, value):
            raise InvalidInput(f'{where}: "{name}" looks like a secret; put it into a file of env_files')
        without_password(f"{where}: {name}", value)
    return found


def text(where: str, value: object) -> str:
    """Return text that can be stored and passed on; nothing is an empty text."""
    found = "" if value is None else as_text(where, value)
    if "\0" in found or any("\ud800" <= sign <= "\udfff" for sign in found):
        raise InvalidInput(f"{where}: expected Unicode text without NUL, found {describe(found)}")
    return found


def line(where: str, value: object) -> str:
    """Return text of one line, without spaces around it."""
    found = text(where, value).strip()
    if any(ord(sign) < 32 or sign in "\x7f\x85\u2028\u2029" for sign in found):
        raise InvalidInput(f"{where}: expected one line, found {describe(found)}")
    return found


def body(where: str, value: object) -> str:
    """Return text of many lines with plain line ends, without empty lines around it and spaces at its end."""
    found = text(where, value).replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"\A(?:[ \t]*\n)+", "", found).rstrip()


def texts(where: str, value: object) -> tuple[str, ...]:
    """Return a list of texts; one text is a list of one."""
    if value is None:
        return ()
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)):
        raise InvalidInput(f"{where}: expected a list of texts, found {describe(value)}")
    words = {True: "true", False: "false"}
    return tuple(text(where, words[item] if isinstance(item, bool) else as_text(where, item)) for item in value)


def text_map(where: str, value: object) -> dict[str, str]:
    """Return a mapping of text to text."""
    for name in value if isinstance(value, Mapping) else ():
        if not isinstance(name, str) or not name or not name.isprintable():
            raise InvalidInput(f"{where}: expected names of printable characters, found {describe(name)}")
    return {name: text(f"{where}: {name}", item) for name, item in as_text_map(where, value).items()}


def anchored(where: str, path: str, folder: str) -> str:
    """Return an absolute path, or one that begins with ~. Raises InvalidInput for a relative one without a folder."""
    if not path or path.startswith(("/", "~")):
        return path
    if not folder:
        raise InvalidInput(f'{where}: expected an absolute path, found "{path}"')
    return posixpath.normpath(posixpath.join(folder, path))


def one_of(where: str, value: object, known: tuple[str, ...]) -> str:
    """Return one of the known words; the first one for nothing."""
    if value is None:
        return known[0]
    if value not in known:
        shown = f'"{value}"' if isinstance(value, str) and value.isprintable() else describe(value)
        hint = nearest(value, known) if isinstance(value, str) else ""
        raise InvalidInput(f"{where}: expected {', '.join(known[:-1])} or {known[-1]}, found {shown}{hint}")
    return str(value)


def without_password(where: str, value: str) -> str:
    """Return text. Raises InvalidInput if a URL in it holds a password, which would be stored and shown."""
    if hide(value, ()) != value:
        raise InvalidInput(f"{where}: expected a URL without a password, found one; definitions are stored and shown")
    return value


def _gives_secret(name: str, value: str) -> bool:
    if not value or not is_secret(name):
        return False
    return not (_COUNTED.search(name) and _COUNT.fullmatch(value))


def _without_secrets(where: str, arguments: tuple[str, ...]) -> None:
    for option, following in zip(arguments, (*arguments[1:], "")):
        without_password(where, option)
        name, equals, value = option.partition("=")
        name = name if name.isprintable() else ""
        if not equals and not following.startswith("-"):
            value = following
        if name.startswith("-") and _gives_secret(name.lstrip("-").replace("-", "_"), value):
            raise InvalidInput(f'{where}: "{name}" looks like a secret; put it into a file of env_files')


def _mapping(where: str, data: object, kind: Any) -> Mapping[str, Any]:
    return {} if data is None else check_keys(where, data, keys_of(kind))


def _seconds(where: str, given: Mapping[str, Any], key: str, default: float) -> float:
    value = given.get(key)
    return default if value is None else parse_duration(f"{where}: {key}", value)


def _count(where: str, given: Mapping[str, Any], key: str, default: int, high: int = _MOST) -> int:
    value = given.get(key)
    return default if value is None else as_int(f"{where}: {key}", value, 0, high)


def _number(where: str, given: Mapping[str, Any], key: str, default: float, high: float = 1e9) -> float:
    value = given.get(key)
    if value is None:
        return default
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number <= high:
        raise InvalidInput(f"{where}: {key}: expected a number from 0 to {high:g}, found {describe(value)}")
    return number
