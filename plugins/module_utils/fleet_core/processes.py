# SPDX-License-Identifier: GPL-3.0-or-later
"""A process as it is declared, and as it is launched once its resources are claimed."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from .dependencies import Dependency, dependencies
from .errors import InvalidInput
from .health import HealthCheck, health_check
from .interpolation import counters_in, interpolate, interpolate_shell, resolve_variables, split_command, variables_in
from .names import as_bool, as_int, as_text, as_text_map, check_keys, check_process_id, describe
from .quantities import parse_duration, parse_size
from .restarts import RestartPolicy, restart_policy

SIGNALS = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGKILL")
_SECRET = re.compile(
    r"secret|token|passw|passphrase|credential|private|api_?key|_key$|^key$|^auth$|authori[sz]ation", re.IGNORECASE
)
# A scheme is short: without the limit, a long word would be looked at again from each of its letters.
_URL_PASSWORD = re.compile(r"([a-z][a-z0-9+.-]{0,30}://[^\s/:@'\"]*:)(?!\$\{)[^\s/@'\"]+@", re.IGNORECASE)
_SHORTEST_SECRET = 4  # a shorter one would blank half of every sentence
HIDDEN = "********"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Need:
    """A resource that a process claims. name: its variable, by default the type. value: "" takes the next free one."""

    type: str
    name: str
    value: str = ""

    def to_dict(self) -> dict[str, str] | str:
        if self.name == self.type and not self.value:
            return self.type
        return {"type": self.type, "name": self.name, **({"value": self.value} if self.value else {})}


@dataclass(frozen=True)
class Limits:
    """Resource limits; 0 means none. memory: bytes. cpu: percent of one core. nice: -20 to 19. The rest are counts."""

    memory: int = 0
    cpu: int = 0
    open_files: int = 0
    processes: int = 0
    nice: int = 0


@dataclass(frozen=True)
class LogPolicy:
    """When a log file is rotated. max_size: bytes of one file. keep: rotated files kept beside the current one."""

    max_size: int = 10 * 1024 * 1024
    keep: int = 5


@dataclass(frozen=True)
class ProcessSpec:
    """A declared process. id: NAME or ENVIRONMENT/NAME. Times in seconds; ${variables} are not yet replaced.

    vars: None marks a variable that must be given. working_dir: absolute, or relative to the project's folder.
    env_files: files of NAME=value lines, read when the process starts, for values that must not be stored.
    """

    id: str
    command: str
    template: str = ""
    label: str = ""
    action: str = ""
    shell: bool = False
    vars: Mapping[str, str | None] = field(default_factory=dict)
    resources: tuple[Need, ...] = ()
    working_dir: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    env_files: tuple[str, ...] = ()
    user: str = ""
    stop_signal: str = "SIGTERM"
    stop_timeout: float = 10.0
    start_timeout: float = 60.0
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    readiness: HealthCheck | None = None
    health: HealthCheck | None = None
    depends_on: tuple[Dependency, ...] = ()
    limits: Limits = field(default_factory=Limits)
    logs: LogPolicy = field(default_factory=LogPolicy)

    @property
    def environment(self) -> str:
        """The environment it belongs to, or an empty string."""
        return self.id.partition("/")[0] if "/" in self.id else ""

    @property
    def name(self) -> str:
        """The id without its environment."""
        return self.id.rpartition("/")[2]

    def to_dict(self) -> dict[str, Any]:
        """Return the spec as plain data that process_spec reads back; fields at their defaults are left out."""
        data: dict[str, Any] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if part.name not in ("id", "command") and value == _default(part):
                continue
            data[part.name] = _plain(value)
        return data

    def public(self) -> dict[str, Any]:
        """Return to_dict with every value hidden whose name looks like a secret's. For people, logs and diffs."""
        data = self.to_dict()
        for key in ("env", "vars"):
            if key in data:
                data[key] = hide_secrets(data[key])
        for key in ("command", "action"):
            if key in data:
                data[key] = hide(data[key], ())
        for key in ("readiness", "health"):
            if key in data:
                data[key] = {**data[key], "url": hide(data[key]["url"], ())}
        return data


