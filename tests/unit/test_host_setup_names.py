# SPDX-License-Identifier: GPL-3.0-or-later
"""The role host_setup knows a package for what the checks of hosts can find missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet_core.host_checks import PROVIDERS, TOOLS

ROLE = Path(__file__).resolve().parents[2] / "roles/host_setup"
NAMES: dict[str, Any] = yaml.safe_load((ROLE / "vars/main.yml").read_text())["_host_setup_names"]
ELSEWHERE = {"multipass"}  # a snap, or a cask


def test_debian_has_a_package_for_everything() -> None:
    assert {tool.name for tool in TOOLS} - ELSEWHERE == set(NAMES["debian"]) - {"snap"}


@pytest.mark.parametrize("family", ["redhat", "archlinux", "suse", "darwin"])
def test_other_families_have_what_qemu_needs(family: str) -> None:
    everywhere = {tool.name for tool in TOOLS if tool.provider == "qemu" and not tool.families}
    assert everywhere <= set(NAMES[family])
    assert set(NAMES[family]) <= {tool.name for tool in TOOLS} | {"snap"}


def test_the_role_and_the_module_take_the_same_providers() -> None:
    options = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert options["host_setup_providers"]["choices"] == list(PROVIDERS)
