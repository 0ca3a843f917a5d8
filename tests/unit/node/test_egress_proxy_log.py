# SPDX-License-Identifier: GPL-3.0-or-later
"""The proxy's log is read as it grows, and kept small without the proxy being told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.unit.core.egress_examples import FENCE

from fleet_core.egress_denials import Roster
from fleet_node.egress_proxy_log import ProxyLog

ROSTER = Roster(FENCE)


@pytest.fixture
def log(tmp_path: Path) -> ProxyLog:
    return ProxyLog(tmp_path / "proxy.log")


def line(host: str) -> str:
    return json.dumps({"source": "192.168.100.10", "host": host, "port": 443, "verdict": "denied"}) + "\n"


def append(log: ProxyLog, text: str) -> None:
    with log.path.open("a") as file:
        file.write(text)


def names(log: ProxyLog) -> list[str]:
    return [one.name for one in log.refused(ROSTER, 0)]


def test_what_was_there_before_is_old_news(log: ProxyLog) -> None:
    append(log, line("old.net"))
    assert names(log) == []
    append(log, line("new.net"))
    assert names(log) == ["new.net"]
    assert names(log) == []


def test_a_log_that_comes_later_is_read_from_its_beginning(log: ProxyLog) -> None:
    assert names(log) == []
    append(log, line("first.net"))
    assert names(log) == ["first.net"]


def test_half_a_line_waits_for_its_rest(log: ProxyLog) -> None:
    append(log, "")
    assert names(log) == []
    text = line("split.net")
    append(log, text[:20])
    assert names(log) == []
    append(log, text[20:])
    assert names(log) == ["split.net"]


def test_a_large_log_becomes_an_older_one_and_its_writer_goes_on(log: ProxyLog) -> None:
    append(log, "")
    assert names(log) == []
    with log.path.open("a") as writer:  # as squid and dnsmasq do: at the end, wherever that is
        for turn in range(6):
            writer.write(line(f"turn-{turn}.net"))
            writer.flush()
            assert names(log) == [f"turn-{turn}.net"]
            assert log.keep_small(largest=10, kept=3)
            assert log.path.stat().st_size == 0
    kept = sorted(path.name for path in log.path.parent.iterdir())
    assert kept == ["proxy.log", "proxy.log.1", "proxy.log.2", "proxy.log.3"]
    assert "turn-5" in log.path.with_name("proxy.log.1").read_text()
    assert "turn-3" in log.path.with_name("proxy.log.3").read_text()


def test_a_small_log_is_left_alone(log: ProxyLog) -> None:
    assert not log.keep_small()
    append(log, line("x.net"))
    assert not log.keep_small()


def test_links_are_not_followed(log: ProxyLog, tmp_path: Path) -> None:
    """The folder is the proxy's: it could put one there."""
    secret = tmp_path / "secret"
    secret.write_text("of others" * 10)
    os.symlink(secret, log.path)
    assert names(log) == []
    assert not log.keep_small(largest=1)
    log.path.unlink()
    append(log, line("x.net"))
    os.symlink(secret, log.path.with_name("proxy.log.1"))
    assert log.keep_small(largest=1)
    assert secret.read_text() == "of others" * 10


def test_what_has_a_name_elsewhere_is_left_alone(log: ProxyLog, tmp_path: Path) -> None:
    """The folder is the proxy's own: it might link files of others there, where the kernel lets it."""
    other = tmp_path / "other"
    other.write_text("precious\n")
    os.link(other, log.path)
    assert not log.keep_small(largest=1)
    assert other.read_text() == "precious\n"
    assert not log.path.with_name("proxy.log.1").exists()
