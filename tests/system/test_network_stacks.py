# SPDX-License-Identifier: GPL-3.0-or-later
"""Bridges on real systemd hosts, by each network stack, and mistakes that take themselves back.

eth0 of a host has its address from podman, and belongs to no stack: no change may cost it, unless that is asked for,
and then it comes back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.system.lab import Host, Lab
from tests.system.lab.playbooks import play

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "network-debian12"
IMAGES = (IMAGE,)  # built before the first test
# What makes a host one that uses a stack.
STACKS = {
    "ifupdown2": "echo 'source /etc/network/interfaces.d/*' >>/etc/network/interfaces; systemctl enable networking"
    "&& systemctl start networking",
    "netplan": "printf 'network: {version: 2}\\n' >/etc/netplan/50-host.yaml; chmod 600 /etc/netplan/50-host.yaml",
    "networkd": "systemctl enable --now systemd-networkd",
    "networkmanager": "systemctl enable --now NetworkManager",
}
# What makes a stack, or the kernel, refuse any further change, and what ends that.
BROKEN = {
    "ifupdown2": ("echo '  bogus' >/etc/network/interfaces.d/zz-broken", "rm /etc/network/interfaces.d/zz-broken"),
    "netplan": ("echo 'network: [' >/etc/netplan/99-broken.yaml", "rm /etc/netplan/99-broken.yaml"),
    "networkd": ("ip link add vmbr9 type veth", "ip link delete vmbr9"),
    "networkmanager": ("ip link add vmbr9 type veth", "ip link delete vmbr9"),
}
MACHINES = {"name": "vmbr1", "addresses": ["192.168.100.1/24", "fd00:100::1/64"]}
MANAGEMENT = {"name": "vmbr0", "addresses": ["10.0.1.10/24", "fd00:1::10/64"], "mtu": 1400}
TWO = [MANAGEMENT, MACHINES]

# The module's own code without Ansible, for the many cases where Ansible adds nothing but time.
DRIVER = """\
import json, sys
sys.path.insert(0, "/opt/fleet")
from fleet_core.network_interfaces import bridges
from fleet_core.network_sysctls import Forwarding
from fleet_core.errors import FleetError
from fleet_node import network_apply
from fleet_node.network_apply import HostNetwork

verb, given = sys.argv[1], json.loads(sys.argv[2])
host = HostNetwork()
network_apply.UP_WITHIN = given.get("within", network_apply.UP_WITHIN)
try:
    if verb == "present":
        host.changes.refuse_pending()
        host.changes.clear()
        forwarding = Forwarding(True, True, "disabled")
        planned = host.plan(bridges(given["bridges"]), forwarding, force=given.get("force", False))
        pending = host.apply(planned, given.get("seconds", 0))
        print(json.dumps({"actions": planned.actions, "change": pending.ident if pending else ""}))
    elif verb == "confirmed":
        print(json.dumps({"done": host.changes.confirm(given.get("change", ""), given.get("connection", ""))}))
    else:
        print(json.dumps({"done": host.changes.roll_back("asked")}))
except FleetError as error:
    print(json.dumps({"error": error.message, "code": error.code}))
