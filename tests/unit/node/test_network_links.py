# SPDX-License-Identifier: GPL-3.0-or-later
"""What runs on a host against what is wanted, and what stands in the way of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fleet_core.errors import Conflict, FleetError, NotFound
from fleet_core.network_interfaces import bridge
from fleet_node import network_obstacles, network_stacks
from fleet_node.network_links import Link, address_words, problems, route_words, strangers

FLAT = {"stp_state": 0, "forward_delay": 0, "vlan_filtering": 0}
MACHINES = bridge({"name": "vmbr1", "addresses": ["192.168.100.1/24", "fd00:100::1/64"], "ports": ["ens19"]})


def address(text: str, scope: str = "global", **more: Any) -> dict[str, Any]:
    local, _slash, length = text.partition("/")
    family = "inet6" if ":" in text else "inet"
    return {"family": family, "local": local, "prefixlen": int(length), "scope": scope, **more}


def link(name: str, *addresses: str, master: str = "", up: bool = True, mtu: int = 1500, **bridge_data: Any) -> Link:
    data = {**FLAT, **bridge_data} if bridge_data or name.startswith("vmbr") else None
    return Link(name, up, mtu, master, data, tuple(address(text) for text in addresses))


def links(*found: Link) -> dict[str, Link]:
    return {one.name: one for one in found}


GOOD = link("vmbr1", "192.168.100.1/24", "fd00:100::1/64")


def test_nothing_is_wrong_with_what_is_as_wanted() -> None:
    assert problems([MACHINES], links(GOOD, link("ens19", master="vmbr1"))) == []


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "bridge vmbr1 is not there"),
        ([link("vmbr1", *GOOD.cidrs(), up=False)], "bridge vmbr1 is down"),
        ([link("vmbr1", "192.168.100.1/24")], "bridge vmbr1 lacks fd00:100::1/64"),
        ([link("vmbr1", *GOOD.cidrs(), stp_state=1)], "bridge vmbr1 runs the spanning tree protocol"),
        ([link("vmbr1", *GOOD.cidrs(), forward_delay=1500)], "bridge vmbr1 delays its ports"),
        ([link("vmbr1", *GOOD.cidrs(), vlan_filtering=1)], "bridge vmbr1 knows VLANs"),
        ([GOOD, link("ens19")], "bridge vmbr1 lacks the port ens19"),
        ([GOOD, link("ens19", master="vmbr1", up=False)], "port ens19 of bridge vmbr1 is down"),
    ],
)
def test_what_is_wrong_is_said(found: list[Link], message: str) -> None:
    assert message in problems([MACHINES], links(*found))


def test_routes_and_addresses_become_the_words_that_make_them() -> None:
    route = {"dst": "default", "gateway": "10.0.1.1", "dev": "ens18", "metric": 100, "flags": ["onlink"]}
    assert route_words(route) == "default via 10.0.1.1 dev ens18 metric 100 onlink"
    assert address_words(address("10.0.1.10/24", broadcast="10.0.1.255")) == "10.0.1.10/24 brd 10.0.1.255"
    assert address_words(address("fe80::1/64", scope="link")) == "fe80::1/64 scope link nodad"


def test_strangers_of_a_bridge_are_the_machines_on_it() -> None:
    found = links(GOOD, link("ens19", master="vmbr1"), link("tap101i0", master="vmbr1"), link("tap2", master="vmbr2"))
    assert strangers(MACHINES, found) == ["tap101i0"]


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch) -> Any:
    """refuse() of a host whose default route leads through ens18."""
    found = [{"dst": "default", "gateway": "10.0.1.1", "dev": "ens18"}]
    monkeypatch.setattr(network_obstacles, "routes", lambda family: found if family == 4 else [])
    return network_obstacles.refuse


WAY = link("ens18", "10.0.1.10/24")


@pytest.mark.parametrize(
    ("wanted", "found", "message"),
    [
        ({"name": "docker0"}, [link("docker0", stp_state=0)], "found a bridge of another"),
        ({"name": "ens18"}, [WAY], "found an interface of another"),
        ({"name": "vmbr0", "ports": ["ens20"]}, [WAY], "expected an interface of this host, found none; it has ens18"),
        ({"name": "vmbr0", "ports": ["vmbr9"]}, [link("vmbr9")], "that is no bridge, found a bridge"),
        ({"name": "vmbr0", "ports": ["ens19"]}, [link("ens19", master="bond0")], "that is free, found a port of bond0"),
        (
            {"name": "vmbr0", "ports": ["ens18"], "addresses": ["10.0.1.11/24"]},
            [WAY],
            "expected its address 10.0.1.10/24 among the bridge's own, which takes it over, found 10.0.1.11/24",
        ),
        (
            {"name": "vmbr0", "ports": ["ens18"], "addresses": ["10.0.1.10/24"]},
            [WAY],
            "expected gateway4 10.0.1.1, by which this host reaches others, found none",
        ),
    ],
)  # fmt: skip
def test_what_would_surprise_somebody_is_refused(
    refuse: Any, wanted: dict[str, Any], found: list[Link], message: str
) -> None:
    with pytest.raises(FleetError) as caught:
        refuse([bridge(wanted)], (), "", links(*found))
    assert message in caught.value.message
    assert isinstance(caught.value, (Conflict, NotFound))


def test_a_port_that_hands_over_all_it_has_may_be_taken(refuse: Any) -> None:
    taking = bridge({"name": "vmbr0", "ports": ["ens18"], "addresses": ["10.0.1.10/24"], "gateway4": "10.0.1.1"})
    refuse([taking], (), "", links(WAY))
    refuse([taking], (taking,), "", links(link("vmbr0", "10.0.1.10/24"), link("ens18", master="vmbr0")))


def test_an_address_that_was_asked_for_is_asked_for_again(refuse: Any) -> None:
    leased = Link("ens18", True, 1500, "", None, (address("10.0.1.77/24", dynamic=True),))
    asking = bridge({"name": "vmbr0", "ports": ["ens18"], "dhcp4": True})
    refuse([asking], (), "", links(leased))
    with pytest.raises(Conflict):
        refuse([bridge({"name": "vmbr0", "ports": ["ens18"]})], (), "", links(leased))


def test_a_bridge_with_machines_is_not_deleted(refuse: Any) -> None:
    with pytest.raises(Conflict, match="expected no ports of others on a bridge that is deleted, found tap101i0"):
        refuse([], (MACHINES,), "", links(GOOD, link("tap101i0", master="vmbr1")))
    refuse([], (MACHINES,), "", links(GOOD, link("ens19", master="vmbr1")))


def test_a_bridge_that_our_files_name_is_ours(refuse: Any) -> None:
    refuse([bridge({"name": "vmbr1"})], (), "iface vmbr1 inet manual", links(GOOD))
    for other in ("vmbr10", "a-vmbr1", "vmbr1-x"):
        with pytest.raises(Conflict):
            refuse([bridge({"name": "vmbr1"})], (), f"iface {other} inet manual", links(GOOD))


INTERFACES = """\
auto lo
iface lo inet loopback
auto ens18
iface ens18 inet static
    address 10.0.1.10/24
