# SPDX-License-Identifier: GPL-3.0-or-later
"""The resolver of a scope for real: dnsmasq, an upstream that remembers every question, and sets of the kernel.

Whether a packet may go where a name leads is for the rules, and tested with them. Here: which names are asked for, by
whom what is learned, and what a guest cannot make of a resolver.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from tests.requirements import require_tool
from tests.system.network import internet, questions
from tests.system.network.lab import Lab, end, wait_for
from tests.system.network.questions import Reply

from fleet_core import egress_dns
from fleet_core.egress_dns_log import FILTERED, REFUSED, SPECIAL, QuestionLog
from fleet_core.fences import Bridge, Fence, Grant, Guest, Hub, Scope, name_set

PORT, SILENT_PORT = 15300, 15301
GATEWAY4, GATEWAY6 = "192.168.100.1", "fd00:100::1"
ALLOWED4, ALLOWED6 = internet.HOSTS["allowed"]
FORBIDDEN4, FORBIDDEN6 = internet.HOSTS["forbidden"]
WEB = Grant("0000aaaa", ("allowed.example",), (), (), "tcp", ((443, 443),))
API = Grant("0000bbbb", ("api.allowed.example",), ("10.9.9.0/24",), (), "tcp", ((8443, 8443),))
SCOPE = Scope("default", "allowlist", (WEB, API), ("denied.allowed.example",), (), (), PORT, True)
HUB = Hub("hub.fleet", ("10.0.1.20", "fd00:1::20"), (8000,))
RECORDS = {
    "api.allowed.example": {"A": ["11.1.0.77"]},
    "mixed.allowed.example": {"A": [ALLOWED4, "10.1.2.3"]},
    "mapped.allowed.example": {"AAAA": ["::ffff:10.1.2.3"]},
    "far.allowed.example": {"A": ["10.7.7.7"]},
    "data.allowed.example": {
        "A": [ALLOWED4],
        "TXT": ["come and get it"],
        "NULL": ["00ff"],
        "MX": ["000a00"],
        "HTTPS": ["0001000004000401" + "010101"],
        "SVCB": ["00010000040004" + "01010101"],
    },
    "denied.allowed.example": {"A": [FORBIDDEN4]},
    "office.allowed.example": {"A": ["10.9.9.9"]},
    "points.allowed.example": {"CNAME": ["forbidden.example"]},
}


@dataclass
class Resolver:
    """A running dnsmasq. port: where it listens."""

    lab: Lab
    process: subprocess.Popen[str]
    log: Path
    port: int = PORT

    def ask(self, name: str, kind: str = "A", server: str = GATEWAY4, machine: str = "web-1", **more: Any) -> Reply:
        with self.lab.machines[machine].namespace.inside():
            return questions.ask(server, self.port, name, kind, **more)

    def memory(self) -> int:
        """Bytes that it holds."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+) kB", text)[0]) * 1024


@contextmanager
def running(lab: Lab, text: str, log: Path, name: str, server: str = GATEWAY4, port: int = PORT) -> Iterator[Resolver]:
    path = lab.folder / name
    path.write_text(text)
    process = lab.gateway.start("dnsmasq", f"--conf-file={path}", stderr=subprocess.PIPE)
    found = Resolver(lab, process, log, port)

    def ready() -> bool:
        assert process.poll() is None, process.stderr and process.stderr.read()
        try:
            return bool(found.ask("hub.fleet", server=server, timeout=1))
        except (TimeoutError, ConnectionRefusedError):
            return False

    try:
        wait_for(ready, "dnsmasq answers")
        yield found
    finally:
        end(process)


def make_sets(lab: Lab, backend: str, grants: tuple[Grant, ...]) -> None:
    names = [
        (family, name)
        for grant in grants
        for family in (4, 6)
        for name in (grant.set_name(family), *(name_set(grant, one, family) for one in grant.names))
    ]
    if backend == "nftables":
        kinds = {4: "ipv4_addr", 6: "ipv6_addr"}
        sets = [f"add set inet fleet_egress {name} {{ type {kinds[family]}; }}" for family, name in names]
        lab.gateway.run("nft", "-f", "-", stdin="\n".join(["add table inet fleet_egress", *sets]) + "\n")
    else:
        kinds = {4: "inet", 6: "inet6"}
        lines = [f"create -exist {name} hash:ip family {kinds[family]}" for family, name in names]
        lab.gateway.run("ipset", "restore", stdin="\n".join(lines) + "\n")


