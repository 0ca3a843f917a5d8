# SPDX-License-Identifier: GPL-3.0-or-later
"""Warm pools: who is free, what is to be done, whom a machine belongs to."""

from __future__ import annotations

from typing import Any

import pytest

from fleet_core.errors import InvalidInput
from fleet_core.machine_plans import LIVE, STOPPED, Capabilities
from fleet_core.machines import Machine, MachineSpec
from fleet_core.pools import Owner, Pool, check_pool_name, fill

POOL = Pool(
    "dev", MachineSpec("dev", "p", image="gold", cpu=2, tags=("warm",), user_data="hostname: name-of-the-machine")
)
CAN = Capabilities(changes={"tags": LIVE, "project": LIVE, "login": LIVE, "cpu": STOPPED})
SHOP = Owner("shop", "issue-12")


def machine(name: str, tag: str = "pool-dev", **values: Any) -> Machine:
    made = POOL.filled(name)
    fields = {"state": "running", "image": "gold", "cpu": 2, "user_data": made.user_data_hash, **values}
    return Machine(name, "p", tags=("warm", tag), **fields)


def test_a_machine_gets_its_tags_its_name_and_its_owner() -> None:
    assert POOL.filling("dev-1").tags == ("filling-dev", "warm")
    assert POOL.filled("dev-1").user_data == "hostname: dev-1"
    handed = POOL.handed("dev-1", SHOP, ("web",), "ada")
    assert (handed.tags, handed.project, handed.login) == ((SHOP.tag, "taken-dev", "warm", "web"), "shop", "ada")
    assert POOL.name_for(SHOP) == f"dev-{SHOP.digest}"
    assert len({SHOP.tag, Owner("shop", "issue-1").tag, Owner("shopi", "ssue-12").tag}) == 3


def test_only_whole_free_machines_are_handed_out_those_that_run_first() -> None:
    found = [
        machine("dev-1", state="stopped"),
        machine("dev-2"),
        machine("dev-3", "filling-dev"),
        machine("dev-4", incomplete="half"),
        machine("dev-5", "taken-dev"),
        machine("dev-6", "pool-other"),
        machine("dev-7", state="deleted"),
    ]
    assert [one.name for one in POOL.free(found)] == ["dev-2", "dev-1"]
    assert [one.name for one in POOL.taken(found)] == ["dev-5"]
    assert POOL.owned(found, SHOP) is None
    mine = Machine("dev-8", "p", tags=("taken-dev", SHOP.tag))
    assert POOL.owned([*found, mine], SHOP) is mine
    assert POOL.owned([Machine("x", "p", tags=("taken-other", SHOP.tag))], SHOP) is None


def names(*numbers: int) -> list[Machine]:
    return [machine(f"dev-{number}") for number in numbers]


CASES: list[tuple[str, int, str, list[Machine], tuple[str, ...]]] = [
    ("nothing there", 2, "running", [], ("make 2 machines for pool dev",)),
    ("all there", 2, "running", names(1, 2), ()),
    ("too many", 1, "running", names(1, 2), ("delete machine dev-2 of pool dev: there are enough",)),
    ("none wanted", 0, "running", names(1), ("delete machine dev-1 of pool dev: there are enough",)),
    ("taken ones do not count", 1, "running", [machine("dev-1", "taken-dev")], ("make 1 machines for pool dev",)),
    ("half made", 1, "running", [machine("dev-1", "filling-dev")], ("finish machine dev-1 of pool dev",)),
    ("incomplete", 1, "running", [machine("dev-1", incomplete="x")], ("finish machine dev-1 of pool dev",)),
    (
        "half made and enough",
        1,
        "running",
        [machine("dev-1", "filling-dev"), *names(2)],
        ("delete machine dev-1 of pool dev: there are enough",),
    ),
    (
        "another template",
        1,
        "running",
        [machine("dev-1", cpu=4, image="old")],
        ("delete machine dev-1 of pool dev: it differs in image and cpu", "make 1 machines for pool dev"),
    ),
    ("shall wait stopped", 1, "stopped", names(1), ("stop machine dev-1 of pool dev",)),
    ("shall wait running", 1, "running", [machine("dev-1", state="stopped")], ("start machine dev-1 of pool dev",)),
    (
        "the right state stays",
        1,
        "stopped",
        [*names(1), machine("dev-2", state="stopped")],
        ("delete machine dev-1 of pool dev: there are enough",),
    ),
]


@pytest.mark.parametrize(("size", "kept", "machines", "actions"), [case[1:] for case in CASES], ids=lambda value: None)
def test_a_pool_is_brought_to_its_size(size: int, kept: str, machines: list[Machine], actions: tuple[str, ...]) -> None:
    assert fill(POOL, size, kept, machines, CAN).actions("dev", kept) == actions


@pytest.mark.parametrize("name", ["", "Dev", "1dev", "dev-", "d_v", "x" * 41, None, 3])
def test_a_pool_has_a_name_that_machines_can_begin_with(name: object) -> None:
    with pytest.raises(InvalidInput, match=r"pool name .*: expected a small letter"):
        check_pool_name(name)
