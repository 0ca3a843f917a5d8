# SPDX-License-Identifier: GPL-3.0-or-later
"""A project's environment: the processes that its .runcept.toml declares, in either dialect.

The planned dialect has [project] and [[process]]; the one in use has [environment] and [processes.NAME]. Both are read;
the second is written, and it alone takes our further keys, which are the fields of a process.
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .dependencies import Dependency, start_order
from .errors import InvalidInput, NotFound
from .health import HealthCheck
from .interpolation import variables_in
from .names import as_bool, as_text, as_text_map, check_keys, check_name, describe, nearest
from .processes import FIELDS, Limits, LogPolicy, Need, ProcessSpec, process_spec
from .quantities import format_duration, parse_duration
from .restarts import RestartPolicy
from .settings import Settings
from .templates import Template

FILE_NAME = ".runcept.toml"

_PLANNED = ("project", "process")
_PLANNED_PROJECT = ("name", "description", "inactivity_timeout", "working_dir")
_PLANNED_PROCESS = (
    "name",
    "command",
    "working_dir",
    "env",
    "auto_restart",
    "health_check",
    "health_check_interval",
    "depends_on",
)
_USED = ("environment", "processes")
_USED_ENVIRONMENT = (*_PLANNED_PROJECT, "auto_shutdown", "env_vars")
_EXTENSIONS = tuple(name for name in FIELDS if name not in ("id", "env"))
_USED_PROCESS = (
    "name",
    "command",
    "working_dir",
    "auto_restart",
    "health_check_url",
    "health_check_interval",
    "depends_on",
    "env_vars",
    *(name for name in _EXTENSIONS if name not in ("command", "working_dir", "depends_on")),
)


@dataclass(frozen=True)
class Environment:
    """One project, ready to be started. Times in seconds.

    name: the first part of its processes' ids. inactivity_timeout: 0 means never; auto_shutdown False means never, too.
    env: what every process inherits (already in their env). processes: as declared, in the order of the file.
    """

    name: str
    project_dir: str
    description: str = ""
    inactivity_timeout: float = 0.0
    auto_shutdown: bool = True
    env: Mapping[str, str] = field(default_factory=dict)
    processes: tuple[ProcessSpec, ...] = ()

    @property
    def idle_limit(self) -> float:
        """Seconds of inactivity after which it is deactivated; 0 means never."""
        return self.inactivity_timeout if self.auto_shutdown else 0.0

    @property
    def graph(self) -> dict[str, list[str]]:
        """Process id to the ids it depends on."""
        return {spec.id: [item.process for item in spec.depends_on] for spec in self.processes}

    def order(self) -> list[str]:
        """Return the ids in the order to start them; stop them in the reverse."""
        return start_order(self.graph)


def environment(
    data: object, project_dir: str, settings: Settings | None = None, templates: Mapping[str, Template] | None = None
) -> Environment:
    """Return the environment that a parsed project file declares.

    project_dir: the absolute folder of the file. templates: those that its processes may name.
    Inherited variables: global settings, then the environment, then a template, then the process; the last one wins.
    Raises InvalidInput that names the key, and NotFound for a template.
    """
    settings = settings or Settings()
    name, head, declared = _planned(data) if _is_planned(data) else _used(data)
    where = f'environment "{name}"' if name else "environment"
    name = check_name("environment", name or posixpath.basename(project_dir.rstrip("/")))
    env = {**settings.env, **as_text_map(f"{where}: env_vars", head.get("env_vars"))}
    folder = as_text(f"{where}: working_dir", head.get("working_dir") or "")
    timeout, shutdown = head.get("inactivity_timeout"), head.get("auto_shutdown")
    found = Environment(
        name=name,
        project_dir=project_dir,
        description=as_text(f"{where}: description", head.get("description") or ""),
        inactivity_timeout=settings.inactivity_timeout
        if timeout is None
        else parse_duration(f"{where}: inactivity_timeout", timeout),
        auto_shutdown=settings.auto_shutdown if shutdown is None else as_bool(f"{where}: auto_shutdown", shutdown),
        env=env,
    )
    specs = [_process(found, folder, key, fields, settings, templates or {}) for key, fields in declared.items()]
    found = replace(found, processes=tuple(specs))
    found.order()
    _check_references(found)
    return found


def _is_planned(data: object) -> bool:
    """Tell whether data is of the planned dialect. Raises InvalidInput when it is of both, or of none."""
    if not isinstance(data, Mapping):
        raise InvalidInput(f"project file: expected tables, found {describe(data)}")
    check_keys("project file", data, (*_PLANNED, *_USED))
    planned = [key for key in _PLANNED if key in data]
    used = [key for key in _USED if key in data]
    if planned and used:
        raise InvalidInput(
            f"project file: [{planned[0]}] and [{used[0]}] belong to two different dialects: "
            "use [project] with [[process]], or [environment] with [processes.NAME]"
        )
    if not planned and not used:
        raise InvalidInput("project file: expected [environment] and [processes.NAME], found nothing")
    return bool(planned)


def _planned(data: Any) -> tuple[str, dict[str, Any], dict[str, dict[str, Any]]]:
    """Return name, head and processes of the planned dialect, under the keys of the one in use."""
    head = check_keys("[project]", data.get("project", {}), _PLANNED_PROJECT)
    items = data.get("process", [])
    if not isinstance(items, (list, tuple)):
        raise InvalidInput(f"project file: expected [[process]] tables, found {describe(items)}")
    processes: dict[str, dict[str, Any]] = {}
    for number, item in enumerate(items, 1):
        name = item.get("name") if isinstance(item, Mapping) else None
        where = f'[[process]] "{name}"' if isinstance(name, str) else f"[[process]] number {number}"
        fields = dict(_known_keys(where, item, _PLANNED_PROCESS))
        name = check_name("process", fields.pop("name", None))
        if name in processes:
            raise InvalidInput(f'[[process]] "{name}": stands twice')
        for ours, theirs in (("env_vars", "env"), ("health_check_url", "health_check")):
            if theirs in fields:
                fields[ours] = fields.pop(theirs)
        processes[name] = fields
    return _name_of("[project]", head), dict(head), processes


def _used(data: Any) -> tuple[str, dict[str, Any], dict[str, dict[str, Any]]]:
    """Return name, head and processes of the dialect in use."""
    head = check_keys("[environment]", data.get("environment", {}), _USED_ENVIRONMENT)
    items = data.get("processes", {})
    if not isinstance(items, Mapping):
        raise InvalidInput(f"project file: expected [processes.NAME] tables, found {describe(items)}")
    processes: dict[str, dict[str, Any]] = {}
    for key, item in items.items():
        name = check_name("process", key)
        fields = dict(_known_keys(f"[processes.{name}]", item, _USED_PROCESS))
        shown = fields.pop("name", None)
        if shown is not None and as_text(f"[processes.{name}]: name", shown) != name:
            fields.setdefault("label", shown)
        processes[name] = fields
    return _name_of("[environment]", head), dict(head), processes


def _known_keys(where: str, data: object, known: Collection[str]) -> Mapping[str, Any]:
    """Like check_keys; the error says so when the key is one of the other dialect."""
    if isinstance(data, Mapping):
        for key in data:
            if key not in known and key in _USED_PROCESS:
                raise InvalidInput(f'{where}: "{key}" needs the dialect of [environment] and [processes.NAME]')
    return check_keys(where, data, known)


def _name_of(where: str, head: Mapping[str, Any]) -> str:
    name = head.get("name")
    return "" if name is None else check_name("environment", as_text(f"{where}: name", name))


def _process(
    owner: Environment,
    folder: str,
    name: str,
    given: Mapping[str, Any],
    settings: Settings,
    templates: Mapping[str, Template],
) -> ProcessSpec:
    where = f'process "{owner.name}/{name}"'
    fields = {key: value for key, value in given.items() if value is not None}
    auto, url = fields.pop("auto_restart", None), fields.pop("health_check_url", None)
    for old, new, value in (("auto_restart", "restart", auto), ("health_check_url", "health", url)):
        if value is not None and new in fields:
            raise InvalidInput(f'{where}: expected "{new}" or "{old}", found both')
    if auto is not None:
        policy = "on-failure" if as_bool(f"{where}: auto_restart", auto) else "never"
        fields["restart"] = {**_mapping(settings.process.get("restart")), "policy": policy}
    if url is not None:
        fields["health"] = {"url": as_text(f"{where}: health_check_url", url)}
    base = {**settings.process, **_template_fields(where, fields.get("template"), templates)}
    base["env"] = {**owner.env, **_mapping(base.get("env"))}
    if "env_vars" in fields:
        fields["env"] = as_text_map(f"{where}: env_vars", fields.pop("env_vars"))
    fields["health"] = _health(where, fields, base.get("health"), settings)
    spec = process_spec({**fields, "id": f"{owner.name}/{name}"}, base)
    return replace(
        spec,
        working_dir=_folder(folder, spec),
        resources=tuple(_anchored(need, owner.project_dir) for need in spec.resources),
        env_files=tuple(_in_project(path) for path in spec.env_files),
        depends_on=tuple(
            replace(item, process=item.process if "/" in item.process else f"{owner.name}/{item.process}")
            for item in spec.depends_on
        ),
    )


def _template_fields(where: str, name: object, templates: Mapping[str, Template]) -> Mapping[str, Any]:
    if name is None:
        return {}
    source = as_text(f"{where}: template", name)
    if source not in templates:
        raise NotFound(f'{where}: template "{source}": not defined{nearest(source, templates)}')
    return templates[source].fields


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _health(where: str, fields: dict[str, Any], inherited: object, settings: Settings) -> object:
    """Return the health check, the process's own or its template's, with its interval and the defaults."""
    interval = fields.pop("health_check_interval", None)
    if interval is not None:
        parse_duration(f"{where}: health_check_interval", interval)
    own = fields.get("health")
    found = inherited if own is None else {"url": own} if isinstance(own, str) else own
    if not isinstance(found, Mapping):
        return found
    if interval is not None and _mapping(own).get("interval") is not None:
        raise InvalidInput(f'{where}: expected "interval" in health or "health_check_interval", found both')
    defaults = {"interval": settings.health_interval or None, "timeout": settings.health_timeout or None}
    return {**defaults, **found, **({} if interval is None else {"interval": interval})}


def _folder(base: str, spec: ProcessSpec) -> str:
    """Return the working directory, absolute or relative to the project's folder; a claimed workdir replaces base."""
    own = spec.working_dir
    if not own:
        return "" if base == "." or any(need.type == "workdir" for need in spec.resources) else base
    if own.startswith(("~", "${")) or not base:
        return own
    return posixpath.normpath(posixpath.join(base, own))


