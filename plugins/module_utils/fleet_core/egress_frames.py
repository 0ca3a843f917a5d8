# SPDX-License-Identifier: GPL-3.0-or-later
"""Layer 2 beside the rules of iptables: the tables of frames that the backend nftables has, under names of their own.

ebtables cannot say whose address an answer of neighbour discovery claims, nor look up who sends under which address.
Names of their own let one backend take the place of the other without a moment with neither.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from . import egress_nftables_bridge
from .egress_nftables_names import check
from .egress_nftables_script import Chain, Table, fingerprint, script, signed
from .fences import Fence

# A bit of the packet's mark between the bridge and the table mangle: it came over a guest's port. Another one than that
# of the backend nftables, which would take it off first.
HELD = "0x20000000"
TABLE, BY_NAME = "bridge fleet_frames", "bridge fleet_frames_strangers"


def ruleset(fence: Fence) -> str:
    """Return the script for `nft -f` that holds guests to their MACs and addresses, and apart from each other."""
    check(fence)
    return script([_table(fence)])


def strangers(fence: Fence) -> str:
    """Return the script that closes our bridges to who is no guest; it needs the kernel's module nft_meta_bridge."""
    check(fence)
    return script([_named(egress_nftables_bridge.table_by_name(fence), BY_NAME)])


def removal() -> str:
    """Return the script that removes both, whether they are there or not."""
    return "".join(f"add table {table}\ndelete table {table}\n" for table in (TABLE, BY_NAME))


def stand(fence: Fence, listed: str) -> bool:
    """Return whether `nft -j list table` shows the table of this fence, with all rules and sets."""
    wanted = signed(_table(fence), fingerprint(ruleset(fence)))
    sizes = dict.fromkeys(wanted.sizes(), 0)
    elements: dict[str, int] = {}
    marks = set()
    for entry in json.loads(listed)["nftables"]:
        if "rule" in entry:
            chain = entry["rule"]["chain"]
            sizes[chain] = sizes.get(chain, 0) + 1
            marks.add(entry["rule"].get("comment"))
        elif "set" in entry:
            elements[entry["set"]["name"]] = len(entry["set"].get("elem", ()))
    expected = {one.name: len(one.elements or ()) for one in wanted.sets}
    return sizes == wanted.sizes() and elements == expected and fingerprint(ruleset(fence)) in marks


def counted(listed: str) -> Iterator[tuple[int, int]]:
    """Yield packets and bytes of the counters that `nft -j list counters` shows."""
    for entry in json.loads(listed)["nftables"]:
        if "counter" in entry:
            yield int(entry["counter"]["packets"]), int(entry["counter"]["bytes"])


def _table(fence: Fence) -> Table:
    table = _named(egress_nftables_bridge.table(fence), TABLE)
    return replace(table, chains=tuple(_marked(chain) for chain in table.chains))


def _marked(chain: Chain) -> Chain:
    return replace(chain, rules=tuple(rule.replace(egress_nftables_bridge.HELD, HELD) for rule in chain.rules))


def _named(table: Table, where: str) -> Table:
    return replace(table, name=where.partition(" ")[2])