iface ens19 inet manual
iface ens20 inet dhcp
auto vmbr0
iface vmbr0 inet manual
source {folder}/more/*
"""


@pytest.fixture
def ifupdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    main = tmp_path / "interfaces"
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "one").write_text("iface vmbr5 inet6 static\n    address fd00::1/64\n")
    main.write_text(INTERFACES.format(folder=tmp_path) + "source /etc/network/interfaces.d/*\n")
    stack = network_stacks.Ifupdown2()
    monkeypatch.setattr(stack, "interfaces", main)
    monkeypatch.setattr(stack, "settings", tmp_path / "ifupdown2.conf")
    return stack


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ([{"name": "vmbr0"}], "bridge vmbr0: is configured in .*interfaces already, which is not this module's"),
        ([{"name": "vmbr5"}], "bridge vmbr5: is configured in .*more/one already"),
        ([{"name": "vmbr1", "ports": ["ens18"]}], "port ens18: has an address by .*interfaces; take that away there"),
        ([{"name": "vmbr1", "ports": ["ens20"]}], "port ens20: has an address by"),
        ([{"name": "a1", "vlan_aware": True}, {"name": "b1", "vlan_aware": True}], "bridge b1: expected multiple_vlan"),
    ],
)
def test_files_of_others_are_respected(ifupdown: Any, wanted: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(Conflict, match=message):
        ifupdown.files([bridge(item) for item in wanted])


def test_a_port_that_others_name_without_an_address_is_not_named_again(ifupdown: Any) -> None:
    made = ifupdown.files([bridge({"name": "vmbr1", "ports": ["ens19"]})])
    assert "iface ens19" not in made[0].text


def test_a_file_that_nobody_reads_is_no_use(ifupdown: Any, tmp_path: Path) -> None:
    ifupdown.interfaces.write_text("auto lo\n")
    with pytest.raises(Conflict, match=r'expected the line "source /etc/network/interfaces\.d/\*", found none'):
        ifupdown.files([MACHINES])
    assert ifupdown.files([]) == ()
