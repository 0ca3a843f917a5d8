# SPDX-License-Identifier: GPL-3.0-or-later
"""Task lists: commands and prompts with needs, limits, retries, expectations and artifacts. Version 1.

The published form is schemas/task_list.json in the application; a test keeps it and this parser alike.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .errors import InvalidInput
from .names import as_int, as_text, as_text_map, check_keys, check_name, describe, nearest
from .processes import is_secret
from .quantities import parse_duration

VERSION = 1
PARALLEL = 4
TIMEOUT = 600.0
ON_FAILURE = ("stop", "continue")
RUNNERS = ("claude", "codex", "opencode", "aider", "gemini", "qwen", "command")
_MOST_TASKS = 1000
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Expectation:
    """What must be true for a task to have succeeded.

    rc: exit codes that are right. The texts must all be found: in stdout (of a prompt: in its answer), in stderr.
    stdout_matches: regular expressions, each of which a line of stdout must match. files: globs that must match.
    """

    rc: tuple[int, ...] = (0,)
    stdout_contains: tuple[str, ...] = ()
    stderr_contains: tuple[str, ...] = ()
    stdout_matches: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptOptions:
    """How a prompt's runner is called. max_turns, max_cost (USD): limits of one attempt, 0 for none."""

    executable: str = ""
    permission_mode: str = ""
    system_prompt: str = ""
    arguments: tuple[str, ...] = ()
    config: Mapping[str, str] = field(default_factory=dict)
    max_turns: int = 0
    max_cost: float = 0.0


@dataclass(frozen=True)
class Task:
    """One task. Times in seconds; a timeout of 0 means none.

    run: shell text, executed by `sh -e`. prompt: text for a runner instead; session: the prompt task whose session goes
    on. command: shell text of the runner "command". creates: globs; when each matches a file, the task is left out.
    workdir, artifacts, creates, expect.files: relative to the list's workdir, never outside of it.
    """

    name: str
    run: str = ""
    prompt: str = ""
    description: str = ""
    runner: str = "claude"
    model: str = ""
    command: str = ""
    session: str = ""
    options: PromptOptions = field(default_factory=PromptOptions)
    needs: tuple[str, ...] = ()
    workdir: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    env_files: tuple[str, ...] = ()
    pass_env: tuple[str, ...] = ()
    timeout: float = TIMEOUT
    retries: int = 0
    retry_delay: float = 1.0
    on_failure: str = "stop"
    creates: tuple[str, ...] = ()
    artifacts: tuple[str, ...] = ()
    expect: Expectation = field(default_factory=Expectation)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that task_list reads back; what is at its default is left out."""
        return _plain(self)

    @property
    def what(self) -> str:
        """The first line of what it runs, for people."""
        lines = (self.run or self.prompt).strip().splitlines()
        return (lines[0] if lines else "") + (" …" if len(lines) > 1 else "")


@dataclass(frozen=True)
class TaskList:
    """Tasks in the order of the file. parallel: how many run at once. timeout: seconds for all of them, 0 for none.

    workdir: where they run; relative to the current folder, on another machine to the home folder.
    env_files: files of NAME=value lines on the host that runs the list. pass_env: variables that are taken from whoever
    starts it; their values are never stored.
    """

    tasks: tuple[Task, ...]
    name: str = ""
    description: str = ""
    workdir: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    env_files: tuple[str, ...] = ()
    pass_env: tuple[str, ...] = ()
    parallel: int = PARALLEL
    timeout: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that task_list reads back; what is at its default is left out."""
        return {"version": VERSION, **_plain(self)}

    def task(self, name: str) -> Task:
        """Return one task. Raises InvalidInput that names the nearest one."""
        for item in self.tasks:
            if item.name == name:
                return item
        raise InvalidInput(f'task "{name}": not in the list{nearest(name, [item.name for item in self.tasks])}')

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its tasks."""
        return tuple(item.name for item in self.tasks)

    @property
    def passed(self) -> tuple[str, ...]:
        """Every variable that must be passed to the list or to one of its tasks."""
        return tuple(dict.fromkeys((*self.pass_env, *(name for item in self.tasks for name in item.pass_env))))

    @property
    def hash(self) -> str:
        """SHA-256 of its canonical JSON."""
        return digest(self.to_dict())

    def key(self, name: str) -> str:
        """SHA-256 of everything that changes what one task does."""
        shared = _plain(replace(self, tasks=()), _SHARED)
        return digest({**shared, "task": self.task(name).to_dict()})


_SHARED = ("workdir", "env", "env_files", "pass_env")


def digest(data: object) -> str:
    """Return SHA-256 of canonical JSON: sorted keys, no spaces, UTF-8."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: Any, only: tuple[str, ...] = ()) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for part in fields(value):
        if only and part.name not in only:
            continue
        found = getattr(value, part.name)
        default = part.default_factory() if callable(part.default_factory) else part.default
        if found == default:
            continue
        if isinstance(found, (Expectation, PromptOptions)):
            found = _plain(found)
        elif isinstance(found, tuple):
            found = [item.to_dict() if isinstance(item, Task) else item for item in found]
        elif isinstance(found, Mapping):
            found = dict(found)
        data[part.name] = found
    return data