def hide_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy in which values under names such as TOKEN, and passwords in URLs, read "********"."""
    return {
        key: HIDDEN if value and is_secret(key) else hide(value, ()) if isinstance(value, str) else value
        for key, value in values.items()
    }


def is_secret(name: str) -> bool:
    """Tell whether a variable's name looks like a secret's."""
    return bool(_SECRET.search(name))


def _default(part: Any) -> Any:
    factory = part.default_factory
    return factory() if callable(factory) else part.default


def _plain(value: Any) -> Any:
    if isinstance(value, (Need, Dependency, HealthCheck, RestartPolicy)):
        return value.to_dict()
    if isinstance(value, (Limits, LogPolicy)):
        return {part.name: getattr(value, part.name) for part in fields(value)}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


FIELDS = tuple(part.name for part in fields(ProcessSpec))


def process_spec(data: Mapping[str, Any], base: Mapping[str, Any] | None = None) -> ProcessSpec:
    """Return a validated process from plain data laid over the fields of its template.

    base: plain fields of a template. vars, env, limits, logs are merged name by name; other fields are replaced whole.
    None in data means "not given". Raises InvalidInput that names the process and the key.
    """
    if not isinstance(data, Mapping):
        raise InvalidInput(f"process: expected a mapping with id and command, found {describe(data)}")
    ident = check_process_id(data.get("id"))
    where = f'process "{ident}"'
    check_keys(where, data, FIELDS)
    merged: dict[str, Any] = dict(base or {})
    for key, value in data.items():
        if value is None:
            continue
        if key in ("vars", "env", "limits", "logs") and isinstance(value, Mapping):
            value = {**(merged.get(key) or {}), **value}
        merged[key] = value
    command = merged.get("command")
    if not isinstance(command, str) or not command.strip():
        raise InvalidInput(f"{where}: expected a command, found {describe(command)}")
    if "\0" in command:
        raise InvalidInput(f"{where}: the command holds a NUL character")
    signal = str(merged.get("stop_signal") or "SIGTERM").upper()
    signal = signal if signal.startswith("SIG") else f"SIG{signal}"
    if signal not in SIGNALS:
        raise InvalidInput(f'{where}: expected stop_signal {", ".join(SIGNALS)}, found "{merged["stop_signal"]}"')
    default = ProcessSpec("x", "x")

    def seconds(key: str) -> float:
        value = merged.get(key)
        return parse_duration(f"{where}: {key}", getattr(default, key) if value is None else value)

    def check(key: str) -> HealthCheck | None:
        return health_check(f"{where}: {key}", merged[key]) if merged.get(key) else None

    return ProcessSpec(
        id=ident,
        command=command.strip(),
        template=as_text(f"{where}: template", merged.get("template") or ""),
        label=as_text(f"{where}: label", merged.get("label") or ""),
        action=as_text(f"{where}: action", merged.get("action") or ""),
        shell=as_bool(f"{where}: shell", merged.get("shell") or False),
        vars=_variables(where, merged.get("vars")),
        resources=_needs(where, merged.get("resources")),
        working_dir=as_text(f"{where}: working_dir", merged.get("working_dir") or ""),
        env=_environment(where, merged.get("env")),
        env_files=_texts(f"{where}: env_files", merged.get("env_files")),
        user=as_text(f"{where}: user", merged.get("user") or ""),
        stop_signal=signal,
        stop_timeout=seconds("stop_timeout"),
        start_timeout=seconds("start_timeout"),
        readiness=check("readiness"),
        health=check("health"),
        restart=restart_policy(f"{where}: restart", merged.get("restart")),
        depends_on=dependencies(f"{where}: depends_on", merged.get("depends_on")),
        limits=_limits(f"{where}: limits", merged.get("limits")),
        logs=_log_policy(f"{where}: logs", merged.get("logs")),
    )


def _variables(where: str, data: object) -> dict[str, str | None]:
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise InvalidInput(f"{where}: vars: expected a mapping, found {describe(data)}")
    for name in data:
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            raise InvalidInput(f"{where}: vars: expected names of letters, digits, '_' and '-', found {name!r}")
    given = as_text_map(f"{where}: vars", {name: value for name, value in data.items() if value is not None})
    return {name: given.get(name) for name in data}


def _environment(where: str, data: object) -> dict[str, str]:
    found = as_text_map(f"{where}: env", data)
    for name, value in found.items():
        if not name or "=" in name or "\0" in name + value:
            raise InvalidInput(f"{where}: env: {name!r} is not a name for an environment variable")
    return found


def _texts(where: str, data: object) -> tuple[str, ...]:
    if data is None:
        return ()
    if isinstance(data, str):
        return (data,)
    if not isinstance(data, (list, tuple)):
        raise InvalidInput(f"{where}: expected a list of paths, found {describe(data)}")
    return tuple(as_text(where, item) for item in data)


def _needs(where: str, data: object) -> tuple[Need, ...]:
    if data is None:
        return ()
    if isinstance(data, str) or not isinstance(data, (list, tuple)):
        raise InvalidInput(f"{where}: resources: expected a list of types, found {describe(data)}")
    needs: dict[str, Need] = {}
    for item in data:
        if isinstance(item, str):
            kind, _colon, value = item.partition(":")
            item = {"type": kind, "value": value}
        check_keys(f"{where}: resources", item, ("type", "name", "value"))
        kind = as_text(f"{where}: resources: type", item.get("type"))
        name = as_text(f"{where}: resources: name", item.get("name") or kind)
        if not kind or not _VARIABLE.fullmatch(name):
            raise InvalidInput(f"{where}: resources: expected a type and a variable name, found {describe(item)}")
        if name in needs:
            raise InvalidInput(f'{where}: resources: "{name}" stands twice; give the second one a name of its own')
        value = item.get("value")
        needs[name] = Need(kind, name, "" if value is None else as_text(f"{where}: resources: {name}", value))
    return tuple(needs.values())


def _limits(where: str, data: object) -> Limits:
    if data is None:
        return Limits()
    given = check_keys(where, data, [part.name for part in fields(Limits)])
    cpu = str(given.get("cpu") or 0).rstrip("%")
    return Limits(
        memory=parse_size(f"{where}: memory", given.get("memory") or 0),
        cpu=as_int(f"{where}: cpu", cpu, 0, 100_000),
        open_files=as_int(f"{where}: open_files", given.get("open_files") or 0, 0, 2**31),
        processes=as_int(f"{where}: processes", given.get("processes") or 0, 0, 2**31),
        nice=as_int(f"{where}: nice", given.get("nice") or 0, -20, 19),
    )


def _log_policy(where: str, data: object) -> LogPolicy:
    if data is None:
        return LogPolicy()
    given = check_keys(where, data, [part.name for part in fields(LogPolicy)])
    default = LogPolicy()
    size = parse_size(
        f"{where}: max_size", given["max_size"] if given.get("max_size") is not None else default.max_size
    )
    if size < 4096:
        raise InvalidInput(f"{where}: expected a max_size of at least 4096 bytes, found {size}")
    keep = as_int(f"{where}: keep", given["keep"] if given.get("keep") is not None else default.keep, 0, 1000)
    return LogPolicy(size, keep)


@dataclass(frozen=True)
class Launch:
    """What is executed: argument vector, environment additions, folder, user, limits, and the final check URLs."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    working_dir: str
    env_files: tuple[str, ...]
    user: str
    limits: Limits
    readiness: HealthCheck | None
    health: HealthCheck | None