"""


def call(host: Host, verb: str, **given: Any) -> dict[str, Any]:
    done = host.run("python3", "/opt/fleet/driver.py", verb, json.dumps(given), timeout=120)
    return json.loads(done.stdout)


def role(host: Host, *options: str, **variables: Any) -> str:
    return play(host, "autovibe.fleet.network", "--extra-vars", "fleet_gateways=fleet", *options, **variables)


def start(lab: Lab, stack: str, name: str = "") -> Host:
    host = lab.host(name or f"stack-{stack}", IMAGE)
    host.sh("mkdir -p /opt/fleet")
    for name in ("fleet_core", "fleet_node"):
        host.push(ROOT / "plugins" / "module_utils" / name, "/opt/fleet/")
    host.write("/opt/fleet/driver.py", DRIVER)
    host.sh(STACKS[stack])
    return host


@pytest.fixture(scope="module", params=STACKS)
def stacked(request: pytest.FixtureRequest, lab: Lab) -> Iterator[tuple[str, Host]]:
    """A host that uses a stack, with both bridges."""
    host = start(lab, request.param)
    first = role(host, "--diff", network_bridges=TWO)
    assert changed(first) == 2  # the bridges, and the confirmation
    yield request.param, host
    host.stop()


def changed(output: str) -> int:
    return int(re.findall(r"changed=(\d+)", output)[-1])


def addresses(host: Host) -> dict[str, list[str]]:
    """The addresses of interfaces, without those that the kernel makes up."""
    found = json.loads(host.sh("ip -j address show"))
    return {
        item["ifname"]: sorted(
            f"{one['local']}/{one['prefixlen']}" for one in item["addr_info"] if one["scope"] == "global"
        )
        for item in found
        if item.get("ifname") not in (None, "lo")
    }


def files(host: Host) -> str:
    """All configuration of the network, with its content."""
    folders = "/etc/network /etc/netplan /etc/systemd/network /etc/NetworkManager /etc/sysctl.d /etc/modules-load.d"
    units = "/etc/systemd/system /var/lib/autovibe/network/current.json"
    return host.sh(f"find {folders} {units} -type f ! -name '*.pyc' -exec sha256sum {{}} + | sort -k 2")


def as_before(host: Host, before: str) -> None:
    assert files(host) == before
    wanted = {"vmbr0": sorted(MANAGEMENT["addresses"]), "vmbr1": sorted(MACHINES["addresses"])}
    found = addresses(host)
    assert len(found.pop("eth0")) == 1
    assert found == wanted
    assert host.sh("ls /var/lib/autovibe/network | sort | tr '\\n' ' '").split() == [
        "current.json",
        "last.json",
        "lock",
    ]
    host.sh("systemctl daemon-reload")  # at boot nobody tells systemd that the unit's file is gone
    assert host.sh("systemctl list-units --all --plain --no-legend 'autovibe-fleet-network*'") == ""


def reachable(lab: Lab, host: Host) -> bool:
    """Whether a new connection to the host's SSH works, from outside."""
    ask = f"import socket; print(socket.create_connection(({host.address!r}, 22), 2).recv(3))"
    done = lab._run(*lab.wrap("python3", "-c", ask), check=False)
    return "SSH" in done.stdout


def test_both_bridges_are_up_as_they_were_asked_for(stacked: tuple[str, Host]) -> None:
    stack, host = stacked
    found = {item["ifname"]: item for item in json.loads(host.sh("ip -d -j link show type bridge"))}
    for name, mtu in (("vmbr0", 1400), ("vmbr1", 1500)):
        assert "UP" in found[name]["flags"]
        assert found[name]["mtu"] == mtu
        data = found[name]["linkinfo"]["info_data"]
        assert (data["stp_state"], data["forward_delay"], data["vlan_filtering"]) == (0, 0, 0)
    assert addresses(host)["vmbr0"] == sorted(MANAGEMENT["addresses"])
    assert addresses(host)["vmbr1"] == sorted(MACHINES["addresses"])
    assert addresses(host)["eth0"] == [f"{host.address}/24"]
    values = host.sh(
        "sysctl -n net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.bridge.bridge-nf-call-iptables"
        " net.ipv4.conf.vmbr1.rp_filter net.ipv6.conf.vmbr1.accept_ra"
    )
    assert values.split() == ["1", "1", "0", "1", "0"]
    assert json.loads(host.sh("cat /var/lib/autovibe/network/current.json"))["stack"] == stack


def test_a_second_run_changes_nothing(stacked: tuple[str, Host]) -> None:
    _stack, host = stacked
    assert changed(role(host, network_bridges=TWO)) == 0


def test_a_new_address_leaves_machines_on_their_bridge(stacked: tuple[str, Host]) -> None:
    _stack, host = stacked
    host.sh("ip link add tap0 type veth peer name guest0 && ip link set tap0 master vmbr1 up && ip link set guest0 up")
    index = host.sh("cat /sys/class/net/vmbr1/ifindex")
    more = {**MACHINES, "addresses": [*MACHINES["addresses"], "192.168.101.1/24"]}
    made = call(host, "present", bridges=[MANAGEMENT, more])
    assert made.get("actions"), made
    assert "192.168.101.1/24" in addresses(host)["vmbr1"]
    assert host.sh("cat /sys/class/net/vmbr1/ifindex; basename $(readlink /sys/class/net/tap0/master)").split() == [
        index,
        "vmbr1",
    ]
    host.sh("ip link delete tap0")
    assert call(host, "present", bridges=TWO)["actions"]
    assert addresses(host)["vmbr1"] == sorted(MACHINES["addresses"])