KEYS = ("version", *(part.name for part in fields(TaskList)))
TASK_KEYS = tuple(part.name for part in fields(Task))
EXPECT_KEYS = tuple(part.name for part in fields(Expectation))
OPTION_KEYS = tuple(part.name for part in fields(PromptOptions))
_PROMPT_ONLY = ("runner", "model", "command", "session", "options")


def task_list(data: object, name: str = "") -> TaskList:
    """Return a validated list from plain data. name: what to call it when it has no name of its own.

    Raises InvalidInput that names the task, the key, what was expected and what was found.
    """
    if isinstance(data, (list, tuple)):
        raise InvalidInput('task list: expected a mapping with "tasks", found a list; write {"version": 1, "tasks": …}')
    given = {key: value for key, value in check_keys("task list", data, KEYS).items() if value is not None}
    version = given.get("version", VERSION)
    if isinstance(version, bool) or version != VERSION:
        raise InvalidInput(f"task list: expected version {VERSION}, found {describe(version)}")
    items = given.get("tasks")
    if not isinstance(items, (list, tuple)) or not items:
        raise InvalidInput(f"task list: expected a list of tasks, found {describe(items)}")
    if len(items) > _MOST_TASKS:
        raise InvalidInput(f"task list: expected at most {_MOST_TASKS} tasks, found {len(items)}")
    where = "task list"
    found = TaskList(
        tasks=tuple(_task(number, item) for number, item in enumerate(items, 1)),
        name=check_name("task list", given["name"]) if "name" in given else name,
        description=_text(f"{where}: description", given.get("description", "")),
        workdir=_path(f"{where}: workdir", given.get("workdir", "")),
        env=_env(where, given.get("env")),
        env_files=_paths(f"{where}: env_files", given.get("env_files")),
        pass_env=_variables(f"{where}: pass_env", given.get("pass_env")),
        parallel=as_int(f"{where}: parallel", given.get("parallel", PARALLEL), 1, 1000),
        timeout=parse_duration(f"{where}: timeout", given.get("timeout", 0)),
    )
    _check_references(found)
    groups(found)
    return found


def _task(number: int, data: object) -> Task:
    label = data.get("name") if isinstance(data, Mapping) else None
    where = f'task "{label}"' if isinstance(label, str) and label else f"task number {number}"
    given = {key: value for key, value in check_keys(where, data, TASK_KEYS).items() if value is not None}
    name = check_name(f"task number {number}:", given.get("name"))
    if ("run" in given) == ("prompt" in given):
        raise InvalidInput(f'{where}: expected "run" or "prompt", found {"both" if "run" in given else "neither"}')
    kind = "run" if "run" in given else "prompt"
    text = _text(f"{where}: {kind}", given[kind])
    if not text.strip():
        raise InvalidInput(f"{where}: {kind}: expected a command, found nothing")
    wrong = [key for key in _PROMPT_ONLY if key in given and kind == "run"]
    if wrong:
        raise InvalidInput(f'{where}: "{wrong[0]}" belongs to a "prompt"; this task has "run"')
    runner = _choice(f"{where}: runner", given.get("runner", "claude"), RUNNERS)
    command = _text(f"{where}: command", given.get("command", ""))
    if kind == "prompt" and (runner == "command") != bool(command.strip()):
        raise InvalidInput(
            f'{where}: the runner "command" needs the key "command", the program that gets the prompt'
            if not command.strip()
            else f'{where}: the key "command" needs the runner "command", found "{runner}"'
        )
    return Task(
        name=name,
        run=text if kind == "run" else "",
        prompt=text if kind == "prompt" else "",
        description=_text(f"{where}: description", given.get("description", "")),
        runner=runner,
        model=_text(f"{where}: model", given.get("model", "")),
        command=command,
        session=_text(f"{where}: session", given.get("session", "")),
        options=_options(f"{where}: options", given.get("options")),
        needs=_texts(f"{where}: needs", given.get("needs")),
        workdir=_inside(f"{where}: workdir", given.get("workdir", "")),
        env=_env(where, given.get("env")),
        env_files=_paths(f"{where}: env_files", given.get("env_files")),
        pass_env=_variables(f"{where}: pass_env", given.get("pass_env")),
        timeout=parse_duration(f"{where}: timeout", given.get("timeout", TIMEOUT)),
        retries=as_int(f"{where}: retries", given.get("retries", 0), 0, 100),
        retry_delay=parse_duration(f"{where}: retry_delay", given.get("retry_delay", 1.0)),
        on_failure=_choice(f"{where}: on_failure", given.get("on_failure", "stop"), ON_FAILURE),
        creates=_globs(f"{where}: creates", given.get("creates")),
        artifacts=_globs(f"{where}: artifacts", given.get("artifacts")),
        expect=_expectation(f"{where}: expect", given.get("expect"), kind),
    )


