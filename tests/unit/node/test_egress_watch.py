# SPDX-License-Identifier: GPL-3.0-or-later
"""When the watch acts, and when it leaves the rules alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleet_core import egress
from fleet_core.changes import Change
from fleet_core.fences import Fence
from fleet_node import egress_engine, egress_proxies, egress_proxy_log, egress_watch
from fleet_node.egress_plans import Planned
from fleet_node.egress_store import UNFINISHED, EgressStore, Record

DOCUMENT = {"networks": [{"name": "fleet0", "address": "192.168.100.1/24"}], "machines": []}


class Backend:
    """A kernel that has the rules or not."""

    def __init__(self) -> None:
        self.has, self.aged, self.text = True, 0, "rules\n"

    def files(self, fence: Fence) -> dict[str, str]:
        return {"rules": self.text}

    def loaded(self, fence: Fence) -> bool:
        return self.has

    def age(self, fence: Fence) -> None:
        self.aged += 1


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Backend:
    found = Backend()
    monkeypatch.setattr(egress_watch, "backend", lambda name: found)
    return found


@pytest.fixture
def watch(kernel: Backend, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> egress_watch.Watch:
    engine = egress_engine.Engine(state_dir, now=lambda: 1000.0, upstreams=lambda: ("192.0.2.53",))
    refreshed: list[str] = []

    def refresh() -> Planned:
        refreshed.append("refreshed")
        return Planned(Change(actions=("load the rules again",)))

    monkeypatch.setattr(engine, "refresh", refresh)
    found = egress_watch.Watch(engine)
    found.refreshed = refreshed  # type: ignore[attr-defined]
    return found


def put(store: EgressStore, **values: Any) -> None:
    declared = egress.to_dict(egress.parse({**DOCUMENT, "resolvers": ["192.0.2.53"]}))
    record = Record(declared=declared, basis={"now": 900, "upstreams": []}, files={"rules": "rules\n"})
    store.commit(store.prepare(replace(record, **values)).name)


def live(until: int) -> tuple[Mapping[str, Any], ...]:
    return ({"scope": "default", "verb": "allow", "entry": "a.example.org", "until": until, "at": 1},)


def test_nothing_is_done_where_nothing_is_applied_or_all_is_well(watch: egress_watch.Watch) -> None:
    watch.tick()
    put(watch.store, live=live(2000))
    watch.tick()
    assert watch.refreshed == []  # type: ignore[attr-defined]


def test_rules_that_are_gone_are_repaired(
    watch: egress_watch.Watch, kernel: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    put(watch.store)
    kernel.has = False
    watch.tick()
    assert watch.refreshed == ["refreshed"]  # type: ignore[attr-defined]
    assert watch.repairs == 1
    assert "the rules in the kernel are not those that were applied: load the rules again" in capsys.readouterr().err


def test_what_has_ended_is_taken_out(watch: egress_watch.Watch) -> None:
    put(watch.store, live=live(950))
    watch.tick()
    assert watch.refreshed == ["refreshed"]  # type: ignore[attr-defined]
    assert watch.repairs == 0


def test_an_interrupted_apply_is_finished(watch: egress_watch.Watch) -> None:
    put(watch.store)
    watch.store.put(UNFINISHED, '{"cut": ["192.168.100.10"]}')
    watch.tick()
    assert watch.refreshed == ["refreshed"]  # type: ignore[attr-defined]


def test_other_resolvers_of_the_host_are_followed(watch: egress_watch.Watch) -> None:
    put(watch.store, declared=egress.to_dict(egress.parse(DOCUMENT)))
    watch.tick()
    assert watch.refreshed == ["refreshed"]  # type: ignore[attr-defined]


def test_rules_of_another_version_are_left_alone(
    watch: egress_watch.Watch, kernel: Backend, capsys: pytest.CaptureFixture[str]
) -> None:
    put(watch.store, files={"rules": "rules of a later version\n"}, live=live(950))
    kernel.has = False
    watch.tick()
    watch.tick()
    assert watch.refreshed == []  # type: ignore[attr-defined]
    assert capsys.readouterr().err.count("another version has put the policy in force") == 1


def test_what_guests_make_squid_write_is_kept_small(
    kernel: Backend, state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress_proxies, "FOLDERS", str(tmp_path / "var"))
    watch = egress_watch.Watch(egress_engine.Engine(state_dir))
    folder = egress_proxies.folder_of(watch.store)
    folder.mkdir(parents=True)
    for name in ("proxy.log", "squid.log"):
        with (folder / name).open("wb") as file:
            file.truncate(egress_proxy_log.LARGEST + 1)
    for name, _pause, work in watch._chores():
        if name == "logs":
            work()
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    assert sizes["proxy.log"] == sizes["squid.log"] == 0
