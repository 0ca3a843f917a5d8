# SPDX-License-Identifier: GPL-3.0-or-later
"""`.ci/python`: which interpreter `make site` and `make test` take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "python"
REAL = f"3.{sys.version_info.minor}"


def find(*versions: str, path: str = os.environ["PATH"], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), *versions],
        env={"PATH": path, "HOME": "/nonexistent", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    (folder / name).chmod(0o755)


def test_a_shim_that_does_not_start_is_passed_over(tmp_path: Path) -> None:
    """As pyenv's shims of versions that are not selected: they exist, and fail."""
    for minor in range(9, 15):
        program(tmp_path / "shims", f"python3.{minor}", "echo 'pyenv: command not found' >&2; exit 127")
    program(tmp_path / "shims", "python3", f'exec {sys.executable} "$@"')
    found = find(REAL, REAL, path=f"{tmp_path / 'shims'}:/usr/bin:/bin")
    assert found.returncode == 0, found.stderr
    running = subprocess.check_output(
        [found.stdout.strip(), "-c", "import sys; print(sys.version_info[:2])"], text=True
    )
    assert running.strip() == str(sys.version_info[:2])


def test_python_can_be_named() -> None:
    assert find(REAL, REAL, PYTHON=sys.executable).stdout.strip() == sys.executable


@pytest.mark.parametrize("named", ["/nonexistent/python", "/bin/false"])
def test_a_named_python_that_does_not_run_is_an_error_that_says_what_to_do(named: str) -> None:
    found = find(PYTHON=named)
    assert (found.returncode, found.stdout) == (1, "")
    assert "install one, or name it with PYTHON=" in found.stderr


def test_a_python_without_ensurepip_is_an_error_that_names_the_package(tmp_path: Path) -> None:
    lacks = "import sys; sys.modules['ensurepip'] = None; exec(sys.argv.pop(1))"
    program(tmp_path, "python", f'shift; exec {sys.executable} -c "{lacks}" "$@"')
    found = find(REAL, REAL, PYTHON=str(tmp_path / "python"))
    assert found.returncode == 1
    assert "python3-venv" in found.stderr
