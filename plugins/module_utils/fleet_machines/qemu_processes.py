# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes of machines: fleetd runs them, from the template "qemu", and gives them their ports."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .provider import Job

if TYPE_CHECKING:
    from fleet_core.errors import FleetError, NotFound, Unavailable
    from fleet_core.templates import template
    from fleet_node import logs
    from fleet_node.client import Client
    from fleet_node.store import Store
else:
    try:
        from ..fleet_core.errors import FleetError, NotFound, Unavailable
        from ..fleet_core.templates import template
        from ..fleet_node import logs
        from ..fleet_node.client import Client
        from ..fleet_node.store import Store
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import FleetError, NotFound, Unavailable
        from fleet_core.templates import template
        from fleet_node import logs
        from fleet_node.client import Client
        from fleet_node.store import Store

# templates/processes/qemu.json, which Ansible sends to no host. A test holds them together.
TEMPLATE: Mapping[str, Any] = {
    "id": "qemu",
    "label": "QEMU virtual machine",
    "command": (
        "set -f; [ -z ${machine} ] || exec ${python} -I -m fleet_machines.qemu_launch ${machine} ${sshport} ${vncport};"
        " vnc=${vncport}; args=${args}; set -- -m ${memory} -smp ${cpus};"
        ' [ -z ${disk} ] || set -- "$@" -drive file=${disk},if=virtio;'
        " exec qemu-system-x86_64 -name ${name} -machine q35,accel=${accel} -display none"
        " -vnc ${listen}:$((vnc - 5900)) -serial tcp:${listen}:${serialport},server=on,wait=off"
        " -netdev user,id=net0,hostfwd=tcp:${listen}:${sshport}-:22 -device virtio-net-pci,netdev=net0"
        ' "$@" $args'
    ),
    "shell": True,
    "resources": [{"type": "tcpport", "name": "sshport"}, "vncport", "serialport"],
    "vars": {
        "memory": "2G",
        "cpus": "2",
        "disk": "",
        "accel": "kvm:tcg",
        "listen": "127.0.0.1",
        "args": "",
        "machine": "",
        "python": "python3",  # fleetd puts its own there
    },
    "action": "vncviewer 127.0.0.1::${vncport}",
    "stop_timeout": "30s",
    "readiness": {"url": "tcp://127.0.0.1:${vncport}", "interval": "200ms"},
    "health": {"url": "tcp://127.0.0.1:${vncport}", "interval": "30s", "action": "none"},
}
# What fleetd says of a process, and what that means for a machine.
STATES = {
    "stopped": "stopped",
    "starting": "starting",
    "running": "running",
    "unhealthy": "running",
    "backoff": "starting",
    "stopping": "stopping",
    "error": "stopped",
}
_LONGEST_ID = 63
_ESCAPES = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_TAIL = 6

View = dict[str, Any]


def process_id(name: str) -> str:
    """Return the id of a machine's process. Of a name that is too long for one, the end is a hash."""
    ident = f"machine-{name}"
    if len(ident) > _LONGEST_ID:
        digest = hashlib.sha256(name.encode()).hexdigest()[:10]
        ident = f"{ident[: _LONGEST_ID - 11]}-{digest}"
    return ident


def item(name: str, folder: Path, forwarded: bool) -> dict[str, Any]:
    """Return the declaration of a machine's process. forwarded: whether it has a port of the host's for SSH.

    What somebody has added to the template, such as limits, holds; its command and ports are ours.
    """
    port = {"type": "tcpport", "name": "sshport"}
    kept = ("command", "shell", "action", "stop_timeout", "readiness", "health")
    # Its serial console goes to its log, not to a port.
    values = {"machine": str(folder).replace("%", "%%").replace("${", "$${"), "serialport": "0"}
    return {
        "id": process_id(name),
        "template": TEMPLATE["id"],
        "label": f"machine {name}",
        **{key: TEMPLATE[key] for key in kept},
        "resources": [*([port] if forwarded else []), "vncport"],
        "vars": {**TEMPLATE["vars"], **values, **({} if forwarded else {"sshport": "0"})},
        "working_dir": "/",
        "restart": {"policy": "on-failure", "delay": 1, "max_delay": 60},
    }


