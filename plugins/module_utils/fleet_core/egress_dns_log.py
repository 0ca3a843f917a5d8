# SPDX-License-Identifier: GPL-3.0-or-later
"""What guests asked a resolver and did not get, from the lines that dnsmasq writes with log-queries=extra.

A line names a query by a number and its client; the one that says REFUSED does not repeat the name, so that questions
are kept until what became of them is known. Guests choose the names: whatever stands in one, it stays one.

Source: log_query() of dnsmasq 2.86 to 2.91. Older ones say nothing of what they refuse.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Why a question was not answered.
REFUSED = "refused"  # the name is not allowed
SPECIAL = "special"  # the name is allowed and led to a special address
FILTERED = "filtered"  # the name is allowed, records that carry any data are not
KEPT = 1000  # questions whose end has not been seen
# Those that carry data. Programs ask for HTTPS and SVCB all the time, and do without.
_DATA_TYPES = frozenset({"TXT", "NULL"})
_LINE = re.compile(r"dnsmasq\[\d+\]: (?P<number>\d+) (?P<client>[0-9A-Fa-f.:]+)/(?P<port>\d+) (?P<words>.+)$")
_QUERY = re.compile(r"query\[(?P<kind>[^\]]+)\] (?P<name>.*) from \S+$")
_FORWARDED = re.compile(r"forwarded .* to \S+$")
_REFUSED = re.compile(r"config error is REFUSED")
_NEGATIVE = re.compile(r"config .* is (?P<code>NXDOMAIN|NODATA)(?:-IPv[46])?$")


@dataclass(frozen=True)
class Refusal:
    """client: the address that asked. name: lower case. kind: of record, such as "AAAA". reason: one of the above."""

    client: str
    name: str
    kind: str
    reason: str


@dataclass
class _Question:
    name: str
    kind: str
    forwarded: bool = False


class QuestionLog:
    """Reads lines in the order in which they were written; one for each log."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str, str], _Question] = {}

    def read(self, lines: Iterable[str]) -> list[Refusal]:
        """Return what these lines say was refused."""
        return [refusal for line in lines for refusal in self._line(line)]

    def _line(self, line: str) -> list[Refusal]:
        found = _LINE.search(line)
        if not found:
            return []
        key, words = (found["client"], found["port"], found["number"]), found["words"]
        query = _QUERY.match(words)
        if query:
            self._open[key] = _Question(query["name"].lower(), query["kind"])
            while len(self._open) > KEPT:
                del self._open[next(iter(self._open))]
            return []
        question = self._open.get(key)
        if question is None:
            return []
        if _FORWARDED.match(words):
            question.forwarded = True
            return []
        del self._open[key]
        reason = _reason(words, question)
        return [Refusal(found["client"], question.name, question.kind, reason)] if reason else []


def _reason(words: str, question: _Question) -> str:
    """Return why a question was not answered, or an empty text where it was, or where nobody would mind."""
    if _REFUSED.match(words):
        return REFUSED
    negative = _NEGATIVE.match(words)
    if not negative or question.kind == "PTR" or "." not in question.name:
        return ""
    if negative["code"] == "NODATA":
        return FILTERED if question.kind in _DATA_TYPES else ""
    return SPECIAL if question.forwarded else REFUSED
