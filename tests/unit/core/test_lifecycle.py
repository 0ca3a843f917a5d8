# SPDX-License-Identifier: GPL-3.0-or-later
"""The life cycle table, and random walks over it with a model of what exists."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fleet_core import lifecycle as life
from fleet_core.errors import ImpossibleEvent

EVENTS = sorted({event for _state, event in life.TABLE})
ACTIONS = {life.LAUNCH, life.WATCH, life.TERMINATE, life.KILL, life.SCHEDULE, life.CANCEL, life.RELEASE}
ROWS = [(state, event, following, actions) for (state, event), (following, actions) in life.TABLE.items()]
DOWN = (life.STOPPED, life.ERROR)


def reachable(start: str, events: list[str]) -> set[str]:
    found, waiting = set(), [start]
    while waiting:
        state = waiting.pop()
        if state not in found:
            found.add(state)
            waiting.extend(life.TABLE[(state, event)][0] for event in events if (state, event) in life.TABLE)
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_a_row_leads_to_a_known_state_by_known_actions(row: tuple[str, str, str, tuple[str, ...]]) -> None:
    state, event, following, actions = row
    assert {state, following} <= set(life.STATES)
    assert set(actions) <= ACTIONS
    assert life.step(state, event) == (following, actions)


@pytest.mark.parametrize("state", life.STATES)
def test_every_state_is_reachable(state: str) -> None:
    assert state in reachable(life.STOPPED, EVENTS)


@pytest.mark.parametrize("state", life.STATES)
def test_every_state_leads_to_stopped(state: str) -> None:
    assert life.STOPPED in reachable(state, EVENTS)


@pytest.mark.parametrize("state", [state for state in life.STATES if state != life.STOPPING])
def test_every_state_can_be_stopped_and_stop_ends_in_stopped(state: str) -> None:
    following, _actions = life.step(state, life.STOP)
    assert following in (life.STOPPED, life.STOPPING)
    assert reachable(following, [life.STOP_LATE, life.GONE]) <= {life.STOPPED, life.STOPPING}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_claims_are_released_exactly_when_it_is_down_for_good(row: tuple[str, str, str, tuple[str, ...]]) -> None:
    _state, _event, following, actions = row
    assert (life.RELEASE in actions) == (following in DOWN)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_a_process_is_launched_only_when_it_is_starting(row: tuple[str, str, str, tuple[str, ...]]) -> None:
    state, _event, following, actions = row
    assert (life.LAUNCH in actions) == (following == life.STARTING and state != life.STARTING)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_a_restart_is_scheduled_in_backoff_and_cancelled_on_another_way_out(
    row: tuple[str, str, str, tuple[str, ...]],
) -> None:
    state, event, following, actions = row
    assert (life.SCHEDULE in actions) == (following == life.BACKOFF and state != life.BACKOFF)
    assert (life.CANCEL in actions) == (state == life.BACKOFF and event != life.RETRY)


@pytest.mark.parametrize("state", life.STATES)
@pytest.mark.parametrize("event", [*EVENTS, "nonsense"])
def test_an_event_without_a_row_is_an_error_that_names_the_possible_ones(state: str, event: str) -> None:
    if (state, event) in life.TABLE:
        return
    with pytest.raises(ImpossibleEvent) as caught:
        life.step(state, event)
    assert str(caught.value).startswith(f'a process that is {state} cannot take "{event}": expected one of ')
    assert all(other in str(caught.value) for known, other in life.TABLE if known == state)


def test_states_are_sorted_into_alive_and_wanted() -> None:
    assert set(life.ALIVE) | {life.STOPPED, life.ERROR, life.BACKOFF} == set(life.STATES)
    assert set(life.WANTED) | {life.STOPPED, life.ERROR, life.STOPPING} == set(life.STATES)


def test_the_diagram_has_every_row() -> None:
    lines = life.diagram().splitlines()
    assert lines[:2] == ["stateDiagram-v2", "    [*] --> stopped"]
    assert len(lines) == len(ROWS) + 2
    assert "    stopped --> starting: start / launch" in lines


class Life(RuleBasedStateMachine):
    """A supervisor that does what the table says: at any time the model tells what exists."""

    def __init__(self) -> None:
        super().__init__()
        self.state = life.STOPPED
        self.exists = False  # a process is there
        self.claimed = False
        self.scheduled = False

    def take(self, event: str) -> None:
        self.state, actions = life.step(self.state, event)
        for action in actions:
            if action == life.LAUNCH:
                assert not self.exists, "launched twice"
                assert not self.scheduled, "launched while a restart is scheduled"
                self.exists = self.claimed = True
            elif action in (life.TERMINATE, life.KILL):
                assert self.exists, "a signal for nobody"
            elif action == life.SCHEDULE:
                assert not self.scheduled
                self.scheduled = True
            elif action == life.CANCEL:
                assert self.scheduled, "nothing to cancel"
                self.scheduled = False
            elif action == life.RELEASE:
                assert not self.exists, "claims given back while the process runs"
                self.claimed = False

    @rule()
    def start(self) -> None:
        if (self.state, life.START) in life.TABLE:
            self.take(life.START)

    @rule()
    def stop(self) -> None:
        if self.state != life.STOPPING:
            self.take(life.STOP)

    @precondition(lambda self: self.state in DOWN)
    @rule()
    def adopt(self) -> None:
        self.exists = self.claimed = True
        self.take(life.ADOPT)

    @precondition(lambda self: self.exists and self.state in (life.STARTING, life.UNHEALTHY))
    @rule()
    def becomes_ready(self) -> None:
        self.take(life.READY)

    @precondition(lambda self: self.state == life.STARTING)
    @rule()
    def is_late(self) -> None:
        self.take(life.LATE)

    @precondition(lambda self: self.state == life.STARTING)
    @rule()
    def cannot_be_launched(self) -> None:
        self.exists = False
        self.take(life.LAUNCH_FAILED)

    @precondition(lambda self: self.state == life.RUNNING)
    @rule(event=st.sampled_from([life.UNHEALTHY_NOW, life.UNHEALTHY_RESTART]))
    def fails_its_check(self, event: str) -> None:
        self.take(event)

    @precondition(lambda self: self.exists)
    @rule(event=st.sampled_from([life.EXITED_RETRY, life.EXITED_DONE, life.EXITED_FAILED]))
    def ends(self, event: str) -> None:
        self.exists = False
        self.take(life.GONE if self.state == life.STOPPING else event)

    @precondition(lambda self: self.state == life.STOPPING)
    @rule()
    def does_not_end(self) -> None:
        self.take(life.STOP_LATE)

    @precondition(lambda self: self.state == life.BACKOFF)
    @rule()
    def waited(self) -> None:
        self.scheduled = False
        self.take(life.RETRY)

    @precondition(lambda self: self.state == life.BACKOFF)
    @rule()
    def is_given_up(self) -> None:
        self.take(life.EXITED_FAILED)

    @invariant()
    def what_exists_agrees_with_the_state(self) -> None:
        assert self.exists == (self.state in life.ALIVE)
        assert self.claimed == (self.state not in DOWN)
        assert self.scheduled == (self.state == life.BACKOFF)


TestLife = Life.TestCase
