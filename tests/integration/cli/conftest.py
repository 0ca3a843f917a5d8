# SPDX-License-Identifier: GPL-3.0-or-later
"""The real fleet command against a real fleetd, in a state folder and a home of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fleet_node import procfs

PROGRAM = str(Path(sys.executable).with_name("fleet"))
PYTHON = sys.executable
# A web server that is up in an instant and says nothing.
SERVER = f"{PYTHON} -m http.server --bind 127.0.0.1 %tcpport"


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """stdout as JSON."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error that stderr tells as JSON."""
        found: dict[str, Any] = json.loads(self.err)["error"]
        return found


class Fleet:
    """Runs the fleet command. folder: the current folder of commands, with no project in or above it at first."""

    def __init__(self, state: Path, folder: Path) -> None:
        self.state = state
        self.folder = folder
        kept = {key: os.environ[key] for key in ("PATH", "LANG", "COVERAGE_PROCESS_START") if key in os.environ}
        self.environ = {**kept, "HOME": str(folder), "FLEET_STATE_DIR": str(state), "COLUMNS": "80"}

    def __call__(
        self, *words: str, cwd: Path | None = None, stdin: str = "", env: Mapping[str, str] | None = None
    ) -> Result:
        done = subprocess.run(
            [PROGRAM, *words],
            capture_output=True,
            text=True,
            input=stdin,
            cwd=cwd or self.folder,
            env={**self.environ, **(env or {})},
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Result(done.returncode, done.stdout, done.stderr)

    def ok(self, *words: str, **options: Any) -> Result:
        """Run a command that must succeed."""
        result = self(*words, **options)
        assert result.code == 0, f"fleet {' '.join(words)}: {result.code}: {result.err}{result.out}"
        return result

    def json(self, *words: str, **options: Any) -> Any:
        """Run a command that must succeed, with --json, and return its answer."""
        at = words.index("--") if "--" in words else len(words)
        return self.ok(*words[:at], "--json", *words[at:], **options).data

    def process(self, name: str) -> dict[str, Any]:
        """Return the view of one process."""
        (found,) = self.json("ps", name)["processes"]
        return dict(found)

    def project(self, text: str, name: str = "project") -> Path:
        """Make a project folder with this project file."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / ".runcept.toml").write_text(text, encoding="utf-8")
        return folder


def until(true: Callable[[], Any], seconds: float = 20.0) -> Any:
    """Wait until something holds and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, f"still not true after {seconds} s"
        time.sleep(0.05)
    return found


def _fresh() -> Iterator[Fleet]:
    with tempfile.TemporaryDirectory(prefix="fleet-cli-") as base:
        folder = Path(base) / "home"
        folder.mkdir()
        fleet = Fleet(Path(base) / "state", folder)
        try:
            yield fleet
        finally:
            if (fleet.state / "fleetd.sock").exists():
                fleet("daemon", "stop", "--processes")
            left = procfs.find_by_environment("FLEET_STATE_DIR", str(fleet.state))
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert left == [], "the test left processes behind"


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    """A host of one test; no fleetd runs yet."""
    yield from _fresh()


@pytest.fixture(scope="module")
def host() -> Iterator[Fleet]:
    """A host that the tests of one file share; use names of your own."""
    for fleet in _fresh():
        fleet.ok("daemon", "start", "--driver", "native")
        yield fleet
