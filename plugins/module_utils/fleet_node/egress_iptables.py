# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend iptables: iptables, ip6tables and ipset for what is routed, nft for what stays on a bridge.

What no rule of ebtables can tell, such as whose address an answer of neighbour discovery claims, the kernel's bridge
tables can: all kernels have them whose iptables is the one of nf_tables, and those with the older one too.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_core import egress_frames, egress_ipsets, egress_iptables
    from fleet_core.egress_nftables_names import NOBODY
    from fleet_core.errors import ProcessFailed
    from fleet_core.fences import Fence
else:
    try:
        from ..fleet_core import egress_frames, egress_ipsets, egress_iptables
        from ..fleet_core.egress_nftables_names import NOBODY
        from ..fleet_core.errors import ProcessFailed
        from ..fleet_core.fences import Fence
    except ImportError:  # installed as a top-level package
        from fleet_core import egress_frames, egress_ipsets, egress_iptables
        from fleet_core.egress_nftables_names import NOBODY
        from fleet_core.errors import ProcessFailed
        from fleet_core.fences import Fence

from . import egress_commands, egress_ipset
from .egress_commands import SBIN
from .egress_nftables import knows_bridges

SETS, BRIDGE, STRANGERS = "egress.ipset", "egress-bridge.nft", "egress-strangers.nft"
RULES = {4: "egress.iptables", 6: "egress.ip6tables"}
TOOLS = {4: "iptables", 6: "ip6tables"}
FLAVORS = ("nft", "legacy")
WAIT = ("-w", "20")  # seconds for the lock of xtables, which others hold too
PATH = f'PATH="$PATH:{SBIN}"\n'
PROBED_SET = "ipset create fleet_probe hash:ip 2>&1"
BOOT = """\
fleet_failed=0
fleet_rules() {{ # TOOL FILE: load its tables, our jumps once and at the head
  for table in mangle filter nat; do
    {{
      echo "*$table"
      "$1-save" -t "$table" | sed -n 's/^-A \\([A-Z]*\\) -j \\(FLEET-[A-Z]*\\)$/-D \\1 -j \\2/p'
      sed -n "/^\\*$table\\$/,/^COMMIT\\$/p" "$2" | sed 1d
    }} | "$1-restore" -w 20 --noflush || return 1
  done
}}
fleet_strangers() {{ # FILE: what a kernel without the module nft_meta_bridge cannot do
  nft -f "$1" 2>/dev/null || echo "fleet: no rules for ports without machines: no module nft_meta_bridge" >&2
}}
{steps}
[ "$fleet_failed" = 0 ]
"""
# What the kernel must have for the rules, and a rule that only works with it: of IPv4 or, for the last ones, of IPv6.
MODULES = {
    "xt_set": "-A OUTPUT -m set --match-set fleet_probe src",
    "xt_conntrack": "-A OUTPUT -m conntrack --ctstate INVALID",
    "xt_connmark": "-A OUTPUT -m connmark --mark 1 -j CONNMARK --set-mark 2",
    "xt_time": "-A OUTPUT -m time --datestop 2030-01-01T00:00:00",
    "xt_limit": "-A OUTPUT -m limit --limit 1/sec",
    "xt_multiport": "-A OUTPUT -p tcp -m multiport --dports 1,2",
    "xt_pkttype": "-A OUTPUT -m pkttype --pkt-type broadcast",
    "xt_comment": "-A OUTPUT -m comment --comment fleet",
    "xt_NFLOG": "-A OUTPUT -j NFLOG --nflog-group 1",
    "xt_mark": "-t mangle -A PREROUTING -m mark ! --mark 1/1 -j MARK --set-xmark 0/1",
    "ipt_REJECT": "-A OUTPUT -j REJECT --reject-with icmp-admin-prohibited",
    "xt_nat": "-t nat -A PREROUTING -p udp -j DNAT --to-destination 127.0.0.1:53",
    "xt_MASQUERADE": "-t nat -A POSTROUTING -j MASQUERADE",
}
MODULES6 = {
    "xt_hl": "-A OUTPUT -m hl --hl-eq 255",
    "ip6t_rt": "-A OUTPUT -m rt",
    "ip6t_REJECT": "-A OUTPUT -j REJECT --reject-with icmp6-adm-prohibited",
}
SET_TYPES = {"ip_set_hash_ip": "hash:ip", "ip_set_hash_net": "hash:net"}
_JUMP = re.compile(r"^-A ([A-Z]+) -j (FLEET-[A-Z]+)$")


