# SPDX-License-Identifier: GPL-3.0-or-later
"""What fleetd does not load, it does not hold."""

from __future__ import annotations

import subprocess
import sys

import pytest


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("name", ["_ssl", "_hashlib", "typer", "rich", "yaml", "shutil", "http"])
def test_fleetd_does_not_load(name: str) -> None:
    assert python(f"import autovibe_fleet.node.daemon, sys; print({name!r} in sys.modules)") == "False"


def test_tls_is_there_when_it_is_asked_for() -> None:
    code = (
        "import autovibe_fleet.node.daemon, asyncio, asyncio.base_events, ssl;"
        "print(isinstance(ssl.create_default_context(), asyncio.base_events.ssl.SSLContext));"
        "print(asyncio.base_events.sslproto.SSLAgainErrors[0] is ssl.SSLWantReadError)"
    )
    assert python(code).split() == ["True", "True"]