def test_a_bridge_that_takes_the_management_port_is_refused(stacked: tuple[str, Host]) -> None:
    _stack, host = stacked
    before = files(host)
    wrong = {"name": "vmbr2", "ports": ["eth0"], "addresses": ["10.77.0.10/24"]}
    refused = call(host, "present", bridges=[*TWO, wrong], seconds=10)
    assert refused["code"] == "conflict"
    assert f"port eth0: expected its address {host.address}/24 among the bridge's own" in refused["error"]
    as_before(host, before)


def test_a_host_that_cannot_be_reached_any_more_takes_the_change_back(lab: Lab, stacked: tuple[str, Host]) -> None:
    _stack, host = stacked
    before = files(host)
    wrong = {"name": "vmbr2", "ports": ["eth0"], "addresses": ["10.77.0.10/24"]}
    made = call(host, "present", bridges=[*TWO, wrong], seconds=15, force=True)
    assert made.get("change"), made
    assert not reachable(lab, host)
    assert addresses(host)["vmbr2"] == ["10.77.0.10/24"]
    again = call(host, "present", bridges=TWO)
    assert f"change {made['change']}: waits for its confirmation until" in again["error"]
    host.wait("! test -e /var/lib/autovibe/network/pending.json", timeout=90)
    assert reachable(lab, host)
    assert addresses(host)["eth0"] == [f"{host.address}/24"]
    as_before(host, before)
    late = call(host, "confirmed", change=made["change"])
    assert late["code"] == "timed_out"
    assert re.search(r"was rolled back at \S+Z, since no confirmation came within 15s$", late["error"])


def test_what_the_stack_refuses_goes_back_at_once(stacked: tuple[str, Host]) -> None:
    stack, host = stacked
    breaks, mends = BROKEN[stack]
    host.sh(breaks)
    before = files(host)
    try:
        refused = call(host, "present", bridges=[*TWO, {"name": "vmbr9"}], seconds=60, within=4, force=True)
        assert refused["code"] == "process_failed", refused
        assert refused["error"].endswith("; the network is as it was before")
    finally:
        host.sh(f"{mends} || true")
    as_before(host, "\n".join(line for line in before.splitlines() if "broken" not in line))


def test_a_reboot_before_the_confirmation_goes_back(stacked: tuple[str, Host]) -> None:
    _stack, host = stacked
    before = files(host)
    other = {"name": "vmbr3", "addresses": ["10.88.0.1/24"]}
    made = call(host, "present", bridges=[*TWO, other], seconds=600)
    assert "vmbr3" in addresses(host)
    host.restart()
    host.wait("! test -e /var/lib/autovibe/network/pending.json")
    host.wait("ip -o -6 address show dev vmbr1 | grep -q fd00:100::1 && ip -o address show dev vmbr0 | grep -q fd00:1:")
    as_before(host, before)
    late = call(host, "confirmed", change=made["change"])
    assert late["error"].endswith("since the host was booted before a confirmation came")


@pytest.fixture(scope="module")
def plain(lab: Lab) -> Iterator[Host]:
    """A host that uses none of the stacks, as one with classic ifupdown: it gets systemd-networkd."""
    lab_host = start(lab, "networkd", "stack-plain")
    lab_host.sh("systemctl disable --now systemd-networkd systemd-networkd.socket")
    yield lab_host
    lab_host.stop()


def test_the_connection_and_the_module_may_die(lab: Lab, plain: Host) -> None:
    """A stack that hangs, a module that is killed while it does, and nobody left but systemd."""
    plain.write("/usr/local/bin/networkctl", "#!/bin/sh\ntouch /run/hangs\nexec sleep 300\n", mode="0755")
    before = files(plain)
    given = json.dumps({"bridges": TWO, "seconds": 10})
    plain.sh(f"setsid python3 /opt/fleet/driver.py present '{given}' >/dev/null 2>&1 & echo $! >/run/driver.pid")
    plain.wait("test -e /run/hangs")
    plain.sh("rm /usr/local/bin/networkctl; kill -KILL $(pgrep -f '[d]river.py present')")
    assert "vmbr1" in files(plain) or files(plain) != before
    plain.wait("! test -e /var/lib/autovibe/network/pending.json", timeout=90)
    assert files(plain) == before
    assert addresses(plain) == {"eth0": [f"{plain.address}/24"]}
    assert plain.run("systemctl", "is-active", "systemd-networkd", check=False).stdout.strip() == "inactive"
    assert reachable(lab, plain)


