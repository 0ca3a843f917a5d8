# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that the watch writes and reads: denials, questions, the host's resolvers."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from fleet_core.egress_denials import Denial, Roster
from fleet_core.fences import Fence, Guest, Scope
from fleet_core.processes import LogPolicy
from fleet_node import egress_denial_log, egress_questions
from fleet_node.egress_store import EgressStore
from fleet_node.egress_wanted import host_resolvers

GUEST = Guest("web-1", "fleet0", "52:54:00:00:01:10", "192.168.100.10", project="shop")
FENCE = Fence(guests=(GUEST,), scopes=(Scope("default", "allowlist", resolver_port=15300),))


def one(number: int) -> Denial:
    return Denial(float(number), "forward", "web-1", destination=f"198.51.100.{number % 250}", port=number)


def test_the_last_denials_are_read_across_rotated_files(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(egress_denial_log, "POLICY", LogPolicy(4096, 2))
    path = tmp_path / "denials.jsonl"
    for number in range(60):
        assert egress_denial_log.write(path, [one(number)]) == ""
    assert len(list(tmp_path.iterdir())) == 3
    assert [record["port"] for record in egress_denial_log.last(path, 30)] == list(range(30, 60))
    assert egress_denial_log.last(path, 0) == []
    assert egress_denial_log.last(tmp_path / "none", 5) == []


def test_damaged_lines_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "denials.jsonl"
    egress_denial_log.write(path, [one(1)])
    with path.open("a") as file:
        file.write('{"half\n[]\n')
    egress_denial_log.write(path, [one(2)])
    assert [record["port"] for record in egress_denial_log.last(path, 9)] == [1, 2]


def test_following_goes_on_through_rotation(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(egress_denial_log, "POLICY", LogPolicy(4096, 20))
    path = tmp_path / "denials.jsonl"
    egress_denial_log.write(path, [one(0)])
    begun, over, found = threading.Event(), threading.Event(), []

    def follow() -> None:
        records = egress_denial_log.follow(path, over.is_set)
        begun.set()
        for record in records:
            found.append(record["port"])
            if record["port"] == 50:
                over.set()

    thread = threading.Thread(target=follow)
    thread.start()
    begun.wait(5)
    number = 0
    while not found and number < 1000:  # until it has really begun
        egress_denial_log.write(path, [Denial(0.0, "forward", port=60000)])
        over.wait(0.01)
        number += 1
    for number in range(1, 51):
        egress_denial_log.write(path, [one(number)])
        over.wait(0.01)
    thread.join(10)
    assert [port for port in found if port < 60000] == list(range(1, 51))


def test_a_record_is_one_line_whatever_the_name_holds(tmp_path: Path) -> None:
    path = tmp_path / "denials.jsonl"
    egress_denial_log.write(path, [Denial(0.0, "dns", name='a\nb"\u2028.example')])
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["name"] == 'a\nb"\u2028.example'


QUESTION = "Nov 21 10:00:00 dnsmasq[1]: {0} 192.168.100.10/40000 query[A] {1} from 192.168.100.10\n"
REFUSED = "Nov 21 10:00:00 dnsmasq[1]: {0} 192.168.100.10/40000 config error is REFUSED (EDE: not ready)\n"


def test_refused_questions_become_denials_and_old_ones_are_no_news(state_dir: Path) -> None:
    store = EgressStore(state_dir)
    store.make()
    path = store.folder / "dns-default.log"
    path.write_text(QUESTION.format(1, "old.example") + REFUSED.format(1))
    questions = egress_questions.Questions(store)
    with path.open("a") as file:
        file.write(QUESTION.format(2, "new.example") + REFUSED.format(2) + QUESTION.format(3, "half.exa")[:40])
    (found,) = questions.refused(FENCE, Roster(FENCE), 7.0)
    assert (found.name, found.machine, found.project, found.reason, found.time) == (
        "new.example",
        "web-1",
        "shop",
        "dns",
        7.0,
    )
    with path.open("a") as file:
        file.write(QUESTION.format(3, "half.example")[40:] + REFUSED.format(3))
    (found,) = questions.refused(FENCE, Roster(FENCE), 8.0)
    assert found.name == "half.example"


def test_a_log_of_questions_is_cut_off_when_it_is_large(state_dir: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(egress_questions, "LARGEST", 1000)
    store = EgressStore(state_dir)
    store.make()
    path = store.folder / "dns-default.log"
    questions = egress_questions.Questions(store)
    seen = []
    for number in range(40):
        with path.open("a") as file:
            file.write(QUESTION.format(number, f"n{number}.example") + REFUSED.format(number))
        seen += [one.name for one in questions.refused(FENCE, Roster(FENCE), 1.0)]
        assert path.stat().st_size < 1500
    assert seen == [f"n{number}.example" for number in range(40)]


def test_a_log_that_appears_later_is_read_from_its_beginning_and_a_link_is_not_followed(state_dir: Path) -> None:
    store = EgressStore(state_dir)
    store.make()
    questions = egress_questions.Questions(store)
    target = state_dir / "elsewhere"
    target.write_text(QUESTION.format(1, "a.example") + REFUSED.format(1))
    path = store.folder / "dns-default.log"
    path.symlink_to(target)
    assert list(questions.refused(FENCE, Roster(FENCE), 1.0)) == []
    path.unlink()
    target.rename(path)
    assert [one.name for one in questions.refused(FENCE, Roster(FENCE), 1.0)] == ["a.example"]


def test_the_resolvers_of_this_host_are_read_as_the_resolver_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# x\nnameserver 192.0.2.1\nsearch a\n nameserver\t2001:db8::1\nnameserver fe80::1%eth0\nnameserver x\n"
    )
    assert host_resolvers(str(path)) == ("192.0.2.1", "2001:db8::1", "fe80::1")
    assert host_resolvers(str(tmp_path / "none")) == ()