def _options(where: str, data: object) -> PromptOptions:
    if data is None:
        return PromptOptions()
    given = {key: value for key, value in check_keys(where, data, OPTION_KEYS).items() if value is not None}
    cost = given.get("max_cost", 0)
    if isinstance(cost, bool) or not isinstance(cost, (int, float)) or not 0 <= cost <= 1e9:
        raise InvalidInput(f"{where}: max_cost: expected an amount in USD, found {describe(cost)}")
    return PromptOptions(
        executable=_text(f"{where}: executable", given.get("executable", "")),
        permission_mode=_text(f"{where}: permission_mode", given.get("permission_mode", "")),
        system_prompt=_text(f"{where}: system_prompt", given.get("system_prompt", "")),
        arguments=_texts(f"{where}: arguments", given.get("arguments")),
        config=_env(f"{where}: config", given.get("config"), "config", None),
        max_turns=as_int(f"{where}: max_turns", given.get("max_turns", 0), 0, 10**6),
        max_cost=float(cost),
    )


def _expectation(where: str, data: object, kind: str) -> Expectation:
    if data is None:
        return Expectation()
    given = {key: value for key, value in check_keys(where, data, EXPECT_KEYS).items() if value is not None}
    if kind == "prompt" and "rc" in given:
        raise InvalidInput(f'{where}: "rc" belongs to a "run"; a prompt succeeds when its runner says so')
    codes = given.get("rc", 0)
    codes = codes if isinstance(codes, (list, tuple)) and codes else [codes]
    patterns = _texts(f"{where}: stdout_matches", given.get("stdout_matches"))
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise InvalidInput(f'{where}: stdout_matches: "{pattern}" is no regular expression: {error}') from None
    return Expectation(
        rc=tuple(as_int(f"{where}: rc", code, 0, 255) for code in codes),
        stdout_contains=_texts(f"{where}: stdout_contains", given.get("stdout_contains")),
        stderr_contains=_texts(f"{where}: stderr_contains", given.get("stderr_contains")),
        stdout_matches=patterns,
        files=_globs(f"{where}: files", given.get("files")),
    )


def _check_references(found: TaskList) -> None:
    known: dict[str, Task] = {}
    for item in found.tasks:
        if item.name in known:
            raise InvalidInput(f'task "{item.name}": stands twice')
        known[item.name] = item
    for item in found.tasks:
        where = f'task "{item.name}"'
        for needed in item.needs:
            if needed not in known:
                hint = nearest(needed, [name for name in known if name != item.name])
                raise InvalidInput(f'{where}: needs "{needed}", which is not in the list{hint}')
        if item.session:
            other = known.get(item.session)
            if other is None or not other.prompt or other.runner != item.runner:
                raise InvalidInput(
                    f'{where}: session: expected another prompt task of the runner "{item.runner}", '
                    f'found "{item.session}"{nearest(item.session, [n for n, t in known.items() if t.prompt])}'
                )
            if item.session not in item.needs:
                raise InvalidInput(f'{where}: session "{item.session}": must stand in its needs, too')


