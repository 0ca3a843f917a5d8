# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.fleetd import running
from tests.integration.modules.plays import Play


@pytest.fixture
def play(tmp_path: Path, state_dir: Path) -> Play:
    """Plays on a host without fleetd."""
    return Play(tmp_path, state_dir / "state")


@pytest.fixture
def fleet(play: Play) -> Iterator[Play]:
    """Plays on a host where fleetd runs."""
    play.state_dir.mkdir(mode=0o700)
    with running(play.state_dir):
        yield play
