# SPDX-License-Identifier: GPL-3.0-or-later
"""The internet of the lab: which addresses it has, which names lead there, what is served.

The addresses look public, as the fence treats all others as special. They stand on a loopback interface of a namespace
that is connected to the lab's gateway alone, which has no other way out.
"""

from __future__ import annotations

from typing import Any

# Name of a host of the internet: its addresses.
HOSTS: dict[str, tuple[str, str]] = {
    "resolver": ("11.0.53.53", "2fff:53::53"),  # the upstream of the gateway
    "evil-resolver": ("11.66.53.53", "2fff:66::53"),
    "allowed": ("11.1.0.10", "2fff:1::10"),
    "allowed-2": ("11.1.0.11", "2fff:1::11"),  # where the name moves to
    "cdn": ("11.2.0.20", "2fff:2::20"),  # many names, allowed and not, on one address
    "hub": ("11.3.0.30", "2fff:3::30"),
    "doh": ("11.4.0.40", "2fff:4::40"),
    "known-doh": ("1.1.1.1", "2606:4700:4700::1111"),  # an address that the product's own list has
    "forbidden": ("11.66.0.10", "2fff:66::10"),
    "elsewhere": ("11.67.0.10", "2fff:67::10"),  # no rule names it, but the owner of an allowed name leads there
    "unasked": ("11.6.0.60", "2fff:6::60"),  # of an allowed name that no machine asks for
    "other-project": ("11.5.0.50", "2fff:5::50"),
    # What lies behind the gateway's uplink and is special: its neighbours, metadata.
    "neighbour": ("10.9.9.9", "fd00:9::9"),
    "metadata": ("169.254.169.254", "fd00:ec2::254"),
}
NAMES = {address: name for name, both in HOSTS.items() for address in both}

HTTP, TLS, DOT = (80, 8000), (443, 8443), (853,)
ECHO = (22, 25, 3128, 5000, 8080)
UDP = (123, 443, 500, 853, 4789, 5000, 5001)


def _host(name: str) -> dict[str, list[str]]:
    address4, address6 = HOSTS[name]
    return {"A": [address4], "AAAA": [address6]}


def zone() -> dict[str, dict[str, list[str]]]:
    """What the upstream resolver answers at the start of a lab."""
    return {
        "allowed.example": _host("allowed"),
        "*.allowed.example": _host("allowed"),
        "cdn-allowed.example": _host("cdn"),
        "cdn-forbidden.example": _host("cdn"),
        "forbidden.example": _host("forbidden"),
        "*.forbidden.example": {**_host("forbidden"), "TXT": ["stolen goods come back too"]},
        "project.example": _host("other-project"),
        "unasked.example": _host("unasked"),
        "alias.allowed.example": {"CNAME": ["elsewhere.example"]},
        "elsewhere.example": _host("elsewhere"),
        "special.allowed.example": {"A": [HOSTS["neighbour"][0]], "AAAA": [HOSTS["neighbour"][1]]},
        "metadata.allowed.example": {"A": [HOSTS["metadata"][0]], "AAAA": [HOSTS["metadata"][1]]},
        "doh.example": _host("doh"),
        "cloudflare-dns.com": _host("known-doh"),
        "one.one.one.one": _host("known-doh"),
        "hub.example": _host("hub"),
    }


def settings(certificate: str) -> dict[str, Any]:
    """What `servers.Servers` of the internet is given."""
    evil = {"*.example": {"A": [HOSTS["forbidden"][0]], "AAAA": [HOSTS["forbidden"][1]], "TXT": ["evil"]}}
    return {
        "names": NAMES,
        "addresses": list(NAMES),
        "http": HTTP,
        "tls": TLS,
        "dot": DOT,
        "echo": ECHO,
        "udp": UDP,
        "dns": True,
        "zones": {"": zone(), **dict.fromkeys(HOSTS["evil-resolver"], evil)},
        "certificate": certificate,
    }
