# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of an apply, with a backend and processes that only remember what they were told."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fleet_core.changes import Change
from fleet_core.egress_live import live_change
from fleet_core.errors import InvalidInput, NotFound, ProcessFailed, StateDamaged, Unavailable
from fleet_core.fences import Fence, name_set
from fleet_node import egress_commands, egress_engine, egress_flows, egress_wanted
from fleet_node.egress_engine import Engine
from fleet_node.egress_report import report

DOCUMENT: dict[str, Any] = {
    "networks": [{"name": "fleet0", "address": "192.168.100.1/24"}],
    "machines": [
        {"name": "web-1", "network": "fleet0", "mac": "52:54:00:00:01:10", "port": "tap1", "project": "shop"},
        {"name": "db-1", "network": "fleet0", "mac": "52:54:00:00:01:12", "port": "tap2"},
    ],
    "policies": {"default": {"allow": ["a.example.org"]}},
    "resolvers": ["192.0.2.53"],
}
MORE = {**DOCUMENT, "policies": {"default": {"allow": ["a.example.org", "b.example.org"]}}}


class Kernel:
    """Both backends. has: the fence that is loaded; fails: names of methods that fail."""

    def __init__(self) -> None:
        self.has: dict[str, Fence] = {}
        self.fails: set[str] = set()
        self.told: list[str] = []
        self.sets: dict[str, tuple[str, ...]] = {}

    def of(self, name: str) -> Kernel.Backend:
        return Kernel.Backend(self, name)

    class Backend:
        def __init__(self, kernel: Kernel, name: str) -> None:
            self.kernel, self.name = kernel, name

        def _do(self, what: str) -> None:
            self.kernel.told.append(what)
            if what in self.kernel.fails:
                raise ProcessFailed(f"{what}: no")

        def files(self, fence: Fence) -> dict[str, str]:
            return {"rules": f"{self.name} {fence}\n"}

        def boot(self, folder: str) -> str:
            return f"load {folder}\n"

        def check(self, folder: Path) -> None:
            self._do("check")

        def load(self, folder: Path, fence: Fence) -> None:
            self._do("load")
            assert (folder / "rules").read_text() == f"{self.name} {fence}\n"
            self.kernel.has[self.name] = fence

        def loaded(self, fence: Fence) -> bool:
            return self.kernel.has.get(self.name) == fence

        def learned(self, fence: Fence) -> dict[str, tuple[str, ...]]:
            return dict(self.kernel.sets)

        def learn(self, elements: Mapping[str, Sequence[str]]) -> None:
            self._do("learn")
            self.kernel.sets.update({name: tuple(those) for name, those in elements.items()})

        def forget(self, elements: Mapping[str, Sequence[str]]) -> None:
            self._do("forget")

        def counters(self, fence: Fence) -> dict[str, dict[str, tuple[int, int]]]:
            return {"default": {"allowed": (1, 2), "denied": (3, 4)}}

        def remove(self) -> None:
            self._do(f"remove {self.name}")
            self.kernel.has.pop(self.name, None)


class Processes:
    """What fleetd would do."""

    def __init__(self) -> None:
        self.items: dict[str, Any] = {}
        self.away = False
        self.hung_up: list[str] = []

    def plan(self, items: Sequence[Any]) -> Change:
        if self.away:
            raise Unavailable("fleetd is not running")
        return Change(actions=tuple(f"start {one['id']}" for one in items if self.items.get(one["id"]) != one))

    def bring(self, items: Sequence[Any]) -> Change:
        change = self.plan(items)
        self.items = {one["id"]: one for one in items}
        return change

    def remove(self) -> Change:
        self.items = {}
        return Change()

    def await_resolvers(self, fence: Fence) -> None:
        pass

    def hang_up(self, idents: Any) -> bool:
        self.hung_up += list(idents)
        return True

    def views(self) -> dict[str, Any]:
        return {ident: {"id": ident, "status": "running", "pid": 7} for ident in self.items}


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    found = Kernel()
    monkeypatch.setattr(egress_engine, "backend", found.of)
    monkeypatch.setattr("fleet_node.egress_backends.backend", found.of)
    monkeypatch.setattr("fleet_node.egress_report.backend", found.of)
    monkeypatch.setattr("fleet_node.egress_report.egress_conflicts.conflicts", lambda fence: ["Docker"])
    monkeypatch.setattr(egress_engine, "find", lambda tool: tool)
    monkeypatch.setattr(egress_commands, "find", lambda tool: f"/usr/sbin/{tool}")
    version = "Dnsmasq version 2.90  x\nCompile time options: IPv6 nftset ipset\n"
    monkeypatch.setattr(egress_commands, "run", lambda argv, *rest: version)
    monkeypatch.setattr(egress_flows, "cut", lambda fence, learned, cut, moved, now: found.told.append(f"cut {cut}"))
    return found


