# SPDX-License-Identifier: GPL-3.0-or-later
"""The state as human-readable JSON: the file of the vibeprocess manager (vp), with our own fields in extra keys.

Both forms of that file are read and written. They differ in what exit code 0 of a check says of the value: it is free
in the one, in use in the other. Our own fields are in a "fleet" key, which vp ignores. The key counts only while the
rest of its entry is as we wrote it, so that a person may edit the file.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

if TYPE_CHECKING:
    from fleet_core import gcluster_state
    from fleet_core import lifecycle as life
    from fleet_core.changes import Change, difference
    from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, StateDamaged
    from fleet_core.names import describe
    from fleet_core.process_status import ProcessStatus, status_from_dict
    from fleet_core.processes import ProcessSpec, process_spec
    from fleet_core.resource_types import DEFAULTS, MEANINGS, ResourceType, resource_type
    from fleet_core.resources import Allocation, Claim, type_named
    from fleet_core.templates import Template, template
else:
    try:
        from ..fleet_core import gcluster_state
        from ..fleet_core import lifecycle as life
        from ..fleet_core.changes import Change, difference
        from ..fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, StateDamaged
        from ..fleet_core.names import describe
        from ..fleet_core.process_status import ProcessStatus, status_from_dict
        from ..fleet_core.processes import ProcessSpec, process_spec
        from ..fleet_core.resource_types import DEFAULTS, MEANINGS, ResourceType, resource_type
        from ..fleet_core.resources import Allocation, Claim, type_named
        from ..fleet_core.templates import Template, template
    except ImportError:  # installed as a top-level package
        from fleet_core import gcluster_state
        from fleet_core import lifecycle as life
        from fleet_core.changes import Change, difference
        from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, StateDamaged
        from fleet_core.names import describe
        from fleet_core.process_status import ProcessStatus, status_from_dict
        from fleet_core.processes import ProcessSpec, process_spec
        from fleet_core.resource_types import DEFAULTS, MEANINGS, ResourceType, resource_type
        from fleet_core.resources import Allocation, Claim, type_named
        from fleet_core.templates import Template, template

from . import agent_state, procfs
from .declarations import public_template
from .store import Store

FORMAT = 1
SECTIONS = ("instances", "templates", "resources", "counters", "types", "remotes_allowed")
_NEGATED = re.compile(r"&&\s*exit\s+1\s*\|\|\s*exit\s+0\s*;?\s*$")
_BARE = re.compile(r"\s*(?:nc\s+-z|test\s+-f|test\s+-S)\s+[^;&|!<>\n]*$")
_PROBES = {
    "tcp": re.compile(r"\s*nc\s+-z\s+(?:localhost|127\.0\.0\.1)\s+\$\{value\}\s*(?:&&|$)"),
    "path": re.compile(r"\s*test\s+-[fSe]\s+\$\{value\}\s*(?:&&|$)"),
}
_PATH_TESTS = {"dbfile": "-f", "socket": "-S"}
_VP_STATES = {life.UNHEALTHY: "running", life.BACKOFF: "starting"}
_ADOPTABLE = (life.STARTING, life.RUNNING, life.UNHEALTHY)

# pid to (argument vector, start time in clock ticks), or None when it does not run.
Look = Callable[[int], Optional[tuple[tuple[str, ...], int]]]


def usual_files(home: Path) -> tuple[Path, ...]:
    """Return where vp keeps its state, the older place last."""
    return (home / ".config" / "vp" / "state.json", home / ".vibeprocess" / "state.json")


def read_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the content of a state file. Raises NotFound, StateDamaged or InvalidInput."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"state file {path}: does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StateDamaged(f"state file {path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        data = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"state file {path}: expected JSON: {error}") from None
    if not isinstance(data, dict):
        raise InvalidInput(f"state file {path}: expected an object with {', '.join(SECTIONS)}, found {describe(data)}")
    return data


def render(data: Mapping[str, Any]) -> str:
    """Return the text of a state file."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def write_file(path: str | os.PathLike[str], data: Mapping[str, Any]) -> None:
    """Write a state file that only its owner can read (0600), whole or not at all. Raises StateDamaged."""
    target = Path(path)
    name = ""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(render(data))
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except OSError as error:
        if name and os.path.exists(name):
            os.unlink(name)
        raise StateDamaged(f"state file {path}: cannot be written: {error.strerror}") from error


