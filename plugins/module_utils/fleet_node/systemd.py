# SPDX-License-Identifier: GPL-3.0-or-later
"""The systemd supervisor: processes are services of the system's manager, or of the user's.

Units are files below /run (or a user's runtime folder). So they outlive fleetd, even SIGKILL, but no boot. After one,
fleetd starts what is wanted: claims are made, dependencies come first, health is asked; systemd could do none of that.
systemd restarts by the policy, also while no fleetd runs. Variables stand in a file of mode 0600, in memory as the
units are, because everybody may read a unit.

What changed is told by systemd's signals on D-Bus; a slow look at everything makes up for a lost one.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import queue
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_core import systemd_units
    from fleet_core.errors import FleetError, InvalidInput, NotFound, ProcessFailed, TimedOut, Unavailable
    from fleet_core.process_status import ProcessStatus
    from fleet_core.processes import ProcessSpec
else:
    try:
        from ..fleet_core import systemd_units
        from ..fleet_core.errors import FleetError, InvalidInput, NotFound, ProcessFailed, TimedOut, Unavailable
        from ..fleet_core.process_status import ProcessStatus
        from ..fleet_core.processes import ProcessSpec
    except ImportError:  # installed as a top-level package
        from fleet_core import systemd_units
        from fleet_core.errors import FleetError, InvalidInput, NotFound, ProcessFailed, TimedOut, Unavailable
        from fleet_core.process_status import ProcessStatus
        from fleet_core.processes import ProcessSpec

from . import native, paths, procfs
from .supervisor import Job, Observation, Outcome
from .systemd_bus import Signals, bus_address, runtime_dir

SCOPES = ("system", "user")
_CHUNK = 200  # units in one command
_SAFETY = 30.0  # seconds between two looks at everything
_NO_BUS = 2.0  # the same where the bus cannot be reached
_ADOPTED = 1.0  # and for processes that systemd did not start
_QUIET = 0.03  # seconds in which signals are gathered
_FORGET_LATER = 2.0  # seconds after which the units of stopped processes are removed, unless they are started again
_GATHERED = 0.01  # seconds in which requests to stop become one command
_LOCKED = 0.1  # seconds after which that is tried again while units are being written
_AFTER_START = (0.05, 1.0)  # seconds after a start at which its processes are looked at in any case
_SETTLED = 300.0  # seconds of life after which the delays before restarts begin at the first one again
_PROPERTIES = (
    "Id,LoadState,ActiveState,SubState,Result,MainPID,ExecMainCode,ExecMainStatus,ExecMainStartTimestampMonotonic,"
    "ExecMainPID,NRestarts,StartLimitBurst,StartLimitIntervalUSec,Job"
)
_KILLED, _DUMPED = "2", "3"  # waitid(2): CLD_KILLED, CLD_DUMPED
_EXEC_FAILED = "641257651c1b4ec9a8624d7a40a9e1e7"  # journal message: a step before the program failed
_FAILED_JOB = re.compile(r"^(?:Job for|Failed to (?:re)?start) (\S+?):? (.*)", re.MULTILINE)
_RESULTS = {  # what is not said by the exit code
    "oom-kill": "it was killed for lack of memory",
    "timeout": "it did not start or end in time",
    "start-limit-hit": "given up after too many restarts",
    "resources": "systemd could not start it: a file or folder that it needs is missing",
    "protocol": "systemd could not start it",
}

Run = Callable[[Sequence[str], float], "subprocess.CompletedProcess[str]"]


def resolve_scope(scope: str) -> str:
    """Return "system" or "user"; "auto" is the system's manager for root and the user's for everybody else."""
    if scope == "auto":
        return "system" if os.geteuid() == 0 else "user"
    if scope not in SCOPES:
        raise InvalidInput(f'scope: expected auto, {" or ".join(SCOPES)}, found "{scope}"')
    return scope


def available(scope: str, environ: Mapping[str, str] | None = None) -> bool:
    """Tell whether systemd really runs and answers in this scope.

    "auto" also asks that processes outlive a logout: a user's manager must linger (`loginctl enable-linger`).
    """
    environ = os.environ if environ is None else environ
    wanted = resolve_scope(scope)
    if not os.path.isdir("/run/systemd/system") or (wanted == "system" and os.geteuid() != 0):
        return False
    if wanted == "user" and (not os.path.exists(bus_address("user", environ)) or (scope == "auto" and not lingers())):
        return False
    try:
        done = _runner(wanted, environ)(["show", "--property=Version"], 10.0)
    except FleetError:
        return False
    return done.returncode == 0 and done.stdout.startswith("Version=")


def lingers() -> bool:
    """Tell whether this user's manager goes on without a login session."""
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False
    return os.path.exists(f"/var/lib/systemd/linger/{name}")


