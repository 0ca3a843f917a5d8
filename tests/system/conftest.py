# SPDX-License-Identifier: GPL-3.0-or-later
"""Real systemd hosts for the tests of this folder; see lab/README.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.system.lab import Host, Lab, why_not
from tests.system.lab.wheels import wheelhouse

ROOT = Path(__file__).parents[2]


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


def play(host: Host, playbook: str | list[dict[str, Any]], check: bool = True, **variables: Any) -> str:
    """Run ansible-playbook on a host of the group `fleet`: a playbook by its full name, or plays as data.

    Returns the output of the run. AssertionError with that output if it fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        names = {**host.ssh_options(), "node_wheelhouse": str(wheelhouse()), **variables}
        inventory = Path(scratch, "hosts.json")
        inventory.write_text(json.dumps({"fleet": {"hosts": {host.name: names}}}))
        if not isinstance(playbook, str):
            Path(scratch, "play.yml").write_text(json.dumps(playbook))
            playbook = str(Path(scratch, "play.yml"))
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory), playbook]
        env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run(command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout
