# SPDX-License-Identifier: GPL-3.0-or-later
"""What every test gets: a state folder of its own, and no trace of the developer's."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# CI looks longer and always at the same examples; a laptop gets new ones with every run.
settings.register_profile("laptop", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("laptop"), max_examples=200, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "laptop")

# A shell ignores SIGINT and SIGQUIT for what it starts with &, and everything that the tests start would inherit that.
for _number in (signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number is signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(autouse=True)
def no_state_of_the_developer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A test that names no state folder must not reach the real one, nor a running fleetd."""
    monkeypatch.setenv("FLEET_STATE_DIR", str(tmp_path / "unnamed-state"))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """A state folder with a short path: a Unix socket's name has about 100 bytes."""
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        yield Path(folder)