def learned(lab: Lab, backend: str, name: str) -> set[str]:
    if backend == "nftables":
        shown = json.loads(lab.gateway.run("nft", "-j", "list", "set", "inet", "fleet_egress", name).stdout)
        return set(next(row["set"] for row in shown["nftables"] if "set" in row).get("elem", []))
    lines = lab.gateway.run("ipset", "list", name).stdout.partition("Members:\n")[2].split()
    return set(lines)


@pytest.fixture(scope="module", params=["nftables", "iptables"])
def backend(request: pytest.FixtureRequest) -> str:
    tools = {"nftables": "nft", "iptables": "ipset"}
    require_tool("dnsmasq", "to answer names")
    require_tool(tools[request.param], "to hold what names lead to")
    return str(request.param)


def fence_of(lab: Lab) -> Fence:
    return lab.fence(SCOPE, hub=HUB)


@pytest.fixture(scope="module")
def resolver(lab: Lab, backend: str) -> Iterator[Resolver]:
    """dnsmasq as this host has it: its version and options are read from it."""
    make_sets(lab, backend, (WEB, API))
    lab.internet.records(RECORDS, ttl=1)
    found = egress_dns.build(lab.gateway.run("dnsmasq", "--version").stdout)
    egress_dns.require(found, backend)
    log = lab.folder / f"dns-{backend}.log"
    text = egress_dns.resolver(fence_of(lab), SCOPE, backend, str(log), found)
    with running(lab, text, log, f"dns-{backend}.conf") as one:
        yield one


@pytest.mark.parametrize("kind", ["A", "AAAA", "TXT", "NULL", "MX", "SVCB", "HTTPS", "ANY", "SOA", "NS", "CNAME"])
@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_a_name_that_is_not_allowed_is_refused_and_never_leaves(resolver: Resolver, kind: str, tcp: bool) -> None:
    secret = f"exfil-{kind.lower()}-{tcp:d}-{resolver.log.stem}"
    answer = resolver.ask(f"{secret}.forbidden.example", kind, tcp=tcp)
    assert (answer.code, answer.records) == ("REFUSED", ())
    assert not resolver.lab.internet.asked(secret)
    assert not resolver.lab.internet.saw(secret)


@pytest.mark.parametrize("name", ["notallowed.example", "allowed.example.evil.example", "example", "xallowed.example"])
def test_a_name_that_looks_like_an_allowed_one_is_refused(resolver: Resolver, name: str) -> None:
    assert resolver.ask(name).code in ("REFUSED", "NXDOMAIN")
    assert not [query for query in resolver.lab.internet.queries() if query["name"] == name]


@pytest.mark.parametrize("name", ["denied.allowed.example", "below.denied.allowed.example"])
def test_what_is_denied_within_an_allowed_name_is_refused(resolver: Resolver, name: str) -> None:
    assert resolver.ask(name).code == "REFUSED"
    assert not resolver.lab.internet.asked("denied.allowed")


@pytest.mark.parametrize("name", ["allowed.example", "ALLOWED.example", "a.b.c.allowed.example"])
@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
@pytest.mark.parametrize("server", [GATEWAY4, GATEWAY6])
def test_an_allowed_name_is_answered_and_learned(
    resolver: Resolver, backend: str, name: str, tcp: bool, server: str
) -> None:
    assert resolver.ask(name, "A", server, tcp=tcp).values("A") == [ALLOWED4]
    assert resolver.ask(name, "AAAA", server, tcp=tcp).values("AAAA") == [ALLOWED6]
    # Before the answer came, so that the guest's first packet finds it open.
    for family, address in ((4, ALLOWED4), (6, ALLOWED6)):
        assert address in learned(resolver.lab, backend, WEB.set_name(family))
        assert address in learned(resolver.lab, backend, name_set(WEB, "allowed.example", family))


