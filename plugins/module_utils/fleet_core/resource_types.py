# SPDX-License-Identifier: GPL-3.0-or-later
"""Resource types: data that says how values of a kind are counted and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .errors import InvalidInput
from .interpolation import interpolate_shell, variables_in
from .names import as_bool, as_int, as_text, check_keys, describe
from .quantities import parse_duration

PROBES = ("tcp", "path")
MEANINGS = ("free", "in_use")


@dataclass(frozen=True)
class ResourceType:
    """How one kind of resource is claimed.

    check: a POSIX shell command with ${value}; check_means: what its exit code 0 says, "free" or "in_use".
    probe: a check inside the process: "tcp" (nothing listens on the port) or "path" (nothing has this path).
    counter: values are whole numbers from start to end, given out in turn. timeout: seconds for one check.
    """

    name: str
    check: str = ""
    check_means: str = ""
    probe: str = ""
    counter: bool = False
    start: int = 0
    end: int = 0
    timeout: float = 5.0
    description: str = ""

    @cached_property
    def space(self) -> str:
        """The space in which a value is unique: one of all TCP ports, one of all paths, other types their own."""
        return self.probe or self.name

    @cached_property
    def checked(self) -> bool:
        """Whether a value must be asked for on the host before it is given out."""
        return bool(self.check or self.probe)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that differ from nothing, JSON-ready."""
        data: dict[str, Any] = {"name": self.name, "counter": self.counter}
        if self.counter:
            data.update(start=self.start, end=self.end)
        if self.check:
            data.update(check=self.check, check_means=self.check_means, timeout=self.timeout)
        if self.probe:
            data["probe"] = self.probe
        if self.description:
            data["description"] = self.description
        return data

    def check_command(self, value: str) -> str:
        """Return the shell command that checks a value."""
        return interpolate_shell(self.check, {"value": value}, where=f'resource type "{self.name}": check')

    def validate_value(self, value: object) -> str:
        """Return an explicitly asked value as text; a counter takes whole numbers in its range only."""
        text = as_text(f"resource of type {self.name}", value)
        if not text or "\0" in text or "\n" in text:
            raise InvalidInput(f'resource type "{self.name}": expected a value of one line, found {describe(value)}')
        if self.probe == "tcp":
            return str(as_int(f'resource "{self.name}:{text}"', text, 1, 65535))
        if self.counter:
            return str(as_int(f'resource "{self.name}:{text}"', text, 0, 2**63 - 1))
        return text


_KEYS = ("name", "check", "check_means", "probe", "counter", "start", "end", "timeout", "description")


def resource_type(data: object) -> ResourceType:
    """Return a validated type from plain data. Raises InvalidInput that names the type and the key."""
    name = data.get("name") if isinstance(data, Mapping) else None
    if not isinstance(name, str) or not name.replace("_", "").isalnum() or not name.isascii() or name[0].isdigit():
        raise InvalidInput(f"resource type: expected a name of letters, digits and '_', found {describe(name)}")
    where = f'resource type "{name}"'
    data = check_keys(where, data, _KEYS)
    check = as_text(f"{where}: check", data.get("check") or "")
    means = data.get("check_means") or ""
    probe = data.get("probe") or ""
    counter = as_bool(f"{where}: counter", data.get("counter") or False)
    if check and probe:
        raise InvalidInput(f"{where}: expected a check or a probe, found both")
    if probe and probe not in PROBES:
        raise InvalidInput(f'{where}: expected probe {" or ".join(PROBES)}, found "{probe}"')
    if check and means not in MEANINGS:
        found = f'"{means}"' if means else "nothing"
        raise InvalidInput(f'{where}: expected check_means "free" or "in_use" beside the check, found {found}')
    if means and not check:
        raise InvalidInput(f"{where}: check_means needs a check")
    for variable in variables_in(check):
        if variable != "value":
            raise InvalidInput(f'{where}: the check knows only ${{value}}, found "${{{variable}}}"')
    start = end = 0
    if counter:
        if data.get("start") is None or data.get("end") is None:
            raise InvalidInput(f"{where}: a counter needs start and end")
        start = as_int(f"{where}: start", data["start"], 0, 2**31)
        end = as_int(f"{where}: end", data["end"], 0, 2**31)
        if end < start:
            raise InvalidInput(f"{where}: expected an end of at least {start}, found {end}")
        if probe == "tcp" and not 1 <= start <= end <= 65535:
            raise InvalidInput(f"{where}: expected ports from 1 to 65535, found {start}-{end}")
    elif data.get("start") or data.get("end"):
        raise InvalidInput(f"{where}: start and end need counter: true")
    timeout = parse_duration(f"{where}: timeout", data.get("timeout") if data.get("timeout") is not None else 5.0)
    if timeout <= 0:
        raise InvalidInput(f"{where}: expected a timeout above 0, found {timeout:g}")
    return ResourceType(name, check, means, probe, counter, start, end, timeout, str(data.get("description") or ""))


DEFAULTS: tuple[ResourceType, ...] = (
    ResourceType("tcpport", probe="tcp", counter=True, start=3000, end=9999, description="A TCP port of this host"),
    ResourceType("vncport", probe="tcp", counter=True, start=5900, end=5999, description="A port for a VNC display"),
    ResourceType(
        "serialport", probe="tcp", counter=True, start=9600, end=9699, description="A port for a serial console"
    ),
    ResourceType("dbfile", probe="path", description="A database file that does not exist yet"),
    ResourceType("socket", probe="path", description="A Unix socket that does not exist yet"),
    ResourceType("datadir", description="A data directory, claimed by one owner"),
    ResourceType("workdir", description="A directory that becomes the working directory"),
    ResourceType(
        "gpu",
        check="nvidia-smi --query-gpu=index --format=csv,noheader | grep -qx -- ${value}",
        check_means="free",
        counter=True,
        start=0,
        end=15,
        description="An NVIDIA GPU by index; the check asks whether it is there",
    ),
    ResourceType(
        "license",
        check="lmutil lmstat -c ${value} | grep -q UP",
        check_means="free",
        description="A licence server, PORT@HOST; the check asks whether it is up",
    ),
    ResourceType(
        "dbconn",
        check="psql -d ${value} -Atc 'SELECT 1' | grep -qx 1",
        check_means="free",
        description="A PostgreSQL database by URL; the check asks whether it answers",
    ),
)
