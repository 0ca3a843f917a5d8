# SPDX-License-Identifier: GPL-3.0-or-later
"""The process of one turn of a coding tool: how it is found, begun, heard, told and ended."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_core.errors import NotFound, ProcessFailed
    from fleet_core.runner_events import Invocation
else:
    try:
        from ..fleet_core.errors import NotFound, ProcessFailed
        from ..fleet_core.runner_events import Invocation
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import NotFound, ProcessFailed
        from fleet_core.runner_events import Invocation

from . import paths, procfs

TURN = "FLEET_TURN"  # the variable that all processes of a turn carry
_POLL = 0.05
_ATTEMPTS = 20
_PREFIX = "fleet-turn-"  # of a folder's name; then the pid and the start of the process that made it
_OWNER = re.compile(_PREFIX + r"(\d+)-(\d+)-")
_CHUNK = 64 * 1024


def find_executable(where: str, name: str, environ: Mapping[str, str], folder: str) -> str:
    """Return the path of a tool: as given, else in the folder of the runners, else on PATH. Raises NotFound."""
    if "/" in name:
        path = os.path.join(folder, os.path.expanduser(name))
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
        found = "a file that may not be executed" if os.path.exists(path) else "none"
        raise NotFound(f"{where}: expected a program at {path}, found {found}")
    installed = str(paths.runners_dir(environ) / "bin")
    path = shutil.which(name, path=installed) or shutil.which(name, path=environ.get("PATH", os.defpath)) or ""
    if not path:
        raise NotFound(f'{where}: program "{name}" was found neither in {installed} nor on PATH')
    return path


@functools.cache  # once for each process
def _remove_forgotten(base: str) -> None:
    """Remove what processes that were killed in the middle of a turn have left."""
    for name in os.listdir(base):
        owner = _OWNER.match(name)
        if owner is not None and not procfs.alive(int(owner[1]), int(owner[2])):
            shutil.rmtree(os.path.join(base, name), ignore_errors=True)  # another user's cannot be removed


@contextlib.contextmanager
def _private_files(texts: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """Write texts to files that only this user can read; they are gone afterwards."""
    if not texts:
        yield {}
        return
    base = tempfile.gettempdir()
    _remove_forgotten(base)
    folder = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-{procfs.start_ticks(os.getpid())}-", dir=base)
    try:
        written = {}
        for name, text in texts.items():
            written[name] = os.path.join(folder, name.lower())
            descriptor = os.open(written[name], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8", errors="replace") as file:
                file.write(text)
        yield written
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _filled(word: str, written: Mapping[str, str]) -> str:
    for name, path in written.items():
        word = word.replace(f"{{{name}}}", path)
    return word


class Child:
    """The process of one turn, which leads a group, with our ends of its pipes.

    As a context it leaves nothing of the group running and nothing open; after a bad end, nothing that has left the
    group either. Raises NotFound for a program that is not there, ProcessFailed for one that cannot be started.
    code: its exit code once it has ended; negative, the signal.
    """

    def __init__(self, name: str, invocation: Invocation, folder: str, env: Mapping[str, str]) -> None:
        self.code: int | None = None
        self._token = os.urandom(16).hex()
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as failing:
            failing.push(self._stack)
            try:
                self._start(f'runner "{name}"', invocation, folder, env)
            except OSError as error:  # no room for its files, no descriptors left
                raise ProcessFailed(f'runner "{name}": could not be prepared: {error.strerror}') from None
            failing.pop_all()

    def _start(self, where: str, invocation: Invocation, folder: str, env: Mapping[str, str]) -> None:
        if not os.path.isdir(folder):
            raise ProcessFailed(f"{where}: folder {folder} does not exist")
        written = self._stack.enter_context(_private_files(invocation.files))
        environ = {**os.environ, **invocation.env, **(invocation.root_env if os.geteuid() == 0 else {}), **env}
        environ.update(written, PWD=os.path.abspath(folder))  # opencode believes PWD, not where it is
        environ[TURN] = self._token
        argv = [_filled(word, written) for word in invocation.argv]
        argv[0] = find_executable(where, argv[0], environ, folder)
        with contextlib.ExitStack() as theirs:
            self._stdout, out = self._pipe(theirs, ours=0)
            self._stderr, err = self._pipe(theirs, ours=0)
            self._stdin = -1
            if invocation.interactive:
                self._stdin, given = self._pipe(theirs, ours=1)
                self._first = (invocation.stdin or "").encode("utf-8", "replace")
            else:
                given = theirs.enter_context(_file_of(invocation.stdin or ""))
                self._first = b""
            try:
                # An agent's own process calls this, where there is no AnsibleModule.
                self._process = subprocess.Popen(  # pylint: disable=ansible-bad-function
                    argv, stdin=given, stdout=out, stderr=err, cwd=folder, env=environ, start_new_session=True
                )
            except FileNotFoundError:
                raise NotFound(
                    f"{where}: {argv[0]} could not be started: what its first line names is missing"
                ) from None
            except (OSError, ValueError, subprocess.SubprocessError) as error:
                reason = getattr(error, "strerror", None) or error
                raise ProcessFailed(f"{where}: {argv[0]} could not be started: {reason}") from None
        self.pid = self._process.pid
        self._stack.callback(self._end)

    def _pipe(self, theirs: contextlib.ExitStack, ours: int) -> tuple[int, int]:
        """Return our end and theirs of a new pipe, each to be closed by its owner. Ours never blocks."""
        ends = os.pipe()
        self._stack.callback(os.close, ends[ours])
        theirs.callback(os.close, ends[1 - ours])
        os.set_blocking(ends[ours], False)
        return ends[ours], ends[1 - ours]

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _end(self) -> None:
        self.signal(signal.SIGKILL)
        if not self.ended() or self.code != 0:
            self._end_escaped()
        self._process.wait()

    def _end_escaped(self) -> None:
        """A tool that could not tidy up leaves commands that it ran in sessions of their own: kill them too."""
        for _attempt in range(_ATTEMPTS):
            pids = procfs.find_by_environment(TURN, self._token)
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL)

    def signal(self, number: int) -> None:
        """Send a signal to the whole group. Its leader is not reaped before _end, so the number is still its own."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def ended(self) -> bool:
        """Return whether the leader has ended."""
        if self.code is None:
            try:
                result = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:  # reaped by somebody else, so that its exit code is lost
                self.code = -signal.SIGKILL
                return True
            if result is not None:
                self.code = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        return self.code is not None

    def has_others(self) -> bool:
        """Return whether anything but the leader still runs in the group."""
        return any(pid != self.pid for pid in procfs.group_members(self.pid))

    async def wait(self) -> None:
        """Wait for the leader to end."""
        if not hasattr(os, "pidfd_open"):
            while not self.ended():  # noqa: ASYNC110 - this system tells nobody but a signal handler
                await asyncio.sleep(_POLL)
            return
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        descriptor = os.pidfd_open(self.pid)
        loop.add_reader(descriptor, gone.set)
        try:
            await gone.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
        self.ended()

    async def read(self, take: Callable[[bytes], None], *, stderr: bool = False) -> None:
        """Give `take` what the process prints until every writer has closed the pipe."""
        descriptor = self._stderr if stderr else self._stdout
        while True:
            try:
                data = os.read(descriptor, _CHUNK)
            except BlockingIOError:
                await _ready(descriptor, write=False)
                continue
            if not data:
                return
            take(data)
            await asyncio.sleep(0)  # who prints without end must not keep the others waiting

    async def write(self, line: str) -> bool:
        """Write to standard input, the prompt first. Returns False if nobody will read it."""
        data, self._first = self._first + line.encode("utf-8", "replace"), b""
        while data:
            if self._stdin < 0:
                return False
            try:
                data = data[os.write(self._stdin, data) :]
            except BlockingIOError:
                await _ready(self._stdin, write=True)
            except OSError:
                return False
        return True

    def close_stdin(self) -> None:
        """Let the process see the end of its input."""
        if self._stdin >= 0:
            # The descriptor itself is closed with the rest: until then its number must not become another's.
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(null, self._stdin, inheritable=False)
            os.close(null)
            self._stdin = -1


@contextlib.contextmanager
def _file_of(text: str) -> Iterator[int]:
    """Give a descriptor to read the text from, whether or not anybody does."""
    with tempfile.TemporaryFile() as file:
        file.write(text.encode("utf-8", "replace"))
        file.seek(0)
        yield file.fileno()


async def _ready(descriptor: int, *, write: bool) -> None:
    """Wait until a descriptor can be read or written."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    (loop.add_writer if write else loop.add_reader)(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        (loop.remove_writer if write else loop.remove_reader)(descriptor)