def test_a_name_that_two_grants_cover_is_learned_by_both(resolver: Resolver, backend: str) -> None:
    assert resolver.ask("api.allowed.example").values("A") == ["11.1.0.77"]
    assert "11.1.0.77" in learned(resolver.lab, backend, WEB.set_name(4))
    assert "11.1.0.77" in learned(resolver.lab, backend, API.set_name(4))
    assert learned(resolver.lab, backend, name_set(API, "api.allowed.example", 4)) == {"11.1.0.77"}


def test_a_changed_address_is_learned_with_the_answer_that_has_it(resolver: Resolver, backend: str) -> None:
    moving = f"moving-{backend}.allowed.example"
    resolver.lab.internet.records({moving: {"A": ["11.1.0.91"]}})
    assert resolver.ask(moving).values("A") == ["11.1.0.91"]
    resolver.lab.internet.records({moving: {"A": ["11.1.0.92"]}})
    answer = wait_for(lambda: "11.1.0.92" in resolver.ask(moving).values("A"), "the new address is answered")
    assert answer
    assert {"11.1.0.91", "11.1.0.92"} <= learned(resolver.lab, backend, WEB.set_name(4))


def test_where_an_alias_leads_is_learned_under_the_name_that_was_asked(resolver: Resolver, backend: str) -> None:
    """So do content networks work: the allowed name is an alias of one that nobody has heard of."""
    answer = resolver.ask("points.allowed.example")
    assert answer.values("CNAME") == ["forbidden.example"]
    assert answer.values("A") == [FORBIDDEN4]
    assert FORBIDDEN4 in learned(resolver.lab, backend, name_set(WEB, "allowed.example", 4))
    # The cache knows that name now, and may tell it; nobody is asked.
    resolver.ask("forbidden.example")
    resolver.ask("forbidden.example", "MX")
    assert not [query for query in resolver.lab.internet.queries() if query["name"] == "forbidden.example"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("metadata.allowed.example", "A"), ("metadata.allowed.example", "AAAA"), ("special.allowed.example", "AAAA"),
     ("mixed.allowed.example", "A"), ("mapped.allowed.example", "AAAA"), ("far.allowed.example", "A")],
)  # fmt: skip
@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_an_allowed_name_leads_nowhere_special(
    resolver: Resolver, backend: str, name: str, kind: str, tcp: bool
) -> None:
    answer = resolver.ask(name, kind, tcp=tcp)
    assert (answer.code, answer.records) == ("NXDOMAIN", ())
    special = {"169.254.169.254", "fd00:ec2::254", "10.1.2.3", "::ffff:10.1.2.3", "fd00:9::9", "10.7.7.7"}
    for family in (4, 6):
        assert not special & learned(resolver.lab, backend, WEB.set_name(family))


def test_a_name_may_lead_to_a_special_network_that_is_granted(resolver: Resolver) -> None:
    assert resolver.ask("office.allowed.example").values("A") == ["10.9.9.9"]


@pytest.mark.parametrize("kind", ["TXT", "NULL", "HTTPS", "SVCB"])
@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_records_that_carry_data_or_addresses_past_the_sets_are_not_answered(
    resolver: Resolver, kind: str, tcp: bool
) -> None:
    """The question itself goes to the upstreams: the name is allowed."""
    assert not resolver.ask("data.allowed.example", kind, tcp=tcp).records


def test_the_answer_to_any_has_no_such_records(resolver: Resolver) -> None:
    found = {kind for _name, kind, _data in resolver.ask("data.allowed.example", "ANY").records}
    assert found <= {"A", "AAAA", "MX", "CNAME"}


def test_the_name_of_the_hub_is_answered_here(resolver: Resolver) -> None:
    assert resolver.ask("hub.fleet").values("A") == ["10.0.1.20"]
    assert resolver.ask("hub.fleet", "AAAA").values("AAAA") == ["fd00:1::20"]
    assert resolver.ask("hub.fleet", "TXT").records == ()
    assert resolver.ask("secret.hub.fleet").code == "NXDOMAIN"
    assert not resolver.lab.internet.asked("hub.fleet")


@pytest.mark.parametrize("name", ["10.1.168.192.in-addr.arpa", "1.0.0.127.in-addr.arpa", "8.8.8.8.in-addr.arpa"])
def test_addresses_are_not_looked_up_backwards(resolver: Resolver, name: str) -> None:
    assert resolver.ask(name, "PTR").code in ("NXDOMAIN", "REFUSED")
    assert not resolver.lab.internet.asked("arpa")


def test_nobody_but_guests_is_answered(resolver: Resolver) -> None:
    with resolver.lab.internet.namespace.inside():
        for server in ("11.0.0.2", "2fff::2", GATEWAY4, GATEWAY6):
            with pytest.raises((TimeoutError, OSError)):
                questions.ask(server, PORT, "allowed.example", timeout=0.5)


def test_dnssec_flags_are_no_way_around(resolver: Resolver) -> None:
    answer = resolver.ask("allowed.example", dnssec=True)
    assert (answer.values("A"), answer.authentic) == ([ALLOWED4], False)
    assert resolver.ask("exfil.forbidden.example", dnssec=True).code == "REFUSED"


@pytest.mark.parametrize(("padding", "tcp"), [(1100, False), (60000, True)])
def test_huge_questions_do_no_harm(resolver: Resolver, padding: int, tcp: bool) -> None:
    assert resolver.ask("hub.fleet", padding=padding, tcp=tcp).values("A") == ["10.0.1.20"]


def test_what_is_larger_than_it_reads_is_dropped(resolver: Resolver) -> None:
    with pytest.raises(TimeoutError):
        resolver.ask("allowed.example", padding=4000, timeout=0.5)
    assert resolver.ask("hub.fleet").values("A") == ["10.0.1.20"]


def test_padding_of_a_refused_question_does_not_leave(resolver: Resolver) -> None:
    resolver.lab.internet.forget()
    assert resolver.ask("padded.forbidden.example", padding=900).code == "REFUSED"
    assert not resolver.lab.internet.saw("x" * 64)


def test_garbage_is_survived(resolver: Resolver) -> None:
    import socket

    with (
        resolver.lab.machines["web-1"].namespace.inside(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        for size in (0, 1, 11, 12, 13, 512, 1400):
            sender.sendto(os.urandom(size), (GATEWAY4, PORT))
        sender.sendto(questions.question("allowed.example")[:-3], (GATEWAY4, PORT))
    assert resolver.ask("hub.fleet").values("A") == ["10.0.1.20"]
    assert resolver.process.poll() is None


def test_questions_leave_from_ports_that_nobody_can_guess(resolver: Resolver) -> None:
    resolver.lab.internet.forget()
    for number in range(24):
        resolver.ask(f"port-{number}-{resolver.log.stem}.allowed.example")
    marker = b"port-"
    frames = [
        bytes.fromhex(frame) for frame in resolver.lab.internet.namespace.agent.ask("seen", marker=marker.decode())
    ]
    ports = {int.from_bytes(frame[34:36], "big") for frame in frames}  # behind Ethernet and IPv4
    numbers = {frame[42:44] for frame in frames}
    assert len(frames) >= 24
    assert len(ports) > 18
    assert len(numbers) > 18


def test_sighup_makes_it_ask_and_learn_again(resolver: Resolver, backend: str) -> None:
    name = f"again-{backend}.allowed.example"
    resolver.lab.internet.records({name: {"A": ["11.1.0.93"]}}, ttl=300)
    try:
        assert resolver.ask(name).values("A") == ["11.1.0.93"]
        flush = {"nftables": ["nft", "flush", "set", "inet", "fleet_egress"], "iptables": ["ipset", "flush"]}
        resolver.lab.gateway.run(*flush[backend], WEB.set_name(4))
        assert resolver.ask(name).values("A") == ["11.1.0.93"]  # from the cache: nothing is learned
        assert "11.1.0.93" not in learned(resolver.lab, backend, WEB.set_name(4))
        resolver.process.send_signal(signal.SIGHUP)

        def again() -> bool:
            resolver.ask(name)
            return "11.1.0.93" in learned(resolver.lab, backend, WEB.set_name(4))

        wait_for(again, "the address is learned again")
    finally:
        resolver.lab.internet.records({name: None}, ttl=1)


def test_what_was_refused_is_in_the_log(resolver: Resolver) -> None:
    name = f"told-{resolver.log.stem}.forbidden.example"
    resolver.ask(name)
    resolver.ask("metadata.allowed.example")
    resolver.ask("data.allowed.example", "TXT")

    def told() -> set[tuple[str, str, str]]:
        found = QuestionLog().read(resolver.log.read_text(errors="replace").splitlines())
        return {(one.client, one.name, one.reason) for one in found}

    expected = {
        ("192.168.100.10", name, REFUSED),
        ("192.168.100.10", "metadata.allowed.example", SPECIAL),
        ("192.168.100.10", "data.allowed.example", FILTERED),
    }
    wait_for(lambda: expected <= told(), "the log has all of them")


def test_a_log_that_is_cut_off_goes_on_at_its_beginning(resolver: Resolver) -> None:
    os.truncate(resolver.log, 0)
    resolver.ask("after-the-cut.forbidden.example")
    wait_for(lambda: b"after-the-cut" in resolver.log.read_bytes(), "the question is written")
    assert not resolver.log.read_bytes().startswith(b"\0")


def _hub(resolver: Resolver, machine: str) -> list[str]:
    try:
        return resolver.ask("hub.fleet", machine=machine, timeout=0.5).values("A")
    except TimeoutError:
        return []


def test_a_flood_of_questions_is_bounded(lab: Lab, backend: str) -> None:
    """Its upstream says nothing, so that all of them wait."""
    scope = replace(SCOPE, resolver_port=SILENT_PORT)
    fence = fence_of(lab).evolve(upstreams=("11.0.99.99",))
    log = lab.folder / "silent.log"
    text = egress_dns.resolver(fence, scope, backend, str(log))
    with running(lab, text, log, "silent.conf", port=SILENT_PORT) as silent:
        lab.internet.forget()
        before = silent.memory()
        with lab.machines["web-1"].namespace.inside():
            questions.flood(GATEWAY4, SILENT_PORT, [f"flood{number}.allowed.example" for number in range(3000)])
        # The others are answered as if nothing was.
        wait_for(lambda: _hub(silent, "web-2"), "another machine is answered", 5)
        went = len(lab.internet.saw("flood"))
        assert 0 < went <= 2 * egress_dns.FORWARDED_AT_ONCE
        assert silent.memory() - before < 16 << 20


def test_an_open_scope_asks_for_all_but_other_resolvers(lab: Lab, backend: str) -> None:
    scope = replace(SCOPE, mode="open", resolver_port=15303)
    make_sets(lab, backend, (WEB, API))
    lab.internet.records(RECORDS, ttl=1)
    log = lab.folder / "open.log"
    text = egress_dns.resolver(fence_of(lab).evolve(scopes=(scope,)), scope, backend, str(log))
    with running(lab, text, log, "open.conf", port=15303) as found:
        assert found.ask("forbidden.example").values("A") == [FORBIDDEN4]
        assert found.ask("allowed.example").values("A") == [ALLOWED4]
        assert ALLOWED4 in learned(lab, backend, WEB.set_name(4))
        lab.internet.forget()
        for name in ("cloudflare-dns.com", "dns.google", "use-application-dns.net", "denied.allowed.example"):
            assert found.ask(name).code == "NXDOMAIN", name
            assert not lab.internet.asked(name)
        assert found.ask("metadata.allowed.example").code == "NXDOMAIN"
        assert not found.ask("data.allowed.example", "TXT").records


def test_a_strict_scope_knows_the_hub_only(lab: Lab, backend: str) -> None:
    scope = replace(SCOPE, mode="strict", resolver_port=15304)
    log = lab.folder / "strict.log"
    text = egress_dns.resolver(fence_of(lab).evolve(scopes=(scope,)), scope, backend, str(log))
    with running(lab, text, log, "strict.conf", port=15304) as found:
        lab.internet.forget()
        assert found.ask("hub.fleet").values("A") == ["10.0.1.20"]
        for name in ("allowed.example", "forbidden.example", "secret.allowed.example"):
            assert found.ask(name).code == "REFUSED"
        assert lab.internet.queries() == []


def test_it_is_no_longer_root_once_it_runs(resolver: Resolver) -> None:
    status = Path(f"/proc/{resolver.process.pid}/status").read_text()
    assert re.findall(r"^Uid:\s+(\d+)", status, re.MULTILINE) != ["0"]
    kept = int(re.findall(r"^CapEff:\s+(\w+)", status, re.MULTILINE)[0], 16)
    assert kept & ~(1 << 12 | 1 << 13 | 1 << 10) == 0  # to change sets, and what binding to interfaces needs


def test_a_resolver_waits_for_its_bridge(lab: Lab, backend: str) -> None:
    bridge = Bridge("later0", "192.168.109.1/24", "fd00:109::1/64")
    guest = Guest("later-1", "later0", "52:54:00:00:09:10", "192.168.109.10")
    fence = Fence((bridge,), (guest,), (SCOPE,), hub=HUB, upstreams=("11.0.53.53",))
    path = lab.folder / "later.conf"
    path.write_text(
        egress_dns.resolver(fence, replace(SCOPE, resolver_port=15302), backend, str(lab.folder / "later.log"))
    )
    process = lab.gateway.start("dnsmasq", f"--conf-file={path}")
    try:
        wait_for((lab.folder / "later.log").exists, "dnsmasq starts")
        lab.gateway.ip("link add name later0 type bridge", "addr add 192.168.109.1/24 dev later0", "link set later0 up")

        def answers() -> bool:
            with lab.gateway.inside():
                try:
                    return bool(questions.ask("192.168.109.1", 15302, "hub.fleet", timeout=0.5))
                except (TimeoutError, ConnectionRefusedError):
                    return False

        # From this host itself, which is no guest of the bridge, there is no answer: it is enough that it listens.
        wait_for(
            lambda: answers() or "192.168.109.1:15302" in lab.gateway.run("ss", "-lun").stdout,
            "it listens on the bridge",
        )
    finally:
        end(process)
        lab.gateway.run("ip", "link", "del", "later0", check=False)


@pytest.fixture(scope="module")
def dhcp(lab: Lab) -> Iterator[None]:
    require_tool("dnsmasq", "to give out addresses")
    path = lab.folder / "dhcp.conf"
    fence = fence_of(lab)
    path.write_text(egress_dns.dhcp(fence, fence.bridges[0], str(lab.folder / "leases")))
    process = lab.gateway.start("dnsmasq", f"--conf-file={path}", stderr=subprocess.PIPE)
    try:
        yield
        assert process.poll() is None
    finally:
        end(process)


def inside(lab: Lab, ask: Callable[[], object]) -> object:
    with lab.machines["web-1"].namespace.inside():
        return ask()


def test_a_guest_gets_its_own_address(lab: Lab, dhcp: None) -> None:
    guest = lab.machines["web-1"].guest
    assert inside(lab, lambda: questions.discover(guest.mac, 5)) == guest.address4


def test_a_stranger_gets_no_address(lab: Lab, dhcp: None) -> None:
    assert inside(lab, lambda: questions.discover(lab.machines["web-1"].guest.mac, 5))
    assert inside(lab, lambda: questions.discover("52:54:00:66:66:66", 1.5)) == ""


def test_a_router_is_advertised_but_no_network_to_make_addresses_of(lab: Lab, dhcp: None) -> None:
    answer = inside(lab, lambda: questions.solicit(8))
    assert isinstance(answer, bytes)
    assert answer[:1] == b"\x86"
    assert answer[5] & 0x80  # addresses come by DHCPv6
    options, at = {}, 16
    while at < len(answer):
        options[answer[at]] = answer[at : at + 8 * answer[at + 1]]
        at += 8 * answer[at + 1]
    assert not options.get(3, bytes(4))[3] & 0x40  # of a prefix, if there is one: not autonomous
