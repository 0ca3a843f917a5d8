# SPDX-License-Identifier: GPL-3.0-or-later
"""Task lists on another machine, over OpenSSH, with nothing installed there but Python.

What runs is a process of the machine's own: a lost connection ends nothing, and whoever comes back sees the rest.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fleet_core.errors import InvalidInput, Unavailable, from_code
from fleet_node import artifacts

from . import bundle

PATIENCE = 600.0  # seconds that a lost connection is tried for again
_SSH_FAILED = 255
_NOT_SENT = 97  # the machine does not have our program
_NO_PYTHON = 98
_OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=10", "ServerAliveCountMax=3")
_PYTHONS = " ".join(["python3", *(f"python3.{minor}" for minor in range(14, 8, -1)), "/usr/libexec/platform-python"])
_FOLDER = 'd="${XDG_CACHE_HOME:-$HOME/.cache}/autovibe"'
# $1: name of the program; the rest: its arguments.
_RUN = f"""{_FOLDER}; f="$d/$1"; shift
[ -f "$f" ] || exit {_NOT_SENT}
for p in {_PYTHONS}; do
    "$p" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null && exec "$p" -I "$f" "$@"
done
exit {_NO_PYTHON}"""
# $1: name, $2: size in bytes. A copy that was cut off never gets the name.
_SEND = f"""{_FOLDER}; umask 077; mkdir -p "$d" || exit; t="$d/.$1.$$"; trap 'rm -f "$t"' EXIT
cat >"$t" && [ "$(wc -c <"$t")" -eq "$2" ] && mv "$t" "$d/$1" &&
find "$d" -name 'tasks-*.pyz' ! -name "$1" -mtime +60 -exec rm -f {{}} +"""


@dataclass(frozen=True)
class Machine:
    """A machine as ssh knows it: a host, USER@HOST, or a name of its configuration.

    ssh: further arguments of ssh, such as -F FILE. state_dir: on the machine; "" is its user's own.
    """

    name: str
    ssh: tuple[str, ...] = ()
    state_dir: str = ""

    def __post_init__(self) -> None:
        if not self.name or self.name.startswith("-") or any(char.isspace() for char in self.name):
            raise InvalidInput(f'machine "{self.name}": expected HOST or USER@HOST')

    def start(self, request: Mapping[str, Any]) -> tuple[str, int]:
        """Start a list and return the number of its run and the position of its first event."""
        answer = self._ask(["start"], request)
        return str(answer["run"]), int(answer["position"])

    def plan(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a request would do."""
        return self._ask(["plan"], request)

    def view(self, run: str) -> dict[str, Any]:
        """Return one run."""
        found: dict[str, Any] = self._ask(["view", run])["view"]
        return found

    def runs(self) -> list[dict[str, Any]]:
        """Return all runs, the newest first."""
        found: list[dict[str, Any]] = self._ask(["list"])["runs"]
        return found

    def cancel(self, run: str) -> dict[str, Any]:
        """End a run and return {cancelled, view}."""
        return self._ask(["cancel", run])

    def output(self, run: str, task: str, target: IO[bytes]) -> None:
        """Write all that a task printed."""
        self._transfer(["output", run, task], target)

    def fetch(self, run: str, folder: Path) -> list[str]:
        """Write the artifacts of a run below a folder and return their names."""
        with tempfile.TemporaryFile() as file:
            self._transfer(["artifacts", run], file)
            file.seek(0)
            return artifacts.unpack(file, folder)

    def follow(self, run: str, position: int = 0) -> Iterator[dict[str, Any]]:
        """Give the events of a run as they come; the last one is {"event": "end", "view"}.

        A lost connection is told as {"event": "connection", "state": lost | back} and made again, for PATIENCE seconds.
        """
        lost = 0.0
        pause = 1.0
        while True:
            try:
                for event in self._lines(["follow", run, str(position)]):
                    if lost:
                        lost, pause = 0.0, 1.0
                        yield {"event": "connection", "state": "back"}
                    position = int(event.get("position", position))
                    yield event
                    if event["event"] == "end":
                        return
                raise Unavailable(f'machine "{self.name}": the connection ended')
            except Unavailable as error:
                now = time.monotonic()
                if not lost:
                    lost = now
                    yield {"event": "connection", "state": "lost", "reason": error.message}
                elif now - lost > PATIENCE:
                    raise Unavailable(
                        f"{error.message}; the run goes on: `fleet task attach {run} --machine {self.name}`"
                    ) from None
                time.sleep(pause)
                pause = min(pause * 2, 15.0)

    def _argv(self, script: str, words: Sequence[str]) -> list[str]:
        command = shlex.join(["sh", "-c", script, "sh", *words])
        options = [word for option in _OPTIONS for word in ("-o", option)]
        return ["ssh", "-T", *self.ssh, *options, "--", self.name, command]

    def _program(self, words: Sequence[str]) -> list[str]:
        command, *rest = words
        return self._argv(_RUN, [bundle.name(), command, self.state_dir, *rest])

    def _ask(self, words: Sequence[str], request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        with tempfile.TemporaryFile() as file:
            self._transfer(words, file, json.dumps(request or {}).encode() + b"\n")
            file.seek(0)
            for line in reversed(file.read().splitlines()):
                if (found := _object(line)) is not None:
                    return found
        raise Unavailable(f'machine "{self.name}": gave no answer that can be read')

    def _transfer(self, words: Sequence[str], target: IO[bytes], given: bytes = b"") -> None:
        """Run one command to its end; what it prints goes to target."""
        for _attempt in range(2):
            with tempfile.TemporaryFile() as errors:
                child = _spawn(self._program(words), subprocess.PIPE, target, errors)
                with _ended(child):
                    child.communicate(given)
                errors.seek(0)
                text = errors.read().decode(errors="replace")
            if child.returncode == 0:
                return
            if child.returncode != _NOT_SENT:
                break
            self._send()
        raise self._error(child.returncode, text)

    def _lines(self, words: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Give the JSON lines that a command prints, which sees the end of its input when nobody listens any more."""
        with tempfile.TemporaryFile() as errors:
            child = _spawn(self._program(words), subprocess.PIPE, subprocess.PIPE, errors)
            with _ended(child):
                assert child.stdout is not None
                for line in child.stdout:
                    if line.endswith(b"\n") and (found := _object(line)) is not None:
                        yield found
                child.wait()
            errors.seek(0)
            text = errors.read().decode(errors="replace")
        if child.returncode == _NOT_SENT:
            self._send()
        elif child.returncode != 0:
            raise self._error(child.returncode, text)

    def _send(self) -> None:
        data = bundle.build()
        with tempfile.TemporaryFile() as errors:
            argv = self._argv(_SEND, [bundle.name(), str(len(data))])
            child = _spawn(argv, subprocess.PIPE, subprocess.DEVNULL, errors)
            with _ended(child):
                child.communicate(data)
            errors.seek(0)
            text = errors.read().decode(errors="replace")
        if child.returncode != 0:
            raise self._error(child.returncode, text)

    def _error(self, code: int, text: str) -> Exception:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        last = lines[-1] if lines else f"exit code {code}"
        with contextlib.suppress(ValueError, KeyError, TypeError):
            told = json.loads(last)["error"]
            return from_code(told["code"], f"{self.name}: {told['message']}")
        if code == _NO_PYTHON:
            return Unavailable(f'machine "{self.name}": expected Python 3.9 or newer, found none')
        if code == _SSH_FAILED:
            return Unavailable(f'machine "{self.name}": cannot be reached: {last}')
        return Unavailable(f'machine "{self.name}": {last}')


def _object(line: bytes) -> dict[str, Any] | None:
    """Return the object that a line holds; None for what a shell's start files may print before."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _spawn(argv: list[str], stdin: int, stdout: int | IO[bytes], stderr: IO[bytes]) -> subprocess.Popen[bytes]:
    try:
        # In a session of its own: Ctrl-C is for us, who then end the run there.
        return subprocess.Popen(
            argv, stdin=stdin, stdout=stdout, stderr=stderr, start_new_session=True, env={**os.environ, "LC_ALL": "C"}
        )
    except FileNotFoundError:
        raise Unavailable("ssh: the program was not found on PATH; it is needed for --machine") from None


@contextlib.contextmanager
def _ended(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Leave no ssh behind, whatever happens."""
    try:
        yield
    finally:
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