def _in_project(path: str) -> str:
    return path if path.startswith(("/", "~", "${")) else f"${{project_dir}}/{path}"


def _anchored(need: Need, project_dir: str) -> Need:
    """Return a need whose value, if it begins with ./ or ../ or holds ${project_dir}, names a path of this project."""
    literal = project_dir.replace("%", "%%").replace("${", "$${")
    value = need.value.replace("${project_dir}", literal)
    if value.startswith(("./", "../")):
        value = posixpath.normpath(posixpath.join(literal, value))
    return replace(need, value=value)


def _check_references(found: Environment) -> None:
    """Raise InvalidInput for a ${process.resource} that no process of the environment can give."""
    named = {spec.name: spec for spec in found.processes}
    for spec in found.processes:
        for variable in variables_in("\n".join(_texts(spec))):
            other, dot, resource = variable.rpartition(".")
            if not dot:
                continue
            where = f'process "{spec.id}": "${{{variable}}}"'
            if other not in named:
                raise InvalidInput(f'{where}: there is no process "{other}"{nearest(other, named)}')
            needs = [need.name for need in named[other].resources]
            if resource not in needs and f"%{resource}" not in named[other].command:
                hint = nearest(resource, needs)
                raise InvalidInput(f'{where}: process "{other}" claims no resource "{resource}"{hint}')


