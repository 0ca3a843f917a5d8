# SPDX-License-Identifier: GPL-3.0-or-later
"""From a wanted machine and a found one to steps, or to a refusal."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.errors import Conflict, FleetError, InvalidInput
from fleet_core.machine_plans import (
    FIELDS,
    LIVE,
    STOPPED,
    TARGETS,
    Capabilities,
    Plan,
    differences,
    joined,
    plan,
    plan_all,
)
from fleet_core.machines import Machine, MachineSpec, Network, text_hash

GIB = 1024**3
CAN = Capabilities({"cpu": STOPPED, "memory": STOPPED, "disk": STOPPED, "tags": LIVE, "project": LIVE}, rounds=True)
FOUND = Machine("a", "p", "running", image="24.04", cpu=1, memory=GIB, disk=5 * GIB, user_data=text_hash("x"))


def wanted(**values: Any) -> MachineSpec:
    return MachineSpec("a", "p", **values)


def verbs(made: Plan) -> str:
    return " ".join(step.verb for step in made.steps)


TABLE: list[tuple[dict[str, Any], str | None, str, str, str]] = [
    # wanted, state found, target, steps, state after
    ({}, None, "present", "create", "running"),
    ({}, None, "started", "create", "running"),
    ({}, None, "restarted", "create", "running"),
    ({}, None, "stopped", "create stop", "stopped"),
    ({}, None, "absent", "", ""),
    ({}, "running", "absent", "delete", ""),
    ({}, "deleted", "absent", "delete", ""),
    ({}, "running", "present", "", "running"),
    ({}, "stopped", "present", "", "stopped"),
    ({}, "suspended", "present", "", "suspended"),
    ({}, "stopped", "started", "start", "running"),
    ({}, "suspended", "started", "start", "running"),
    ({}, "starting", "started", "start", "running"),
    ({}, "running", "started", "", "running"),
    ({}, "running", "stopped", "stop", "stopped"),
    ({}, "suspended", "stopped", "stop", "stopped"),
    ({}, "stopped", "stopped", "", "stopped"),
    ({}, "running", "restarted", "stop start", "running"),
    ({}, "stopped", "restarted", "start", "running"),
    ({"cpu": 2}, "stopped", "present", "change", "stopped"),
    ({"cpu": 2}, "stopped", "started", "change start", "running"),
    ({"cpu": 2}, "running", "stopped", "stop change", "stopped"),
    ({"cpu": 2}, "running", "restarted", "stop change start", "running"),
    ({"tags": ("x",)}, "running", "present", "change", "running"),
    ({"tags": ("x",)}, "stopped", "present", "change", "stopped"),
    ({"tags": ("x",)}, "suspended", "present", "change", "suspended"),
    ({"cpu": 1, "memory": GIB, "image": "24.04", "user_data": "x", "tags": ()}, "running", "started", "", "running"),
]


@pytest.mark.parametrize(("values", "state", "target", "steps", "after"), TABLE)
def test_steps_lead_from_what_is_to_what_is_wanted(
    values: dict[str, Any], state: str | None, target: str, steps: str, after: str
) -> None:
    made = plan(wanted(**values), FOUND.evolve(state=state) if state else None, target, CAN)
    assert (verbs(made), made.after) == (steps, after)
    assert made.change.changed == bool(steps)


def test_a_running_machine_is_stopped_for_a_change_only_with_consent() -> None:
    with pytest.raises(Conflict) as caught:
        plan(wanted(cpu=2, memory=2 * GIB), FOUND, "started", CAN)
    assert caught.value.message == (
        'machine "a": it is running, and provider p changes cpu and memory only while a machine is stopped; '
        "set reboot: true, or stop it first"
    )
    made = plan(wanted(cpu=2), FOUND, "present", CAN, reboot=True)
    assert [step.text for step in made.steps] == [
        "stop machine a",
        "change machine a: cpu from 1 to 2",
        "start machine a",
    ]


def test_what_cannot_be_changed_in_place_is_refused_or_made_anew() -> None:
    with pytest.raises(Conflict) as caught:
        plan(wanted(image="26.04", disk=GIB), FOUND, "started", CAN)
    assert caught.value.message == (
        'machine "a": provider p cannot change image from 24.04 to 26.04 and disk from 5G to 1G in place; '
        "set recreate: true to delete the machine and make it anew"
    )
    made = plan(wanted(image="26.04"), FOUND, "stopped", CAN, recreate=True)
    assert verbs(made) == "delete create stop"
    assert made.change.after["a"]["image"] == "26.04"


def test_other_user_data_are_a_difference_that_shows_no_text() -> None:
    (found,) = differences(wanted(user_data="password"), FOUND, CAN)
    assert str(found) == "user_data"
    assert found.way == ""


def test_a_deleted_machine_is_not_silently_replaced() -> None:
    with pytest.raises(Conflict, match="can still be recovered"):
        plan(wanted(), FOUND.evolve(state="deleted"), "started", CAN)
    assert verbs(plan(wanted(), FOUND.evolve(state="deleted"), "started", CAN, recreate=True)) == "delete create"


def test_an_incomplete_machine_is_finished() -> None:
    made = plan(wanted(), FOUND.evolve(incomplete="its launch timed out"), "stopped", CAN)
    assert verbs(made) == "finish stop"
    assert "its launch timed out" in made.steps[0].text


def test_what_the_provider_does_not_know_does_not_differ() -> None:
    assert differences(wanted(cpu=2, image="24.04", networks=(Network("b"),)), Machine("a", "p"), CAN) == ()


@pytest.mark.parametrize(
    ("found", "asked", "same"),
    [
        (GIB + 1, GIB, True),
        (int(1.1 * GIB), GIB, False),
        (954 * 1024**2, int(953.98 * 1024**2), True),
    ],
)
def test_sizes_agree_as_far_as_the_provider_tells_them(found: int, asked: int, same: bool) -> None:
    machine = FOUND.evolve(memory=found)
    assert (differences(wanted(memory=asked), machine, CAN) == ()) == same
    assert differences(wanted(memory=asked), machine, Capabilities(CAN.changes)) != ()


def test_networks_agree_when_all_that_is_given_agrees() -> None:
    has = FOUND.evolve(networks=(Network("br0", "52:54:00:00:00:01"),))
    assert differences(wanted(networks=(Network("br0"),)), has, CAN) == ()
    for other in ((), (Network("br1"),), (Network("br0", "52:54:00:00:00:02"),), (Network("br0"), Network("br0"))):
        assert [one.name for one in differences(wanted(networks=other), has, CAN)] == ["networks"]


def test_a_network_says_nothing_that_the_provider_would_leave_out() -> None:
    narrow = Capabilities(network_fields=("name",))
    with pytest.raises(InvalidInput, match=r'networks\[0\]: provider p knows no "address"'):
        plan(wanted(networks=(Network("b", address="dhcp"),)), None, "present", narrow)


def test_all_refusals_are_told_at_once() -> None:
    specs = [MachineSpec(name, "p", image="26.04") for name in "abc"]
    found = {name: Machine(name, "p", "running", image="24.04") for name in "ab"}
    with pytest.raises(Conflict) as caught:
        plan_all(specs, found, "present", CAN)
    assert caught.value.message.count("; machine") == 1
    plans = plan_all(specs, found, "present", CAN, recreate=True)
    change = joined(plans)
    assert set(change.before) == {"a", "b"}
    assert set(change.after) == {"a", "b", "c"}
    assert len(change.actions) == 5


def test_an_unknown_state_is_refused() -> None:
    with pytest.raises(InvalidInput, match="state: expected one of present"):
        plan(wanted(), None, "paused", CAN)


FIELD_VALUES = {
    "image": st.sampled_from(["", "24.04", "26.04"]),
    "cpu": st.none() | st.integers(1, 4),
    "memory": st.none() | st.integers(1, 4).map(lambda n: n * GIB),
    "disk": st.none() | st.integers(4, 6).map(lambda n: n * GIB),
    "user_data": st.none() | st.sampled_from(["x", "y"]),
    "tags": st.none() | st.sampled_from([(), ("t",)]),
    "project": st.none() | st.sampled_from(["", "shop"]),
}


def after_steps(made: Plan, found: Machine | None, asked: MachineSpec) -> Machine | None:
    """What a perfect provider has when the steps are done."""
    values = {
        name: value
        for name in FIELDS
        if (value := asked.user_data_hash if name == "user_data" else getattr(asked, name)) is not None and value != ""
    }
    for step in made.steps:
        if step.verb == "create":
            assert found is None or found.incomplete
            found = Machine("a", "p", "running", **values)
        elif step.verb == "delete":
            found = None
        else:
            assert found is not None
            if step.verb == "change":
                for difference in made.differences:
                    assert difference.way == LIVE or (difference.way == STOPPED and found.state == "stopped")
                    found = found.evolve(**{difference.name: difference.after})
            else:
                found = found.evolve(state={"start": "running", "stop": "stopped"}[step.verb])
    return found


@given(
    st.fixed_dictionaries({}, optional=FIELD_VALUES),
    st.none() | st.sampled_from(["running", "stopped", "suspended", "starting", "deleted"]),
    st.sampled_from(TARGETS),
    st.booleans(),
    st.booleans(),
)
def test_a_plan_reaches_its_target_and_the_next_one_is_empty(
    values: dict[str, Any], state: str | None, target: str, recreate: bool, reboot: bool
) -> None:
    asked = wanted(**values)
    found = FOUND.evolve(state=state) if state else None
    try:
        made = plan(asked, found, target, CAN, recreate=recreate, reboot=reboot)
    except FleetError:
        assert not (recreate and reboot)
        return
    reached = after_steps(made, found, asked)
    assert (reached.state if reached else "") == made.after
    again = plan(asked, reached, "started" if target == "restarted" else target, CAN)
    assert again.steps == ()
    assert not any(step.verb == "delete" for step in made.steps) or recreate or target == "absent"
