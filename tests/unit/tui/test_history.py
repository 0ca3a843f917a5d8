# SPDX-License-Identifier: GPL-3.0-or-later
"""The window on an iteration's messages: whatever is lost, doubled or late, it shows what the store has, in order."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from autovibe_fleet.tui.history import LAST, History

PAGE, LONGEST = 4, 12


def row(ident: int) -> dict[str, Any]:
    return {"id": ident, "iteration": 1, "type": "text", "content": str(ident)}


def filled(count: int) -> History:
    history = History("a", 1, PAGE, LONGEST)
    history.end([row(ident) for ident in range(1, count + 1)][-PAGE:])
    return history


def test_the_end_is_shown_first_and_older_pages_come_on_demand() -> None:
    history = filled(10)
    assert (history.ids, history.first, history.last) == ([7, 8, 9, 10], False, True)
    assert history.older([row(3), row(4), row(5), row(6)], before=7) == 4
    assert history.ids == [3, 4, 5, 6, 7, 8, 9, 10]
    assert history.older([row(1), row(2)], before=3) == 2
    assert history.first


def test_a_page_that_was_asked_for_before_the_window_moved_is_dropped() -> None:
    history = filled(10)
    assert history.older([row(1)], before=3) == 0
    assert history.newer([row(99)], after=3) == 0
    assert history.ids == [7, 8, 9, 10]


def test_a_message_that_an_event_and_the_store_bring_is_shown_once() -> None:
    history = filled(4)
    assert history.live(row(5))
    assert not history.live(row(5))
    assert history.provisional
    assert history.newer([row(5), row(6)], after=4) == 1
    assert (history.ids, history.provisional) == ([1, 2, 3, 4, 5, 6], False)


def test_a_message_whose_event_was_lost_takes_its_place_between_the_others() -> None:
    history = filled(4)
    history.live(row(8))
    history.newer([row(6), row(8)], after=4)
    assert history.ids == [1, 2, 3, 4, 6, 8]


def test_messages_that_come_before_the_first_page_are_kept() -> None:
    history = History("a", 1, PAGE, LONGEST)
    history.live(row(5))
    history.live(row(6))
    history.end([row(2), row(3), row(4), row(5)])
    assert history.ids == [2, 3, 4, 5, 6]


def test_the_window_stays_where_a_reader_is_and_counts_what_comes() -> None:
    history = filled(4)
    for ident in range(5, 13):
        history.live(row(ident), following=False)
    assert len(history) == LONGEST
    assert not history.live(row(13), following=False)
    assert not history.live(row(14), following=False)
    assert (history.ids[0], history.ids[-1], history.last, history.unseen) == (1, 12, False, 2)


def test_a_follower_loses_the_oldest_messages_from_the_window() -> None:
    history = filled(4)
    for ident in range(5, 100):
        history.live(row(ident))
    assert history.ids[-1] == 99
    assert len(history) <= LONGEST
    assert not history.first


class Watching(RuleBasedStateMachine):
    """A store that grows, events of which some are lost, and a reader who moves about."""

    def __init__(self) -> None:
        super().__init__()
        self.store: list[dict[str, Any]] = []
        self.next = 1
        self.history = History("a", 1, PAGE, LONGEST)

    def page(self, after: int = 0, before: int = LAST, last: bool = False) -> list[dict[str, Any]]:
        found = [item for item in self.store if after < item["id"] < before]
        return found[-PAGE:] if last else found[:PAGE]

    @rule(gap=st.integers(1, 3), lost=st.booleans(), following=st.booleans())
    def message(self, gap: int, lost: bool, following: bool) -> None:
        self.next += gap
        self.store.append(row(self.next))
        if not lost:
            self.history.live(row(self.next), following)

    @rule()
    def end(self) -> None:
        self.history.end(self.page(last=True))

    @rule()
    def start(self) -> None:
        self.history.start(self.page())

    @rule()
    def older(self) -> None:
        if self.history.loaded and not self.history.first and self.history.ids:
            before = self.history.ids[0]
            self.history.older(self.page(before=before, last=True), before)

    @rule()
    def newer(self) -> None:
        if self.history.loaded:
            after = self.history.confirmed
            self.history.newer(self.page(after=after), after)

    @invariant()
    def the_window_is_in_order_without_doubles_and_bounded(self) -> None:
        ids = self.history.ids
        assert ids == [item["id"] for item in self.history.messages]
        assert ids == sorted(set(ids))
        assert len(ids) <= LONGEST + PAGE

    @invariant()
    def nothing_that_is_confirmed_is_missing(self) -> None:
        history = self.history
        if history.loaded and history.ids:
            known = [item["id"] for item in self.store if history.ids[0] <= item["id"] <= history.confirmed]
            assert [ident for ident in history.ids if ident <= history.confirmed] == known
            if history.first:
                assert history.ids[0] == self.store[0]["id"] or history.ids[0] > history.confirmed

    def teardown(self) -> None:
        """However it stands: asked until there is no more, the window shows the end of the store without a gap."""
        if self.history.loaded:
            for _turn in range(len(self.store) + 2):
                self.newer()
            ids = [item["id"] for item in self.store]
            assert self.history.last
            assert self.history.ids == ids[len(ids) - len(self.history.ids) :]


TestWatching = Watching.TestCase
TestWatching.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