def export_state(store: Store, check_means: str = "free") -> dict[str, Any]:
    """Return the whole state as plain data.

    check_means: what exit code 0 of the written checks says, "free" or "in_use".
    """
    if check_means not in MEANINGS:
        raise InvalidInput(f'check_means: expected "free" or "in_use", found "{check_means}"')
    view = store.view()
    environments = store.environments()
    data: dict[str, Any] = {
        "instances": {
            name: _instance(spec, status)
            for name, (spec, status) in store.processes().items()
            if spec.environment != "agents"  # they are of their agents, and only in this state folder
        },
        "templates": {name: item.to_dict() for name, item in store.templates().items()},
        "resources": {str(claim): claim.to_dict() for claim in store.claims()},
        "counters": dict(view.counters),
        "types": {name: _type(kind, check_means) for name, kind in view.types.items()},
        "remotes_allowed": store.setting("remotes_allowed") or {},
        "fleet": {
            "format": FORMAT,
            "check_means": check_means,
            "environments": environments,
            "agents": agent_state.export(store.folder),
        },
    }
    return data


def _type(kind: ResourceType, check_means: str) -> dict[str, Any]:
    check, means = kind.check, kind.check_means
    if kind.probe:
        check = (
            f"test {_PATH_TESTS.get(kind.name, '-e')} ${{value}}"
            if kind.probe == "path"
            else "nc -z localhost ${value}"
        )
        means = "in_use"
    if check and means != check_means:
        # The bare form of known programs, as vp writes it; a subshell keeps any other command in one piece.
        inner = check if kind.probe else f"({check}\n)" if "#" in check else f"({check})"
        check = f"{inner} && exit 1 || exit 0"
    seen = {"name": kind.name, "check": check, "counter": kind.counter, "start": kind.start, "end": kind.end}
    return {**seen, "fleet": kind.to_dict()}


def _instance(spec: ProcessSpec, status: ProcessStatus) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": spec.id,
        "template": spec.template,
        "command": spec.command,
        "pid": status.pid,
        "status": _VP_STATES.get(status.state, status.state),
        "resources": status.resources,
        "started": int(status.started),
        "managed": True,
    }
    if spec.working_dir:
        data["cwd"] = spec.working_dir
    if status.error:
        data["error"] = status.error
    if spec.action:
        data["action"] = spec.action
    return {**data, "fleet": {"declaration": spec.to_dict(), "status": status.to_dict()}}


@dataclass(frozen=True)
class Import:
    """What an import writes, and the change that this is. adopted, stopped: the instances that ran at the export."""

    change: Change
    types: tuple[ResourceType, ...] = ()
    templates: tuple[Template, ...] = ()
    processes: tuple[tuple[ProcessSpec, ProcessStatus], ...] = ()
    claims: tuple[Claim, ...] = ()
    counters: Mapping[str, int] = field(default_factory=dict)
    environments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    remotes_allowed: Mapping[str, Any] = field(default_factory=dict)
    agents: tuple[agent_state.AgentHistory, ...] = ()
    adopted: tuple[str, ...] = ()
    stopped: tuple[str, ...] = ()


def running(pid: int) -> tuple[tuple[str, ...], int] | None:
    """Return the argument vector and the start time of a pid of this host, or None."""
    ticks = procfs.start_ticks(pid)
    if not ticks:
        return None
    try:
        argv = tuple(str(word) for word in procfs.describe(pid).get("argv") or ())
    except FleetError:
        return None
    return (argv, ticks) if argv else None