def needs_of(spec: ProcessSpec, counters: Collection[str]) -> tuple[Need, ...]:
    """Return all that a process claims: its resources, and a %counter of its command that is not among them.

    A variable with the name of a resource gives its value, as in `fleet start postgres db --tcpport=5433`.
    """
    known = dict(builtins_of(spec))
    needs = {need.name: need for need in spec.resources}
    for kind in counters_in(spec.command, counters):
        needs.setdefault(kind, Need(kind, kind))
    given = {name: value for name, value in spec.vars.items() if value is not None}
    result = []
    for need in needs.values():
        text = given.get(need.name) or need.value
        if text:
            where = f'process "{spec.id}": resource "{need.name}"'
            plain = {name: value for name, value in given.items() if name not in needs}
            values = resolve_variables({**_reached(text, plain), need.name: text}, known, where)
            need = replace(need, value=values[need.name])
        result.append(need)
    return tuple(result)


def _reached(text: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that text refers to, also through others. The rest may name what is claimed only later."""
    found: dict[str, str] = {}
    waiting = list(variables_in(text))
    while waiting:
        name = waiting.pop()
        if name in variables and name not in found:
            found[name] = variables[name]
            waiting.extend(variables_in(variables[name]))
    return found


def builtins_of(spec: ProcessSpec) -> dict[str, str]:
    """Return the variables that every process has: id, name, environment."""
    return {"id": spec.id, "name": spec.name, "environment": spec.environment}


def launch(
    spec: ProcessSpec,
    claimed: Mapping[str, tuple[str, str]],
    others: Mapping[str, str] | None = None,
    extra: Mapping[str, str] | None = None,
) -> Launch:
    """Return what to execute for a process.

    claimed: need name to (type, value). others: "PROCESS.RESOURCE" to value, for the processes of the same environment.
    extra: further variables, such as project_dir. Raises InvalidInput for an undefined or missing variable or a cycle.
    """
    where = f'process "{spec.id}"'
    known = {**(extra or {}), **builtins_of(spec), **(others or {}), **_resources(claimed)}
    missing = [name for name, value in spec.vars.items() if value is None and name not in claimed]
    if missing:
        raise InvalidInput(f'{where}: variable "{missing[0]}" must be given')
    values = _values(spec, known, where)
    # %counter goes into shell text as it is, so nothing but a number may.
    numbers = {name: pair for name, pair in claimed.items() if pair[1].isdecimal()}
    counters = dict(numbers.values())
    counters.update({kind: numbers[kind][1] for kind, _value in numbers.values() if kind in numbers})

    def fill(text: str, part: str) -> str:
        return _passable(interpolate(text, values, counters, f"{where}: {part}"), f"{where}: {part}")

    argv: tuple[str, ...]
    if spec.shell:
        argv = ("/bin/sh", "-c", interpolate_shell(spec.command, values, counters, f"{where}: command"))
    else:
        argv = split_command(spec.command, values, counters, set(known), f"{where}: command")
    for word in argv:
        _passable(word, f"{where}: command")
    folders = [value for kind, value in claimed.values() if kind == "workdir"]
    return Launch(
        argv=argv,
        env={name: fill(value, f"env {name}") for name, value in spec.env.items()},
        working_dir=fill(spec.working_dir, "working_dir") or (folders[0] if folders else ""),
        env_files=tuple(fill(path, "env_files") for path in spec.env_files),
        user=fill(spec.user, "user"),
        limits=spec.limits,
        readiness=_final_check(spec.readiness, values, counters, f"{where}: readiness"),
        health=_final_check(spec.health, values, counters, f"{where}: health"),
    )


def action_of(
    spec: ProcessSpec,
    claimed: Mapping[str, tuple[str, str]],
    others: Mapping[str, str] | None = None,
    extra: Mapping[str, str] | None = None,
) -> str:
    """Return the shell text of a process's action; the parameters are those of launch."""
    where = f'process "{spec.id}": action'
    known = {**(extra or {}), **builtins_of(spec), **(others or {}), **_resources(claimed)}
    wanted = replace(spec, vars=_reached(spec.action, {k: v for k, v in spec.vars.items() if v is not None}))
    return interpolate_shell(spec.action, _values(wanted, known, where), {}, where)


def secrets_of(
    spec: ProcessSpec,
    claimed: Mapping[str, tuple[str, str]],
    others: Mapping[str, str] | None = None,
    extra: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Return the values that must not be shown, longest first; the parameters are those of launch."""
    known = {**(extra or {}), **builtins_of(spec), **(others or {}), **_resources(claimed)}
    values = _values(spec, known, f'process "{spec.id}"')
    found = {values[name] for name in spec.vars if name in values and is_secret(name)}
    for name, text in spec.env.items():
        if is_secret(name):
            found.add(interpolate(text, values))
    long = {value for value in found if len(value) >= _SHORTEST_SECRET}
    in_shell = {value.replace("'", "'\\''") for value in long} | {
        re.sub(r'([\\"$`])', r"\\\1", value) for value in long
    }
    return tuple(sorted(long | in_shell, key=len, reverse=True))


def hide(text: str, secrets: Collection[str]) -> str:
    """Return text in which the secrets, and passwords in URLs, read "********"."""
    for secret in secrets:
        text = text.replace(secret, HIDDEN)
    return _URL_PASSWORD.sub(rf"\g<1>{HIDDEN}@", text) if "://" in text else text


def _resources(claimed: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    return {name: value for name, (_type, value) in claimed.items()}


def _values(spec: ProcessSpec, known: Mapping[str, str], where: str) -> dict[str, str]:
    """Return the given variables and all that is known, final."""
    given = {name: value for name, value in spec.vars.items() if value is not None and name not in known}
    return resolve_variables(given, known, where)


def _passable(text: str, where: str) -> str:
    """Return text that the kernel takes as an argument, a variable or a path."""
    # Surrogates from DC80 to DCFF stand for bytes that are no UTF-8 (PEP 383); the others cannot be encoded.
    if "\0" in text or any("\ud800" <= sign < "\udc80" or "\udd00" <= sign <= "\udfff" for sign in text):
        raise InvalidInput(f"{where}: expected Unicode text without NUL, found {describe(text)}")
    return text


def _final_check(
    check: HealthCheck | None, values: Mapping[str, str], counters: Mapping[str, str], where: str
) -> HealthCheck | None:
    if check is None:
        return None
    scheme, separator, rest = check.url.partition("://")
    fill = interpolate_shell if scheme == "cmd" else interpolate
    return health_check(where, {**check.to_dict(), "url": f"{scheme}{separator}{fill(rest, values, counters, where)}"})
