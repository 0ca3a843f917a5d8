# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers of a fence in the text format of Prometheus (exposition format 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .fences import Fence

Labels = tuple[tuple[str, str], ...]
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@dataclass(frozen=True)
class Family:
    """Samples of one name. kind: counter or gauge. help: one sentence."""

    name: str
    kind: str
    help: str
    samples: Mapping[Labels, float]


@dataclass(frozen=True)
class Numbers:
    """What is known at one moment.

    counters: scope -> "allowed" or "denied" -> packets, bytes. learned: set -> addresses. denials: (machine, reason) ->
    number of denials that were read. processes: id -> whether it runs. repairs: how often the rules were loaded again.
    lost: how often the kernel had more to log than was read. applied: seconds since the epoch. loaded: whether the
    kernel has the rules.
    """

    fence: Fence
    counters: Mapping[str, Mapping[str, tuple[int, int]]] = field(default_factory=dict)
    learned: Mapping[str, Iterable[str]] = field(default_factory=dict)
    denials: Mapping[tuple[str, str], int] = field(default_factory=dict)
    processes: Mapping[str, bool] = field(default_factory=dict)
    live: int = 0
    repairs: int = 0
    lost: int = 0
    left_out: int = 0
    applied: int = 0
    loaded: bool = True


def families(numbers: Numbers) -> tuple[Family, ...]:
    """Return all families of a moment, in a fixed order."""
    verdicts = [
        (scope, verdict, pair)
        for scope, by_verdict in sorted(numbers.counters.items())
        for verdict, pair in sorted(by_verdict.items())
    ]
    return (
        Family(
            "fleet_egress_packets_total", "counter", "Packets of machines, by scope and verdict.",
            {_labels(scope=scope, verdict=verdict): pair[0] for scope, verdict, pair in verdicts},
        ),
        Family(
            "fleet_egress_bytes_total", "counter", "Bytes of machines, by scope and verdict.",
            {_labels(scope=scope, verdict=verdict): pair[1] for scope, verdict, pair in verdicts},
        ),
        Family(
            "fleet_egress_denials_total", "counter", "Denials that were logged, by machine and reason.",
            {_labels(machine=machine, reason=why): n for (machine, why), n in sorted(numbers.denials.items())},
        ),
        Family(
            "fleet_egress_learned_addresses", "gauge", "Addresses that names of a scope lead to.",
            _learned(numbers.fence, numbers.learned),
        ),
        Family(
            "fleet_egress_machines", "gauge", "Network cards of machines, by scope and mode.",
            {
                _labels(scope=scope.name, mode=scope.mode): len(numbers.fence.guests_of(scope.name))
                for scope in numbers.fence.scopes
            },
        ),
        Family(
            "fleet_egress_process_up", "gauge", "Whether a process of the policy runs.",
            {_labels(process=ident): float(up) for ident, up in sorted(numbers.processes.items())},
        ),
        _single("live_changes", "gauge", "Live changes that last.", numbers.live),
        _single("rules_loaded", "gauge", "Whether the kernel has the rules that were applied.", numbers.loaded),
        _single("repairs_total", "counter", "How often the rules were loaded again since the watch began.",
                numbers.repairs),
        _single("log_lost_total", "counter", "How often the kernel had more to log than was read.", numbers.lost),
        _single("denials_left_out_total", "counter", "Denials that were only counted.", numbers.left_out),
        _single("applied_timestamp_seconds", "gauge", "When the policy was last put in force.", numbers.applied),
    )  # fmt: skip


def render(found: Iterable[Family]) -> str:
    """Return families as text; one without samples is left out."""
    lines = []
    for family in found:
        if family.samples:
            lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} {family.kind}"]
            lines += [f"{family.name}{_shown(labels)} {value:.15g}" for labels, value in family.samples.items()]
    return "\n".join(lines) + "\n"


def _single(name: str, kind: str, text: str, value: float) -> Family:
    return Family(f"fleet_egress_{name}", kind, text, {(): float(value)})


def _learned(fence: Fence, learned: Mapping[str, Iterable[str]]) -> dict[Labels, float]:
    found: dict[Labels, float] = {}
    for scope in fence.scopes:
        for family in (4, 6):
            every: set[str] = set()
            for grant in scope.grants:
                every.update(learned.get(grant.set_name(family), ()), learned.get(grant.old_set_name(family), ()))
            found[_labels(scope=scope.name, family=f"ipv{family}")] = len(every)
    return found


def _labels(**values: str) -> Labels:
    return tuple(values.items())


def _shown(labels: Labels) -> str:
    inner = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels)
    return f"{{{inner}}}" if inner else ""
