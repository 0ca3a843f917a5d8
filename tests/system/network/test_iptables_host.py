# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend iptables on its host: beside the rules of others, at boot, after somebody changed it, and removed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.system.network.iptables import (
    HOSTS,
    LEARNED,
    Gateway,
    fence_of,
    in_both_flavors,
    iptables_on,
    outcome,
    scope,
)
from tests.system.network.lab import Lab

from fleet_core.errors import ProcessFailed


@pytest.fixture(scope="module")
def gateway(request: pytest.FixtureRequest, lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """With iptables of nf_tables, or in both flavors where a test says so."""
    flavor = getattr(request, "param", "nft")
    with iptables_on(lab, flavor, tmp_path_factory.mktemp(flavor)) as found:
        yield found


@in_both_flavors
def test_what_others_accept_before_us_stays_closed_and_ours_come_back_before_it(gateway: Gateway) -> None:
    lab = gateway.lab
    fence = fence_of(lab, scope("allowlist"))
    gateway.load(fence)
    gateway.learn(LEARNED)
    tool = gateway.backend.tool(4)
    lab.gateway.run(tool, "-N", "DOCKER-USER")
    lab.gateway.run(tool, "-A", "DOCKER-USER", "-j", "ACCEPT")
    for chain in ("INPUT", "FORWARD"):
        lab.gateway.run(tool, "-I", chain, "-j", "DOCKER-USER")
    try:
        assert outcome(lab, "tcp", HOSTS["forbidden"][0], port=22) == "timeout"
        assert outcome(lab, "tcp", "192.168.100.1", port=22) == "timeout"
        assert lab.internet.probe("tcp", address="192.168.100.10", port=8080, timeout=0.4)["outcome"] == "timeout"
        with lab.gateway.inside():
            assert not gateway.backend.loaded(fence)
        gateway.load(fence)
        assert outcome(lab, "tcp", HOSTS["forbidden"][0], port=22) == "refused"
        rules = [line for line in lab.gateway.run(tool, "-S", "FORWARD").stdout.splitlines() if line.startswith("-A")]
        assert rules == ["-A FORWARD -j FLEET-JUDGED", "-A FORWARD -j DOCKER-USER"]
    finally:
        for chain in ("INPUT", "FORWARD"):
            lab.gateway.run(tool, "-D", chain, "-j", "DOCKER-USER")
        lab.gateway.run(tool, "-F", "DOCKER-USER")
        lab.gateway.run(tool, "-X", "DOCKER-USER")


@in_both_flavors
def test_a_policy_of_others_to_drop_what_is_forwarded_closes_nothing_that_is_open(gateway: Gateway) -> None:
    """As Docker sets it."""
    lab = gateway.lab
    gateway.load(fence_of(lab, scope("allowlist")))
    gateway.learn(LEARNED)
    tool = gateway.backend.tool(4)
    lab.gateway.run(tool, "-P", "FORWARD", "DROP")
    try:
        assert outcome(lab, "tcp", HOSTS["allowed"][0], port=22) == "open"
    finally:
        lab.gateway.run(tool, "-P", "FORWARD", "ACCEPT")


@pytest.mark.parametrize(
    "drift",
    [
        "ip6tables{} -t mangle -F FLEET-OUT",
        "iptables{} -t mangle -D INPUT -j FLEET-INPUT",
        "iptables{} -F",
        "iptables{} -t nat -I FLEET-NAT -j ACCEPT",
        "iptables{} -I FORWARD -j FLEET-JUDGED",
        "ipset add fleet_special_4 11.0.0.0/8",
        "ipset del fleet_local_4 192.168.100.0/24",
        "nft flush chain bridge fleet_frames between",
        "nft delete table bridge fleet_frames",
    ],
)
def test_drift_is_seen(gateway: Gateway, drift: str) -> None:
    fence = fence_of(gateway.lab, scope("allowlist"))
    gateway.load(fence)
    gateway.lab.gateway.run(*drift.format(gateway.backend.tool(4).removeprefix("iptables")).split())
    with gateway.lab.gateway.inside():
        assert not gateway.backend.loaded(fence)
    gateway.load(fence)


@in_both_flavors
def test_boot_needs_neither_bridges_nor_python_and_may_come_twice(gateway: Gateway) -> None:
    fence = fence_of(gateway.lab, scope("allowlist"))
    gateway.write(fence)
    script = gateway.folder / "boot.sh"
    script.write_text(gateway.backend.boot(str(gateway.folder)), encoding="utf-8")
    empty = gateway.lab.namespaces.add("empty")
    assert "Error" not in empty.run("sh", str(script)).stderr
    empty.run("sh", str(script))
    with empty.inside():
        assert gateway.backend.loaded(fence)
        gateway.backend.check(gateway.folder)
    empty.remove()


@in_both_flavors
def test_removal_leaves_nothing_of_ours_and_all_of_others(gateway: Gateway) -> None:
    lab = gateway.lab
    tool = gateway.backend.tool(4)
    with lab.gateway.inside():
        gateway.backend.remove()
        gateway.backend.remove()
    lab.gateway.run("ipset", "create", "other", "hash:ip")
    lab.gateway.run(tool, "-A", "FORWARD", "-s", "10.1.1.1", "-j", "DROP")
    before = everything(lab, tool)
    gateway.load(fence_of(lab, scope("allowlist")))
    with lab.gateway.inside():
        gateway.backend.remove()
    after = everything(lab, tool)
    lab.gateway.run(tool, "-D", "FORWARD", "-s", "10.1.1.1", "-j", "DROP")
    lab.gateway.run("ipset", "destroy", "other")
    assert "fleet" not in after.lower()
    assert set(before.splitlines()) <= set(after.splitlines())


def everything(lab: Lab, tool: str) -> str:
    commands = (
        [f"{tool}-save"],
        [f"{tool.replace('ip', 'ip6')}-save"],
        ["ipset", "list", "-n"],
        ["nft", "list", "ruleset"],
    )
    texts = [lab.gateway.run(*argv).stdout for argv in commands]
    return "\n".join(line for text in texts for line in text.splitlines() if not line.startswith("#"))


def test_rules_that_cannot_be_loaded_are_refused_before_anything_changes(gateway: Gateway) -> None:
    fence = fence_of(gateway.lab, scope("allowlist"))
    gateway.load(fence)
    rules = gateway.folder / "egress.iptables"
    rules.write_text(
        rules.read_text(encoding="utf-8").replace("--ctstate INVALID", "--ctstate NONSENSE"), encoding="utf-8"
    )
    with gateway.lab.gateway.inside():
        with pytest.raises(ProcessFailed, match="NONSENSE"):
            gateway.backend.check(gateway.folder)
        assert gateway.backend.loaded(fence)


def test_a_load_that_was_killed_is_repaired_by_the_next(gateway: Gateway) -> None:
    """Wherever it ended: only the sets, the frames too, or one family of the rules."""
    lab = gateway.lab
    fence = fence_of(lab, scope("allowlist"))
    other = fence_of(lab, scope("strict"))
    gateway.load(other)
    gateway.write(fence)
    sets = (gateway.folder / "egress.ipset").read_text(encoding="utf-8").splitlines()
    for end in (line for line, text in enumerate(sets) if text.startswith("flush")):
        lab.gateway.run("ipset", "restore", stdin="\n".join(sets[: end + 1]) + "\n")
    gateway.load(fence)
    assert "fleet_t" not in lab.gateway.run("ipset", "list", "-n").stdout
    lab.gateway.run("nft", "-f", str(gateway.folder / "egress-bridge.nft"))
    lab.gateway.run(gateway.backend.tool(4, "restore"), "--noflush", stdin="*mangle\n:FLEET-OUT - [0:0]\nCOMMIT\n")
    gateway.load(other)


def test_a_kernel_that_has_all_lacks_nothing(gateway: Gateway) -> None:
    with gateway.lab.gateway.inside():
        assert gateway.backend.lacking() == ""
