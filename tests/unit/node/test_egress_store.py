# SPDX-License-Identifier: GPL-3.0-or-later
"""Generations: what counts is whole, whatever happens to whoever writes."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from fleet_core.errors import StateDamaged, TimedOut
from fleet_node.egress_store import NOTHING, EgressStore, Record

FIRST = Record(
    declared={"backend": "nftables"},
    live=({"scope": "default", "verb": "allow", "entry": "a.example"},),
    ports={"default": 15300},
    addresses={"52:54:00:00:01:10": ["192.168.100.10"]},
    basis={"now": 7, "upstreams": ["192.0.2.53"]},
    files={"egress.nft": "table inet x\n", "dns-default.conf": "port=15300\n"},
    boot="#!/bin/sh\n",
)


@pytest.fixture
def store(state_dir: Path) -> EgressStore:
    return EgressStore(state_dir / "state")


def put(store: EgressStore, record: Record) -> str:
    folder = store.prepare(record)
    store.commit(folder.name)
    store.finish()
    return folder.name


def test_nothing_is_applied_before_the_first_commit(store: EgressStore) -> None:
    assert store.read() == NOTHING
    store.prepare(FIRST)
    assert store.read() == NOTHING


def test_what_is_committed_is_read_as_it_was_written(store: EgressStore) -> None:
    name = put(store, FIRST)
    found = store.read()
    assert found == Record(name, *(getattr(FIRST, part) for part in list(vars(FIRST))[1:]))


def test_the_files_stand_under_their_known_names_too(store: EgressStore) -> None:
    put(store, FIRST)
    assert '"backend": "nftables"' in (store.folder / "declared.json").read_text()
    assert "default" in (store.folder / "ports.json").read_text()
    assert (store.applied / "egress.nft").read_text() == "table inet x\n"
    assert os.access(store.folder / "boot.sh", os.X_OK)


def test_only_the_owner_may_read_any_of_it(store: EgressStore) -> None:
    put(store, FIRST)
    store.put("metrics.prom", "x\n")
    for path in [store.folder, *store.folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_an_older_generation_is_removed_once_all_is_done(store: EgressStore) -> None:
    first, second = put(store, FIRST), put(store, Record(**{**vars(FIRST), "boot": "other"}))
    assert not (store.folder / first).exists()
    assert store.read().name == second


def test_what_a_killed_apply_left_is_cleaned_up(store: EgressStore) -> None:
    name = put(store, FIRST)
    store.prepare(FIRST)
    (store.folder / ".live.json.abcd.new").write_text("half")
    store.clean()
    assert sorted(path.name for path in store.folder.glob("applied*")) == sorted(["applied", name])
    assert list(store.folder.glob(".*.new")) == []


def test_one_can_go_back_to_the_generation_before_or_to_none(store: EgressStore) -> None:
    first = put(store, FIRST)
    second = store.prepare(Record(**{**vars(FIRST), "boot": "other"}))
    store.commit(second.name)
    store.uncommit(first)
    assert store.read().boot == FIRST.boot
    store.uncommit("")
    assert store.read() == NOTHING


def test_what_is_left_to_do_is_remembered_until_it_is_done(store: EgressStore) -> None:
    put(store, FIRST)
    store.begin({"cut": ["192.168.100.10"]})
    assert EgressStore(store.state_dir).unfinished() == {"cut": ["192.168.100.10"]}
    store.finish()
    assert store.unfinished() == {}


def test_a_damaged_generation_is_an_error_that_names_the_file(store: EgressStore) -> None:
    name = put(store, FIRST)
    (store.folder / name / "live.json").write_text("{")
    with pytest.raises(StateDamaged, match=r"live\.json: expected JSON"):
        store.read()
    (store.folder / name / "live.json").unlink()
    with pytest.raises(StateDamaged, match=r"expected a whole generation"):
        store.read()


def test_removing_begins_with_what_counts(store: EgressStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, FIRST)
    monkeypatch.setattr("shutil.rmtree", lambda *given, **named: None)  # killed before it could
    store.remove()
    assert store.read() == NOTHING


def test_a_full_disk_leaves_nothing_behind(store: EgressStore, monkeypatch: pytest.MonkeyPatch) -> None:
    name = put(store, FIRST)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StateDamaged, match="cannot be written: No space left"):
        store.prepare(FIRST)
    assert [path.name for path in store.folder.glob("applied-*")] == [name]
    assert store.read().name == name


def test_the_lock_is_one_for_all_also_after_the_folder_was_removed(store: EgressStore) -> None:
    other = EgressStore(store.state_dir)
    with store.lock():
        with pytest.raises(TimedOut, match="lock: expected"), other.lock(seconds=0.1):
            pass
        store.remove()
        with pytest.raises(TimedOut), other.lock(seconds=0.1), other.lock(seconds=0.1):
            pass
    with other.lock(seconds=1):
        pass


def test_appliers_follow_each_other(store: EgressStore) -> None:
    inside, most = [], []

    def apply() -> None:
        with EgressStore(store.state_dir).lock():
            inside.append(1)
            most.append(len(inside))
            inside.pop()

    threads = [threading.Thread(target=apply) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8