class Iptables:
    """See egress_backends.Backend. flavor: "nft" or "legacy" for that one, empty for the host's own choice."""

    name = "iptables"

    def __init__(self, flavor: str = "") -> None:
        self._flavor = flavor

    def files(self, fence: Fence) -> dict[str, str]:
        return {
            SETS: egress_ipsets.ipsets(fence),
            BRIDGE: egress_frames.ruleset(fence),
            STRANGERS: egress_frames.strangers(fence),
            **{file: egress_iptables.restore(fence, family) for family, file in RULES.items()},
        }

    def boot(self, folder: str) -> str:
        """Each step is tried whatever became of the others: what can be closed is closed."""
        place = folder.rstrip("/")
        steps = [
            f"ipset restore <{shlex.quote(f'{place}/{SETS}')}",
            f"nft -f {shlex.quote(f'{place}/{BRIDGE}')}",
            f"fleet_strangers {shlex.quote(f'{place}/{STRANGERS}')}",
            *(f"fleet_rules {self.tool(family)} {shlex.quote(f'{place}/{file}')}" for family, file in RULES.items()),
        ]
        return PATH + BOOT.format(steps="\n".join(f"{step} || fleet_failed=1" for step in steps))

    def check(self, folder: Path) -> None:
        """Load it all in a network namespace of its own, which ends with the shell that did it."""
        for tool in ("ipset", "nft", *(self.tool(family, what) for family in RULES for what in ("save", "restore"))):
            egress_commands.find(tool)
        done = _in_a_namespace(self.boot(str(folder)))
        if done.returncode and not done.stderr.startswith("unshare:"):
            words = " ".join(done.stderr.split())[:2000]
            raise ProcessFailed(f"rules of iptables: expected that they load, found: {words}{self.lacking()}")

    def load(self, folder: Path, fence: Fence) -> None:
        """First what rules look into, then the bridge, then what is routed: no moment has less than before."""
        egress_ipset.restore((folder / SETS).read_text(encoding="utf-8"))
        egress_commands.run(("nft", "-f", str(folder / BRIDGE)))
        knows_bridges(folder / STRANGERS)
        for family, file in RULES.items():
            text = (folder / file).read_text(encoding="utf-8")
            self._restore(family, replacing(text, self._saved(family)))
        for other in self._others():
            other.remove_rules()
        egress_ipset.drop_unused(fence)

    def loaded(self, fence: Fence) -> bool:
        if not egress_ipset.holds(fence) or not _frames_stand(fence):
            return False
        return all(stands(egress_iptables.restore(fence, family), self._saved(family)) for family in RULES)

    def learned(self, fence: Fence) -> dict[str, tuple[str, ...]]:
        return egress_ipset.learned(fence)

    def forget(self, elements: Mapping[str, Sequence[str]]) -> None:
        egress_ipset.forget(elements)

    def learn(self, elements: Mapping[str, Sequence[str]]) -> None:
        egress_ipset.learn(elements)

    def age(self, fence: Fence) -> None:
        egress_ipset.age(fence)

    def counters(self, fence: Fence) -> dict[str, dict[str, tuple[int, int]]]:
        """The scope "-" is of what came from no guest that is known."""
        sets = {"allowed": egress_ipsets.allowed_set, "denied": egress_ipsets.denied_set}
        found = {
            verdict: {**egress_ipset.counted(name(4)), **egress_ipset.counted(name(6))}
            for verdict, name in sets.items()
        }
        counters = {
            scope.name: {verdict: _sum(fence, scope.name, numbers) for verdict, numbers in found.items()}
            for scope in fence.scopes
        }
        nobody = [pair for family in RULES for pair in egress_ipset.counted(egress_ipsets.nobody_set(family)).values()]
        return {**counters, NOBODY: {"allowed": (0, 0), "denied": _total([*nobody, *_frames_denied()])}}

    def remove(self) -> None:
        for one in (self, *self._others()):
            one.remove_rules()
        egress_commands.run(("nft", "-f", "-"), egress_frames.removal())
        egress_ipset.destroy()

    def remove_rules(self) -> None:
        """Take our chains and the jumps to them out of both families."""
        for family in RULES:
            text = removing(self._saved(family))
            if text:
                self._restore(family, text)

    def tool(self, family: int, what: str = "") -> str:
        """Return the name of a tool of this flavor. what: "save", "restore", or empty for the one of single rules."""
        return "-".join(word for word in (TOOLS[family], self._flavor, what) if word)

    def _saved(self, family: int) -> str:
        return egress_commands.run((self.tool(family, "save"),))

    def _restore(self, family: int, text: str) -> None:
        egress_commands.run((self.tool(family, "restore"), *WAIT, "--noflush"), text)

    def _others(self) -> Iterator[Iptables]:
        """Yield the flavors of iptables that this host has besides ours: where rules may be left."""
        mine = self._flavor or ("legacy" if "legacy" in egress_commands.run(("iptables", "--version")) else "nft")
        for flavor in FLAVORS:
            if flavor != mine and shutil.which(f"iptables-{flavor}-save", path=f"{SBIN}:/usr/bin:/bin"):
                yield Iptables(flavor)

    def lacking(self) -> str:
        """Return, as the end of a sentence, which modules the kernel lacks of those that rules need."""
        probes = {module: f"ipset create fleet_probe {kind}" for module, kind in SET_TYPES.items()}
        for family, modules in ((4, MODULES), (6, MODULES6)):
            probes.update({name: f"{PROBED_SET}; {self.tool(family)} {rule}" for name, rule in modules.items()})
        missing = [name for name, probe in probes.items() if _in_a_namespace(probe).returncode]
        return f"; the kernel lacks {', '.join(missing)}" if missing else ""


