# SPDX-License-Identifier: GPL-3.0-or-later
"""Ansible on a host of the lab, over SSH, with the checkout's collection."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .lab import Host
from .wheels import wheelhouse

ROOT = Path(__file__).resolve().parents[3]


def play(host: Host, playbook: str | list[dict[str, Any]], *options: str, check: bool = True, **variables: Any) -> str:
    """Run ansible-playbook on a host of the group `fleet`: a playbook by its full name, or plays as data.

    `options` go to ansible-playbook. Returns the output of the run. AssertionError with that output if it fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        names = {**host.ssh_options(), "node_wheelhouse": str(wheelhouse()), **variables}
        inventory = Path(scratch, "hosts.json")
        inventory.write_text(json.dumps({"fleet": {"hosts": {host.name: names}}}))
        if not isinstance(playbook, str):
            Path(scratch, "play.yml").write_text(json.dumps(playbook))
            playbook = str(Path(scratch, "play.yml"))
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory), *options, playbook]
        env = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        done = subprocess.run(
            command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout
