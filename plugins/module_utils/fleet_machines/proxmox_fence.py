# SPDX-License-Identifier: GPL-3.0-or-later
"""Proxmox VE's own firewall, brought to an outline of fleet_core.proxmox_fences: planned first, applied second.

What guests were given is remembered in a tag, as a digest, and the one list of all guests shows their tags: so any
number of guests that need nothing costs no request of their own. What belongs to others, their rules, sets and groups,
is left alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .proxmox_api import Session, segment
from .proxmox_config_tags import FENCE
from .proxmox_fence_reading import (
    CLUSTER,
    Entries,
    Found,
    at_once,
    is_mine,
    is_ours,
    is_rule,
    read_guest,
    read_sets,
    same_rules,
    text_of,
)
from .proxmox_machines import Guests
from .proxmox_marks import tags_of

if TYPE_CHECKING:
    from fleet_core.changes import Change
    from fleet_core.errors import Conflict
    from fleet_core.proxmox_fences import MARK, Guarded, Outline, Rule
else:
    try:
        from ..fleet_core.changes import Change
        from ..fleet_core.errors import Conflict
        from ..fleet_core.proxmox_fences import MARK
    except ImportError:  # installed as a top-level package
        from fleet_core.changes import Change
        from fleet_core.errors import Conflict
        from fleet_core.proxmox_fences import MARK

MANAGEMENT = "management"  # the set of those who may reach the nodes, as Proxmox calls it


@dataclass
class Planned:
    """What is to be done. change: for people. missing: machines that the policy names and the cluster does not have.

    warnings: what weakens the fence, one sentence each. sets, groups, guests: what there is and what is wanted.
    """

    change: Change
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    enforced: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    sets: dict[str, tuple[Entries | None, Entries | None]] = field(default_factory=dict)
    groups: dict[str, tuple[Sequence[Mapping[str, Any]] | None, Sequence[Rule] | None]] = field(default_factory=dict)
    guests: list[tuple[Found, Guarded | None]] = field(default_factory=list)


class ProxmoxFence:
    """The firewall of a cluster. thorough: look at every guest, whatever its tag says."""

    def __init__(self, session: Session, guests: Guests, *, thorough: bool = False) -> None:
        self.session, self.guests, self.thorough = session, guests, thorough

    # -- plan ---------------------------------------------------------------------------------------------------------

    def plan(self, wanted: Outline, *, enable: bool = False, management: Sequence[str] = ()) -> Planned:
        """Return what makes the cluster as wanted. enable: switch its firewall on; management: who then still reaches
        the nodes. Raises Conflict rather than lock everybody out."""
        read = [f"{CLUSTER}/options", f"{CLUSTER}/ipset", f"{CLUSTER}/groups"]
        options, sets, groups = at_once(lambda path: self.session.get(path, what="the firewall"), read)
        planned = Planned(Change(), enforced=enable or bool(int(options.get("enable") or 0)))
        self._plan_cluster(planned, wanted, sets, groups)
        if enable and not int(options.get("enable") or 0):
            self._plan_management(planned, [item["name"] for item in sets], management)
            planned.options = {"enable": 1}
        warnings = self._plan_guests(planned, wanted)
        if not planned.enforced and wanted.guests:
            warnings.append(
                "the firewall of the cluster is switched off (Datacenter, Firewall, Options), so the second fence is "
                "written but not enforced"
            )
        if str(options.get("ebtables", "1")) == "0" and wanted.guests:
            warnings.append("the firewall of the cluster: ebtables is off, so hardware addresses are not bound")
        planned.warnings = tuple(warnings)
        planned.change = _change(planned, wanted)
        return planned

    def _plan_cluster(self, planned: Planned, wanted: Outline, sets: list[Any], groups: list[Any]) -> None:
        names = [item["name"] for item in sets if is_ours(item) or item["name"] in wanted.sets]
        planned.sets = _different(read_sets(self.session, CLUSTER, names), wanted.sets)
        names = [item["group"] for item in groups if is_ours(item, "group") or item["group"] in wanted.groups]
        rules = at_once(lambda name: self.session.get(f"{CLUSTER}/groups/{name}", what=f"group {name}"), names)
        planned.groups = {
            name: (have, want)
            for name, (have, want) in _different(dict(zip(names, rules)), wanted.groups).items()
            if have is None or want is None or not same_rules(have, want)
        }

    def _plan_management(self, planned: Planned, names: Sequence[str], management: Sequence[str]) -> None:
        if not management and MANAGEMENT not in names:
            raise Conflict(
                "the firewall of the cluster: switching it on closes its nodes to all but their own network; name who "
                f'may reach them (management), or make an IP set "{MANAGEMENT}" first'
            )
        have = read_sets(self.session, CLUSTER, [MANAGEMENT] if MANAGEMENT in names else []).get(MANAGEMENT)
        wanted = {**(have or {}), **{entry: False for entry in management if entry not in (have or {})}}
        if wanted != have:
            planned.sets[MANAGEMENT] = (have, wanted)

    def _plan_guests(self, planned: Planned, wanted: Outline) -> list[str]:
        """Add the guests to work on, and return warnings."""
        there = {guest.machine_name: guest for guest in self.guests.named() if not guest.is_image}
        planned.missing = tuple(sorted(set(wanted.guests) - set(there)))
        doubtful = []
        for name, guest in sorted(there.items()):
            given, want = guest.marks.fence, wanted.guests.get(name)
            if given if want is None else (self.thorough or given != want.digest(guest.vmid)):
                doubtful.append(guest)
        warnings = []
        for found in at_once(lambda guest: read_guest(self.session, guest), doubtful):
            want = wanted.guests.get(found.name)
            foreign = [text_of(rule) for rule in found.others if str(rule.get("enable", 0)) != "0"]
            if want is not None and foreign:
                warnings.append(f'machine "{found.name}": rules of others stay in its firewall: {", ".join(foreign)}')
            if want is None or not found.as_wanted(want):
                planned.guests.append((found, want))
        return warnings

    # -- apply --------------------------------------------------------------------------------------------------------

    def apply(self, planned: Planned, wanted: Outline) -> tuple[str, ...]:
        """Carry a plan out: what is used before what uses it, and what nobody uses any more at the end.

        Returns what is not in force yet, one sentence each.
        """
        for name, (have, want) in planned.sets.items():
            if want is not None:
                self._put_set(CLUSTER, name, have, want, wanted.comments.get(name, ""))
        for name, (rules, group) in planned.groups.items():
            if group is not None:
                self._put_group(name, group, wanted.comments[name], new=rules is None)
        waiting = at_once(lambda work: self._put_guest(*work), planned.guests)
        for name, (_rules, group) in planned.groups.items():
            if group is None:
                what = f"security group {name}"
                self._drop_rules(f"{CLUSTER}/groups/{name}", keep=(), all_of_them=True, what=what)
                self.session.delete(f"{CLUSTER}/groups/{name}", what=what, asked="remove it")
        for name, (_have, want) in planned.sets.items():
            if want is None:
                self._drop_set(CLUSTER, name, f"IP set {name}")
        if planned.options:
            self.session.put(f"{CLUSTER}/options", planned.options, what="the firewall", asked="switch it on")
        return tuple(text for text in waiting if text)

    def _put_set(self, base: str, name: str, have: Entries | None, want: Entries, comment: str) -> None:
        what, path = f"IP set {name}", f"{base}/ipset/{name}"
        if have is None:
            params = {"name": name, **({"comment": comment} if comment else {})}
            self.session.post(f"{base}/ipset", params, what=what, asked="make it")
        for entry, nomatch in sorted((have or {}).items()):
            if want.get(entry, nomatch) != nomatch:
                params = {"nomatch": str(int(want[entry]))}
                self.session.put(f"{path}/{segment(entry)}", params, what=what, asked=f"change {entry}")
        # What does not match comes first: more is never open than will be.
        for entry, nomatch in sorted(want.items(), key=lambda item: (not item[1], item[0])):
            if entry not in (have or {}):
                params = {"cidr": entry, **({"nomatch": "1"} if nomatch else {})}
                self.session.post(path, params, what=what, asked=f"add {entry}")
        for entry in sorted(set(have or {}) - set(want)):
            self.session.delete(f"{path}/{segment(entry)}", what=what, asked=f"remove {entry}")

    def _drop_set(self, base: str, name: str, what: str) -> None:
        self.session.delete(f"{base}/ipset/{name}", {"force": True}, what=what, asked=f"remove IP set {name}")

    def _put_group(self, name: str, want: Sequence[Rule], comment: str, new: bool) -> None:
        what, path = f"security group {name}", f"{CLUSTER}/groups/{name}"
        if new:
            self.session.post(f"{CLUSTER}/groups", {"group": name, "comment": comment}, what=what, asked="make it")
        have = [] if new else self.session.get(path, what=what)
        for rule in want:
            if not any(is_rule(one, rule) for one in have):
                self.session.post(path, {**rule.params(), "comment": MARK}, what=what, asked=f"add {rule}")
        if not new:
            self._drop_rules(path, keep=want, all_of_them=True, what=what)

    def _drop_rules(self, path: str, *, keep: Sequence[Rule], all_of_them: bool, what: str) -> None:
        """Remove the rules, all or ours only, that are not to be kept: each by its place in a list that has not changed
        since it was read."""
        while True:
            left, gone = list(keep), None
            for rule in self.session.get(path, what=what):
                match = next((one for one in left if is_rule(rule, one)), None)
                if match is not None and (all_of_them or is_mine(rule)):
                    left.remove(match)
                elif all_of_them or is_mine(rule):
                    gone = rule
            if gone is None:
                return
            params = {"digest": gone["digest"]} if gone.get("digest") else {}
            self.session.delete(f"{path}/{gone['pos']}", params, what=what, asked=f"remove {text_of(gone)}")

    def _put_guest(self, found: Found, want: Guarded | None) -> str:
        what, base = f'machine "{found.name}"', f"{found.guest.path}/firewall"
        numbers = found.numbers(want)
        sets = {} if want is None else want.sets(numbers)
        rules = () if want is None else want.rules(numbers)
        for name, entries in sets.items():
            if name in found.taken:
                raise Conflict(f"{what}: IP set {name}: there is one already, of somebody else; expected none")
            self._put_set(base, name, found.sets.get(name), entries, MARK)
        for rule in reversed(rules):  # a new one goes before all others
            if not any(is_rule(one, rule) and is_mine(one) for one in found.rules):
                self.session.post(f"{base}/rules", {**rule.params(), "comment": MARK}, what=what, asked=f"add {rule}")
        options = {"enable": 0} if want is None else want.options()
        if any(str(found.options.get(key, "")) != str(value) for key, value in options.items()):
            self.session.put(f"{base}/options", options, what=what, asked="set the options of its firewall")
        if any(is_mine(rule) for rule in found.rules):
            self._drop_rules(f"{base}/rules", keep=rules, all_of_them=False, what=what)
        for name in sorted(set(found.sets) - set(sets)):
            self._drop_set(base, name, what)
        return self._mark(found, want, numbers, what)

    def _mark(self, found: Found, want: Guarded | None, numbers: Mapping[str, int], what: str) -> str:
        """Let the cards be filtered, and note what the guest was given: last, so that what broke off is done again.

        Returns a sentence if that is not in force before the guest starts again.
        """
        keys: dict[str, Any] = {}
        for card in want.cards if want is not None else ():
            if not found.guarded(numbers[card.mac]):
                key = f"net{numbers[card.mac]}"
                parts = [part for part in str(found.config[key]).split(",") if not part.startswith("firewall=")]
                keys[key] = ",".join([*parts, "firewall=1"])
        before = tags_of(found.config.get("tags"))
        tags = [tag for tag in before if not tag.startswith(FENCE)]
        if want is not None:
            tags.append(FENCE + want.digest(found.guest.vmid))
        if sorted(tags) != sorted(before):
            keys.update({"tags": ";".join(sorted(tags))} if tags else {"delete": "tags"})
        if keys:
            self.session.put(f"{found.guest.path}/config", keys, what=what, asked="let its cards be filtered")
            self.guests.note(found.guest.evolve(tags=";".join(sorted(tags))))
        if found.guest.status == "running" and any(key.startswith("net") for key in keys):
            pending = self.session.get(f"{found.guest.path}/pending", what=what, asked="read what is pending")
            waiting = sorted(str(item["key"]) for item in pending if "pending" in item and item["key"] in keys)
            if waiting:
                cards = ", ".join(waiting)
                return f"{what}: {cards} cannot be changed while it runs, and is filtered from its next start on"
        return ""


def _change(planned: Planned, wanted: Outline) -> Change:
    """Return a plan as people read it."""
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    actions: list[str] = []

    def add(thing: str, have: Any, want: Any, action: str = "") -> None:
        verb = "make" if have is None else "remove" if want is None else "change"
        actions.append(action or f"{verb} {thing}")
        before.update({thing: have} if have is not None else {})
        after.update({thing: want} if want is not None else {})

    for name, (have, want) in planned.sets.items():
        add(f"IP set {name}", _listed(have), _listed(want))
    for name, (rules, group) in planned.groups.items():
        add(
            f"security group {wanted.comments.get(name, name).rpartition(': ')[2]}",
            None if rules is None else sorted(text_of(rule) for rule in rules),
            None if group is None else sorted(str(rule) for rule in group),
        )
    for found, given in planned.guests:
        thing = f"machine {found.name}"
        verb = "take the second fence off" if given is None else "put the second fence round"
        add(thing, found.shown(), _guest_after(found, given), f"{verb} {thing}")
    if planned.options:
        add("firewall of the cluster", {"enable": 0}, planned.options, "switch the firewall of the cluster on")
    return Change(before, after, tuple(actions))


def _guest_after(found: Found, want: Guarded | None) -> dict[str, Any]:
    numbers = found.numbers(want)
    options = {**found.options, **({"enable": 0} if want is None else want.options())}
    shown = replace(found, options=options, rules=found.others, sets={} if want is None else want.sets(numbers)).shown()
    if want is not None:
        shown.update({f"net{numbers[card.mac]}": "firewall=1" for card in want.cards})
        shown["rules"] = [*(str(rule) for rule in want.rules(numbers)), *shown["rules"]]
    return shown


def _listed(entries: Entries | None) -> list[str] | None:
    return None if entries is None else sorted(f"{'! ' if no else ''}{entry}" for entry, no in entries.items())


def _different(have: Mapping[str, Any], want: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys((*want, *have))
    return {name: (have.get(name), want.get(name)) for name in names if have.get(name) != want.get(name)}