def plan_import(
    store: Store, data: Mapping[str, Any], check_means: Mapping[str, str] | None = None, look: Look = running
) -> Import:
    """Return what an import would write. What the file does not name stays as it is.

    check_means: for a type by name what exit code 0 of its check says, "free" or "in_use"; it is needed where the file
    and the form of the command do not tell. An instance that runs is adopted if its pid lives and has its command;
    otherwise it is stopped. Raises InvalidInput that names what is wrong, and Conflict for a process or a value that is
    there already, declared or held otherwise. The state file of gcluster is read as well: it holds agents only.
    """
    if gcluster_state.is_state(data):
        data = {"fleet": {"agents": agent_state.from_gcluster(data)}}
    sections = {name: _section(data, name) for name in SECTIONS}
    known_types = store.types()
    found_types = {kind.name: kind for kind in _types(sections["types"], check_means or {})}
    types = {**known_types, **found_types}
    counters = _counters(sections["counters"], types)
    known_templates = store.templates()
    found_templates = {
        name: template({"id": name, **_entry(f'template "{name}"', item)})
        for name, item in sections["templates"].items()
    }
    known_processes = store.processes()
    found: dict[str, tuple[ProcessSpec, ProcessStatus]] = {}
    adopted, stopped = [], []
    for name, item in sections["instances"].items():
        spec, status = _process(name, _entry(f'instance "{name}"', item), types)
        if name in known_processes:
            if known_processes[name][0] != spec:
                raise Conflict(f'process "{name}": exists already with another declaration; remove it first')
            continue
        pid_start = _alive_since(spec, status, item, look) if status.state in _ADOPTABLE else 0
        if pid_start:
            found[name] = (
                spec,
                status.evolve(state=life.RUNNING, desired="running", pid_start=pid_start, adopted=True),
            )
            adopted.append(name)
        else:
            if status.pid:
                stopped.append(name)
            found[name] = (spec, _stopped(status))
    claims = _claims(
        store, sections["resources"], types, sections["instances"], {name: found[name][1] for name in adopted}
    )
    known_environments = store.environments()
    own = _section(data, "fleet")
    if own.get("format", FORMAT) != FORMAT:
        raise InvalidInput(
            f"state file: expected format {FORMAT}, found {own['format']}; it was written by another version"
        )
    environments = {
        name: _environment(_entry(f'environment "{name}"', item), name, adopted)
        for name, item in _section(own, "environments").items()
        if name not in known_environments
    }
    agents = agent_state.plan(store.folder, _section(own, "agents"))
    remotes = {**(store.setting("remotes_allowed") or {}), **sections["remotes_allowed"]}
    sides = {
        "resource type": (_plain(known_types, found_types), _plain(found_types)),
        "process template": (_plain(known_templates, found_templates), _plain(found_templates)),
        "process": ({}, {name: _shown(spec, status) for name, (spec, status) in found.items()}),
        "claim": ({}, {str(claim): claim.owner for claim in claims}),
        "counter": (_only(store.view().counters, counters), counters),
        "environment": ({}, {name: item["path"] for name, item in environments.items()}),
        "agent": ({}, {item.name: item.shown for item in agents}),
        "allowed origin": (_only(store.setting("remotes_allowed") or {}, remotes), remotes),
    }
    change = _joined({noun: difference(before, after, noun) for noun, (before, after) in sides.items()})
    return Import(
        change, tuple(kind for name, kind in found_types.items() if known_types.get(name) != kind),
        tuple(item for name, item in found_templates.items() if known_templates.get(name) != item),
        tuple(found.values()), tuple(claims), counters, environments, remotes, agents, tuple(adopted),
        tuple(stopped),
    )  # fmt: skip


def import_state(
    store: Store, data: Mapping[str, Any], check_means: Mapping[str, str] | None = None, look: Look = running
) -> Import:
    """Import all of the data, or nothing, and return what was done. A running fleetd sees it after a restart."""
    with store.transaction():
        plan = plan_import(store, data, check_means, look)
        if plan.change.changed:
            store.put_types(plan.types)
            store.put_templates(plan.templates)
            store.put_processes(plan.processes)
            if not store.commit(Allocation(claimed=plan.claims), store.types()):
                raise Conflict("import: a value is held by another owner")
            store.set_counters(plan.counters)
            for name, item in plan.environments.items():
                store.put_environment(name, item["path"], {key: value for key, value in item.items() if key != "path"})
            store.put_setting("remotes_allowed", dict(plan.remotes_allowed))
            agent_state.write(store.folder, plan.agents)  # last: if it fails, nothing is kept of the rest either
    return plan


