# SPDX-License-Identifier: GPL-3.0-or-later
"""The sets of ipset in the kernel: reading them, taking addresses out, destroying those that nothing uses."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_core.egress_ipsets import AddressSet, address_sets
    from fleet_core.fences import Fence, name_set
else:
    try:
        from ..fleet_core.egress_ipsets import AddressSet, address_sets
        from ..fleet_core.fences import Fence, name_set
    except ImportError:  # installed as a top-level package
        from fleet_core.egress_ipsets import AddressSet, address_sets
        from fleet_core.fences import Fence, name_set

from . import egress_commands

PREFIX = "fleet_"
ATTEMPTS, PAUSE = 20, 0.05  # seconds

Elements = dict[str, tuple[str, ...]]


def restore(text: str) -> None:
    """Let `ipset restore` do the lines of a text; the first that fails ends it."""
    if text:
        egress_commands.run(("ipset", "restore"), text)


def names() -> tuple[str, ...]:
    """Return the names of our sets that the kernel has."""
    listed = egress_commands.run(("ipset", "list", "-n")).split()
    return tuple(name for name in listed if name.startswith(PREFIX))


def elements() -> Elements:
    """Return our sets with what is in them, as `ipset save` writes it but without counters and times."""
    found: dict[str, list[str]] = {}
    for words in _saved():
        if words[0] == "create":
            found[words[1]] = []
        else:
            found[words[1]].append(words[2] + (" nomatch" if "nomatch" in words[3:] else ""))
    return {name: tuple(those) for name, those in found.items()}


def counted(name: str) -> dict[str, tuple[int, int]]:
    """Return address -> packets, bytes of a set with counters; nothing where there is no such set."""
    if name not in names():
        return {}
    found = {}
    for words in _saved(name):
        if words[0] == "add":
            numbers = dict(zip(words[3::2], words[4::2]))
            found[words[2]] = (int(numbers.get("packets", 0)), int(numbers.get("bytes", 0)))
    return found


def learned(fence: Fence) -> Elements:
    """Return the sets of names of a fence, also those that are empty."""
    there = elements()
    return {one.name: there.get(one.name, ()) for one in address_sets(fence) if one.learned}


def holds(fence: Fence) -> bool:
    """Return whether the kernel has all sets of a fence, and in those that are not learned what the fence says."""
    there = elements()
    wanted = {one.name: one for one in address_sets(fence)}
    if not set(wanted) <= set(there):
        return False
    return all(one.learned or _same(one, there[name]) for name, one in wanted.items())


def forget(gone: Mapping[str, Sequence[str]]) -> None:
    """Take addresses out of sets, as far as sets and addresses exist."""
    there = set(names())
    restore("".join(f"del {name} {one} -exist\n" for name, many in gone.items() if name in there for one in many))


def learn(found: Mapping[str, Sequence[str]]) -> None:
    """Put addresses into sets, as far as these exist."""
    there = set(names())
    restore("".join(f"add {name} {one} -exist\n" for name, many in found.items() if name in there for one in many))


def age(fence: Fence) -> None:
    """Let what names led to end within an hour unless they lead there again: first to the old sets, then out."""
    there = elements()
    lines: list[str] = []
    for grant in (grant for scope in fence.scopes for grant in scope.grants):
        for family in (4, 6):
            name, old = grant.set_name(family), grant.old_set_name(family)
            known = there.get(name, ()) if old in there else ()
            lines += (f"add {old} {one} -exist\n" for one in known)
            lines += (f"del {name} {one} -exist\n" for one in known)
            for one in grant.names:
                single = name_set(grant, one, family)
                lines += (f"del {single} {address} -exist\n" for address in there.get(single, ()))
    restore("".join(lines))


def drop_unused(fence: Fence) -> None:
    """Destroy sets of ours that the fence has not, and take out of counted sets who is no guest any more."""
    wanted = {one.name: one for one in address_sets(fence)}
    there = elements()
    restore(
        "".join(
            f"del {name} {element} -exist\n"
            for name, one in wanted.items()
            if one.counted
            for element in set(there.get(name, ())) - set(one.elements)
        )
    )
    destroy(keep=set(wanted))


def destroy(keep: Container[str] = ()) -> None:
    """Destroy sets of ours that no rule looks into any more.

    The kernel lets go of rules that were deleted a moment later (RCU), so that it is asked more than once. What
    something still uses then is left: it opens nothing by itself, and the next time it goes.
    """
    for _attempt in range(ATTEMPTS):
        unused = [name for name in names() if name not in keep]
        text = "".join(f"destroy {name}\n" for name in unused)
        if not unused or egress_commands.attempt(("ipset", "restore"), text).returncode == 0:
            return
        time.sleep(PAUSE)
    for name in names():
        if name not in keep:
            egress_commands.attempt(("ipset", "destroy", name))


def _same(one: AddressSet, found: Iterable[str]) -> bool:
    return set(map(_plain, one.elements)) == set(map(_plain, found))


def _plain(element: str) -> tuple[str, str]:
    network, _space, option = element.partition(" ")
    return str(ipaddress.ip_network(network)), option


def _saved(name: str = "") -> Iterable[list[str]]:
    saved = egress_commands.run(("ipset", "save", *((name,) if name else ())))
    for line in saved.splitlines():
        words = line.split()
        if len(words) >= 3 and words[1].startswith(PREFIX):
            yield words
