# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `fleet machines` and the inventory with a real machine of QEMU: looked at, entered, saved, put back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.integration.machines.inventories import Inventory
from tests.system.vm.machines import LOGIN, Machines

from fleet_core.images import Image

NAME = "desk"


def fleet(vms: Machines, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `fleet machines` on the state folder of these machines."""
    return subprocess.run(
        [str(Path(sys.executable).with_name("fleet")), "machines", *words],
        env={**os.environ, "FLEET_STATE_DIR": str(vms.folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.mark.timeout(900)
def test_a_machine_is_looked_at_entered_saved_damaged_put_back_and_deleted(
    vms: Machines, golden: Image, tmp_path: Path
) -> None:
    with vms.booted(NAME, golden.name, project="shop", tags=("desk", "{{ 6*7 }}")) as machine:
        (listed,) = json.loads(fleet(vms, "list", "--json", "--tag", "desk").stdout)["machines"]
        assert (listed["name"], listed["state"], listed["port"]) == (NAME, "running", machine.port)
        row = fleet(vms, "list", "--project", "shop").stdout.splitlines()[1].split()
        assert row[:3] == [NAME, "qemu", "running"]

        # The fleet's key is let in and the host key is read, both through the guest agent.
        entered = fleet(vms, "ssh", NAME, "--", "id", "-un")
        assert entered.stdout == f"{LOGIN}\n", entered.stderr
        assert (vms.folder / "machines" / "known_hosts").read_text().startswith(f"{NAME} ssh-ed25519 ")
        assert fleet(vms, "ssh", NAME, "--", "exit 9").returncode == 9
        inside = fleet(vms, "run", NAME, "--", "id -un; exit 5")
        assert (inside.stdout, inside.returncode) == ("root\n", 5)

        # Ansible logs in by the same key, and trusts that host key alone.
        inventory = Inventory(tmp_path, {"FLEET_STATE_DIR": str(vms.folder)})
        inventory.write(["qemu"], compose={"ansible_python_interpreter": "'/usr/bin/python3'"})
        assert inventory.listed().groups["project_shop"] == [NAME]
        pinged = inventory.run("ansible", "tag_desk", "-m", "ansible.builtin.ping", "-o")
        assert "SUCCESS" in pinged.stdout, pinged.stdout + pinged.stderr

        file = f"/home/{LOGIN}/work"
        fleet(vms, "run", NAME, "--", f"echo good >{file}; sync")
        saved = fleet(vms, "checkpoint", NAME, "clean", "--folder", f"/home/{LOGIN}")
        assert saved.stdout == f"Saved {NAME} as clean\n", saved.stderr
        fleet(vms, "run", NAME, "--", f"echo bad >{file}; sync")
        assert "clean" in fleet(vms, "checkpoints", NAME).stdout
        put_back = fleet(vms, "restore", NAME, "clean", "--yes")
        assert put_back.stdout == f"Put {NAME} back to clean; it is running\n", put_back.stderr
        assert fleet(vms, "run", NAME, "--", f"cat {file}").stdout == "good\n"

        assert fleet(vms, "delete", NAME).returncode == 2
        gone = fleet(vms, "delete", NAME, "--yes")
        assert gone.stdout == f"Deleted {NAME}\n", gone.stderr
        assert json.loads(fleet(vms, "list", "--json").stdout)["machines"] == []
        assert not (vms.folder / "machines" / "known_hosts").exists()