def groups(found: TaskList) -> tuple[tuple[str, ...], ...]:
    """Return the names in steps: those of one step need only tasks of earlier steps, so they may run at once.

    Raises InvalidInput that names the members of a cycle.
    """
    place = {item.name: number for number, item in enumerate(found.tasks)}
    left = {item.name: len(item.needs) for item in found.tasks}
    users: dict[str, list[str]] = {item.name: [] for item in found.tasks}
    for item in found.tasks:
        for needed in item.needs:
            users[needed].append(item.name)
    steps: list[tuple[str, ...]] = []
    ready = [name for name, count in left.items() if not count]
    while ready:
        steps.append(tuple(ready))
        freed = []
        for name in ready:
            del left[name]
            for user in users[name]:
                left[user] -= 1
                if not left[user]:
                    freed.append(user)
        ready = sorted(freed, key=place.__getitem__)
    if left:
        needs = {item.name: set(item.needs) & set(left) for item in found.tasks if item.name in left}
        raise InvalidInput(f"tasks need each other in a cycle: {' -> '.join(_cycle(needs))}")
    return tuple(steps)


def _cycle(graph: Mapping[str, set[str]]) -> list[str]:
    path: list[str] = []
    name = next(iter(graph))
    while name not in path:
        path.append(name)
        name = min(graph[name])
    return [*path[path.index(name) :], name]


def select(found: TaskList, only: Iterable[str] = (), start: str = "") -> TaskList:
    """Return the list with some tasks only; what they need of the others counts as done.

    only: these. start: this one and all that need it, directly or not. Raises InvalidInput for an unknown name.
    """
    wanted = {found.task(name).name for name in only}
    if start:
        after = {found.task(start).name}
        needs = {item.name: item.needs for item in found.tasks}
        for name in (name for step in groups(found) for name in step):
            if any(needed in after for needed in needs[name]):
                after.add(name)
        wanted |= after
    if not wanted:
        return found
    kept = [
        replace(
            item,
            needs=tuple(name for name in item.needs if name in wanted),
            session=item.session if item.session in wanted else "",
        )
        for item in found.tasks
        if item.name in wanted
    ]
    return replace(found, tasks=tuple(kept))


def _choice(where: str, value: object, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        raise InvalidInput(f"{where}: expected {', '.join(known)}, found {describe(value)}{nearest(str(value), known)}")
    return value


def _text(where: str, value: object) -> str:
    text = as_text(where, value)
    if "\0" in text or any("\ud800" <= sign <= "\udfff" for sign in text):
        raise InvalidInput(f"{where}: expected Unicode text without NUL, found {describe(text)}")
    return text


def _texts(where: str, data: object) -> tuple[str, ...]:
    items = [data] if isinstance(data, (str, int, float)) else data
    if items is None:
        return ()
    if not isinstance(items, (list, tuple)):
        raise InvalidInput(f"{where}: expected a list of texts, found {describe(data)}")
    found = tuple(dict.fromkeys(_text(where, item) for item in items))
    if "" in found:
        raise InvalidInput(f"{where}: expected texts, found an empty one")
    return found


def _path(where: str, value: object) -> str:
    return _text(where, value).strip()


def _paths(where: str, data: object) -> tuple[str, ...]:
    return tuple(_path(where, item) for item in _texts(where, data))


def _inside(where: str, value: object) -> str:
    path = _path(where, value)
    if path.startswith(("/", "~")) or ".." in path.replace("\\", "/").split("/"):
        raise InvalidInput(f'{where}: expected a path inside the list\'s workdir, found "{path}"')
    return path


def _globs(where: str, data: object) -> tuple[str, ...]:
    return tuple(_inside(where, item) for item in _texts(where, data))


def _variables(where: str, data: object) -> tuple[str, ...]:
    found = _texts(where, data)
    for name in found:
        if not _VARIABLE.fullmatch(name):
            raise InvalidInput(f'{where}: expected names of environment variables, found "{name}"')
    return found


def _env(where: str, data: object, key: str = "env", names: re.Pattern[str] | None = _VARIABLE) -> dict[str, str]:
    found = as_text_map(f"{where}: {key}", data)
    for name, value in found.items():
        _text(f"{where}: {key}: {name}", value)
        if names and not names.fullmatch(name):
            raise InvalidInput(f"{where}: {key}: {name!r} is not a name for an environment variable")
        if is_secret(name) and not name.endswith("env_key"):  # which names a variable
            raise InvalidInput(
                f'{where}: {key}: "{name}" looks like a secret, which a list must not hold: '
                "name it in pass_env, or put it into one of env_files"
            )
    return found
