# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/egress.md says what the code does: its examples are read, its tables compared."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet_core import egress
from fleet_core.egress_entries import entry
from fleet_core.egress_fence import compile as compile_fence
from fleet_core.egress_presets import DOH4, DOH6, DOH_NAMES, PRESETS, markdown, preset_entries
from fleet_core.fences import Fence
from fleet_core.flows import ALLOWED, Flow, verdict

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "egress.md").read_text(encoding="utf-8")
WEB, OTHER, GATE = "192.168.100.10", "192.168.100.11", "192.168.100.1"


def examples() -> list[Any]:
    found = []
    for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        data = yaml.safe_load(text)
        found += [task["autovibe.fleet.egress_policy"] for task in data] if isinstance(data, list) else [data]
    return found


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    table = [line for line in section(title).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return [row for row in cells if not set(row[0]) <= set("-")]


@pytest.mark.parametrize("document", examples(), ids=str)
def test_examples_can_be_applied(document: dict[str, Any]) -> None:
    compile_fence(egress.parse(document), [], 1)


def test_every_key_is_told() -> None:
    told = [re.findall(r"`(\w+)`", row[0]) for row in rows("The document")]
    assert [name for row in told for name in row] == [*egress.KEYS, *egress.POLICY_KEYS]


def test_entries_of_the_table_are_entries() -> None:
    shown = [row[0].strip("`") for row in rows("Entries")[1:]]
    assert len(shown) > 8
    assert [entry("x", text).text for text in shown] == [text.removeprefix("*.") for text in shown]


def test_the_table_of_presets_is_that_of_the_data() -> None:
    assert PAGE.endswith(markdown()), "run `make docs`"


def fence(mode: str) -> Fence:
    document: dict[str, Any] = {
        "networks": [{"name": "br", "address": f"{GATE}/24"}],
        "machines": [
            {"name": name, "network": "br", "mac": f"52:54:00:00:00:{number:02x}", "address": f"192.168.100.{number}",
             "project": project}
            for number, (name, project) in enumerate((("a", "p"), ("b", "p"), ("c", "q")), start=10)
        ],
        "policies": {"default": {"mode": mode, "allow": ["198.41.0.4:22"], "peers": "project"}},
        "hub": {"addresses": ["10.0.1.20"], "ports": [8000]},
        "proxy": {"kind": "squid"},
    }  # fmt: skip
    return compile_fence(egress.parse(document), [], 1, {"default": 15300})


FLOWS = {
    "an address by DHCP": [("255.255.255.255", "udp", 67)],
    "the gateway by ping": [(GATE, "icmp", 0)],
    "the hub": [("10.0.1.20", "tcp", 8000)],
    "the proxy": [(GATE, "tcp", 3128)],
    "peers": [(OTHER, "tcp", 22)],
    "what its policy allows": [("198.41.0.4", "tcp", 22)],
    "the rest of the internet": [("198.41.0.4", "tcp", 80), ("198.45.0.1", "udp", 4000), ("198.45.0.1", "icmp", 0)],
    "resolvers elsewhere": [("198.45.0.1", "tcp", 853), ("1.1.1.1", "tcp", 443)],
    "QUIC": [("198.45.0.1", "udp", 443)],
    "private networks": [("10.9.9.9", "tcp", 443), ("172.16.0.1", "tcp", 443), ("100.64.0.1", "tcp", 443)],
    "metadata services": [("169.254.169.254", "tcp", 80)],
    "other services of the gateway": [(GATE, "tcp", 22), (GATE, "tcp", 8000)],
    "machines that are no peers": [("192.168.100.12", "tcp", 22)],
}


def test_the_table_of_modes_is_what_a_fence_means() -> None:
    head, *table = rows("Modes")
    modes = [cell.strip("`") for cell in head[1:]]
    assert modes == ["locked", "strict", "allowlist", "open"]
    assert len(table) == len(FLOWS)
    for label, *cells in table:
        (flows,) = [flows for words, flows in FLOWS.items() if label.startswith(words)]
        for mode, cell in zip(modes, cells, strict=True):
            found = {verdict(fence(mode), {}, Flow(WEB, *flow), 1) == ALLOWED for flow in flows}
            assert found == {cell == "yes"}, (label, mode)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_whole(name: str) -> None:
    preset = PRESETS[name]
    assert re.fullmatch(r"[a-z][a-z0-9-]*", name)
    assert preset.title
    assert preset.opens.endswith(".")
    assert "|" not in preset.title + preset.opens
    found = preset_entries(name)
    assert found
    assert len(set(found)) == len(found)
    for item in found:
        assert item.kind == "domain"
        assert egress.allowed("x", {**item.to_dict(), "force": False}) == replace(item)
        assert item.text in preset.entries


def test_no_preset_opens_a_resolver() -> None:
    opened = {item.value for name in PRESETS for item in preset_entries(name)}
    assert not {name for name in opened for other in DOH_NAMES if name == other or name.endswith(f".{other}")}
    assert not {other for name in opened for other in DOH_NAMES if other.endswith(f".{name}")}


def test_known_resolvers_are_in_order() -> None:
    for names in (DOH_NAMES, DOH4, DOH6):
        assert len(set(names)) == len(names)
    document = {"policies": {"default": {"deny": [*DOH_NAMES, *DOH4, *DOH6]}}}
    assert len(egress.parse(document).policies["default"].deny) == len((*DOH_NAMES, *DOH4, *DOH6))
