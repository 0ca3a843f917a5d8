# SPDX-License-Identifier: GPL-3.0-or-later
"""The fixtures of README.md; tests/system/conftest.py imports them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.requirements import unavailable

from fleet_core.images import Image

from .machines import Machines, ensure_base, why_not

NAMES = ("vm_base", "vms", "golden")


@pytest.fixture(scope="session")
def vm_base() -> Path:
    """The path of a disk that boots by itself. Skips where no machine can run; in CI that is a failure."""
    reason = why_not()
    if reason:
        unavailable(reason)
    return ensure_base()


@pytest.fixture(scope="session")
def vms(vm_base: Path) -> Iterator[Machines]:
    """Machines under a running fleetd."""
    with Machines.running() as machines:
        yield machines


@pytest.fixture(scope="session")
def golden(vms: Machines) -> Image:
    """A golden image, built once: Debian 12 with the account "fleet" in its machines' inventory."""
    return vms.golden()
