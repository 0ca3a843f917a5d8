# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend nftables: loads rulesets, and looks after what the sets of names have learned.

dnsmasq changes the same tables while we do. A transaction that meets another is refused as a whole, by the kernel or
because what it takes away has just gone; then what is there is read again, and it is tried again.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core import egress_nftables
    from fleet_core.egress_nftables_names import BY_NAME, NOBODY, TABLE, counter
    from fleet_core.egress_nftables_script import Table
    from fleet_core.errors import ProcessFailed, Unavailable
    from fleet_core.fences import Fence, Grant, name_set
else:
    try:
        from ..fleet_core import egress_nftables
        from ..fleet_core.egress_nftables_names import BY_NAME, NOBODY, TABLE, counter
        from ..fleet_core.egress_nftables_script import Table
        from ..fleet_core.errors import ProcessFailed, Unavailable
        from ..fleet_core.fences import Fence, Grant, name_set
    except ImportError:  # installed as a top-level package
        from fleet_core import egress_nftables
        from fleet_core.egress_nftables_names import BY_NAME, NOBODY, TABLE, counter
        from fleet_core.egress_nftables_script import Table
        from fleet_core.errors import ProcessFailed, Unavailable
        from fleet_core.fences import Fence, Grant, name_set

from .egress_commands import attempt, run

RULES = "egress.nft"
BRIDGES = "egress-bridges.nft"
INET = f"inet {TABLE}"
TABLES = (INET, f"bridge {TABLE}")
TRIES = 5
PER_COMMAND = 1000  # elements of one command: more are not shown as one line of an error
_NO_MODULE = "Operation not supported"  # the kernel does not know bridges by their names
_NOT_THERE = "No such file or directory"
# What is deleted when no rule needs it any more, in the order in which it can be.
_KINDS = ("chain", "map", "set", "counter", "limit")

Listing = list[tuple[str, dict[str, Any]]]


class Nftables:
    """See egress_backends.Backend."""

    name = "nftables"

    def files(self, fence: Fence) -> dict[str, str]:
        return {RULES: egress_nftables.ruleset(fence), BRIDGES: egress_nftables.by_name(fence)}

    def boot(self, folder: str) -> str:
        bridges, rules = (shlex.quote(f"{folder.rstrip('/')}/{name}") for name in (BRIDGES, RULES))
        return (
            f"nft -f {bridges} 2>/dev/null || true  # kernels without nft_meta_bridge do without\n"
            f"nft -f {rules}\n"
        )  # fmt: skip

    def check(self, folder: Path) -> None:
        run(("nft", "--check", "--file", str(folder / RULES)))
        done = attempt(("nft", "--check", "--file", str(folder / BRIDGES)))
        if done.returncode and _NO_MODULE not in done.stderr:
            raise ProcessFailed(f"`nft --check`: expected success, found: {' '.join(done.stderr.split())[:2000]}")

    def load(self, folder: Path, fence: Fence) -> None:
        text = (folder / RULES).read_text(encoding="utf-8")
        wanted = egress_nftables.expected(fence)
        _until_it_fits(lambda: text + "".join(_unused(table) for table in wanted))
        knows_bridges(folder / BRIDGES)

    def loaded(self, fence: Fence) -> bool:
        return all(_holds(table) for table in egress_nftables.expected(fence))

    def learned(self, fence: Fence) -> dict[str, tuple[str, ...]]:
        wanted = {
            one.name
            for table in egress_nftables.expected(fence)
            for one in table.sets
            if one.name.startswith(egress_nftables.LEARNED)
        }
        return {name: found for name, found in _learned().items() if name in wanted}

    def forget(self, elements: Mapping[str, Sequence[str]]) -> None:
        def commands() -> str:
            there = _learned()
            gone = {name: sorted(set(some) & set(there.get(name, ()))) for name, some in elements.items()}
            return "".join(_elements("delete", name, some) for name, some in gone.items())

        _until_it_fits(commands)

    def learn(self, elements: Mapping[str, Sequence[str]]) -> None:
        def commands() -> str:
            there = _learned()
            new = {name: sorted(set(some) - set(there[name])) for name, some in elements.items() if name in there}
            return "".join(_elements("add", name, some) for name, some in new.items())

        _until_it_fits(commands)

    def age(self, fence: Fence) -> None:
        _until_it_fits(lambda: _aged(fence, _learned()))

    def counters(self, fence: Fence) -> dict[str, dict[str, tuple[int, int]]]:
        """The scope "-" is of what came from no guest that is known."""
        found: dict[str, tuple[int, int]] = {}
        for table in (*TABLES, f"bridge {BY_NAME}"):
            for kind, one in _listing("list", "counters", "table", *table.split(" ")):
                if kind == "counter":
                    packets, octets = found.get(one["name"], (0, 0))
                    found[one["name"]] = (packets + int(one["packets"]), octets + int(one["bytes"]))
        return {
            scope: {verdict: found.get(counter(scope, verdict), (0, 0)) for verdict in ("allowed", "denied")}
            for scope in (*(scope.name for scope in fence.scopes), NOBODY)
        }

    def remove(self) -> None:
        run(("nft", "--file", "-"), egress_nftables.removal())