@pytest.fixture
def engine(kernel: Kernel, state_dir: Path) -> Engine:
    clock = [1000.0]
    found = Engine(state_dir, now=lambda: clock[0], upstreams=lambda: ("192.0.2.53",))
    found.clock = clock  # type: ignore[attr-defined]
    found.services = Processes()  # type: ignore[assignment]
    return found


def test_an_apply_checks_commits_and_loads_in_this_order(engine: Engine, kernel: Kernel) -> None:
    steps: list[str] = []
    engine.step = steps.append
    planned = engine.apply(DOCUMENT)
    assert kernel.told[:2] == ["check", "load"]
    assert steps == [
        *("prepared", "checked", "noted", "committed", "loaded", "retired", "served", "proxied", "forgotten", "cut"),
        "finished",
    ]
    assert planned.fence is not None
    assert kernel.has["nftables"] == planned.fence == engine.fence()
    assert [guest.address4 for guest in planned.fence.guests] != ["", ""]


def test_applying_again_does_nothing_and_a_plan_even_less(engine: Engine, kernel: Kernel) -> None:
    assert engine.plan(DOCUMENT).change.changed
    assert not engine.store.folder.exists()
    engine.apply(DOCUMENT)
    kernel.told.clear()
    assert engine.plan(DOCUMENT).change.actions == engine.apply(DOCUMENT).change.actions == ()
    assert kernel.told == []


def test_addresses_and_ports_that_were_given_out_stay(engine: Engine) -> None:
    first = engine.apply(DOCUMENT).fence
    other = {
        **DOCUMENT,
        "machines": [{**DOCUMENT["machines"][0], "name": "aaa", "mac": "52:54:00:00:00:01"}, *DOCUMENT["machines"]],
    }
    other["machines"][0].pop("port")
    second = engine.apply(other).fence
    assert first is not None
    assert second is not None
    assert {guest.name: guest.address4 for guest in first.guests}.items() <= {
        guest.name: guest.address4 for guest in second.guests
    }.items()
    assert first.scopes[0].resolver_port == second.scopes[0].resolver_port == egress_wanted.FIRST_PORT


def test_a_check_that_fails_leaves_all_as_it_was(engine: Engine, kernel: Kernel) -> None:
    engine.apply(DOCUMENT)
    before, had = engine.store.read(), dict(kernel.has)
    kernel.fails = {"check"}
    with pytest.raises(ProcessFailed, match="check: no"):
        engine.apply(MORE)
    assert (engine.store.read(), kernel.has) == (before, had)
    assert len(list(engine.store.folder.glob("applied-*"))) == 1


def test_a_load_that_fails_goes_back(engine: Engine, kernel: Kernel) -> None:
    engine.apply(DOCUMENT)
    before = engine.store.read()
    kernel.fails = {"load"}
    with pytest.raises(ProcessFailed):
        engine.apply(MORE)
    assert engine.store.read() == before
    assert engine.store.unfinished() == {}
    kernel.fails = set()
    assert engine.apply(MORE).change.changed


def test_the_first_load_that_fails_leaves_nothing_in_force(engine: Engine, kernel: Kernel) -> None:
    kernel.fails = {"load"}
    with pytest.raises(ProcessFailed):
        engine.apply(DOCUMENT)
    assert engine.store.read().declared is None


def test_what_was_closed_is_cut_though_fleetd_is_away_and_finished_once_it_is_back(
    engine: Engine, kernel: Kernel
) -> None:
    engine.apply(MORE)
    engine.services.away = True  # type: ignore[attr-defined]
    kernel.told.clear()
    with pytest.raises(Unavailable, match=r"the rules are in force, but not all of their processes run: fleetd"):
        engine.apply(DOCUMENT)
    addresses = tuple(sorted(guest.address4 for guest in (engine.fence() or Fence()).guests))
    assert kernel.told[-2:] == ["forget", f"cut {addresses}"]
    assert engine.store.unfinished()["cut"] == list(addresses)
    engine.services.away = False  # type: ignore[attr-defined]
    kernel.told.clear()
    assert engine.refresh().change.actions[0] == "finish what an interrupted apply has begun"
    assert kernel.told[-2:] == ["forget", f"cut {addresses}"]
    assert engine.store.unfinished() == {}


