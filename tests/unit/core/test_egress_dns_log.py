# SPDX-License-Identifier: GPL-3.0-or-later
"""What was refused, from lines that dnsmasq 2.90 wrote."""

from __future__ import annotations

import pytest

from fleet_core.egress_dns_log import FILTERED, KEPT, REFUSED, SPECIAL, QuestionLog, Refusal

CLIENT = "192.168.100.10"


def written(number: int, *words: str, client: str = f"{CLIENT}/5353") -> list[str]:
    return [f"Nov 21 17:37:27 dnsmasq[7104]: {number} {client} {line}" for line in words]


def read(*lines: str) -> list[Refusal]:
    return QuestionLog().read(lines)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["query[A] Evil.net from 192.168.100.10", "config error is REFUSED (EDE: not ready)"],
            Refusal(CLIENT, "evil.net", "A", REFUSED),
        ),
        (
            ["query[A] bad.example.org from 192.168.100.10", "config bad.example.org is NXDOMAIN"],
            Refusal(CLIENT, "bad.example.org", "A", REFUSED),
        ),
        (
            ["query[AAAA] a.example.org from 192.168.100.10", "forwarded a.example.org to 10.0.1.1",
             "forwarded a.example.org to 10.0.1.2", "config a.example.org is NXDOMAIN"],
            Refusal(CLIENT, "a.example.org", "AAAA", SPECIAL),
        ),
        (
            ["query[TXT] example.org from 192.168.100.10", "config example.org is NODATA"],
            Refusal(CLIENT, "example.org", "TXT", FILTERED),
        ),
    ],
)  # fmt: skip
def test_what_was_refused_is_told_with_its_reason(words: list[str], expected: Refusal) -> None:
    assert read(*written(7, *words)) == [expected]


@pytest.mark.parametrize(
    "words",
    [
        ["query[A] example.org from 192.168.100.10", "forwarded example.org to 10.0.1.1",
         "nftset add 4 inet fleet_egress fleet_n0000aaaa_4 203.0.113.10 example.org",
         "reply example.org is 203.0.113.10"],
        ["query[A] example.org from 192.168.100.10", "cached example.org is 203.0.113.10"],
        ["query[PTR] 10.1.168.192.in-addr.arpa from 192.168.100.10", "config 192.168.1.10 is NXDOMAIN"],
        ["query[A] plain from 192.168.100.10", "config plain is NXDOMAIN"],
        ["query[HTTPS] example.org from 192.168.100.10", "config example.org is NODATA"],
        ["query[AAAA] hub.fleet from 192.168.100.10", "config hub.fleet is NODATA-IPv6"],
        ["config error is REFUSED (EDE: not ready)"],  # its question was before we began to read
    ],
)  # fmt: skip
def test_what_was_answered_or_does_not_matter_is_not_told(words: list[str]) -> None:
    assert read(*written(7, *words)) == []


def test_questions_are_told_apart_by_client_and_number() -> None:
    first = written(1, "query[A] one.net from 192.168.100.10", "config error is REFUSED")
    second = written(1, "query[A] two.net from fd00::1", "config error is REFUSED", client="fd00::1/99")
    lines = [first[0], second[0], second[1], first[1]]
    assert [(refusal.client, refusal.name) for refusal in read(*lines)] == [("fd00::1", "two.net"), (CLIENT, "one.net")]


def test_a_question_and_its_end_may_be_read_apart() -> None:
    log = QuestionLog()
    question, end = written(3, "query[A] evil.net from 192.168.100.10", "config error is REFUSED")
    assert log.read([question]) == []
    assert log.read([end]) == [Refusal(CLIENT, "evil.net", "A", REFUSED)]


@pytest.mark.parametrize(
    "name",
    ["x from 10.0.0.1", "x dnsmasq[1]: 9 10.0.0.1/5 query[A] y", "config error is REFUSED", "a]b[c"],
)
def test_a_name_that_looks_like_a_line_is_a_name(name: str) -> None:
    words = [f"query[A] {name} from 192.168.100.10", "config error is REFUSED"]
    assert read(*written(7, *words)) == [Refusal(CLIENT, name.lower(), "A", REFUSED)]


def test_questions_without_an_end_do_not_pile_up() -> None:
    log = QuestionLog()
    for number in range(3 * KEPT):
        log.read(written(number, f"query[A] n{number}.net from 192.168.100.10"))
    assert len(log._open) == KEPT


@pytest.mark.parametrize("line", ["", "dnsmasq: started", "dnsmasq[1]: cleared cache", "\0\xff", "dnsmasq[1]: 7 x/y z"])
def test_other_lines_are_left_alone(line: str) -> None:
    assert read(line) == []
