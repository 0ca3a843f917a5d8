# SPDX-License-Identifier: GPL-3.0-or-later
"""What the multipass command line says: its JSON, its exit codes and its messages. Pure.

Releases differ: newer ones add ``zone``, older ones ``blueprints``. Keys that are not known are left alone. Disk sizes
and processor counts are strings there, memory sizes are numbers, and all of them are missing of a stopped instance.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.checkpoints import Checkpoint, in_order
    from fleet_core.errors import (
        Conflict,
        FleetError,
        InvalidInput,
        NotFound,
        ProcessFailed,
        TimedOut,
        Unavailable,
    )
    from fleet_core.images import Image
    from fleet_core.machines import Machine, ip_addresses
    from fleet_core.quantities import parse_size
else:
    try:
        from ..fleet_core.checkpoints import Checkpoint, in_order
        from ..fleet_core.errors import (
            Conflict,
            FleetError,
            InvalidInput,
            NotFound,
            ProcessFailed,
            TimedOut,
            Unavailable,
        )
        from ..fleet_core.images import Image
        from ..fleet_core.machines import Machine, ip_addresses
        from ..fleet_core.quantities import parse_size
    except ImportError:  # installed as a top-level package
        from fleet_core.checkpoints import Checkpoint, in_order
        from fleet_core.errors import (
            Conflict,
            FleetError,
            InvalidInput,
            NotFound,
            ProcessFailed,
            TimedOut,
            Unavailable,
        )
        from fleet_core.images import Image
        from fleet_core.machines import Machine, ip_addresses
        from fleet_core.quantities import parse_size

NAME = "multipass"

# Exit codes. TIMED_OUT is what --timeout ends with; exec passes the code of the command inside through.
OK, COMMAND_LINE, FAILED, NO_DAEMON, RETRY, TIMED_OUT = range(6)

STATES = {
    "Running": "running",
    "Starting": "starting",
    "Restarting": "starting",
    "Delayed Shutdown": "running",
    "Stopped": "stopped",
    "Suspending": "stopping",
    "Suspended": "suspended",
    "Deleted": "deleted",
    "Unavailable": "unknown",
    "Unknown": "unknown",
}

# What the message of a failed command means, the first that is found in it.
_MEANINGS: tuple[tuple[str, type[FleetError]], ...] = (
    (r"timed out", TimedOut),
    (r"does not exist|no such (instance|snapshot)|unable to find an image", NotFound),
    (r"invalid instance name|invalid snapshot name|invalid (disk|memory) size|can only be expanded", InvalidInput),
    (r"already exists|is deleted|please stop|must be stopped|of stopped instances|is being prepared", Conflict),
    (r"cannot connect to the multipass socket|is multipassd running", Unavailable),
)


def read_json(command: str, text: str) -> Mapping[str, Any]:
    """Return the JSON object that a command printed. Raises ProcessFailed for anything else."""
    try:
        data = json.loads(text)
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise ProcessFailed(f"multipass {command}: expected a JSON object, found {text.strip()[:80]!r}")
    return data


def listed(data: Mapping[str, Any]) -> dict[str, Machine]:
    """Return the machines that ``list`` knows: names, states, addresses."""
    found = {}
    for item in _sequence(data, "list", "list"):
        name = item["name"]
        detail = {key: item[key] for key in ("release", "zone") if item.get(key)}
        found[name] = Machine(
            name, NAME, state=state_of(item.get("state")), addresses=ip_addresses(item.get("ipv4")), detail=detail
        )
    return found


def described(data: Mapping[str, Any]) -> dict[str, Machine]:
    """Return the machines that ``info`` describes; names of which it shows snapshots only are left out.

    detail holds what is measured inside: load, memory and disk in use (bytes), mounts, and the image's hash.
    """
    found = {}
    for name, item in _mapping(data, "info", "info").items():
        if "state" not in item:
            continue
        disks = {
            disk: {key: whole_number(size) for key, size in sizes.items()}
            for disk, sizes in (item.get("disks") or {}).items()
        }
        detail = {key: item[key] for key in ("image_hash", "image_release", "release", "load", "zone") if item.get(key)}
        detail.update({key: value for key, value in (("memory", item.get("memory")), ("disks", disks)) if value})
        mounts = {target: mount.get("source_path", "") for target, mount in (item.get("mounts") or {}).items()}
        if mounts:
            detail["mounts"] = mounts
        found[name] = Machine(
            name,
            NAME,
            state=state_of(item["state"]),
            addresses=ip_addresses(item.get("ipv4")),
            cpu=whole_number(item.get("cpu_count")),
            checkpoints=whole_number(item.get("snapshot_count")),
            detail=detail,
        )
    return found


def snapshots(data: Mapping[str, Any]) -> dict[str, tuple[Checkpoint, ...]]:
    """Return the snapshots of each instance, from ``info --snapshots`` or ``list --snapshots``, parents first."""
    found = {}
    for machine, item in _mapping(data, "info", "snapshots").items():
        entries = item.get("snapshots", {} if "state" in item else item)
        found[machine] = in_order(
            Checkpoint(
                name,
                machine,
                parent=entry.get("parent") or "",
                comment=entry.get("comment") or "",
                created=entry.get("created") or "",
                size=size_of(entry.get("size")),
            )
            for name, entry in entries.items()
        )
    return found


def images(data: Mapping[str, Any]) -> tuple[Image, ...]:
    """Return the images that ``find`` lists."""
    return tuple(
        Image(
            name,
            NAME,
            aliases=tuple(item.get("aliases") or ()),
            release=" ".join(filter(None, (item.get("os"), item.get("release")))),
            version=item.get("version") or "",
        )
        for name, item in _mapping(data, "images", "find").items()
    )


def networks(data: Mapping[str, Any]) -> dict[str, str]:
    """Return the networks of the host that a machine can be on, name to description."""
    return {item["name"]: item.get("description") or "" for item in _sequence(data, "list", "networks")}


def version(data: Mapping[str, Any]) -> tuple[str, str]:
    """Return the versions of the client and of the daemon; the second is empty when the daemon did not answer."""
    return str(data.get("multipass", "")), str(data.get("multipassd", ""))


def state_of(word: object) -> str:
    """Return the state in our words; what is not known is "unknown"."""
    return STATES.get(str(word), "unknown")


def whole_number(value: object) -> int:
    """Return a number that may be given as text; 0 for nothing."""
    try:
        return int(str(value or 0))
    except ValueError:
        return 0


def size_of(value: object) -> int:
    """Return bytes from a number, from digits, or from text such as "4.9GiB"; 0 for nothing."""
    text = str(value if value is not None else "").strip()
    if not text or text.isdigit():
        return int(text or 0)
    return parse_size("multipass: size", text)


def human(size: int) -> str:
    """Return bytes as ``get`` prints them."""
    for unit, factor in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size >= factor:
            return f"{size / factor:.1f}{unit}"
    return f"{size}B"


def message_of(command: str, stderr: str) -> str:
    """Return what a failed command says in one line, without the name of the command."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stderr))]
    lines = [line for line in lines if line and not set(line) <= set("#")]
    text = " ".join(lines)
    text = re.sub(rf"^(error: )?{re.escape(command)} failed: ", "", text)
    text = re.sub(r"^The following errors occurred: ?", "", text)
    return text.rstrip(".") or "it said nothing"