def test_widening_cuts_nothing(engine: Engine, kernel: Kernel) -> None:
    engine.apply(DOCUMENT)
    kernel.told.clear()
    engine.apply(MORE)
    assert kernel.told == ["check", "load"]


def test_rules_that_are_gone_are_loaded_again_and_resolvers_forget(engine: Engine, kernel: Kernel) -> None:
    engine.apply(DOCUMENT)
    kernel.has.clear()
    assert engine.plan(DOCUMENT).change.actions == ("load the rules again, which others have changed",)
    assert engine.refresh().change.actions == ("load the rules again, which others have changed",)
    assert kernel.has["nftables"] == engine.fence()
    assert engine.services.hung_up == ["egress-dns-default"]  # type: ignore[attr-defined]


def test_live_changes_last_through_applies_until_their_end(engine: Engine) -> None:
    engine.apply(DOCUMENT)
    engine.change(add=[live_change("machine-web-1", "allow", "b.example.org", 1600, 1000)])
    fence = engine.fence()
    assert fence is not None
    assert [scope.name for scope in fence.scopes] == ["default", "machine-web-1"]
    assert engine.apply(DOCUMENT).change.actions == ()
    engine.clock[0] = 1601.0  # type: ignore[attr-defined]
    assert engine.live() == ()
    changed = engine.refresh().change.actions
    assert "end the live change allow b.example.org of machine-web-1" in changed
    assert [scope.name for scope in (engine.fence() or Fence()).scopes] == ["default"]


def test_live_changes_can_be_taken_back_and_cleared(engine: Engine) -> None:
    engine.apply(DOCUMENT)
    one = live_change("default", "deny", "a.example.org", 0, 1000)
    engine.change(add=[one])
    assert engine.plan_live(drop=[one]).change.changed
    engine.change(drop=[one])
    assert engine.live() == ()
    engine.change(add=[one])
    assert "end the live change deny a.example.org of default" in engine.apply(DOCUMENT, clear_live=True).change.actions


def test_a_change_needs_a_policy(engine: Engine) -> None:
    with pytest.raises(NotFound, match="network policy: none is in force"):
        engine.change(add=[live_change("default", "allow", "b.example.org")])
    assert engine.refresh().change.actions == ()


def test_a_bad_document_is_refused_before_the_lock(engine: Engine) -> None:
    with pytest.raises(InvalidInput, match="did you mean"):
        engine.apply({**DOCUMENT, "backend": "nftable"})
    assert not engine.store.folder.exists()


def test_the_other_backend_is_removed_once_the_new_one_is_loaded(engine: Engine, kernel: Kernel) -> None:
    engine.apply(DOCUMENT)
    kernel.told.clear()
    engine.apply({**DOCUMENT, "backend": "iptables"})
    assert kernel.told == ["check", "load", "remove nftables"]
    assert set(kernel.has) == {"iptables"}


def test_removing_takes_rules_processes_and_files(engine: Engine, kernel: Kernel) -> None:
    engine.apply(DOCUMENT)
    assert engine.plan_removal().change.changed
    assert engine.remove().change.changed
    assert (kernel.has, engine.services.items) == ({}, {})  # type: ignore[attr-defined]
    assert not engine.store.folder.exists()
    assert not engine.remove().change.changed


def test_a_machine_takes_along_what_its_old_scope_learned(engine: Engine, kernel: Kernel) -> None:
    engine.apply(DOCUMENT)
    (grant,) = (engine.fence() or Fence()).scopes[0].grants
    kernel.sets = {name_set(grant, "a.example.org", 4): ("198.51.100.1",), grant.set_name(4): ("198.51.100.1",)}
    engine.change(add=[live_change("machine-web-1", "allow", "b.example.org")])
    own = next(scope for scope in (engine.fence() or Fence()).scopes if scope.name == "machine-web-1").grants[0]
    assert kernel.sets[own.set_name(4)] == ("198.51.100.1",)


def test_a_killed_apply_is_finished_by_the_next(engine: Engine, kernel: Kernel) -> None:
    class Killed(BaseException):
        pass

    engine.apply(MORE)
    for step in ("prepared", "checked", "noted", "committed", "loaded", "served", "forgotten", "cut"):
        engine.apply(MORE)

        def die(name: str, step: str = step) -> None:
            if name == step:
                raise Killed

        engine.step = die
        with contextlib.suppress(Killed):
            engine.apply(DOCUMENT)
        engine.step = lambda name: None
        kernel.told.clear()
        engine.apply(DOCUMENT)
        fence = engine.fence()
        assert kernel.has["nftables"] == fence, step
        assert engine.store.unfinished() == {}, step
        assert any(word.startswith("cut (") for word in kernel.told), step