def test_a_kill_before_the_clock_runs_is_noticed_by_the_next_run(plain: Host) -> None:
    made = call(plain, "present", bridges=TWO, seconds=600)
    plain.sh(f"systemctl stop autovibe-fleet-network-{made['change']}.timer")  # as if it had never been started
    other = call(plain, "present", bridges=[MACHINES])
    assert other["actions"]
    assert set(addresses(plain)) == {"eth0", "vmbr1"}
    assert call(plain, "present", bridges=[])["actions"]
    assert set(addresses(plain)) == {"eth0"}


def test_a_confirmation_must_come_over_another_connection(plain: Host) -> None:
    task = {"autovibe.fleet.network": {"bridges": [MACHINES], "rollback_after": "5m"}, "register": "made"}
    confirm: dict[str, Any] = {"autovibe.fleet.network": {"state": "confirmed", "change": "{{ made.change }}"}}
    plays = [{"hosts": "all", "gather_facts": False, "tasks": [task, confirm]}]
    output = play(plain, plays, check=False)
    assert "expected its confirmation over a new connection, found the one that it was made over" in " ".join(
        output.split()
    )
    undo = [{"hosts": "all", "gather_facts": False, "tasks": [{"autovibe.fleet.network": {"state": "rolled_back"}}]}]
    assert changed(play(plain, undo)) == 1
    assert changed(play(plain, undo)) == 0
    assert set(addresses(plain)) == {"eth0"}


def test_the_management_port_moves_into_a_bridge_with_its_address(lab: Lab, plain: Host) -> None:
    """What is a mistake above is a wish here: the address stays, and so does the connection."""
    moved = {"name": "vmbr0", "ports": ["eth0"], "addresses": [f"{plain.address}/24"]}
    output = role(plain, network_bridges=[moved])
    assert changed(output) == 2
    assert addresses(plain) == {"eth0": [], "vmbr0": [f"{plain.address}/24"]}
    assert reachable(lab, plain)
    assert changed(role(plain, network_bridges=[moved])) == 0


def test_a_new_address_of_the_host_is_tried_and_kept(lab: Lab, plain: Host) -> None:
    address = plain.address.rpartition(".")[0] + ".77"
    moved = {"name": "vmbr0", "ports": ["eth0"], "addresses": [f"{address}/24"]}
    output = role(plain, network_bridges=[moved], network_new_address=address, network_force=True)
    assert "failed=0" in output
    assert addresses(plain)["vmbr0"] == [f"{address}/24"]
    assert plain.sh("cat /var/lib/autovibe/network/last.json").count('"confirmed"') == 1


def test_all_of_it_can_be_removed(plain: Host) -> None:
    output = call(plain, "present", bridges=[], force=True)
    assert output["actions"]
    assert "vmbr0" not in addresses(plain)


def test_bridges_of_others_are_left_alone(new_host: Callable[[str], Host]) -> None:
    host = new_host("debian12")
    host.sh("mkdir -p /opt/fleet")
    host.push(ROOT / "plugins" / "module_utils" / "fleet_core", "/opt/fleet/")
    host.push(ROOT / "plugins" / "module_utils" / "fleet_node", "/opt/fleet/")
    host.write("/opt/fleet/driver.py", DRIVER)
    host.sh("ip link add vmbr1 type bridge && ip address add 192.0.2.1/24 dev vmbr1 && ip link set vmbr1 up")
    refused = call(host, "present", bridges=[MACHINES])
    assert (
        "expected no interface of that name, or one that this module has made, found a bridge of another"
        in (refused["error"])
    )
    assert addresses(host)["vmbr1"] == ["192.0.2.1/24"]
    aware = call(host, "present", bridges=[{"name": "vmbr5", "vlan_aware": True}])
    if host.sh("unshare --net ip link add t type bridge vlan_filtering 1 2>&1 || true"):  # a kernel without
        assert "expected a kernel whose bridges know VLANs" in aware["error"]
    else:
        assert host.sh("cat /sys/class/net/vmbr5/bridge/vlan_filtering") == "1"