def error_of(what: str, command: str, code: int, stderr: str) -> FleetError:
    """Return the error that an exit code and the text on stderr stand for. what: the thing, such as ``machine "a"``."""
    message = message_of(command, stderr)
    said = f"{what}: multipass {command}: {message}"
    if code == COMMAND_LINE:
        return InvalidInput(said)
    if code == NO_DAEMON:
        return Unavailable(f"{what}: multipass {command}: the daemon multipassd is unavailable: {message}")
    if code == RETRY:
        return Unavailable(f"{what}: multipass {command}: it asked to try again, until there was no more time")
    if code == TIMED_OUT:
        return TimedOut(said)
    for pattern, kind in _MEANINGS:
        if re.search(pattern, message, re.IGNORECASE):
            return kind(said)
    return ProcessFailed(said if code == FAILED else f"{said} (exit code {code})")


def _mapping(data: Mapping[str, Any], key: str, command: str) -> Mapping[str, Mapping[str, Any]]:
    found = data.get(key)
    if not isinstance(found, Mapping) or not all(isinstance(item, Mapping) for item in found.values()):
        raise ProcessFailed(f'multipass {command}: expected an object "{key}" of objects')
    return found


def _sequence(data: Mapping[str, Any], key: str, command: str) -> list[Mapping[str, Any]]:
    found = data.get(key)
    if not isinstance(found, list) or not all(isinstance(item, Mapping) and "name" in item for item in found):
        raise ProcessFailed(f'multipass {command}: expected a list "{key}" of objects with names')
    return found
