# SPDX-License-Identifier: GPL-3.0-or-later
"""Real systemd hosts and machines for the tests of this folder; see lab/README.md and vm/README.md."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from tests.system.lab import Host, Lab, why_not
from tests.system.lab.images import SUITES, ensure_image
from tests.system.vm import fixtures, machines
from tests.system.vm.fixtures import golden, vm_base, vms

from fleet_core.errors import FleetError

NETWORK = Path(__file__).resolve().parent / "network"
__all__ = ["golden", "vm_base", "vms"]  # fixtures


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what boots machines: -m machines, -m 'not machines'."""
    for item in items:
        if set(getattr(item, "fixturenames", ())) & set(fixtures.NAMES):
            item.add_marker("machines")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the images before the first test, whose time limit must not count it."""
    if session.config.option.collectonly:
        return
    # The lab of tests/system/network is another: namespaces, and no host.
    hosted = [item for item in session.items if NETWORK not in item.path.parents]
    used = {name for item in hosted for name in getattr(item, "fixturenames", ())}
    if "lab" in used and why_not() is None:
        more = {name for item in hosted for name in getattr(getattr(item, "module", None), "IMAGES", ())}
        for name in (*SUITES, *sorted(more)):
            ensure_image(name)
    if used & set(fixtures.NAMES) and machines.why_not() is None:
        with contextlib.suppress(FleetError):  # the fixture says it again, to the test that needs it
            machines.ensure_base()


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """An empty lab. Skips where none can run; FLEET_LAB=required (as in CI) makes that a failure."""
    reason = why_not()
    if reason and os.environ.get("FLEET_LAB") == "required":
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    with Lab.start() as lab:
        yield lab


_numbers = count(1)


@pytest.fixture(scope="module", params=["debian12", "debian13"])
def host(request: pytest.FixtureRequest, lab: Lab) -> Iterator[Host]:
    """A systemd host of a test module's own, once with Debian 12 and once with Debian 13."""
    host = lab.host(f"{request.param}-{next(_numbers)}", request.param)
    yield host
    host.stop()


@pytest.fixture
def new_host(lab: Lab) -> Iterator[Callable[[str], Host]]:
    """A function that starts one more systemd host (debian12 or debian13) for a single test."""
    hosts: list[Host] = []

    def start(image: str = "debian12") -> Host:
        hosts.append(lab.host(f"{image}-{next(_numbers)}", image))
        return hosts[-1]

    yield start
    for host in hosts:
        host.stop()