def _in_a_namespace(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a network namespace of its own, which ends with it."""
    return egress_commands.attempt(("unshare", "--net", "sh", "-c", PATH + script))


def replacing(text: str, saved: str) -> str:
    """Return a text for iptables-restore that also takes out, in the same transaction, what is there of ours now."""
    there = egress_iptables.chain_sizes(saved)
    wanted = egress_iptables.chain_sizes(text)
    lines: list[str] = []
    table = ""
    for line in text.splitlines():
        stale = sorted(set(there.get(table, ())) - set(wanted.get(table, ())))
        if line == "COMMIT":
            lines += (f"-X {chain}" for chain in stale)
        lines.append(line)
        if line.startswith("*"):
            table = line[1:]
            lines += (f"-D {builtin} -j {chain}" for builtin, chain in _jumps(saved, table))
            lines += (f":{chain} - [0:0]" for chain in sorted(set(there.get(table, ())) - set(wanted.get(table, ()))))
    return "".join(f"{line}\n" for line in lines)


def removing(saved: str) -> str:
    """Return a text for iptables-restore that takes out what is there of ours; empty for nothing."""
    lines: list[str] = []
    for table, chains in egress_iptables.chain_sizes(saved).items():
        lines += (f"*{table}", *(f"-D {builtin} -j {chain}" for builtin, chain in _jumps(saved, table)))
        lines += (f":{chain} - [0:0]" for chain in chains)
        lines += (*(f"-X {chain}" for chain in chains), "COMMIT")
    return "".join(f"{line}\n" for line in lines)


def _jumps(saved: str, table: str) -> list[tuple[str, str]]:
    """Return the jumps to chains of ours in a table as they stand, one that stands there twice two times."""
    found = (_JUMP.match(line) for line in _section(saved, table))
    return [(jump[1], jump[2]) for jump in found if jump]


def _section(saved: str, table: str) -> list[str]:
    _before, _head, rest = saved.partition(f"*{table}\n")
    return rest.partition("\nCOMMIT")[0].splitlines()


def stands(text: str, saved: str) -> bool:
    """Return whether a text has been loaded: its chains and no others, all their rules, each jump first and once."""
    if egress_iptables.chain_sizes(saved) != egress_iptables.chain_sizes(text):
        return False
    if f'"{egress_iptables.fingerprint(text)}"' not in saved:
        return False
    return all(
        _jumps(saved, table).count((builtin, chain)) == 1
        and next(line for line in _section(saved, table) if line.startswith(f"-A {builtin} ")).endswith(f"-j {chain}")
        for table, jumps in egress_iptables.JUMPS.items()
        for builtin, chain in jumps.items()
    )


def _sum(fence: Fence, scope: str, numbers: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    guests = fence.guests_of(scope)
    own = (*egress_ipsets.addresses(guests, 4), *egress_ipsets.addresses(guests, 6))
    return _total(numbers.get(one, (0, 0)) for one in own)


def _total(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    both = list(pairs)
    return sum(packets for packets, _octets in both), sum(octets for _packets, octets in both)


def _frames_stand(fence: Fence) -> bool:
    listed = egress_commands.attempt(("nft", "-j", "list", "table", *egress_frames.TABLE.split(" ")))
    return listed.returncode == 0 and egress_frames.stand(fence, listed.stdout)


def _frames_denied() -> Iterator[tuple[int, int]]:
    """Yield what was dropped on the bridges: packets and bytes of each table."""
    for table in (egress_frames.TABLE, egress_frames.BY_NAME):
        listed = egress_commands.attempt(("nft", "-j", "list", "counters", "table", *table.split(" ")))
        if listed.returncode == 0:
            yield from egress_frames.counted(listed.stdout)
