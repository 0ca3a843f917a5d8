# SPDX-License-Identifier: GPL-3.0-or-later
"""Numbers of a fence as Prometheus reads them."""

from __future__ import annotations

import re

from fleet_core.egress_metrics import Family, Numbers, families, render
from fleet_core.fences import Fence, Grant, Guest, Scope

GRANT = Grant("aaaaaaaa", names=("a.example",))
FENCE = Fence(
    guests=(Guest("web-1", "fleet0", "52:54:00:00:01:10", scope="default"),),
    scopes=(Scope("default", "allowlist", (GRANT,)),),
)
NUMBERS = Numbers(
    FENCE,
    counters={"default": {"allowed": (12, 3400), "denied": (1, 60)}},
    learned={GRANT.set_name(4): ("198.18.0.1", "198.18.0.2"), GRANT.old_set_name(4): ("198.18.0.2",)},
    denials={("web-1", "forward"): 3},
    processes={"egress-dns-default": True, "egress-watch": False},
    live=1,
    repairs=2,
    applied=1700000000,
)
# https://prometheus.io/docs/instrumenting/exposition_formats/
LINE = re.compile(r'[a-zA-Z_:][a-zA-Z0-9_:]*(?:\{(?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*",?)*\})? \S+')


def test_every_line_is_in_the_format() -> None:
    text = render(families(NUMBERS))
    assert text.endswith("\n")
    for line in text.splitlines():
        assert line.startswith(("# HELP ", "# TYPE ")) or LINE.fullmatch(line), line


def test_each_name_has_one_help_and_one_type_before_its_samples() -> None:
    lines = render(families(NUMBERS)).splitlines()
    helps = [line.split()[2] for line in lines if line.startswith("# HELP")]
    assert len(helps) == len(set(helps))
    for name in helps:
        at = lines.index(next(line for line in lines if line.startswith(f"# TYPE {name} ")))
        assert lines[at + 1].startswith(name)


def test_the_numbers_are_there() -> None:
    lines = render(families(NUMBERS)).splitlines()
    for line in (
        'fleet_egress_packets_total{scope="default",verdict="allowed"} 12',
        'fleet_egress_bytes_total{scope="default",verdict="denied"} 60',
        'fleet_egress_denials_total{machine="web-1",reason="forward"} 3',
        'fleet_egress_learned_addresses{scope="default",family="ipv4"} 2',
        'fleet_egress_machines{scope="default",mode="allowlist"} 1',
        'fleet_egress_process_up{process="egress-watch"} 0',
        "fleet_egress_live_changes 1",
        "fleet_egress_repairs_total 2",
        "fleet_egress_applied_timestamp_seconds 1700000000",
        "fleet_egress_rules_loaded 1",
    ):
        assert line in lines


def test_labels_are_escaped() -> None:
    assert 'x{a="b\\"c\\\\d\\ne"} 1' in render([Family("x", "gauge", "X.", {(("a", 'b"c\\d\ne'),): 1})])
