# SPDX-License-Identifier: GPL-3.0-or-later
"""The native supervisor: fleetd is the parent of the processes, and nothing else is needed on the host.

Each process leads a session of its own. What it prints goes to two append-only spool files that outlive fleetd, so a
killed fleetd ends no process and loses no line. The token FLEET_LAUNCH in its environment lets the next fleetd find it
again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

if TYPE_CHECKING:
    from fleet_core.errors import FleetError, InvalidInput, NotFound, ProcessFailed
    from fleet_core.process_status import ProcessStatus
    from fleet_core.processes import Limits, ProcessSpec
else:
    try:
        from ..fleet_core.errors import FleetError, InvalidInput, NotFound, ProcessFailed
        from ..fleet_core.process_status import ProcessStatus
        from ..fleet_core.processes import Limits, ProcessSpec
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import FleetError, InvalidInput, NotFound, ProcessFailed
        from fleet_core.process_status import ProcessStatus
        from fleet_core.processes import Limits, ProcessSpec

from . import paths, procfs
from .supervisor import Job, Observation, Outcome

# Variables of fleetd's own service that mean nothing, or the wrong thing, in its children.
_NOT_INHERITED = (
    *("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "INVOCATION_ID", "JOURNAL_STREAM"),
    *("WATCHDOG_PID", "WATCHDOG_USEC", "SYSTEMD_EXEC_PID", "MAINPID"),
)
# What a program of another user gets of fleetd's environment.
_FOR_OTHERS = ("PATH", "LANG", "LANGUAGE", "TZ", "TERM")
_FIRST_POLL, _POLL = 0.002, 0.05  # a group that is being killed is gone soon; one that ends by itself takes its time
_SLOW_POLL = 1.0


class _Adopted(NamedTuple):
    """A running process that is not our child. descriptor: its pidfd, or -1. leads: whether its group is its own."""

    pid: int
    start: int
    descriptor: int
    leads: bool


class Native:
    """A supervisor that starts processes itself. Lives in fleetd's one thread, inside its event loop."""

    name = "native"
    restarts = False
    blocking = False

    def __init__(self, spool: Path, environ: Mapping[str, str] | None = None) -> None:
        self._spool = spool
        self._environ = dict(os.environ if environ is None else environ)
        for key in _NOT_INHERITED:
            self._environ.pop(key, None)
        self._children: dict[str, int] = {}
        self._ended: dict[str, int | None] = {}
        self._adopted: dict[str, _Adopted] = {}
        self._draining: dict[str, int] = {}
        self._codes: dict[str, int | None] = {}
        self._asked: set[str] = set()
        self._changed: Callable[[Sequence[str]], None] = lambda ids: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._pause = _FIRST_POLL
        paths.make_private(spool)

    def listen(self, changed: Callable[[Sequence[str]], None]) -> None:
        """Watch children through SIGCHLD. Must be called inside the running event loop."""
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGCHLD, self._reap)

    def output_files(self, ident: str) -> tuple[Path, Path]:
        """Return the spool files of what a process prints: standard output and standard error."""
        base = quote(ident, safe="")
        return self._spool / f"{base}.out", self._spool / f"{base}.err"

    def start(self, jobs: Sequence[Job]) -> dict[str, Outcome]:
        """Launch every job in a session of its own."""
        answers: dict[str, Outcome] = {}
        for job in jobs:
            try:
                pid = self._spawn(job)
            except FleetError as error:
                answers[job.id] = error
                continue
            self._ended.pop(job.id, None)
            self._asked.discard(job.id)
            self._forget_adopted(job.id)
            self._children[job.id] = pid
            answers[job.id] = Observation("alive", pid, procfs.start_ticks(pid) or 0)
        return answers

    def _spawn(self, job: Job) -> int:
        where = f'process "{job.id}"'
        environ = inherited(self._environ, where, job.launch.user)
        for path in job.launch.env_files:
            environ.update(read_env_file(where, os.path.join(job.working_dir, path)))
        environ.update(job.launch.env)
        environ.update(FLEET_PROCESS=job.id, FLEET_LAUNCH=job.token)
        if not os.path.isdir(job.working_dir):
            raise NotFound(f"{where}: working directory {job.working_dir} does not exist")
        argv = limited(job.launch.argv, job.launch.limits)
        if argv is not job.launch.argv:
            find_program(where, job.launch.argv[0], environ, job.working_dir)
        out, err = self.output_files(job.id)
        options: dict[str, Any] = identity(where, job.launch.user)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            with contextlib.ExitStack() as stack:
                files = []
                for file in (out, err):
                    files.append(os.open(file, flags, 0o600))
                    stack.callback(os.close, files[-1])
                    # Whoever opens /dev/stdout opens the file anew, and needs the right to.
                    os.fchown(files[-1], options.get("user", os.geteuid()), -1)
                # fleetd calls this, where there is no AnsibleModule.
                child = subprocess.Popen(  # pylint: disable=ansible-bad-function
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=files[0],
                    stderr=files[1],
                    cwd=job.working_dir,
                    env=environ,
                    start_new_session=True,
                    restore_signals=True,
                    **options,
                )
        except FileNotFoundError:
            raise ProcessFailed(f'{where}: program "{argv[0]}" was not found in PATH') from None
        except PermissionError as error:
            raise ProcessFailed(
                f'{where}: "{error.filename or argv[0]}" may not be executed: {error.strerror}'
            ) from None
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ProcessFailed(f'{where}: "{argv[0]}" could not be started: {reason}') from None
        child.returncode = 0  # reaped by _reap alone, so that the object must not wait for it too
        return child.pid

    def terminate(self, spec: ProcessSpec, status: ProcessStatus) -> None:
        """Send the stop signal to the process group."""
        self._asked.add(spec.id)
        self._signal(spec, status, getattr(signal, spec.stop_signal))

    def kill(self, spec: ProcessSpec, status: ProcessStatus) -> None:
        """Send SIGKILL to the process group, and to whatever of the launch has left it."""
        self._signal(spec, status, signal.SIGKILL)
        if status.launch and spec.id in self._draining:
            for pid in procfs.find_launches([status.launch]).get(status.launch, []):
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def _signal(self, spec: ProcessSpec, status: ProcessStatus, number: int) -> None:
        pid = self._draining.get(spec.id, status.pid)
        if pid <= 1:
            return
        if spec.id not in self._children and spec.id not in self._draining and not procfs.alive(pid, status.pid_start):
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if spec.id in self._draining or not status.adopted or _leads_group(pid):
                os.killpg(pid, number)
            else:
                os.kill(pid, number)
        self._check_soon(_POLL)

    def observe(self, known: Mapping[str, ProcessStatus]) -> dict[str, Observation]:
        """Return what is true of each process.

        A process of an earlier fleetd is found by pid and start time, or by its token.
        """
        found: dict[str, Observation] = {}
        lost: dict[str, ProcessStatus] = {}
        for ident, status in known.items():
            if ident in self._children:
                found[ident] = Observation("alive", status.pid, status.pid_start)
            elif ident in self._ended:
                found[ident] = Observation("ended", exit_code=self._ended[ident])
            elif ident in self._draining:
                found[ident] = Observation("alive", status.pid, status.pid_start)
            elif status.pid and procfs.alive(status.pid, status.pid_start):
                self._watch(ident, status.pid, status.pid_start)
                found[ident] = Observation("alive", status.pid, status.pid_start)
            else:
                self._forget_adopted(ident)
                lost[ident] = status
        tokens = {status.launch: ident for ident, status in lost.items() if status.launch}
        launches = procfs.find_launches(tokens) if tokens else {}
        for ident, status in lost.items():
            pids = launches.get(status.launch, [])
            leader = next((pid for pid in sorted(pids) if _leads_group(pid)), 0)
            if leader:
                start = procfs.start_ticks(leader) or 0
                self._watch(ident, leader, start)
                found[ident] = Observation("alive", leader, start)
                continue
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            found[ident] = Observation("ended" if status.pid else "absent")
        return found

    def forget(self, ids: Iterable[str]) -> None:
        """Forget how stopped processes ended. Spool files are removed by the log pump when they are drained."""
        for ident in ids:
            self._ended.pop(ident, None)
            self._forget_adopted(ident)

    def close(self) -> None:
        """Stop watching."""
        for ident in list(self._adopted):
            self._forget_adopted(ident)
        if self._timer is not None:
            self._timer.cancel()

    def _watch(self, ident: str, pid: int, start: int) -> None:
        """Watch a process that is not our child: by pidfd, or by a slow look where there is none."""
        if ident in self._adopted and self._adopted[ident][:2] == (pid, start):
            return
        self._forget_adopted(ident)
        descriptor = -1
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                descriptor = os.pidfd_open(pid)
        self._adopted[ident] = _Adopted(pid, start, descriptor, _leads_group(pid))
        if self._loop is None:
            return
        if descriptor >= 0:
            self._loop.add_reader(descriptor, self._adopted_ended, ident)
        else:
            self._check_soon(_SLOW_POLL)

    def _forget_adopted(self, ident: str) -> None:
        known = self._adopted.pop(ident, None)
        if known is not None and known.descriptor >= 0:
            if self._loop is not None:
                self._loop.remove_reader(known.descriptor)
            os.close(known.descriptor)

    def _adopted_ended(self, ident: str) -> None:
        self._end_adopted(ident)
        self._check_groups()

    def _end_adopted(self, ident: str) -> None:
        known = self._adopted[ident]
        self._forget_adopted(ident)
        # Of a process that led no group nothing else is ours; nor is a group that has its number by now.
        ours = known.leads and procfs.start_ticks(known.pid) in (None, known.start)
        self._leader_ended(ident, known.pid if ours else 0, None)

    def _reap(self) -> None:
        """Note every child that has ended. As a zombie it reserves its group id until its group has been told."""
        ended, flags = False, os.WEXITED | os.WNOHANG | os.WNOWAIT
        for ident, pid in list(self._children.items()):
            code = None
            try:
                result = os.waitid(os.P_PID, pid, flags)
                if result is None:
                    continue
                code = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
            except ChildProcessError:  # reaped by somebody else, so that its exit code is lost
                pass
            del self._children[ident]
            self._leader_ended(ident, pid, code)
            ended = True
        if ended:
            self._check_groups()

    def _leader_ended(self, ident: str, pid: int, code: int | None) -> None:
        """Begin to wait for the rest of its group; a leader that ended unasked takes its group along."""
        self._codes[ident] = code
        self._draining[ident] = pid
        self._pause = _FIRST_POLL
        if pid <= 1:
            return
        if ident not in self._asked:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        # Whoever is left in the group reserves its id from here on; without the zombie, an empty group is seen at once.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)

    def _check_groups(self) -> None:
        """Report each ended process once nothing of its group runs any more."""
        self._timer = None
        for ident, known in list(self._adopted.items()):
            if known.descriptor < 0 and not procfs.alive(known.pid, known.start):
                self._end_adopted(ident)
        gone = []
        if self._draining:
            members = procfs.groups(self._draining.values())
            gone = [ident for ident, pid in self._draining.items() if not members.get(pid)]
        for ident in gone:
            del self._draining[ident]
            self._ended[ident] = self._codes.pop(ident, None)
        if gone:
            self._changed(gone)
        if self._draining:
            self._check_soon(self._pause)
            self._pause = min(2 * self._pause, _POLL)
        elif any(known.descriptor < 0 for known in self._adopted.values()):
            self._check_soon(_SLOW_POLL)

    def _check_soon(self, delay: float) -> None:
        if self._loop is None or (not self._draining and not self._adopted):
            return
        when = self._loop.time() + delay
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._check_groups)


