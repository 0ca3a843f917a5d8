# SPDX-License-Identifier: GPL-3.0-or-later
"""Letting people in: what one machine says is its own affair."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fleet_core.errors import FleetError
from fleet_core.machines import Machine
from fleet_machines import access
from fleet_machines.provider import Job, Ran

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDo2Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6"


class Provider:
    name = "paper"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def describe(self, names: Sequence[str], *, full: bool = False) -> dict[str, Machine]:
        return {name: Machine(name, self.name, "running", login="dev") for name in names}

    def run(self, name: str, script: str, job: Job) -> Ran:
        self.asked.append(name)
        if name == "evil":
            raise TypeError("an answer of another form")
        return Ran(0, f"host {KEY}\nend\n", "")


def test_a_surprise_is_told_of_its_machine_and_the_others_are_let_in() -> None:
    provider = Provider()
    with pytest.raises(FleetError, match='machine "evil": TypeError: an answer of another form'):
        access.grant(provider, {"evil": "", "web": ""}, [KEY], timeout=5.0, parallel=1)  # type: ignore[arg-type]
    assert provider.asked == ["evil", "web"]