def test_the_report_says_what_is_not_known(engine: Engine, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    assert report(engine)["applied"] is False
    engine.apply({**DOCUMENT, "policies": {"default": {"presets": ["debian"], "deny": ["x.example.org"]}}})
    found = report(engine)
    assert (found["applied"], found["loaded"], found["conflicts"]) == (True, True, ["Docker"])
    (scope,) = found["scopes"]
    assert (scope["presets"], scope["deny"], scope["machines"]) == (["debian"], ["x.example.org"], ["db-1", "web-1"])

    def fail(_fence: Fence) -> bool:
        raise ProcessFailed("nft: Operation not permitted")

    monkeypatch.setattr(Kernel.Backend, "loaded", lambda self, fence: fail(fence))
    found = report(engine)
    assert (found["loaded"], found["problems"]) == (None, ["rules: nft: Operation not permitted"])
    assert [one["status"] for one in found["services"]] == ["running"] * len(found["services"])


def test_another_version_s_state_is_replaced(engine: Engine, kernel: Kernel) -> None:
    engine.apply(DOCUMENT)
    path = engine.store.applied / "declared.json"
    path.write_text('{"backend": "nftables", "what": 1}')
    again = Engine(engine.state_dir, now=engine.now, upstreams=engine.upstreams)
    again.services = engine.services
    assert again.fence() is None
    kernel.told.clear()
    again.apply(DOCUMENT)
    assert kernel.told[:2] == ["check", "load"]
    assert any(word.startswith("cut (") for word in kernel.told)


DENIAL = live_change("default", "deny", "a.example.org", at=1000)


def damaged(engine: Engine, text: str) -> Engine:
    """An engine that finds other live changes than were written."""
    path = engine.store.applied / "live.json"
    path.write_text(text)
    found = Engine(engine.state_dir, now=engine.now, upstreams=engine.upstreams)
    found.services = engine.services
    return found


@pytest.mark.parametrize(
    "entry",
    ['{"scope": "default", "verb": "deny", "entry": 5}', '{"scope": "default", "verb": "shut", "entry": "x.org"}'],
)
def test_what_closes_is_not_dropped_because_it_cannot_be_read(engine: Engine, kernel: Kernel, entry: str) -> None:
    engine.apply(DOCUMENT)
    engine.change(add=[DENIAL])
    loaded = dict(kernel.has)
    for text in (f'{{"live": [{entry}]}}', f'{{"live": {entry}}}', '{"live": [7]}', "{}"):
        again = damaged(engine, text)
        for act in (again.refresh, lambda again=again: again.apply(DOCUMENT), lambda again=again: again.plan(DOCUMENT)):
            with pytest.raises(StateDamaged, match=r"live\.json"):
                act()
        assert kernel.has == loaded
    again = damaged(engine, f'{{"live": [{entry}]}}')
    again.apply(DOCUMENT, clear_live=True)
    assert again.live() == ()


def test_what_opens_and_cannot_be_read_opens_nothing_and_takes_nothing_with_it(engine: Engine, kernel: Kernel) -> None:
    engine.apply(DOCUMENT)
    engine.change(add=[DENIAL])
    unknown = {"scope": "default", "verb": "allow", "entry": 5}
    again = damaged(engine, json.dumps({"live": [unknown, DENIAL.to_dict()]}))
    again.refresh()
    assert again.live() == (DENIAL,)
    assert again.fence() == kernel.has["nftables"]


def test_live_changes_outlive_a_declaration_of_another_version(engine: Engine, kernel: Kernel) -> None:
    engine.apply(DOCUMENT)
    engine.change(add=[DENIAL])
    (engine.store.applied / "declared.json").write_text('{"backend": "nftables", "what": 1}')
    again = damaged(engine, (engine.store.applied / "live.json").read_text())
    again.apply(DOCUMENT)
    assert again.live() == (DENIAL,)


def test_an_apply_that_fails_keeps_the_note_of_one_that_was_killed(engine: Engine, kernel: Kernel) -> None:
    engine.apply(MORE)
    engine.services.away = True  # type: ignore[attr-defined]
    with pytest.raises(Unavailable):
        engine.apply(DOCUMENT)
    noted = engine.store.unfinished()
    assert noted["cut"]
    kernel.fails = {"load"}
    with pytest.raises(ProcessFailed):
        engine.apply(MORE)
    assert engine.store.unfinished() == noted
    assert [path.name for path in engine.store.folder.glob("applied-*")] == [engine.store.read().name]
