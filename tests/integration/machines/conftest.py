# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest
from tests.fakes.multipass_host import Host


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host with Multipass and nothing in it."""
    found = Host(tmp_path)
    monkeypatch.setenv("FAKE_MULTIPASS", str(found.folder))
    return found
