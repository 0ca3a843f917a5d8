# SPDX-License-Identifier: GPL-3.0-or-later
"""Wheels of the application's dependencies for hosts without a network, fetched by this machine's pip, once."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import tomllib

from .images import LabError, cache_folder

PYTHONS = ("3.11", "3.13")  # of Debian 12 and 13
PYPROJECT = Path(__file__).resolve().parents[3] / "pyproject.toml"


def wheelhouse() -> Path:
    """A folder with the application's dependencies for every host image."""
    wanted = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    key = hashlib.sha256(repr((wanted, PYTHONS)).encode()).hexdigest()[:12]
    folder = cache_folder() / f"wheels-{key}"
    if not folder.is_dir():
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
            result = Path(scratch, "wheels")
            for python in PYTHONS:
                options = ["--dest", str(result), "--only-binary=:all:", f"--python-version={python}", "--quiet"]
                command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", *options, *wanted]
                done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
                if done.returncode != 0:
                    raise LabError(f"pip could not fetch the wheels: {done.stderr.strip()[-2000:]}")
            result.chmod(0o755)
            if not folder.is_dir():
                result.rename(folder)
    return folder
