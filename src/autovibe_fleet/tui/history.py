# SPDX-License-Identifier: GPL-3.0-or-later
"""The messages of one iteration that are loaded: a window of its history, contiguous and in order.

Events bring messages at once, the store is the truth. An event can be lost while nobody is connected, so what came by
events is provisional until a page from the store has confirmed it; `confirmed` is how far that is.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

PAGE = 200  # messages of one request
LONGEST = 2000  # messages that are kept; older or newer ones are asked for again
LAST = 2**53  # above every id: "before this" is the end of the history


class History:
    """A window on an iteration's messages.

    first: nothing lies before the window. last: nothing lies after it, so new messages belong to it. unseen: how many
    came while the window's end was elsewhere. page, longest: see PAGE and LONGEST.
    """

    def __init__(self, agent: str, iteration: int, page: int = PAGE, longest: int = LONGEST) -> None:
        self.agent = agent
        self.iteration = iteration
        self.page = page
        self.longest = longest
        self.messages: list[Row] = []
        self.ids: list[int] = []
        self.first = False
        self.last = True
        self.loaded = False
        self.confirmed = 0
        self.unseen = 0

    def __len__(self) -> int:
        return len(self.messages)

    @property
    def provisional(self) -> bool:
        """Whether the window holds messages that no page from the store has confirmed."""
        return bool(self.ids) and self.ids[-1] > self.confirmed

    def start(self, page: Sequence[Row]) -> None:
        """Show the beginning: a page of the oldest messages."""
        early = self._provisional()
        self._reset(page)
        self.first = True
        self.last = len(page) < self.page
        if self.last:
            self._insert_all(early)

    def end(self, page: Sequence[Row]) -> None:
        """Show the end: a page of the newest messages. What came by events meanwhile stays."""
        early = self._provisional()
        self._reset(page)
        self.first = len(page) < self.page
        self.last = True
        self._insert_all(early)

    def older(self, page: Sequence[Row], before: int) -> int:
        """Add the page before a message, if that is the first of the window still. Returns how many were added."""
        if not self.ids or before != self.ids[0]:
            return 0
        self.first = len(page) < self.page
        self.messages[:0] = page
        self.ids[:0] = [row["id"] for row in page]
        if len(self.ids) > self.longest:
            del self.messages[self.longest :], self.ids[self.longest :]
            self.last = False
            self.confirmed = min(self.confirmed, self.ids[-1])
        return len(page)

    def newer(self, page: Sequence[Row], after: int) -> int:
        """Add what the store has after a message, which must be `confirmed` still. Returns how many were new."""
        if after != self.confirmed:
            return 0
        added = self._insert_all(page)
        if page:
            self.confirmed = max(after, page[-1]["id"])
        if len(page) < self.page:
            self.last = True
            self.unseen = 0
        self._cut_start()
        return added

    def live(self, row: Row, following: bool = True) -> bool:
        """Take a message that an event brought. Returns whether the window shows it.

        following: the reader looks at the end. Another one's place is kept: a full window takes no more messages.
        """
        if self.last and not following and len(self.ids) >= self.longest:
            self.last = False
        if not self.last:
            self.unseen += row["id"] > self.ids[-1] if self.ids else 1
            return False
        added = self._insert(row)
        self._cut_start()
        return added

    def _provisional(self) -> list[Row]:
        return self.messages[bisect_left(self.ids, self.confirmed + 1) :] if self.last else []

    def _reset(self, page: Sequence[Row]) -> None:
        self.messages = list(page)
        self.ids = [row["id"] for row in page]
        self.confirmed = self.ids[-1] if self.ids else 0
        self.unseen = 0
        self.loaded = True

    def _insert_all(self, rows: Sequence[Row]) -> int:
        return sum(self._insert(row) for row in rows)

    def _insert(self, row: Row) -> bool:
        ident = row["id"]
        if not self.ids or ident > self.ids[-1]:
            self.ids.append(ident)
            self.messages.append(row)
            return True
        at = bisect_left(self.ids, ident)
        if self.ids[at] == ident or (at == 0 and self.loaded and not self.first):
            return False  # known, or before the window: a page of older messages brings it
        self.ids.insert(at, ident)
        self.messages.insert(at, row)
        return True

    def _cut_start(self) -> None:
        if len(self.ids) > self.longest:
            over = len(self.ids) - self.longest + min(self.page, self.longest // 2)
            del self.messages[:over], self.ids[:over]
            self.first = False
