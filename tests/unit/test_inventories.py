# SPDX-License-Identifier: GPL-3.0-or-later
"""The shipped inventories: each is read without its provider, and sets what the roles take."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
INVENTORIES = sorted(path.parent for path in REPOSITORY.glob("inventories/*/hosts.yml"))
ROLES = sorted(path.parent.parent for path in REPOSITORY.glob("roles/*/meta/argument_specs.yml"))
OWN = re.compile(rf"({'|'.join(role.name for role in ROLES)})_")

each = pytest.mark.parametrize("inventory", INVENTORIES, ids=lambda path: path.name)


@pytest.fixture(scope="module")
def options() -> set[str]:
    found: set[str] = set()
    for role in ROLES:
        found |= set(
            yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
        )
    return found


def read(inventory: Path, tmp_path: Path, **environ: str) -> tuple[dict[str, Any], str]:
    """Return what ansible-inventory lists, and what it says besides."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PROXMOX_", "ANSIBLE_"))}
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-inventory"), "-i", str(inventory), "--list"],
        cwd=REPOSITORY,
        env={**kept, "FLEET_STATE_DIR": str(tmp_path), "HOME": str(tmp_path), "COLUMNS": "1000", **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout), done.stderr.strip()


@each
def test_an_inventory_is_read_where_its_provider_is_not(inventory: Path, tmp_path: Path) -> None:
    listed, said = read(inventory, tmp_path, PATH="/usr/bin:/bin")
    assert list(listed["_meta"]["hostvars"]) == ["localhost"]
    assert said.count("[WARNING]") == (inventory.name in ("multipass", "proxmox"))
    assert len(said.splitlines()) <= 1


def test_the_local_inventory_asks_no_provider() -> None:
    assert not list((REPOSITORY / "inventories/local").glob("*machines.y*ml"))


@each
def test_variables_of_roles_are_options_of_roles(inventory: Path, options: set[str]) -> None:
    for path in [*inventory.glob("group_vars/*.yml"), *inventory.glob("host_vars/*.yml")]:
        text = path.read_text()
        commented = re.findall(r"^# ([a-z_]+):", text, re.MULTILINE)
        given = {*(yaml.safe_load(text) or {}), *commented}
        assert {name for name in given if OWN.match(name)} <= options, path


@each
def test_no_secret_is_in_an_inventory(inventory: Path) -> None:
    for path in inventory.rglob("*.yml"):
        for line in path.read_text().splitlines():
            found = re.match(r"[#\s]*\w*(secret|password)\w*:\s*(\S.*)", line)
            assert found is None or "vault_" in found[2], f"{path}: {line}"


@each
def test_commented_examples_are_yaml(inventory: Path) -> None:
    for path in inventory.glob("group_vars/*.yml"):
        for block in re.findall(r"(?:^# ?[a-z_]+:\n(?:^#   .*\n)+)", path.read_text(), re.MULTILINE):
            assert isinstance(yaml.safe_load(re.sub(r"^# ?", "", block, flags=re.MULTILINE)), dict), block


def test_every_machine_inventory_has_hypervisors_and_a_readme() -> None:
    for inventory in INVENTORIES:
        if inventory.name != "local":
            assert (inventory / "README.md").exists()
            assert yaml.safe_load((inventory / "machines.yml").read_text())["plugin"] == "autovibe.fleet.machines"
            groups = set(yaml.safe_load((inventory / "hosts.yml").read_text()))
            assert groups - {"gateways"} == {"hypervisors", "fleet", "machines"}
