# SPDX-License-Identifier: GPL-3.0-or-later
"""The second fence: Proxmox VE's own firewall, given from a policy, with few requests; nothing of others is touched."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fakepve", reason="the fake of Proxmox VE needs Python 3.10")

from tests.fakes.proxmox_host import SECRET, TOKEN, Host
from tests.fakes.proxmox_schema import all_problems, schemas
from tests.integration.modules.plays import Play, task

from fleet_core.errors import Conflict, InvalidInput
from fleet_core.fences import Bridge, Fence, Grant, Guest, Hub, Proxy, Scope
from fleet_core.proxmox_fences import group_name, outline
from fleet_machines.proxmox_fence import Planned, ProxmoxFence

SHOP = Scope(
    "project-shop",
    "allowlist",
    (
        Grant("0a0a0a0a", names=("example.org",), ports=((443, 443),)),
        Grant("0b0b0b0b", networks4=("192.0.2.0/24",), networks6=("2001:db8::/64",), ports=((22, 22),)),
    ),
    denied4=("192.0.2.128/25",),
    resolver_port=5301,
    hub=True,
)
STRICT = Scope("default", "strict", hub=True)


def mac(number: int) -> str:
    return f"bc:24:11:00:{number // 256:02x}:{number % 256:02x}"


def guest(number: int, scope: str = "project-shop", **values: Any) -> Guest:
    return Guest(
        f"web-{number}", "vmbr1", mac(number), f"192.168.100.{number}", f"fd00:100::{number:x}", scope=scope, **values
    )


def fence(*guests: Guest, **values: Any) -> Fence:
    given: dict[str, Any] = {
        "bridges": (Bridge("vmbr1", "192.168.100.1/24", "fd00:100::1/64"),),
        "scopes": (STRICT, SHOP),
        "proxy": Proxy("squid", 3128),
        "hub": Hub("hub.fleet", ("10.0.1.20",), (8000,)),
        **values,
    }
    return Fence(guests=guests, **given)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    found = Host(tmp_path)
    try:
        yield found
        if schemas() is not None:
            assert all_problems(found.all_requests()) == []
    finally:
        found.stop()


def machine(host: Host, number: int, **config: Any) -> Any:
    values = {"net0": f"virtio={mac(number).upper()},bridge=vmbr1", "tags": "fleet;mine", **config}
    return host.machine(200 + number, f"web-{number}", **values)


def put(host: Host, wanted: Fence, thorough: bool = False, exact: bool = False, **how: Any) -> Planned:
    """Plan and apply by a session of its own, as a run of a task does."""
    adapter = host.adapter()
    given = outline(wanted, exact=exact)
    made = ProxmoxFence(adapter.session, adapter.guests, thorough=thorough)
    planned = made.plan(given, **how)
    waiting = made.apply(planned, given)
    planned.warnings += waiting
    adapter.session.close()
    return planned


def cluster(host: Host) -> dict[str, Any]:
    return dict(host.pve.firewall_config("cluster"))


def of(host: Host, number: int) -> dict[str, Any]:
    return dict(host.pve.firewall_config("vm", "pve1", 200 + number))


def lines(rules: list[dict[str, Any]]) -> list[str]:
    keys = ("type", "action", "iface", "proto", "icmp-type", "source", "dest", "dport")
    return sorted(" ".join(str(rule[key]) for key in keys if rule.get(key)) for rule in rules)


def test_a_guest_gets_its_group_its_addresses_and_policies_that_drop(host: Host) -> None:
    machine(host, 1)
    planned = put(host, fence(guest(1)))
    assert planned.change.actions[-1] == "put the second fence round machine web-1"
    found = of(host, 1)
    assert found["options"] == {
        "enable": 1,
        "policy_in": "DROP",
        "policy_out": "DROP",
        "macfilter": 1,
        "ipfilter": 1,
        "dhcp": 1,
        "ndp": 1,
        "radv": 0,
    }
    assert lines(found["rules"]) == [f"group {group_name('project-shop')} net0"]
    assert {name: sorted(one["cidr"] for one in entries) for name, entries in found["ipset"].items()} == {
        "ipfilter-net0": ["192.168.100.1", "fd00:100::1"]
    }
    vm = host.vm("web-1")
    assert vm.config["net0"].endswith(",bridge=vmbr1,firewall=1")
    assert "mine" in vm.config["tags"].split(";")


def test_groups_open_what_the_policy_names_and_accept_only(host: Host) -> None:
    machine(host, 1)
    put(host, fence(guest(1)), exact=True)
    groups = {name: lines(rules) for name, rules in cluster(host)["groups"].items()}
    gateway = [
        *(f"out ACCEPT {proto} echo-request +dc/fleet-gateways" for proto in ("icmp", "icmpv6")),
        *(f"out ACCEPT {proto} +dc/fleet-gateways 53" for proto in ("tcp", "udp")),
        *("in ACCEPT +dc/fleet-gateways", "out ACCEPT tcp +dc/fleet-gateways 3128", "out ACCEPT tcp 10.0.1.20 8000"),
    ]
    internet = f"+dc/fleet-net-{group_name('project-shop')[6:]}"
    opened = [f"out ACCEPT tcp {internet} 443", "out ACCEPT tcp +dc/fleet-to-0b0b0b0b 22"]
    assert groups == {group_name("default"): sorted(gateway), group_name("project-shop"): sorted([*gateway, *opened])}
    sets = cluster(host)["ipset"]
    assert sorted(one["cidr"] for one in sets["fleet-to-0b0b0b0b"]) == ["192.0.2.0/25", "2001:db8::/64"]
    nomatch = {one["cidr"] for one in sets[internet[4:]] if one.get("nomatch")}
    assert {"10.0.0.0/8", "169.254.0.0/16", "192.0.2.128/25", "192.168.0.0/16", "2001:db8::/32"} <= nomatch


def test_live_changes_of_the_policy_need_no_change_here_unless_exact(host: Host) -> None:
    machine(host, 1)
    put(host, fence(guest(1)))
    rules = lines(cluster(host)["groups"][group_name("project-shop")])
    internet = f"+dc/fleet-net-{group_name('project-shop')[6:]}"
    assert f"out ACCEPT tcp {internet} 1:52,54:852,854:65535" in rules
    assert f"out ACCEPT udp {internet} 1:52,54:442,444:852,854:65535" in rules


def test_two_hundred_guests_that_need_nothing_cost_a_few_requests(host: Host) -> None:
    guests = [guest(number) for number in range(1, 201)]
    for number in range(1, 201):
        machine(host, number)
    assert len(put(host, fence(*guests)).guests) == 200
    host.requests()
    assert not put(host, fence(*guests)).change.changed
    asked = collections.Counter(one.method for one in host.requests())
    assert set(asked) == {"GET"}
    assert asked["GET"] <= 12
    changed = [*guests[:-1], Guest("web-200", "vmbr1", mac(200), "192.168.100.201", scope="project-shop")]
    assert [found.name for found, _want in put(host, fence(*changed)).guests] == ["web-200"]
    assert [one["cidr"] for one in of(host, 200)["ipset"]["ipfilter-net0"]] == ["192.168.100.201"]
    assert len(host.requests()) <= 40


def test_check_mode_tells_and_does_nothing(host: Host) -> None:
    machine(host, 1)
    adapter = host.adapter()
    planned = ProxmoxFence(adapter.session, adapter.guests).plan(outline(fence(guest(1))))
    assert planned.change.changed
    assert planned.change.before["machine web-1"]["options"] == {}
    assert planned.change.after["machine web-1"]["options"]["policy_out"] == "DROP"
    assert {one.method for one in host.requests()} == {"GET"}


def test_what_others_changed_is_found_when_every_guest_is_looked_at(host: Host) -> None:
    machine(host, 1)
    put(host, fence(guest(1)))
    host.pve.firewall_config("vm", "pve1", 201)["options"]["policy_out"] = "ACCEPT"
    assert not put(host, fence(guest(1))).change.changed
    assert put(host, fence(guest(1)), thorough=True).change.changed
    assert of(host, 1)["options"]["policy_out"] == "DROP"
    assert not put(host, fence(guest(1)), thorough=True).change.changed


def test_rules_of_others_stay_behind_ours_and_are_told(host: Host) -> None:
    machine(host, 1)
    conf = host.pve.firewall_config("vm", "pve1", 201)
    conf["rules"].append({"type": "out", "action": "ACCEPT", "enable": 1, "comment": "by hand"})
    conf["ipset"]["mine"] = [{"cidr": "192.0.2.1"}]
    host.pve.firewall_config("cluster")["ipset"]["theirs"] = [{"cidr": "192.0.2.1"}]
    host.pve.firewall_config("cluster")["groups"]["theirs"] = []
    planned = put(host, fence(guest(1)))
    assert 'machine "web-1": rules of others stay in its firewall: out ACCEPT' in planned.warnings
    assert [rule["type"] for rule in of(host, 1)["rules"]] == ["group", "out"]
    put(host, fence())
    assert [rule["type"] for rule in of(host, 1)["rules"]] == ["out"]
    assert (list(of(host, 1)["ipset"]), of(host, 1)["options"]["enable"]) == (["mine"], 0)
    assert "fleet-fence" not in host.vm("web-1").config["tags"]
    put(host, Fence())
    assert (list(cluster(host)["ipset"]), list(cluster(host)["groups"])) == (["theirs"], ["theirs"])


def test_a_policy_that_changes_never_opens_more_on_its_way(host: Host) -> None:
    machine(host, 1)
    put(host, fence(guest(1)), exact=True)
    before = set(lines(cluster(host)["groups"][group_name("project-shop")]))
    other = Scope("project-shop", "allowlist", (Grant("0a0a0a0a", names=("example.org",), ports=((8443, 8443),)),))
    host.requests()
    put(host, fence(guest(1), scopes=(STRICT, other)), exact=True)
    after = set(lines(cluster(host)["groups"][group_name("project-shop")]))
    made = [one for one in host.requests("POST") if "/groups/" in one.path]
    assert {line for one in made for line in lines([dict(one.params)])} <= after
    assert before != after
    assert "fleet-to-0b0b0b0b" not in cluster(host)["ipset"]
    # What does not match stands in a new set before what does.
    added = [one for one in host.all_requests() if one.path == "/cluster/firewall/ipset/fleet-internet"]
    flags = ["nomatch" in one.params for one in added if one.method == "POST"]
    assert flags == sorted(flags, reverse=True)


def test_what_broke_off_is_done_again(host: Host) -> None:
    machine(host, 1)
    machine(host, 2)
    wanted = fence(guest(1), Guest("web-2", "vmbr1", mac(77), "192.168.100.2", scope="project-shop"))
    with pytest.raises(InvalidInput, match=r'machine "web-2": expected a network card with the hardware address'):
        put(host, wanted)
    assert "fleet-fence" not in host.vm("web-1").config["tags"]
    assert put(host, fence(guest(1), guest(2))).change.changed
    assert not put(host, fence(guest(1), guest(2)), thorough=True).change.changed


def test_peers_reach_each_other_and_nobody_else(host: Host) -> None:
    machine(host, 1)
    machine(host, 2)
    put(host, fence(guest(1, peers=("web-2",)), guest(2, peers=("web-1",))))
    found = of(host, 1)
    assert sorted(one["cidr"] for one in found["ipset"]["fleet-peers"]) == ["192.168.100.2", "fd00:100::2"]
    assert "in ACCEPT +guest/fleet-peers" in lines(found["rules"])
    put(host, fence(guest(1), guest(2)))
    assert list(of(host, 1)["ipset"]) == ["ipfilter-net0"]
    assert lines(of(host, 1)["rules"]) == [f"group {group_name('project-shop')} net0"]


def test_the_clusters_firewall_is_switched_on_only_when_somebody_is_let_in(host: Host) -> None:
    machine(host, 1)
    assert any("not enforced" in text for text in put(host, fence(guest(1))).warnings)
    with pytest.raises(Conflict, match="name who may reach them"):
        put(host, fence(guest(1)), enable=True)
    assert "enable" not in cluster(host)["options"]
    planned = put(host, fence(guest(1)), enable=True, management=["198.51.100.7"])
    assert planned.warnings == ()
    assert cluster(host)["options"]["enable"] == 1
    assert [one["cidr"] for one in cluster(host)["ipset"]["management"]] == ["198.51.100.7"]
    assert not put(host, fence(guest(1)), enable=True, management=["198.51.100.7"]).change.changed


def test_a_guest_whose_card_cannot_be_changed_while_it_runs_is_told(host: Host) -> None:
    machine(host, 1).status = "running"
    told = 'machine "web-1": net0 cannot be changed while it runs, and is filtered from its next start on'
    assert told in put(host, fence(guest(1))).warnings
    assert told not in put(host, fence(guest(1))).warnings


def test_machines_that_are_not_there_are_named(host: Host) -> None:
    machine(host, 1)
    assert put(host, fence(guest(1), guest(9))).missing == ("web-9",)


def test_a_machine_that_is_changed_keeps_its_fence(host: Host) -> None:
    machine(host, 1)
    put(host, fence(guest(1)))
    adapter = host.adapter()
    (found,) = adapter.guests.machines(["web-1"])
    assert found.marks.fence
    assert f"fleet-fence-{found.marks.fence}" in found.marks.evolve(project="other").text().split(";")


def test_the_module_writes_a_policy_shows_it_first_and_takes_it_back(host: Host, tmp_path: Path) -> None:
    machine(host, 1)
    play = Play(tmp_path, tmp_path / "fleet")
    settings = {"host": host.pve.url, "token_id": TOKEN, "token_secret": SECRET, "verify": host.ca}
    card = {"name": "web-1", "network": "vmbr1", "mac": mac(1), "address": "192.168.100.1", "project": "shop"}
    policy = {
        "networks": [{"name": "vmbr1", "address": "192.168.100.254/24"}],
        "machines": [card, {**card, "name": "web-2", "mac": mac(2), "address": "192.168.100.2"}],
        "policies": {"projects": {"shop": {"presets": ["github"], "allow": ["10.0.1.30:5432"]}}},
    }
    bare = {**policy, "machines": [{key: value for key, value in card.items() if key != "address"}]}
    how = {"provider_settings": settings}
    shown, made, again, wrong, gone, nothing = play(
        [
            task("proxmox_fence", check_mode=True, policy=policy, **how),
            task("proxmox_fence", policy=policy, enable=True, management=["198.51.100.0/24"], **how),
            task("proxmox_fence", policy=policy, thorough=True, **how),
            task("proxmox_fence", ignore_errors=True, policy=bare, **how),
            task("proxmox_fence", state="absent", **how),
            task("proxmox_fence", state="absent", thorough=True, **how),
        ]
    )
    assert "put the second fence round machine web-1" in shown["actions"]
    assert shown["diff"]["after"]["machine web-1"]["options"]["policy_out"] == "DROP"
    assert (made["machines"], made["missing"], made["enforced"], made["problems"]) == (["web-1"], ["web-2"], True, [])
    assert not again["changed"]
    assert 'machine "web-1": card bc:24:11:00:00:01: expected an address' in wrong["msg"]
    assert "take the second fence off machine web-1" in gone["actions"]
    assert not nothing["changed"]
    assert (cluster(host)["groups"], list(cluster(host)["ipset"])) == ({}, ["management"])