def _section(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = data.get(name)
    return {} if found is None else _entry(f"state file: {name}", found)


def _entry(where: str, data: object) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise InvalidInput(f"{where}: expected an object, found {describe(data)}")
    return data


def _types(data: Mapping[str, Any], check_means: Mapping[str, str]) -> list[ResourceType]:
    found, asked = [], []
    for name, entry in data.items():
        kind = _read_type(name, _entry(f'resource type "{name}"', entry), check_means.get(name, ""))
        if kind is None:
            asked.append(name)
        else:
            found.append(kind)
    if asked:
        hints = " ".join(f"--check-means {name}=free" for name in asked)
        raise InvalidInput(
            f"resource types {', '.join(asked)}: what exit code 0 of the check says cannot be told from the command;"
            f" give it for each, free or in_use, such as {hints}"
        )
    return found


def _read_type(name: str, entry: Mapping[str, Any], means: str) -> ResourceType | None:
    """Return a type of the file; None when the polarity of its check must be asked."""
    if not means and isinstance(entry.get("fleet"), Mapping):
        own = resource_type({"name": name, **entry["fleet"]})
        if any(_type(own, form) == dict(entry) for form in MEANINGS):
            return own
    check = str(entry.get("check") or "").strip()
    data: dict[str, Any] = {"name": name, "counter": bool(entry.get("counter"))}
    if data["counter"]:
        data.update(start=entry.get("start"), end=entry.get("end"))
    default = next((kind for kind in DEFAULTS if kind.name == name), None)
    probe = default.probe if default is not None else ""
    if default is not None and default.description:
        data["description"] = default.description
    if not check:
        return resource_type(data)
    told = means or str(entry.get("check_means") or "")
    if not told:
        told = "free" if _NEGATED.search(check) else "in_use" if _BARE.match(check) else ""
        if probe and told and _PROBES[probe].match(check):
            return resource_type({**data, "probe": probe})
    return resource_type({**data, "check": check, "check_means": told}) if told else None


def _counters(data: Mapping[str, Any], types: Mapping[str, ResourceType]) -> dict[str, int]:
    found = {}
    for name, value in data.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidInput(f'counter "{name}": expected a whole number, found {describe(value)}')
        if name in types and types[name].counter and types[name].start <= value <= types[name].end:
            found[name] = value
    return found


def _process(
    name: str, entry: Mapping[str, Any], types: Mapping[str, ResourceType]
) -> tuple[ProcessSpec, ProcessStatus]:
    own = entry.get("fleet")
    if isinstance(own, Mapping):
        spec = process_spec(_entry(f'instance "{name}": fleet', own.get("declaration")))
        status = status_from_dict(_entry(f'instance "{name}": fleet', own.get("status")))
        if _instance(spec, status) == dict(entry):
            return spec, status
    held = _entry(f'instance "{name}": resources', entry.get("resources") or {})
    claimed = {str(kind): (type_named(types, str(kind)).name, str(value)) for kind, value in held.items()}
    words = str(entry.get("command") or "").split()
    spec = process_spec(
        {
            "id": name,
            "template": entry.get("template") or "",
            # vp splits at spaces, whatever the quotes, and its variables are replaced already.
            "command": shlex.join(words).replace("%", "%%").replace("${", "$${"),
            "working_dir": entry.get("cwd") or "",
            "resources": [{"type": kind, "value": value} for kind, value in held.items()],
            "action": entry.get("action") or "",
            "restart": "never",
        }
    )
    state = str(entry.get("status") or life.STOPPED)
    pid, started = entry.get("pid") or 0, entry.get("started") or 0
    if state not in life.STATES or not isinstance(pid, int) or not isinstance(started, (int, float)):
        raise InvalidInput(f'instance "{name}": expected status, pid and started, found {describe(dict(entry))}')
    return spec, ProcessStatus(
        state=state, desired="stopped", driver="native", pid=pid, claimed=claimed, started=float(started),
        error=str(entry.get("error") or ""),
    )  # fmt: skip


def _alive_since(spec: ProcessSpec, status: ProcessStatus, entry: Mapping[str, Any], look: Look) -> int:
    """Return the start time of the instance's pid if it is still that instance, or 0."""
    seen = look(status.pid) if status.pid > 1 else None
    if seen is None:
        return 0
    argv, pid_start = seen
    if status.pid_start:  # the pid of our own launch: the time of its start says more than its command
        return pid_start if pid_start == status.pid_start else 0
    words = str(entry.get("command") or "").split()
    # A script's argument vector begins with its interpreter.
    same = (bool(words) and list(argv[-len(words) :]) == words) or shlex.join(argv) == spec.command
    return pid_start if same else 0


def _stopped(status: ProcessStatus) -> ProcessStatus:
    kept = status if status.state == life.ERROR else status.evolve(state=life.STOPPED, desired="stopped", error="")
    return kept.evolve(pid=0, pid_start=0, launch="", healthy=None)


def _claims(
    store: Store,
    data: Mapping[str, Any],
    types: Mapping[str, ResourceType],
    instances: Mapping[str, Any],
    adopted: Mapping[str, ProcessStatus],
) -> list[Claim]:
    """Return the claims of adopted instances, and those of owners that are no instance; a stopped one holds nothing."""
    wanted: dict[tuple[str, str], Claim] = {}
    for owner, status in adopted.items():
        for name, (kind, value) in status.claimed.items():
            wanted[(kind, value)] = Claim(kind, value, owner, name)
    for key, item in data.items():
        entry = _entry(f'resource "{key}"', item)
        kind, value, owner = (str(entry.get(part) or "") for part in ("type", "value", "owner"))
        if not (kind and value and owner):
            raise InvalidInput(f'resource "{key}": expected type, value and owner, found {describe(dict(entry))}')
        type_named(types, kind)
        if owner not in instances:
            wanted.setdefault((kind, value), Claim(kind, value, owner, str(entry.get("name") or kind)))
    held = {(types[claim.type].space, claim.value): claim for claim in store.claims() if claim.type in types}
    names = {(claim.owner, claim.name) for claim in held.values()}
    found: list[Claim] = []
    for claim in wanted.values():
        holder = held.get((types[claim.type].space, claim.value))
        if holder is not None and holder.owner != claim.owner:
            raise Conflict(f'resource "{claim}": asked by "{claim.owner}", held by "{holder.owner}"')
        if holder is not None:
            continue
        if (claim.owner, claim.name) in names:  # vp knows owner and value only: two of a type need names of their own
            claim = claim._replace(name=f"{claim.name}-{claim.value}")
        names.add((claim.owner, claim.name))
        held[(types[claim.type].space, claim.value)] = claim
        found.append(claim)
    return found


def _environment(data: Mapping[str, Any], name: str, adopted: Iterable[str]) -> Mapping[str, Any]:
    if not isinstance(data.get("path"), str):
        raise InvalidInput(f'environment "{name}": expected a path, found {describe(data.get("path"))}')
    runs = any(ident.startswith(f"{name}/") for ident in adopted)
    return {**data, "active": bool(data.get("active")) and runs}


def _shown(spec: ProcessSpec, status: ProcessStatus) -> dict[str, Any]:
    return {**spec.public(), "state": "started" if status.state == life.RUNNING else "stopped"}


def _plain(items: Mapping[str, Any], names: Iterable[str] | None = None) -> dict[str, Any]:
    wanted = items if names is None else set(names)
    return {name: public_template(item.to_dict()) for name, item in items.items() if name in wanted}


def _only(known: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in known.items() if name in found}


def _joined(changes: Mapping[str, Change]) -> Change:
    """Return one change of all, by "NOUN NAME"."""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    actions: list[str] = []
    for noun, change in changes.items():
        before.update({f"{noun} {name}": value for name, value in change.before.items()})
        after.update({f"{noun} {name}": value for name, value in change.after.items()})
        actions.extend(change.actions)
    return Change(before, after, tuple(actions))