class Processes:
    """The processes of machines, as the fleetd of a state folder knows them. Safe for several threads."""

    def __init__(self, state_dir: str) -> None:
        self.state_dir = state_dir

    def call(self, method: str, /, **params: Any) -> Any:
        """Return what fleetd answers. Raises its error, or Unavailable with how it is started."""
        with Client(self.state_dir) as client:
            try:
                return client.call(method, **params)
            except Unavailable as error:
                raise Unavailable(
                    f"{error.message} on the host of the machines: with the provider qemu they are its processes"
                ) from error

    def all(self) -> dict[str, View]:
        """Return all processes by their ids, in one call."""
        return {view["id"]: view for view in self.call("processes.list")["processes"]}

    def get(self, name: str) -> View | None:
        """Return the process of a machine, or None."""
        try:
            views = self.call("processes.list", ids=[process_id(name)])["processes"]
        except NotFound:
            return None
        return dict(views[0])

    def state(self, name: str) -> str:
        """Return the state of a machine, "stopped" when it has no process."""
        return state_of(self.get(name))

    def start(self, name: str, folder: Path, forwarded: bool, job: Job) -> View:
        """Declare and start the process of a machine, and return it when QEMU runs.

        One that does not come up is stopped, and the error says what QEMU said.
        """
        self._template()
        try:
            found = self._apply("started", [item(name, folder, forwarded)], again=True, job=job)
        except FleetError as error:
            said = self._printed(name, logs.STDERR, 3)
            with contextlib.suppress(FleetError):
                self._apply("stopped", [{"id": process_id(name)}], job=Job.lasting(60.0))
            more = f"; it said: {said}" if said and said not in error.message else ""
            raise type(error)(f'machine "{name}": {error.message}{more}') from error
        return dict(found["processes"][0])

    def stop(self, name: str, job: Job) -> None:
        """End QEMU, and remember that it is not wanted. It writes out what it has: a disk is as after a power cut."""
        if self.get(name) is not None:
            self._apply("stopped", [{"id": process_id(name)}], job=job)

    def remove(self, name: str, job: Job) -> None:
        """End QEMU and forget its process, its claims and its log."""
        view = self.get(name)
        if view is None:
            return
        self._apply("absent", [{"id": process_id(name)}], job=job)
        for path in glob.glob(glob.escape(str(view["log_file"])) + "*"):
            with contextlib.suppress(OSError):
                os.unlink(path)

    def console(self, name: str, lines: int = _TAIL) -> str:
        """Return the last lines that a machine wrote to its serial console, on one line, without control characters."""
        return self._printed(name, logs.STDOUT, lines)

    def _printed(self, name: str, level: str, lines: int) -> str:
        """Return the last lines that QEMU wrote: on standard output, which is the guest's console, or of its own."""
        with contextlib.suppress(FleetError, OSError):
            view = self.get(name)
            if view is None:
                return ""
            if view.get("unit"):
                scope = self.call("daemon.status").get("scope") or "system"
                records = list(logs.read_journal(view["unit"], scope, lines=4 * lines))
            else:
                records = list(logs.read(view["log_file"], lines=4 * lines))
            printed = [plain(str(one.get("message", ""))) for one in records if one.get("level") == level]
            return " | ".join([line for line in printed if line][-lines:])[-600:]
        return ""

    def _apply(self, state: str, items: list[dict[str, Any]], job: Job, again: bool = False) -> dict[str, Any]:
        timeout = max(1.0, min(job.left(), 600.0))
        return dict(self.call("processes.apply", items=items, state=state, wait=True, timeout=timeout, again=again))

    def _template(self) -> None:
        """Add the template where there is none of its name; one that somebody has changed stays."""
        store = Store(self.state_dir)
        try:
            if store.template(TEMPLATE["id"]) is None:
                store.put_templates([template(TEMPLATE)])
        finally:
            store.close()


def state_of(view: Mapping[str, Any] | None) -> str:
    """Return the state of a machine from what fleetd says of its process."""
    return "stopped" if view is None else STATES.get(str(view.get("status")), "unknown")


def plain(text: str) -> str:
    """Return text of a guest without escape sequences and control characters: it may be shown on a terminal."""
    return _ESCAPES.sub("", text).strip()
