# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine's inside says: whether it is ready, its addresses, scripts that run in it."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .provider import Job, Ran
from .qemu_agent import Agent
from .qemu_command import AGENT, MONITOR
from .qemu_processes import Processes, plain, state_of
from .qemu_qmp import Monitor

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, FleetError, NotFound, ProcessFailed, TimedOut, Unavailable
    from fleet_core.quantities import format_duration
else:
    try:
        from ..fleet_core.errors import Conflict, FleetError, NotFound, ProcessFailed, TimedOut, Unavailable
        from ..fleet_core.quantities import format_duration
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, FleetError, NotFound, ProcessFailed, TimedOut, Unavailable
        from fleet_core.quantities import format_duration

# /run is new at each boot, and this file is the last thing that cloud-init writes. Its command takes seconds of
# processor time for the same answer.
_BOOTED = """
if ! command -v cloud-init >/dev/null 2>&1; then echo none
elif [ -e /run/cloud-init/disabled ] || [ -e /etc/cloud/cloud-init.disabled ]; then echo disabled
elif [ -e /run/cloud-init/result.json ]; then cat /run/cloud-init/result.json
else echo wait
fi
"""
_FILL = """
root=$(findmnt -n -o SOURCE /) || exit 1
number=$(cat "/sys/class/block/${root##*/}/partition" 2>/dev/null)
if [ -n "$number" ]; then
  disk=/dev/$(basename "$(dirname "$(readlink -f "/sys/class/block/${root##*/}")")")
  growpart "$disk" "$number" || [ $? = 1 ] || exit 1
fi
case $(findmnt -n -o FSTYPE /) in
  ext*) resize2fs "$root" ;;
  xfs) xfs_growfs / ;;
  btrfs) btrfs filesystem resize max / ;;
  *) echo "unknown file system" >&2; exit 1 ;;
esac
"""
WITHOUT_AGENT = 45.0  # seconds after SSH answers in which a guest agent may still come
_POLL = 0.5
_LOOK = 3.0  # seconds between two questions to fleetd whether QEMU still runs
_AGAIN = 10.0  # seconds after which a guest is asked once more to shut down
_SHORT = 5.0
# What an answer of another form than QEMU's comes to: one machine must not hide the others.
_NONSENSE = (AttributeError, LookupError, TypeError, ValueError, RecursionError)


