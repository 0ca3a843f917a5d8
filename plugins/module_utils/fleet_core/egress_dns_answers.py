# SPDX-License-Identifier: GPL-3.0-or-later
"""Which names led where, from the lines that dnsmasq writes with log-queries=extra.

A chain of aliases leads from the name that was asked for, not from its last link; a number and the client join the
lines of one question. Source: log_query() of dnsmasq 2.86 to 2.91.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable

_LINE = re.compile(r"dnsmasq\[\d+\]: (?P<number>\d+) (?P<client>[0-9A-Fa-f.:]+/\d+) (?P<words>.+)$")
_QUERY = re.compile(r"query\[(?:A|AAAA)\] (?P<name>\S+) from \S+$")
_ANSWER = re.compile(r"(?:reply|cached) \S+ is (?P<address>[0-9A-Fa-f.:]+)$")


def answered(lines: Iterable[str]) -> dict[str, set[str]]:
    """Return address -> names in lower case that were answered with it."""
    asked: dict[tuple[str, str], str] = {}
    found: dict[str, set[str]] = {}
    for line in lines:
        parts = _LINE.search(line)
        if parts is None:
            continue
        key, words = (parts["number"], parts["client"]), parts["words"]
        query = _QUERY.match(words)
        if query is not None:
            asked[key] = query["name"].lower().rstrip(".")
            continue
        answer = _ANSWER.match(words)
        if answer is not None and key in asked:
            try:
                address = str(ipaddress.ip_address(answer["address"]))
            except ValueError:
                continue
            found.setdefault(address, set()).add(asked[key])
    return found
