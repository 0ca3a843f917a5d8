# SPDX-License-Identifier: GPL-3.0-or-later
"""What machines may do, in each mode: a fence that stops everything would pass all attacks."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.system.network import internet, packets
from tests.system.network.field import FAR_GATEWAY4, GATEWAY4, GATEWAY6, Field

ALL = ("open", "allowlist", "strict", "locked")
FORWARDED = ("open", "allowlist")
PROXIED = ("open", "allowlist", "strict")


@dataclass(frozen=True)
class Use:
    """One row. run: whether it worked. modes: where it must."""

    name: str
    title: str
    run: Callable[[Field], bool]
    modes: tuple[str, ...]


_table: list[Use] = []


def use(*modes: str) -> Callable[[Callable[[Field], bool]], Callable[[Field], bool]]:
    """Put a function into the table."""

    def add(run: Callable[[Field], bool]) -> Callable[[Field], bool]:
        title = " ".join((run.__doc__ or "").split())
        _table.append(Use(run.__name__.replace("_", "-"), title, run, modes))
        return run

    return add


def table() -> tuple[Use, ...]:
    return tuple(_table)


@use(*FORWARDED)
def allowed_name(field: Field) -> bool:
    """Asks for an allowed name and talks TLS with its IPv4 address."""
    answers = field.ask("allowed.example")["answers"]
    return bool(answers) and field.opens("tls", address=answers[0], sni="allowed.example")


@use(*FORWARDED)
def allowed_name_over_ipv6(field: Field) -> bool:
    """Asks for an allowed name and talks TLS with its IPv6 address."""
    answers = field.ask("www.allowed.example", "AAAA")["answers"]
    return bool(answers) and field.opens("tls", address=answers[0], sni="www.allowed.example")


@use(*FORWARDED)
def allowed_name_that_moves(field: Field) -> bool:
    """Follows an allowed name to its new address at once."""
    for host in ("allowed", "allowed-2"):
        field.lab.internet.records({"moving.example": {"A": [internet.HOSTS[host][0]]}})
        if not _leads(field, "moving.example", internet.HOSTS[host][0]):
            return False
        if not field.opens("tls", address=internet.HOSTS[host][0], sni="moving.example"):
            return False
    return True


def _leads(field: Field, name: str, address: str) -> bool:
    """Whether the resolver says so once the last answer's second is over."""
    limit = time.monotonic() + 4
    while time.monotonic() < limit:
        result = field.ask(name)
        if result["outcome"] != "open":
            return False
        if result["answers"] == [address]:
            return True
        time.sleep(0.1)
    return False


@use(*FORWARDED)
def name_of_its_own_project(field: Field) -> bool:
    """A machine of another project reaches what its own project is allowed."""
    answers = field.ask("project.example", machine=field.db)["answers"]
    return bool(answers) and field.opens("tls", machine=field.db, address=answers[0], sni="project.example")


@use(*FORWARDED)
def names_over_tcp_and_ipv6(field: Field) -> bool:
    """Asks the gateway's resolver over TCP, and at its IPv6 address."""
    one = field.ask("allowed.example", transport="tcp")
    other = field.web.probe("dns", server=GATEWAY6, name="allowed.example", kind="AAAA")
    return bool(one.get("answers")) and bool(other.get("answers"))


@use(*FORWARDED)
def allowed_network(field: Field) -> bool:
    """Sends datagrams to a network, port and protocol that a rule names."""
    return field.opens("udp", address=internet.HOSTS["allowed-2"][0], port=5000)


@use(*PROXIED)
def hub(field: Field) -> bool:
    """Asks for the hub by its name and reaches it."""
    answers = field.ask("hub.fleet")["answers"]
    return bool(answers) and field.opens("http", address=answers[0], port=8000)


@use(*PROXIED)
def allowed_name_through_the_proxy(field: Field) -> bool:
    """Reaches an allowed name through the proxy, with CONNECT."""
    return field.proxy("allowed.example:443", sni="allowed.example").get("server") == "allowed"


@use(*PROXIED)
def proxy_over_ipv6(field: Field) -> bool:
    """Reaches an allowed name through the proxy at its IPv6 address."""
    return field.proxy("cdn-allowed.example:443", address=GATEWAY6, sni="cdn-allowed.example").get("server") == "cdn"


@use(*PROXIED)
def hub_from_another_bridge(field: Field) -> bool:
    """A machine of another bridge asks its own gateway for the hub and reaches it."""
    answers = field.far.probe("dns", server=FAR_GATEWAY4, name="hub.fleet").get("answers")
    return bool(answers) and field.opens("http", machine=field.far, address=answers[0], port=8000)


@use(*PROXIED)
def ping_of_the_gateway(field: Field) -> bool:
    """Pings the gateway over both families."""
    return all(field.opens("ping", address=address) for address in (GATEWAY4, GATEWAY6))


@use(*ALL)
def connection_from_the_gateway(field: Field) -> bool:
    """The host itself connects to a machine, as people and the fleet do by SSH."""
    guest = field.web.guest
    return all(
        field.lab.gateway.probe("tcp", address=address, port=8080)["outcome"] == "open"
        for address in (guest.address4, guest.address6)
    )


@use(*ALL)
def address_by_dhcp(field: Field) -> bool:
    """Asks for its address by DHCP and is offered the one that it has."""
    guest = field.web.guest
    number = struct.pack(">I", int.from_bytes(packets.mac(guest.mac)[2:], "big"))
    head = bytes([1, 1, 6, 0]) + number + bytes(20) + packets.mac(guest.mac).ljust(16, b"\0") + bytes(192)
    body = head + b"\x63\x82\x53\x63" + bytes([53, 1, 1, 55, 2, 3, 6, 255])
    discover = packets.udp("0.0.0.0", "255.255.255.255", 68, 67, body)
    packet = packets.ipv4("0.0.0.0", "255.255.255.255", packets.UDP, discover)
    frame = packets.frame(packets.BROADCAST, guest.mac, packets.IPV4, packet)
    wanted = bytes([2, 1, 6, 0]) + number  # an answer, and the address comes 8 bytes later
    offered = (wanted + bytes(8) + packets.address(guest.address4)).hex()

    def answered() -> bool:
        field.send(frame)
        return bool(field.web.namespace.agent.ask("seen", digits=offered))

    return any(field._seen(answered) for _turn in range(6))