def knows_bridges(script: Path) -> bool:
    """Load what needs nft_meta_bridge, and tell whether this kernel has it."""
    done = attempt(("nft", "--file", str(script)))
    if done.returncode and _NO_MODULE not in done.stderr:
        raise ProcessFailed(f"`nft --file {script}`: expected success, found: {' '.join(done.stderr.split())[:2000]}")
    return done.returncode == 0


def _until_it_fits(commands: Callable[[], str]) -> None:
    """Run what `commands` says now, and once more with what it says then if it met somebody else's change."""
    for number in range(1, TRIES + 1):
        text = commands()
        if not text:
            return
        try:
            run(("nft", "--file", "-"), text)
            return
        except ProcessFailed:
            if number == TRIES:
                raise


def _listing(*words: str) -> Listing:
    """Return what `nft -j` lists, as pairs of kind and object; nothing where the table does not exist."""
    done = attempt(("nft", "--json", *words))
    if done.returncode:
        if _NOT_THERE in done.stderr:
            return []
        raise ProcessFailed(f"`nft --json {' '.join(words)}`: found: {' '.join(done.stderr.split())[:2000]}")
    try:
        return [(kind, one) for row in json.loads(done.stdout)["nftables"] for kind, one in row.items()]
    except (ValueError, KeyError, AttributeError) as error:
        raise Unavailable(
            f"`nft --json {' '.join(words)}`: expected JSON, found {error}; is nft made with it?"
        ) from None


def _unused(table: Table) -> str:
    """Return the commands that delete what a table holds and no rule needs."""
    names = table.names()
    gone = [(kind, one["name"]) for kind, one in _terse(table) if kind in names and one["name"] not in names[kind]]
    gone.sort(key=lambda pair: _KINDS.index(pair[0]))
    # They may lead to one another, as those of an older version do: first no rule and no verdict is left in them.
    emptied = "".join(f"flush {kind} {table.where} {name}\n" for kind, name in gone if kind in ("chain", "map"))
    return emptied + "".join(f"delete {kind} {table.where} {name}\n" for kind, name in gone)


def _terse(table: Table) -> Listing:
    return _listing("--terse", "list", "table", table.family, table.name)


def _holds(table: Table) -> bool:
    """Tell whether the kernel holds a table as it was loaded: nothing more, nothing less, and the same fingerprint."""
    listing = _listing("list", "table", table.family, table.name)
    found: dict[str, set[str]] = {kind: set() for kind in table.names()}
    sizes = dict.fromkeys(table.sizes(), 0)
    elements: dict[str, int] = {}
    comments = set()
    for kind, one in listing:
        if kind in found:
            found[kind].add(one["name"])
        if kind in ("set", "map"):
            elements[one["name"]] = len(one.get("elem", ()))
        if kind == "rule":
            sizes[one["chain"]] = sizes.get(one["chain"], 0) + 1
            comments.add(one.get("comment", ""))
    return (
        found == table.names()
        and sizes == table.sizes()
        and _fingerprint(table) in comments
        and all(
            elements.get(one.name) == len(one.elements)
            for one in table.sets
            if one.elements is not None and "interval" not in one.flags  # intervals are listed as the kernel has them
        )
    )


def _fingerprint(table: Table) -> str:
    return egress_nftables.fingerprint("".join(rule for chain in table.chains for rule in chain.rules))


def _learned() -> dict[str, tuple[str, ...]]:
    """Return all sets of names in the kernel with their addresses."""
    return {
        one["name"]: tuple(_address(element) for element in one.get("elem", ()))
        for kind, one in _listing("list", "table", *INET.split(" "))
        if kind == "set" and one["name"].startswith(egress_nftables.LEARNED)
    }


def _address(element: Any) -> str:
    """Return the address of an element, which stands deeper where the element has an end."""
    return str(element["elem"]["val"]) if isinstance(element, dict) else str(element)


def _aged(fence: Fence, there: Mapping[str, Sequence[str]]) -> str:
    """Return the commands that move what was learned to the sets whose elements end, each with a full hour."""
    commands = []
    grants = {grant.key: grant for scope in fence.scopes for grant in scope.grants if grant.names}
    for grant in grants.values():
        for family in (4, 6):
            new, old = grant.set_name(family), grant.old_set_name(family)
            moved = there.get(new, ())
            if moved and old in there:
                # Adding leaves the end of what is there; only what is new gets a new one.
                commands += [_elements(verb, old, moved) for verb in ("add", "delete", "add")]
                commands.append(_elements("delete", new, moved))
            for name in _name_sets(grant, family):
                commands.append(_elements("delete", name, there.get(name, ())))
    return "".join(commands)


def _name_sets(grant: Grant, family: int) -> Iterator[str]:
    return (name_set(grant, name, family) for name in grant.names)


def _elements(verb: str, name: str, addresses: Sequence[str]) -> str:
    """Return the commands that add addresses to a set or delete them from it."""
    return "".join(
        f"{verb} element {INET} {name} {{ {', '.join(addresses[at : at + PER_COMMAND])} }}\n"
        for at in range(0, len(addresses), PER_COMMAND)
    )
