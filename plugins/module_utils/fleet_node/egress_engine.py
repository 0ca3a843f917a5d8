# SPDX-License-Identifier: GPL-3.0-or-later
"""Putting a network policy in force on this host: planned first, applied second, one apply at a time.

An apply writes a generation of files, lets the tool check them, makes them the ones that count, and loads them. Before
the third step nothing has changed; after it, whatever is left undone is done by the next apply or by the watch. The
kernel replaces its rules as a whole, so that at each moment it has the old ones or the new ones.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core import egress, egress_changes, egress_fence, egress_live
    from fleet_core.changes import Change
    from fleet_core.egress import Declaration
    from fleet_core.egress_live import Live
    from fleet_core.errors import FleetError, NotFound, StateDamaged, Unavailable
    from fleet_core.fences import Fence, Guest
else:
    try:
        from ..fleet_core import egress, egress_changes, egress_fence, egress_live
        from ..fleet_core.changes import Change
        from ..fleet_core.egress import Declaration
        from ..fleet_core.egress_live import Live
        from ..fleet_core.errors import FleetError, NotFound, StateDamaged, Unavailable
        from ..fleet_core.fences import Fence, Guest
    except ImportError:  # installed as a top-level package
        from fleet_core import egress, egress_changes, egress_fence, egress_live
        from fleet_core.changes import Change
        from fleet_core.egress import Declaration
        from fleet_core.egress_live import Live
        from fleet_core.errors import FleetError, NotFound, StateDamaged, Unavailable
        from fleet_core.fences import Fence, Guest

from . import egress_flows, egress_plans, egress_proxies, egress_questions, egress_services, egress_wanted
from .egress_backends import Backend, backend
from .egress_commands import find
from .egress_plans import Planned
from .egress_services import Services
from .egress_store import LIVE, EgressStore, Record
from .egress_wanted import Recorded, Wanted

TOOLS = ("conntrack",)


@dataclass(frozen=True)
class _Left:
    """What is to be done once the rules are loaded. It is written down before, for a successor of a killed apply.

    cut: addresses of guests that may reach less. proxied: of those that may by way of the proxy. moved: of those with
    another resolver. forget: keys of grants. retire: the backend that is no longer used.
    """

    cut: tuple[str, ...] = ()
    proxied: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()
    forget: tuple[str, ...] = ()
    retire: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "cut": list(self.cut),
            "proxied": list(self.proxied),
            "moved": list(self.moved),
            "forget": list(self.forget),
            "retire": self.retire,
        }


@dataclass
class Engine:
    """The network policy of a host. All methods but plan need root in the network namespace of the bridges.

    state_dir: as paths.state_dir takes it. now: the clock. upstreams: resolvers of this host. step: is told what was
    just done, for tests that kill an apply.
    """

    state_dir: str | os.PathLike[str] | None = None
    now: Callable[[], float] = time.time
    upstreams: Callable[[], Sequence[str]] = egress_wanted.host_resolvers
    step: Callable[[str], None] = field(default=lambda name: None)

    def __post_init__(self) -> None:
        self.store = EgressStore(self.state_dir)
        self._known: tuple[str, Recorded | None] = ("", None)
        self.services = Services(self.store.state_dir)

    # What is

    def fence(self) -> Fence | None:
        """Return the fence that is applied, or None."""
        return self._recorded(self.store.read()).fence

    def live(self) -> tuple[Live, ...]:
        """Return the live changes that last."""
        return egress_live.lasting(self._recorded(self.store.read()).live, self._second())

    # What will be

    def plan(self, document: Mapping[str, Any], clear_live: bool = False) -> Planned:
        """Return what apply() would change. Tools may be missing; without root, what the kernel has is not known."""
        record = self.store.read()
        wanted = self._declared(record, egress.parse(document), clear_live, exact=False)
        return egress_plans.plan(record, wanted, self._drifted(record, wanted, exact=False), self._of_services(wanted))

    def plan_live(self, add: Iterable[Live] = (), drop: Iterable[Live] = ()) -> Planned:
        """Return what change() would change."""
        record = self.store.read()
        wanted = self._changed(record, tuple(add), drop, exact=False)
        return egress_plans.plan(record, wanted, self._drifted(record, wanted, exact=False), self._of_services(wanted))

    def plan_removal(self) -> Planned:
        """Return what remove() would change."""
        return egress_plans.removal(self.store.read(), self.store.folder.exists())

    # Making it so

    def apply(self, document: Mapping[str, Any], clear_live: bool = False) -> Planned:
        """Put a document in force. Live changes go on, unless they are to be cleared."""
        declaration = egress.parse(document)
        with self.store.lock():
            record = self.store.read()
            return self._apply(record, self._declared(record, declaration, clear_live, exact=True))

    def change(self, add: Iterable[Live] = (), drop: Iterable[Live] = ()) -> Planned:
        """Add and take back live changes. Raises NotFound where no policy is in force."""
        add, drop = tuple(add), tuple(drop)
        with self.store.lock():
            record = self.store.read()
            return self._apply(record, self._changed(record, add, drop, exact=True))

    def refresh(self) -> Planned:
        """Put in force what time has changed, and repair what others have: what ended goes, what is missing is loaded.

        An apply that was killed is finished.
        """
        with self.store.lock():
            record = self.store.read()
            if record.declared is None:
                return Planned()
            return self._apply(record, self._changed(record, (), (), exact=True))

    def remove(self) -> Planned:
        """Remove rules, processes and files. What the guests may do then is up to others."""
        with self.store.lock():
            record = self.store.read()
            planned = egress_plans.removal(record, record.declared is not None)
            self.services.remove()
            self.step("services removed")
            for name in ("nftables", "iptables"):
                if planned.change.changed:
                    self._retire(name, required=record.declared is not None and _backend_of(record) == name)
            self.step("rules removed")
            egress_proxies.remove(self.store)
            self.store.remove()
        return planned

    # How

    def _declared(self, record: Record, declaration: Declaration, clear_live: bool, exact: bool) -> Wanted:
        now = self._second()
        known = self._recorded(record)
        before = known.declaration
        live = () if clear_live else egress_live.lasting(self._known_live(known), now)
        live = egress_live.going_on(live, declaration.machines)
        return self._work_out(record, egress_fence.settled(declaration, before, now), live, now, exact)

    def _changed(self, record: Record, add: Sequence[Live], drop: Iterable[Live], exact: bool) -> Wanted:
        if record.declared is None:
            raise NotFound(
                "network policy: none is in force here; apply one with the module autovibe.fleet.egress_policy"
            )
        now, gone = self._second(), set(drop)
        known = self._recorded(record)
        live = tuple(one for one in egress_live.lasting(self._known_live(known), now) if one not in gone)
        for one in add:
            live = egress_live.with_live(live, one)
        declaration = known.declaration or egress.parse(record.declared)
        for one in add:
            egress_fence.check_live(declaration, live, now, one)
        return self._work_out(record, declaration, live, now, exact)

    def _known_live(self, known: Recorded) -> tuple[Live, ...]:
        """Return the live changes. Raises StateDamaged rather than to open what one has closed that cannot be read."""
        if known.damage:
            raise StateDamaged(
                f"{self.store.applied / LIVE}: {known.damage}; mend it, or end all live changes with live: clear of "
                "the module autovibe.fleet.egress_policy; the rules stay as they are until then"
            )
        return known.live

    def _work_out(
        self, record: Record, declaration: Declaration, live: Sequence[Live], now: int, exact: bool
    ) -> Wanted:
        return egress_wanted.work_out(self.store, record, declaration, live, now, tuple(self.upstreams()), exact)

    def _apply(self, record: Record, wanted: Wanted) -> Planned:
        self.store.clean()  # of what a killed apply has left behind
        # What the services lack is known once the rules are in force: they do not wait for them.
        old = self._recorded(record).fence
        left = self._left(record, old, wanted)
        drifted = self._drifted(record, wanted, exact=True)
        planned = egress_plans.plan(record, wanted, drifted, Change(), unfinished=left is not None)
        if planned.change.changed or left is not None:
            for tool in TOOLS:
                find(tool)
            self._load(record, old, wanted, left or _Left())
        try:
            served = self._serve(record, wanted, drifted)
        except FleetError:
            # What is closed is cut nevertheless. The note stays: a resolver may bring back what is forgotten here.
            self._narrow(wanted, left or _Left())
            raise
        if planned.change.changed or left is not None:
            self._narrow(wanted, left or _Left())
            self.store.finish()
            self.step("finished")
        return planned.with_services(served)

    def _left(self, record: Record, old: Fence | None, wanted: Wanted) -> _Left | None:
        """Return what follows from the change, with what a killed apply has left; None if there is nothing."""
        noted = self.store.unfinished()
        retire = _backend_of(record) if record.declared is not None else ""
        retire = "" if retire == wanted.declaration.backend else retire
        found = egress_changes.Consequences()
        if old is not None and old != wanted.fence:
            found = egress_changes.consequences(old, wanted.fence, self._second())
        elif old is None:  # what was in force, if anything, is not known
            found = egress_changes.Consequences(wanted.fence.guests, wanted.fence.guests)
        left = _Left(
            cut=_joined(_addresses(found.narrowed), noted.get("cut")),
            proxied=_joined(_addresses(found.proxied), noted.get("proxied")),
            moved=_joined(_addresses(found.moved), noted.get("moved")),
            forget=_joined(found.forget, noted.get("forget")),
            retire=retire or str(noted.get("retire") or "").replace(wanted.declaration.backend, ""),
        )
        return left if noted or left != _Left() else None

    def _load(self, record: Record, old: Fence | None, wanted: Wanted, left: _Left) -> None:
        rules = backend(wanted.declaration.backend)
        egress_proxies.make_ready(self.store, wanted.fence)
        folder = self.store.prepare(wanted.record)
        self.step("prepared")
        try:
            rules.check(folder)
        except FleetError:
            self.store.clean()
            raise
        self.step("checked")
        carried = self._carried(record, old, wanted)
        noted = self.store.unfinished()
        self.store.begin(left.to_dict())
        self.step("noted")
        self.store.commit(folder.name)
        self.step("committed")
        try:
            rules.load(self.store.applied, wanted.fence)
        except FleetError:
            self._go_back(record, old, noted)
            raise
        self.step("loaded")
        egress_proxies.publish(self.store, wanted.record)
        if carried:
            rules.learn(carried)
        if left.retire:
            self._retire(left.retire)
        self.step("retired")

    def _carried(self, record: Record, old: Fence | None, wanted: Wanted) -> dict[str, tuple[str, ...]]:
        """Return what machines have asked names for, for grants that are new to them."""
        if old is None or not egress_changes.has_new_grants(old, wanted.fence):
            return {}
        with contextlib.suppress(FleetError):  # somebody may have removed all of it
            learned = backend(_backend_of(record)).learned(old)
            return egress_changes.carried(old, wanted.fence, learned)
        return {}

    def _go_back(self, record: Record, old: Fence | None, noted: Mapping[str, Any]) -> None:
        """Let the generation before count again, and see to it that the kernel has its rules.

        noted: what an apply before that was killed has still to do.
        """
        self.store.uncommit(record.name)
        if old is not None:
            with contextlib.suppress(FleetError):
                rules = backend(_backend_of(record))
                if not rules.loaded(old):
                    rules.load(self.store.applied, old)
        if noted:
            self.store.begin(noted)
            self.store.clean()
        else:
            self.store.finish()

    def _serve(self, record: Record, wanted: Wanted, drifted: bool) -> Change:
        try:
            change = self.services.bring(wanted.items)
        except FleetError as error:
            raise type(error)(f"the rules are in force, but not all of their processes run: {error.message}") from error
        if change.changed:
            self.services.await_resolvers(wanted.fence)
        self.step("served")
        started = f"start process {egress_services.PROXY}" in change.actions
        if not started and _squid_of(record) != _squid_of(wanted.record):
            egress_proxies.reload(self.store, self.services)
        if drifted:  # answers that dnsmasq remembers would not come into sets that are empty now
            self.services.hang_up(one["id"] for one in wanted.items if one["id"].startswith(egress_services.DNS))
        self.step("proxied")
        return change

    def _narrow(self, wanted: Wanted, left: _Left) -> None:
        """Forget what names led to that are no longer allowed, and cut connections that are not."""
        rules = backend(wanted.declaration.backend)
        if left.forget:
            learned, known = (
                rules.learned(wanted.fence),
                egress_questions.answers(self.store, wanted.fence, left.forget),
            )
            rules.forget(egress_changes.forgotten(wanted.fence, left.forget, learned, known))
        self.step("forgotten")
        if left.cut or left.moved:
            egress_flows.cut(wanted.fence, rules.learned, left.cut, left.moved, self._second())
        squid = wanted.fence.proxy.kind == egress_proxies.SQUID
        if squid and not egress_flows.cut_proxied(left.proxied, wanted.fence.proxy.port):
            self.services.end([egress_services.PROXY])
        self.step("cut")

    def _drifted(self, record: Record, wanted: Wanted, exact: bool) -> bool:
        """Tell whether the kernel has other rules than those that were applied. Not asked where none were."""
        if record.declared is None:
            return False
        try:
            old = self._recorded(record).fence
            return old is not None and not backend(_backend_of(record)).loaded(old)
        except FleetError:
            if exact:
                raise
            return False

    def _of_services(self, wanted: Wanted) -> Change:
        """Return what would become of the processes; without fleetd, they would all be new."""
        try:
            return self.services.plan(wanted.items)
        except Unavailable:
            return Change(actions=tuple(f"start process {one['id']}" for one in wanted.items))

    def _recorded(self, record: Record) -> Recorded:
        """Return what a generation says, worked out once."""
        name, known = self._known
        if known is None or name != record.name:
            known = egress_wanted.recorded(record)
            self._known = (record.name, known)
        return known

    def _retire(self, name: str, required: bool = True) -> None:
        try:
            backend(name).remove()
        except FleetError:
            if required:
                raise

    def _second(self) -> int:
        return int(self.now())


def _backend_of(record: Record) -> str:
    return str((record.declared or {}).get("backend") or "nftables")


def _squid_of(record: Record) -> str:
    return record.files.get(egress_proxies.SQUID_FILE, "")


def _addresses(guests: Iterable[Guest]) -> tuple[str, ...]:
    return tuple(one for guest in guests for one in (guest.address4, guest.address6) if one)


def _joined(found: Iterable[str], noted: Any) -> tuple[str, ...]:
    return tuple(sorted({*found, *(str(one) for one in noted or ())}))


__all__ = ["Backend", "Engine", "Planned"]
