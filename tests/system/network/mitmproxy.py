# SPDX-License-Identifier: GPL-3.0-or-later
"""mitmproxy in a venv of its own: what it pins clashes with what we test with. Built once."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

from tests.requirements import unavailable
from tests.system.lab import images

OLDEST_PYTHON = (3, 12)


def mitmdump() -> str:
    """Return the path of mitmdump; skip where it cannot be had, fail there in CI."""
    folder = images.cache_folder().parent / "mitmproxy"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "mitmproxy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _works(folder):
            _build(folder)
    return str(folder / "bin" / "mitmdump")


def _works(folder: Path) -> bool:
    program = folder / "bin" / "mitmdump"
    return program.exists() and subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0


def _build(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "mitmproxy>=11"]
    for command in ([_python(), "-m", "venv", str(folder)], pip):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(folder, ignore_errors=True)
            unavailable(f"mitmproxy is needed as a proxy; `{' '.join(command)}` said: {done.stderr.strip()[-300:]}")


def _python() -> str:
    """Return an interpreter that mitmproxy runs on."""
    script = f"import sys; sys.exit(sys.version_info < {OLDEST_PYTHON})"
    names = (sys.executable, "python3.14", "python3.13", "python3.12")
    found = [path for path in map(shutil.which, names) if path and _exits_well(path, script)]
    if not found:
        unavailable(f"Python {'.'.join(map(str, OLDEST_PYTHON))} or newer is needed for mitmproxy")
    return found[0]


def _exits_well(python: str, script: str) -> bool:
    return subprocess.run([python, "-c", script], capture_output=True, check=False).returncode == 0