def _leads_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def identity(where: str, user: str) -> dict[str, Any]:
    """Return the Popen options that run a program as another user.

    Raises NotFound, or InvalidInput without the right.
    """
    if not user:
        return {}
    entry = _account(where, user)
    if entry.pw_uid == os.geteuid():
        return {}
    if os.geteuid() != 0:
        raise InvalidInput(f'{where}: only root can run processes as "{user}"; fleetd runs as user {os.geteuid()}')
    groups = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": groups}


def _account(where: str, user: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
    except (KeyError, OverflowError, ValueError):
        raise NotFound(f'{where}: user "{user}" does not exist') from None


def inherited(environ: Mapping[str, str], where: str, user: str) -> dict[str, str]:
    """Return what a program gets of fleetd's environment: all of it, but as another user only what holds no secret."""
    if not identity(where, user):
        return dict(environ)
    kept = {name: value for name, value in environ.items() if name in _FOR_OTHERS or name.startswith(("LC_", "FLEET_"))}
    return {**kept, **user_environment(where, user)}


def user_environment(where: str, user: str) -> dict[str, str]:
    """Return HOME, USER, LOGNAME and SHELL of a user, or nothing for fleetd's own."""
    if not identity(where, user):
        return {}
    entry = _account(where, user)
    return {
        "HOME": entry.pw_dir,
        "USER": entry.pw_name,
        "LOGNAME": entry.pw_name,
        "SHELL": entry.pw_shell,
    }


def find_program(where: str, program: str, environ: Mapping[str, str], folder: str) -> str:
    """Return the path of a program as execvp finds it. Raises ProcessFailed when there is none."""
    import shutil

    path = os.path.join(folder, program) if "/" in program else program
    found = shutil.which(path, path=environ.get("PATH"))
    if found is None:
        raise ProcessFailed(f'{where}: program "{program}" was not found in PATH')
    return found


def limited(argv: tuple[str, ...], limits: Limits) -> tuple[str, ...]:
    """Return the argument vector wrapped so that limits hold for it. A CPU share is left to the systemd supervisor."""
    steps = []
    if limits.open_files:
        steps.append(f"ulimit -n {limits.open_files}")
    if limits.memory:
        steps.append(f"ulimit -v {max(1, limits.memory // 1024)}")
    if limits.processes:
        # dash calls it -p, which in bash is the size of a pipe.
        steps.append(f"{{ ulimit -u {limits.processes} 2>/dev/null || ulimit -p {limits.processes}; }}")
    run = f'exec nice -n {limits.nice} "$@"' if limits.nice else 'exec "$@"'
    if not steps and not limits.nice:
        return argv
    return ("/bin/sh", "-c", " && ".join([*steps, run]), "sh", *argv)


def read_env_file(where: str, path: str) -> dict[str, str]:
    """Return the variables of a file of NAME=value lines; # comments, export and quotes are understood."""
    found: dict[str, str] = {}
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                text = line.strip()
                if not text or text.startswith("#"):
                    continue
                if text.startswith("export "):
                    text = text[7:].lstrip()
                name, equals, value = text.partition("=")
                if not equals or not name.strip():
                    raise InvalidInput(f"{where}: env file {path}, line {number}: expected NAME=value")
                value = value.strip()
                if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
                    value = value[1:-1]
                found[name.strip()] = value
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(f"{where}: env file {path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    return found