def unit_prefix(state_dir: Path, environ: Mapping[str, str] | None = None) -> str:
    """Return what unit names begin with. A fleetd with a state folder of its own shares no unit with another one."""
    environ = os.environ if environ is None else environ
    if state_dir == paths.state_dir(environ={**environ, "FLEET_STATE_DIR": ""}):
        return systemd_units.PREFIX
    import hashlib

    return f"{systemd_units.PREFIX}_{hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:6]}-"


def _runner(scope: str, environ: Mapping[str, str]) -> Run:
    environment = {**environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
    environment["XDG_RUNTIME_DIR"] = runtime_dir(environ)
    words = ["systemctl", "--no-pager", "--no-ask-password", *(["--user"] if scope == "user" else [])]

    def run(arguments: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        try:
            # fleetd calls this, where there is no AnsibleModule.
            return subprocess.run(  # pylint: disable=ansible-bad-function
                [*words, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                env=environment,
                timeout=timeout,
                check=False,
            )
        except FileNotFoundError:
            raise Unavailable("systemctl was not found: expected a host with systemd") from None
        except subprocess.TimeoutExpired:
            raise TimedOut(f"systemctl {arguments[0]} did not answer within {timeout:g} s") from None

    return run


class Systemd:
    """A supervisor that gives the work to systemd."""

    name = "systemd"
    restarts = True
    blocking = True

    def __init__(
        self, state_dir: Path, scope: str = "system", environ: Mapping[str, str] | None = None, run: Run | None = None
    ) -> None:
        scope = resolve_scope(scope)
        self._environ = dict(os.environ if environ is None else environ)
        self.scope = scope
        self.prefix = unit_prefix(state_dir, self._environ)
        base = Path("/run") if scope == "system" else Path(runtime_dir(self._environ))
        self.units = base / "systemd" / scope
        self.variables = base / "autovibe-fleet"
        self._run = run or _runner(scope, self._environ)
        self._version = 0
        self._changing = threading.Lock()  # unit files and reloads; held while commands run
        self._noting = threading.Lock()  # the three below; held for a moment only
        self._to_stop: list[str] = []
        self._ended: set[str] = set()  # units that must not come back
        self._forgotten: dict[str, float] = {}  # units to remove, and when
        self._restarts: dict[str, tuple[int | None, int]] = {}
        self._tracked: dict[str, ProcessStatus] = {}
        self._listener: _Listener | None = None

    # What fleetd asks

    def listen(self, changed: Callable[[Sequence[str]], None]) -> None:
        """Listen on the bus in a thread of its own."""
        self._listener = _Listener(self, changed, bus_address(self.scope, self._environ))
        self._listener.start()

    def start(self, jobs: Sequence[Job]) -> dict[str, Outcome]:
        """Write the units, load them once, and start them all with one command."""
        answers: dict[str, Outcome] = {}
        files: dict[Path, str] = {}
        for job in jobs:
            try:
                files.update(self._files(job))
            except FleetError as error:
                answers[job.id] = error
        ready = [job for job in jobs if job.id not in answers]
        if not ready:
            return answers
        try:
            with self._changing:
                with self._noting:
                    for job in ready:
                        self._forgotten.pop(self.unit(job.id), None)
                        self._ended.discard(self.unit(job.id))
                if self._write(files):
                    self._reload()
            answers.update(self._start(ready))
        except FleetError as error:
            for chunk in _chunks(self.unit(job.id) for job in ready):  # what was started is not known
                self._command("stop", "--no-block", "--", *chunk)
            answers.update({job.id: error for job in ready})
        if self._listener is not None:
            self._listener.look_after_start([job.id for job in ready])
        return answers

    def terminate(self, spec: ProcessSpec, status: ProcessStatus) -> None:
        """Stop the unit: the stop signal goes to all of its cgroup, and systemd does not restart it.

        Calls from several threads at one time become one command.
        """
        if self._signal_adopted(spec, status, getattr(signal, spec.stop_signal)):
            return
        with self._noting:
            self._to_stop.append(self.unit(spec.id))
            others_do_it = len(self._to_stop) > 1
        if others_do_it:
            return
        time.sleep(_GATHERED)
        with self._noting:
            names, self._to_stop = self._to_stop, []
        for chunk in _chunks(names):
            self._command("stop", "--no-block", "--", *chunk)

    def kill(self, spec: ProcessSpec, status: ProcessStatus) -> None:
        """Send SIGKILL to all of the unit's cgroup."""
        if not self._signal_adopted(spec, status, signal.SIGKILL):
            self._command("kill", "--signal=SIGKILL", "--", self.unit(spec.id))

    def observe(self, known: Mapping[str, ProcessStatus]) -> dict[str, Observation]:
        """Ask systemd for all units with one command (for every 200)."""
        fresh = [ident for ident, status in known.items() if status.adopted and ident not in self._tracked]
        self._tracked.update(known)
        if fresh and self._listener is not None:
            self._listener.wake()  # it is to look at these more often
        shown = self._show(known)
        self._settle(shown)
        found = {}
        for ident, status in known.items():
            seen = self._observation(ident, shown.get(self.unit(ident), {}), status)
            if seen.phase == "absent" and status.adopted:
                runs = procfs.alive(status.pid, status.pid_start)
                seen = Observation("alive", status.pid, status.pid_start) if runs else Observation("ended")
            found[ident] = seen
        down = [ident for ident, seen in found.items() if seen.phase != "alive" and known[ident].pid]
        if down and self._run(["is-system-running"], 10.0).stdout.strip() == "stopping":
            # The host goes down, and systemd ends everything. These are still wanted after the next boot.
            found.update({ident: Observation("alive", known[ident].pid, known[ident].pid_start) for ident in down})
        return found

    def forget(self, ids: Iterable[str]) -> None:
        """Remove the units of stopped processes, a little later: most are started again. Returns at once."""
        names = {self.unit(ident): ident for ident in ids}
        due = time.monotonic() + (_FORGET_LATER if self._listener is not None else 0.0)
        with self._noting:
            for name, ident in names.items():
                self._tracked.pop(ident, None)
                self._ended.add(name)
                self._forgotten[name] = due
        if self._listener is not None:
            self._listener.wake()
        else:
            self.clean_up()

    def clean_up(self, everything: bool = False) -> float | None:
        """Do what forget has put off. Returns the seconds until something is due, or None."""
        with self._noting:
            if not self._forgotten:
                return None
        if not self._changing.acquire(blocking=everything):
            return _LOCKED
        try:
            with self._noting:
                now = time.monotonic()
                ended, self._ended = sorted(self._ended), set()
                due = [name for name, moment in self._forgotten.items() if everything or moment <= now]
                for name in due:
                    del self._forgotten[name]
                left = min(self._forgotten.values(), default=None)
            for chunk in _chunks(ended):  # one that systemd is about to restart would come back
                self._command("stop", "--no-block", "--", *chunk)
            if due:
                self._remove(due)
            return None if left is None else left - now
        except FleetError:
            return _FORGET_LATER
        finally:
            self._changing.release()

    def _remove(self, names: Sequence[str]) -> None:
        for name in names:
            self._restarts.pop(systemd_units.process_id(name, self.prefix), None)
            for path in (self._variables_file(name), self.units / name):
                with contextlib.suppress(OSError):
                    path.unlink()
        for chunk in _chunks(names):
            self._command("reset-failed", "--", *chunk)
        self._write({})
        self._reload()

    def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.stop()
            self._listener = None
        if self._forgotten:
            self.clean_up(everything=True)

    # Units

    def unit(self, ident: str) -> str:
        """Return the unit of a process, under which journald keeps what it prints."""
        return systemd_units.unit_name(ident, self.prefix)

    def _keeper(self) -> str:
        return f"{self.prefix}processes.target"

    def _variables_file(self, unit: str) -> Path:
        return self.variables / f"{unit[: -len('.service')]}.env"

    def version(self) -> int:
        """Return systemd's version number."""
        if not self._version:
            found = re.search(r"systemd (\d+)", self._run(["--version"], 10.0).stdout)
            self._version = int(found.group(1)) if found else 0
        return self._version

    def _files(self, job: Job) -> dict[Path, str]:
        """Return the unit and the variables of a job, once all that it needs was found to be there."""
        where, launch = f'process "{job.id}"', job.launch
        user = launch.user if native.identity(where, launch.user) else ""
        if not os.path.isdir(job.working_dir):
            raise NotFound(f"{where}: working directory {job.working_dir} does not exist")
        kept = {key: value for key, value in self._environ.items() if key not in native._NOT_INHERITED}
        environ = systemd_units.passable(native.inherited(kept, where, launch.user))
        for path in launch.env_files:
            environ.update(native.read_env_file(where, os.path.join(job.working_dir, path)))
        environ.update(launch.env)
        environ.update(FLEET_PROCESS=job.id, FLEET_LAUNCH=job.token)
        program = os.path.abspath(native.find_program(where, launch.argv[0], environ, job.working_dir))
        name = self.unit(job.id)
        variables = self._variables_file(name)
        text = systemd_units.unit(
            job.spec,
            launch,
            program=program,
            working_dir=job.working_dir,
            environment=str(variables),
            user=user,
            after=job.after,
            scope=self.scope,
            version=self.version(),
            prefix=self.prefix,
        )
        return {variables: systemd_units.environment_file(where, environ), self.units / name: text}

    def _write(self, files: Mapping[Path, str]) -> bool:
        """Write files and the keeper of all units. Returns whether systemd must load units again."""
        try:
            self.units.mkdir(mode=0o755, parents=True, exist_ok=True)
            paths.make_private(self.variables)
            changed = False
            for path, text in files.items():
                changed |= _put(path, text, 0o644 if path.parent == self.units else 0o600) and path.parent == self.units
            names = [entry.name for entry in os.scandir(self.units) if self._is_ours(entry.name)]
            return _put(self.units / self._keeper(), systemd_units.keeper(names), 0o644) or changed
        except OSError as error:
            raise ProcessFailed(f"the units in {self.units} cannot be written: {error.strerror}") from error

    def _is_ours(self, name: str) -> bool:
        ident = systemd_units.process_id(name, self.prefix)
        return bool(ident) and ident[0].isalnum()

    def _reload(self) -> None:
        done = self._run(["daemon-reload"], 120.0)
        if done.returncode != 0:
            raise Unavailable(f"systemd did not load its units: {_first_line(done.stderr)}")

    # Starting

    def _start(self, jobs: Sequence[Job]) -> dict[str, Outcome]:
        names = {self.unit(job.id): job for job in jobs}
        self._command("start", "--", self._keeper())
        failed: dict[str, str] = {}  # unit to what systemctl said of it
        doubt: dict[str, str] = {}  # the same where it did not say which units it meant
        for chunk in _chunks(names):
            self._command("reset-failed", "--", *chunk)
            limit = 30.0 + max(names[name].spec.start_timeout + names[name].spec.stop_timeout for name in chunk)
            done = self._run(["restart", "--", *chunk], limit)
            if done.returncode != 0:
                said = {found.group(1): found.group(0) for found in _FAILED_JOB.finditer(done.stderr)}
                failed.update(said)
                if not said:
                    text = f"systemctl ended with exit code {done.returncode}: {_first_line(done.stderr)}"
                    doubt.update(dict.fromkeys(chunk, text))
        shown = self._show([job.id for job in jobs])
        answers: dict[str, Outcome] = {}
        for name, job in names.items():
            facts = shown.get(name, {})
            pid = int(facts.get("ExecMainPID") or 0)
            if name in doubt and facts.get("ActiveState") not in ("active", "activating"):
                failed[name] = doubt[name]
            if name in failed and not (pid and _ran(facts)):
                answers[job.id] = ProcessFailed(self._reason(job, facts, failed[name]))
            else:
                self._restarts[job.id] = (None, 0)
                answers[job.id] = Observation("alive", pid, procfs.start_ticks(pid) or 0)
        gone = [name for name, job in names.items() if isinstance(answers[job.id], FleetError)]
        for chunk in _chunks(gone):
            self._command("stop", "--", *chunk)
            self._command("reset-failed", "--", *chunk)
        return answers

    def _reason(self, job: Job, shown: Mapping[str, str], text: str) -> str:
        """Return in one sentence why a unit did not start."""
        where, code = f'process "{job.id}"', int(shown.get("ExecMainStatus") or 0)
        if code == systemd_units.EXEC_FAILED:
            return f'{where}: "{job.launch.argv[0]}" could not be started{self._journal_reason(self.unit(job.id))}'
        if code in systemd_units.FAILED_STEPS:
            return f"{where}: {systemd_units.FAILED_STEPS[code]}{self._journal_reason(self.unit(job.id))}"
        result = shown.get("Result", "")
        return f"{where}: {_RESULTS[result] if result in _RESULTS else text.rstrip('.')}"

    def _journal_reason(self, name: str) -> str:
        """Return what the failed step of a start said, from the journal: ': No such file or directory'."""
        field = "USER_UNIT" if self.scope == "user" else "UNIT"
        words = ["journalctl", "--quiet", "--no-pager", "--output=json", "--lines=1", f"MESSAGE_ID={_EXEC_FAILED}"]
        with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError):
            done = subprocess.run(  # pylint: disable=ansible-bad-function  # as above
                [*words, f"{field}={name}"], capture_output=True, text=True, timeout=5, check=False
            )
            message = str(json.loads(done.stdout)["MESSAGE"])
            return f": {message.rpartition(': ')[2]}"
        return ""

    # Observing

    def _show(self, ids: Iterable[str]) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = {}
        for chunk in _chunks([self.unit(ident) for ident in ids]):
            done = self._run(["show", "--property", _PROPERTIES, "--", *chunk], 30.0)
            if done.returncode != 0:
                raise Unavailable(f"systemd did not tell about its units: {_first_line(done.stderr)}")
            found.update({block.get("Id", ""): block for block in systemd_units.parse_show(done.stdout)})
        return found

    def _observation(self, ident: str, shown: Mapping[str, str], status: ProcessStatus) -> Observation:
        active, sub = shown.get("ActiveState", ""), shown.get("SubState", "")
        ran = (shown.get("ExecMainStartTimestampMonotonic") or "0") != "0"
        pid = int(shown.get("MainPID") or 0)
        code = _exit_code(shown) if ran and not pid else None
        count = self._count(ident, int(shown.get("NRestarts") or 0), status.restarts)
        error = _RESULTS.get(shown.get("Result", ""), "")
        if active == "activating" and sub.startswith("auto-restart"):
            return Observation("waiting", exit_code=code, restarts=count, error=error)
        if active in ("active", "reloading", "activating", "deactivating"):
            ready = active in ("active", "reloading")
            if not pid:  # the leader has ended and the rest of its cgroup has not, or it is about to be executed
                return Observation("alive", status.pid, status.pid_start, code, count, ready)
            return Observation("alive", pid, procfs.start_ticks(pid) or 0, None, count, ready)
        if (shown.get("Job") or "0") != "0":
            return Observation("waiting", exit_code=code, restarts=count, error=error)
        if active == "failed" or (active == "inactive" and ran):
            allowed = int(shown.get("StartLimitBurst") or 0) - 1  # the first start counts too
            if active == "failed" and 0 < allowed <= int(shown.get("NRestarts") or 0):
                error = f"given up after {allowed} restarts within {shown.get('StartLimitIntervalUSec')}"
                count = min(count, max(allowed, status.restarts))
            return Observation("ended", exit_code=code, restarts=count, error=error)
        return Observation("absent")

    def _count(self, ident: str, shown: int, recorded: int) -> int:
        """Return how often a process was restarted. systemd's count begins again now and then; ours goes on."""
        total, last = self._restarts.get(ident, (max(shown, recorded), shown))
        if total is None:
            total = recorded
        total += shown - last if shown >= last else shown
        self._restarts[ident] = (total, shown)
        return total

    def _settle(self, shown: Mapping[str, Mapping[str, str]]) -> None:
        """Let systemd forget the restarts of processes that have run well for long: its delays only ever grow."""
        before = (time.monotonic() - _SETTLED) * 1_000_000
        names = [
            name
            for name, facts in shown.items()
            if facts.get("ActiveState") == "active"
            and facts.get("NRestarts", "0") != "0"
            and int(facts.get("ExecMainStartTimestampMonotonic") or 0) < before
        ]
        for chunk in _chunks(names):
            self._command("reset-failed", "--", *chunk)

    def tracked(self) -> dict[str, ProcessStatus]:
        """Return the processes that fleetd asked for last."""
        return dict(self._tracked)

    # Small things

    def _command(self, *arguments: str) -> None:
        """Run a command whose effect is seen later, so that its failure need not be."""
        with contextlib.suppress(TimedOut):
            self._run(list(arguments), 60.0)

    def _signal_adopted(self, spec: ProcessSpec, status: ProcessStatus, number: int) -> bool:
        """Signal a process that was taken over, and so has no unit. Returns whether it is one."""
        if not status.adopted:
            return False
        if procfs.alive(status.pid, status.pid_start):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(status.pid) == status.pid:
                    os.killpg(status.pid, number)
                else:
                    os.kill(status.pid, number)
        return True


class _Listener(threading.Thread):
    """Turns signals on the bus into calls of changed, and looks at everything now and then."""

    def __init__(self, driver: Systemd, changed: Callable[[Sequence[str]], None], address: str) -> None:
        super().__init__(name="systemd-signals", daemon=True)
        self._driver = driver
        self._changed = changed
        self._address = address
        self._stopped = False
        self._asked: queue.SimpleQueue[tuple[float, Sequence[str]]] = queue.SimpleQueue()
        self._looks: list[tuple[float, Sequence[str]]] = []  # of this thread: when to look, and at what
        self._ear, self._mouth = os.pipe()
        os.set_blocking(self._mouth, False)

    def wake(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._mouth, b".")

    def look_after_start(self, ids: Sequence[str]) -> None:
        """Have processes looked at soon: what happened to them before fleetd knew their pid was told in vain."""
        if ids:
            now = time.monotonic()
            for seconds in _AFTER_START:
                self._asked.put((now + seconds, ids))
            self.wake()

    def stop(self) -> None:
        self._stopped = True
        self.wake()
        if threading.current_thread() is not self:
            self.join(5)

    def run(self) -> None:
        signals: Signals | None = None
        next_look = time.monotonic() + _SAFETY
        retry_at = 0.0
        while not self._stopped:
            now = time.monotonic()
            if signals is None and now >= retry_at:
                signals = self._connect()
                retry_at = now + _NO_BUS
                # What happened before the connection, or while there was none, was told by nobody.
                next_look = now
            if now >= next_look:
                next_look = now + (_SAFETY if signals is not None else _NO_BUS)
                self._tell(self._driver.tracked())
                if signals is not None:
                    with contextlib.suppress(OSError):
                        signals.subscribe()
            adopted = {ident: status for ident, status in self._driver.tracked().items() if status.adopted}
            limits = [next_look - time.monotonic(), self._driver.clean_up(), _ADOPTED if adopted else None]
            limits.append(retry_at - time.monotonic() if signals is None else None)
            while not self._asked.empty():
                self._looks.append(self._asked.get())
            limits += [moment - time.monotonic() for moment, _ids in self._looks]
            readable = self._wait(signals, max(0.0, min(limit for limit in limits if limit is not None)))
            now = time.monotonic()
            self._tell(ident for moment, ids in self._looks for ident in ids if moment <= now)
            self._looks = [(moment, ids) for moment, ids in self._looks if moment > now]
            self._tell(ident for ident, status in adopted.items() if not procfs.alive(status.pid, status.pid_start))
            if signals is not None and readable:
                try:
                    self._tell(self._ids(signals))
                except OSError:
                    signals.close()
                    signals = None
        if signals is not None:
            signals.close()
        os.close(self._ear)
        os.close(self._mouth)

    def _connect(self) -> Signals | None:
        try:
            return Signals(self._address)
        except OSError:
            return None

    def _wait(self, signals: Signals | None, seconds: float) -> bool:
        """Wait for the bus or for wake. Returns whether the bus has something."""
        poll = select.poll()
        for descriptor in [self._ear] if signals is None else [self._ear, signals.fileno()]:
            poll.register(descriptor, select.POLLIN)
        ready = [descriptor for descriptor, _events in poll.poll(seconds * 1000)]
        if self._ear in ready:
            os.read(self._ear, 4096)
        return signals is not None and signals.fileno() in ready

    def _ids(self, signals: Signals) -> list[str]:
        """Return the processes that changed, gathering what comes in one go."""
        names = signals.read()
        if not any(systemd_units.process_id(name, self._driver.prefix) for name in names):
            return []
        time.sleep(_QUIET)
        names |= signals.read()
        return sorted(filter(None, (systemd_units.process_id(name, self._driver.prefix) for name in names)))

    def _tell(self, ids: Iterable[str]) -> None:
        found = list(ids)
        if found and not self._stopped:
            self._changed(found)


def _chunks(names: Iterable[str]) -> list[list[str]]:
    every = list(names)
    return [every[start : start + _CHUNK] for start in range(0, len(every), _CHUNK)]


def _first_line(text: str) -> str:
    return next((line.strip().rstrip(".") for line in text.splitlines() if line.strip()), "no reason given")


def _ran(shown: Mapping[str, str]) -> bool:
    """Tell whether the program itself was executed, and not only systemd's steps before it."""
    if shown.get("LoadState") not in ("loaded", None) or shown.get("Result") in ("resources", "protocol"):
        return False
    return shown.get("ExecMainCode") != "1" or int(shown.get("ExecMainStatus") or 0) not in systemd_units.FAILED_STEPS


def _exit_code(shown: Mapping[str, str]) -> int | None:
    code, status = shown.get("ExecMainCode", "0"), shown.get("ExecMainStatus", "")
    if not status.isdigit() or code == "0":
        return None
    return -int(status) if code in (_KILLED, _DUMPED) else int(status)


def _put(path: Path, text: str, mode: int) -> bool:
    """Write a file as a whole unless it already reads so. Returns whether it was written."""
    data = text.encode("utf-8", "surrogateescape")
    try:
        if path.read_bytes() == data:
            return False
    except OSError:
        pass
    fresh = path.with_name(f".{path.name}.new")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with open(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(data)
    os.replace(fresh, path)
    return True
