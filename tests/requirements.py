# SPDX-License-Identifier: GPL-3.0-or-later
"""What a test needs from the machine: skipped with a sentence on a laptop, a failure in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


def in_ci() -> bool:
    """CI installs everything, so there what is missing is an error."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def unavailable(reason: str) -> NoReturn:
    """End this test because the machine lacks something: skip, or fail in CI."""
    if in_ci():
        pytest.fail(f"CI must have this: {reason}", pytrace=False)
    pytest.skip(reason)


def require_tool(name: str, why: str) -> str:
    """Return the path of a program on PATH (or in the sbin folders, which a user's PATH may lack).

    ``why`` completes the sentence "NAME is needed ...": ``require_tool("nginx", "to serve the template nginx")``.
    """
    path = shutil.which(name) or shutil.which(name, path="/usr/local/sbin:/usr/sbin:/sbin")
    if path is None:
        unavailable(f"{name} is needed {why}, and is not installed")
    return path


def require_root(why: str) -> None:
    """``why`` completes the sentence "root is needed ..."."""
    if os.geteuid() != 0:
        unavailable(f"root is needed {why}")


def require_linux(why: str) -> None:
    """Not a fault of the machine: another system skips, in CI too."""
    if not sys.platform.startswith("linux"):
        pytest.skip(f"Linux is needed {why}")


def require_success(command: Sequence[str], why: str) -> str:
    """Run a probe, such as ``["podman", "info"]``, and return what it printed."""
    require_tool(command[0], why)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        unavailable(f"`{' '.join(command)}` must work {why}; it said: {done.stderr.strip() or done.returncode}")
    return done.stdout
