# SPDX-License-Identifier: GPL-3.0-or-later
"""What there is of Proxmox VE's own firewall: of the cluster, and of single guests. It only reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, TypeVar

from . import proxmox_config as configs
from .proxmox_api import Session
from .proxmox_machines import Guest

if TYPE_CHECKING:
    from fleet_core.errors import InvalidInput
    from fleet_core.proxmox_fences import MARK, PREFIX, Guarded, Rule
else:
    try:
        from ..fleet_core.errors import InvalidInput
        from ..fleet_core.proxmox_fences import MARK, PREFIX, Rule
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import InvalidInput
        from fleet_core.proxmox_fences import MARK, PREFIX, Rule

AT_ONCE = 8
CLUSTER = "/cluster/firewall"
Entries = dict[str, bool]
Given = TypeVar("Given")
Told = TypeVar("Told")


@dataclass(frozen=True)
class Found:
    """What there is of one guest. sets: the IP sets that are ours; taken: names of those that are not."""

    guest: Guest
    config: Mapping[str, Any]
    options: Mapping[str, Any]
    rules: Sequence[Mapping[str, Any]]
    sets: Mapping[str, Entries]
    taken: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        return self.guest.machine_name

    @property
    def others(self) -> list[Mapping[str, Any]]:
        """The rules that are not ours."""
        return [rule for rule in self.rules if not is_mine(rule)]

    def numbers(self, want: Guarded | None) -> dict[str, int]:
        """Return the numbers of its cards by their hardware addresses. Raises InvalidInput if it lacks one."""
        networks = configs.networks_of(self.config)
        found = {network.mac: number for number, network in zip(configs.net_numbers(self.config), networks)}
        for card in want.cards if want is not None else ():
            if card.mac not in found:
                raise InvalidInput(
                    f'machine "{self.name}": expected a network card with the hardware address {card.mac}, found '
                    f"{', '.join(found) or 'none'}"
                )
        return found

    def guarded(self, number: int) -> bool:
        """Tell whether Proxmox filters what a card sends."""
        return configs.filtered(self.config, number)

    def shown(self) -> dict[str, Any]:
        """Return what a diff shows."""
        nets = {f"net{number}": "firewall=1" for number in configs.net_numbers(self.config) if self.guarded(number)}
        options = {key: value for key, value in sorted(self.options.items()) if key != "digest"}
        sets = {name: sorted(entries) for name, entries in sorted(self.sets.items())}
        return {**nets, "options": options, "rules": [text_of(rule) for rule in self.rules], "sets": sets}

    def as_wanted(self, want: Guarded) -> bool:
        """Tell whether nothing is to be done."""
        numbers = self.numbers(want)
        return (
            all(str(self.options.get(key, "")) == str(value) for key, value in want.options().items())
            and dict(self.sets) == want.sets(numbers)
            and same_rules([rule for rule in self.rules if is_mine(rule)], want.rules(numbers))
            and all(self.guarded(numbers[card.mac]) for card in want.cards)
            and self.guest.marks.fence == want.digest(self.guest.vmid)
        )


def read_guest(session: Session, guest: Guest) -> Found:
    """Return what there is of a guest."""
    what, base = f'machine "{guest.machine_name}"', f"{guest.path}/firewall"
    config = session.get(f"{guest.path}/config", what=what, asked="read its configuration")
    options = session.get(f"{base}/options", what=what, asked="read the options of its firewall")
    rules = session.get(f"{base}/rules", what=what, asked="read the rules of its firewall")
    sets = session.get(f"{base}/ipset", what=what, asked="read its IP sets")
    mine = [str(item["name"]) for item in sets if is_mine(item)]
    taken = frozenset(str(item["name"]) for item in sets if not is_mine(item))
    guest = guest.evolve(tags=str(config.get("tags") or ""))
    return Found(guest, config, options, rules, read_sets(session, base, mine), taken)


def read_sets(session: Session, base: str, names: Sequence[str]) -> dict[str, Entries]:
    """Return the entries of IP sets, and whether each is one that does not match."""

    def read(name: str) -> Entries:
        items = session.get(f"{base}/ipset/{name}", what=f"IP set {name}")
        return {str(item["cidr"]): bool(int(item.get("nomatch") or 0)) for item in items}

    return dict(zip(names, at_once(read, names)))


def at_once(call: Callable[[Given], Told], items: Sequence[Given]) -> list[Told]:
    """Return what call returns for each item, several at the same time."""
    if len(items) < 2:
        return [call(item) for item in items]
    with ThreadPoolExecutor(max_workers=min(AT_ONCE, len(items))) as pool:
        return list(pool.map(call, items))


def text_of(rule: Mapping[str, Any]) -> str:
    """Return a rule that was read as people read it."""
    extra = [f"{name} {rule[name]}" for name in ("macro", "sport") if rule.get(name)]
    off = [] if str(rule.get("enable", 0)) == "1" else ["(off)"]
    return " ".join([str(_rule_of(rule)), *extra, *off])


def is_rule(read: Mapping[str, Any], rule: Rule) -> bool:
    """Tell whether a rule that was read is this one, and in force."""
    extra = any(read.get(key) for key in ("macro", "sport"))
    return not extra and str(read.get("enable", 0)) == "1" and _rule_of(read) == rule


def same_rules(read: Iterable[Mapping[str, Any]], wanted: Iterable[Rule]) -> bool:
    """Tell whether rules are as wanted, in whatever order."""
    left = list(wanted)
    for one in read:
        match = next((rule for rule in left if is_rule(one, rule)), None)
        if match is None:
            return False
        left.remove(match)
    return not left


def is_ours(item: Mapping[str, Any], key: str = "name") -> bool:
    """Tell whether a set or a security group of the cluster is ours."""
    return str(item[key]).startswith(PREFIX) and is_mine(item)


def is_mine(item: Mapping[str, Any]) -> bool:
    return str(item.get("comment") or "").startswith(MARK)


def _rule_of(rule: Mapping[str, Any]) -> Rule:
    names = {"action": "action", "proto": "proto", "dport": "dport", "source": "source", "dest": "dest"}
    names.update(icmp_type="icmp-type", iface="iface")
    return Rule(str(rule.get("type") or ""), **{key: str(rule.get(name) or "") for key, name in names.items()})