def _texts(spec: ProcessSpec) -> Iterator[str]:
    """Yield every text of a process in which variables are replaced."""
    yield from (spec.command, spec.working_dir, spec.user, *spec.env.values(), *spec.env_files)
    yield from (value for value in spec.vars.values() if value is not None)
    yield from (need.value for need in spec.resources)
    yield from (check.url for check in (spec.readiness, spec.health) if check is not None)


def document(source: Environment) -> dict[str, Any]:
    """Return plain data of a project file, second dialect, that reads back as this environment.

    Templates and global settings are written out. A variable that must be given is left out: TOML has no null.
    """
    head: dict[str, Any] = {"name": source.name}
    if source.description:
        head["description"] = source.description
    if source.inactivity_timeout:
        head["inactivity_timeout"] = _duration(source.inactivity_timeout)
    if not source.auto_shutdown:
        head["auto_shutdown"] = False
    if source.env:
        head["env_vars"] = dict(source.env)
    return {"environment": head, "processes": {spec.name: _declaration(spec, source) for spec in source.processes}}


def _declaration(spec: ProcessSpec, owner: Environment) -> dict[str, Any]:
    plain = spec.to_dict()
    data: dict[str, Any] = {"command": plain.pop("command")}
    for key in ("id", "template"):
        plain.pop(key, None)
    env = {name: value for name, value in plain.pop("env", {}).items() if owner.env.get(name) != value}
    for key, value in plain.items():
        data[key] = value
    if "vars" in data:
        data["vars"] = {name: value for name, value in data["vars"].items() if value is not None}
    for key in ("stop_timeout", "start_timeout"):
        if key in data:
            data[key] = _duration(data[key])
    for key, default in _DEFAULTS.items():
        if key in data:
            changed = {name: value for name, value in data[key].items() if value != getattr(default, name)}
            for name in _SECONDS.intersection(changed):
                changed[name] = _duration(changed[name])
            only = next(iter(changed)) if len(changed) == 1 else ""
            data[key] = changed[only] if only in ("url", "policy") else changed
    if isinstance(data.get("health"), str):
        data["health_check_url"] = data.pop("health")
    if spec.depends_on:
        data["depends_on"] = [_dependency(item) for item in spec.depends_on]
    if env:
        data["env_vars"] = env
    return data


_DEFAULTS: Mapping[str, object] = {
    "restart": RestartPolicy(),
    "readiness": HealthCheck(""),
    "health": HealthCheck(""),
    "limits": Limits(),
    "logs": LogPolicy(),
}
_SECONDS = {"interval", "timeout", "start_period", "delay", "max_delay", "window"}


def _dependency(item: Dependency) -> str | dict[str, str]:
    name = item.process.rpartition("/")[2]
    return name if item.condition == "healthy" else {"process": name, "condition": item.condition}


def _duration(seconds: float) -> str | float | int:
    text = format_duration(seconds)
    if parse_duration("duration", text) == seconds:
        return text
    return int(seconds) if seconds == int(seconds) else seconds