class Guest:
    """The inside of one machine. run_folder: where its sockets are. port: that of SSH on host, 0 when not known."""

    def __init__(self, name: str, run_folder: Path, processes: Processes) -> None:
        self.name = name
        self.what = f'machine "{name}"'
        self._folder = run_folder
        self._processes = processes

    def monitor(self, timeout: float = 15.0) -> Monitor:
        """Return a connection to QEMU's monitor."""
        return Monitor(self._folder / MONITOR, self.name, timeout)

    def agent(self, timeout: float = 20.0) -> Agent:
        """Return a connection to the guest agent, which answers. Raises Unavailable when no agent runs in there."""
        with self.monitor() as monitor:
            if not monitor.listening("agent"):
                raise Unavailable(
                    f"{self.what}: no guest agent runs in it; expected the package qemu-guest-agent in its image"
                )
        return Agent(self._folder / AGENT, self.name, timeout)

    def run(self, script: str, job: Job) -> Ran:
        """Run a script as root. Raises Conflict when the machine does not run, Unavailable without an agent."""
        state = self._processes.state(self.name)
        if state not in ("running", "starting"):
            raise Conflict(f"{self.what}: it is {state}; expected a running machine to run a script in")
        with self.agent(max(1.0, min(job.left(), 60.0))) as agent:
            return agent.run(script, job)

    def wait(self, job: Job, host: str, port: int, first: bool) -> Mapping[str, tuple[str, ...]]:
        """Return the addresses by hardware address when the machine can be used.

        That is: its guest agent answers and cloud-init is done, or, where no agent is, SSH answers. host, port: where,
        empty when not known. first: it boots for the first time, so errors of cloud-init are its failure.
        """
        looked = greeted = 0.0
        runs = True  # whether the agent may run commands: some distributions forbid it
        job.report("wait until it is ready")
        while True:
            now = time.monotonic()
            if now - looked > _LOOK:
                self._check_alive()
                looked = now
            try:
                if runs and self._agent_listens():
                    found = self._booted()
                    if found is not None:
                        self._check_cloud_init(found, job, first)
                        return self.addresses()
                elif host and _greets(host, port):
                    greeted = greeted or now
                    if now - greeted > WITHOUT_AGENT:
                        job.report("SSH answers; there is no guest agent in it that runs commands")
                        return self.addresses()
            except NotFound as error:
                job.report(error.message)
                runs = False
            except (Unavailable, TimedOut, ProcessFailed) as error:
                if str(error).startswith(f"{self.what}: cloud-init"):
                    raise
            self._check_time(job, "it was not ready")
            job.pause(_POLL)

    def addresses(self) -> Mapping[str, tuple[str, ...]]:
        """Return the guest's addresses by hardware address; none when it does not tell."""
        try:
            with self.agent(_SHORT) as agent:
                return agent.addresses()
        except (FleetError, *_NONSENSE):
            return {}

    def flush(self) -> None:
        """Bring what the guest holds back to its disk, as far as it can be asked."""
        with contextlib.suppress(FleetError), self.agent(_SHORT) as agent:
            agent.run("sync\n", Job.lasting(60.0))

    def woken(self) -> None:
        """Set the guest's clock after its state was loaded, as far as it can be asked."""
        for _attempt in range(3):
            try:
                with self.agent(10.0) as agent:
                    with contextlib.suppress(NotFound, ProcessFailed):
                        agent.set_time(time.time())
                    return
            except (Unavailable, TimedOut, ProcessFailed):
                time.sleep(0.2)

    def fill_disk(self, job: Job) -> None:
        """Let the guest use a disk that has grown, as far as it can: else it does so when it boots next."""
        try:
            with self.agent(_SHORT) as agent:
                ran = agent.run(_FILL, Job.lasting(max(1.0, min(job.left(), 120.0))))
        except FleetError as error:
            job.report(f"its file system grows when it boots next ({error.message})")
            return
        if ran.code:
            job.report(f"its file system grows when it boots next ({plain(ran.stderr)[-200:]})")

    def shut_down(self, job: Job) -> None:
        """Ask the guest to shut down, by its agent or the power button, until QEMU has ended. Raises TimedOut."""
        asked, button = 0.0, False
        while state_of(self._processes.get(self.name)) in ("running", "starting", "stopping"):
            now = time.monotonic()
            if not asked or now - asked > _AGAIN:
                with contextlib.suppress(FleetError):
                    self._ask(button)
                asked, button = now, not button
            self._check_time(job, "it did not shut down", "; force: true powers it off")
            job.pause(0.3)

    def _ask(self, button: bool) -> None:
        with self.monitor(_SHORT) as monitor:
            if not monitor.running():
                monitor.call("cont")
            listens = monitor.listening("agent")
            if button or not listens:
                monitor.call("system_powerdown")
        if listens and not button:
            with Agent(self._folder / AGENT, self.name, _SHORT) as agent:
                agent.tell("guest-shutdown", {"mode": "powerdown"})

    def _agent_listens(self) -> bool:
        with self.monitor(_SHORT) as monitor:
            return monitor.listening("agent")

    def _booted(self) -> dict[str, Any] | None:
        """Return what cloud-init ended with, empty where it has nothing to do, or None as long as it works."""
        with Agent(self._folder / AGENT, self.name) as agent:
            said = agent.run(_BOOTED, Job.lasting(60.0)).stdout.strip()
        if said in ("none", "disabled"):
            return {}
        try:
            found = json.loads(said)
        except (ValueError, RecursionError):  # it is being written, or not there yet
            return None
        return found if isinstance(found, dict) else None

    def _check_cloud_init(self, result: Mapping[str, Any], job: Job, first: bool) -> None:
        told = result.get("v1")
        errors = told.get("errors") if isinstance(told, Mapping) else None
        if not errors:
            return
        text = plain(str(errors[0] if isinstance(errors, list) else errors))[:300]
        if not first:
            job.report(f"cloud-init ended with an error: {text}")
            return
        raise ProcessFailed(f"{self.what}: cloud-init ended with an error: {text}{self._said()}")

    def _check_alive(self) -> None:
        view = self._processes.get(self.name)
        if state_of(view) in ("running", "starting"):
            return
        why = str((view or {}).get("error") or "") or "it powered itself off"
        raise Conflict(f"{self.what}: it does not run any more: {why}{self._said()}")

    def _check_time(self, job: Job, what: str, hint: str = "") -> None:
        if not job.left():
            raise TimedOut(f"{self.what}: {what} within {format_duration(job.limit)}{hint}{self._said()}")

    def _said(self) -> str:
        tail = self._processes.console(self.name)
        return f"; its console ends with: {tail}" if tail else ""


def _greets(host: str, port: int) -> bool:
    """Tell whether an SSH server greets (RFC 4253, 4.2). That a connection is taken says nothing: QEMU takes it."""
    try:
        with socket.create_connection((host, port), timeout=2.0) as connection:
            connection.settimeout(2.0)
            return connection.recv(4).startswith(b"SSH-")
    except OSError:
        return False
