# SPDX-License-Identifier: GPL-3.0-or-later
"""The explicit proxy as a way out: other names, other ports, addresses, names that lie."""

from __future__ import annotations

import ipaddress

from tests.system.network import internet
from tests.system.network.attacks import attack
from tests.system.network.field import GATEWAY4, GATEWAY6, PROXY_PORT, Field

FORBIDDEN4, FORBIDDEN6 = internet.HOSTS["forbidden"]
PROXY = "the proxy opens what the scope's grants name, by name and port"
ANY = {"open": "the mode opens the internet, through the proxy as well"}


def _through(field: Field, *targets: str, **values: str | None) -> bool:
    """Whether a server behind the proxy answered to any of these. sni: as in the probe; without it TLS has none."""
    given = {"address": GATEWAY4, "port": PROXY_PORT, "sni": "", **values}
    waiting = [field.web.begin("proxy", target=target, **given) for target in targets]
    return any("server" in future.result(timeout=60) for future in waiting)


def _through_bare(field: Field, *targets: str) -> bool:
    """Whether a server that speaks first, without TLS, did so."""
    return _through(field, *targets, sni=None)


def _fetched(field: Field, *urls: str, method: str = "GET", **values: str) -> bool:
    """Whether the proxy answered to a plain request with more than an error."""
    given = {"address": GATEWAY4, "port": PROXY_PORT, "method": method, **values}
    waiting = [field.web.begin("proxy", target=url, **given) for url in urls]
    return any(future.result(timeout=60).get("status") == 200 for future in waiting)


@attack(PROXY, ANY, bare=False)
def name_that_no_rule_allows(field: Field) -> bool:
    """Asks the proxy for a connection to a name that no rule allows."""
    return _through(field, "forbidden.example:443", sni="forbidden.example")


@attack(PROXY, ANY, bare=False)
def name_of_another_project(field: Field) -> bool:
    """Asks the proxy for a name that another project's machines may reach."""
    return _through(field, "project.example:443", sni="project.example")


@attack("a denied name is closed in every mode, below an allowed one too", bare=False)
def denied_name_through_the_proxy(field: Field) -> bool:
    """Asks the proxy for a denied name in capitals and with a dot at its end."""
    targets = ("DENIED.allowed.example:443", "denied.allowed.example.:443", "x.Denied.allowed.example:443")
    return _through(field, *targets, sni="denied.allowed.example")


@attack("the proxy looks at the SNI and ends a tunnel whose name is not allowed", ANY, bare=False)
def another_sni_in_the_tunnel(field: Field) -> bool:
    """Asks the proxy for an allowed name and says another in the SNI inside."""
    return _through(field, "cdn-allowed.example:443", sni="cdn-forbidden.example")


INSIDE = dict.fromkeys(
    ("open", "allowlist", "strict"),
    "the Host header is inside TLS, which squid does not open; mitmproxy does, and compares",
)


@attack("no mode but locked closes it with squid", INSIDE, bare=False)
def another_host_in_the_tunnel(field: Field) -> bool:
    """Says the allowed name in CONNECT and SNI, and another in the Host header inside TLS (domain fronting)."""
    result = field.proxy("cdn-allowed.example:443", sni="cdn-allowed.example", host="cdn-forbidden.example")
    return bool(result.get("host") == "cdn-forbidden.example")


@attack("tunnels go to names; addresses are open only where a rule names their network", ANY, bare=False)
def address_through_the_proxy(field: Field) -> bool:
    """Asks the proxy for an address that no rule names, in both families."""
    return _through(field, f"{FORBIDDEN4}:443", f"[{FORBIDDEN6}]:443")


@attack("tunnels go to names; a number is not an allowed name", ANY, bare=False)
def address_in_disguise_through_the_proxy(field: Field) -> bool:
    """Writes the address as one number, in hexadecimal digits, in octal digits, or as an IPv6 one."""
    written = ("188874762:443", "0x0b42000a:443", "013.0102.0.012:443", f"[::ffff:{FORBIDDEN4}]:443")
    return _through(field, *written)


@attack("the grant names ports; a domain without ports is TCP 443", ANY, bare=False)
def another_port_through_the_proxy(field: Field) -> bool:
    """Asks the proxy for port 22 and 25 of an allowed name."""
    return _through_bare(field, "allowed.example:22", "allowed.example:25")


@attack("the proxy does not connect to special networks, whatever name leads there", bare=False)
def special_network_through_the_proxy(field: Field) -> bool:
    """Asks the proxy for allowed names that lead to a neighbour, to metadata, and to the gateway itself."""
    field.lab.internet.records({"me.allowed.example": {"A": ["127.0.0.1", GATEWAY4], "AAAA": ["::1", GATEWAY6]}})
    names = ("special.allowed.example", "metadata.allowed.example", "me.allowed.example")
    hosts = ("me.allowed.example", "localhost", "127.0.0.1", "[::1]", GATEWAY4)
    return _through(field, *(f"{name}:443" for name in names)) or _through_bare(field, *(f"{h}:8006" for h in hosts))


@attack("the proxy does not connect to special networks, whatever name leads there", bare=False)
def name_with_one_special_address(field: Field) -> bool:
    """Gives an allowed name a public and a private address, so that the proxy tries one after the other."""
    both = {"A": [internet.HOSTS["allowed"][0], internet.HOSTS["neighbour"][0]]}
    names = [f"both{number}.allowed.example" for number in range(6)]
    field.lab.internet.records(dict.fromkeys(names, both))
    given = {"address": GATEWAY4, "port": PROXY_PORT, "sni": names[0]}
    waiting = [field.web.begin("proxy", target=f"{name}:443", **given) for name in names]
    return any(future.result(timeout=60).get("server") == "neighbour" for future in waiting)


@attack("the proxy does not connect to special networks, whatever name leads there", bare=False)
def plain_request_to_a_special_network(field: Field) -> bool:
    """Fetches metadata and a neighbour's page through the proxy with plain requests."""
    urls = (
        "http://169.254.169.254/",
        "http://[fd00:ec2::254]/",
        "http://metadata.allowed.example/",
        "http://10.9.9.9/",
    )
    return _fetched(field, *urls)


@attack(PROXY, ANY, bare=False)
def plain_request_through_the_proxy(field: Field) -> bool:
    """Asks the proxy with plain HTTP for a name that no rule allows, and for an allowed one by another name's Host."""
    url = "http://forbidden.example/"
    return _fetched(field, url) or _fetched(field, url, host="allowed.example")


@attack("the proxy's own pages are closed", bare=False)
def management_of_the_proxy(field: Field) -> bool:
    """Asks the proxy for its management pages."""
    urls = (
        f"http://{GATEWAY4}:{PROXY_PORT}/squid-internal-mgr/menu",
        f"http://localhost:{PROXY_PORT}/squid-internal-mgr/config",
    )
    if _fetched(field, *urls):
        return True
    direct = field.web.probe("http", address=GATEWAY4, port=PROXY_PORT, path="/squid-internal-mgr/menu")
    return bool(direct.get("status") == 200)


@attack("the scope comes from the machine's address, which it cannot choose", ANY, bare=False)
def proxy_of_another_family(field: Field) -> bool:
    """Asks the proxy over IPv6 for what it would not get over IPv4."""
    return _through(field, "forbidden.example:443", address=GATEWAY6, sni="forbidden.example")


@attack("mode strict forwards nothing: what ignores the proxy gets nowhere", bare=False)
def squid_protocols(field: Field) -> bool:
    """Asks the proxy for other schemes and methods: FTP, cache objects, TRACE and PURGE."""
    tries = (
        ("ftp://forbidden.example/", "GET"),
        ("cache_object://localhost/menu", "GET"),
        ("http://127.0.0.1/", "TRACE"),
        ("http://127.0.0.1/", "PURGE"),
    )
    return any(_fetched(field, url, method=method) for url, method in tries)


@attack("the proxy looks a name up only after its rules have allowed it", ANY, bare=False)
def data_in_names_for_the_proxy(field: Field) -> bool:
    """Carries data in names that no rule allows, which the proxy would have to look up to refuse them by address."""
    marker = field.marker()
    field.proxy(f"{marker}.forbidden.example:443", sni=f"{marker}.forbidden.example")
    field.proxy(f"http://{marker}.forbidden.example/", method="GET")
    field.proxy("allowed.example:443", sni=f"{marker}.forbidden.example")
    return field.asked(marker)


LOOKED_UP = "the proxy asks the name servers of an allowed domain for names below it; name hosts instead of domains"


@attack("in mode locked there is no proxy", dict.fromkeys(("open", "allowlist", "strict"), LOOKED_UP), bare=False)
def data_in_allowed_names_for_the_proxy(field: Field) -> bool:
    """Carries data in names below an allowed one, which the proxy looks up."""
    marker = field.marker()
    field.proxy(f"{marker}.allowed.example:443", sni=f"{marker}.allowed.example")
    return field.asked(marker)


@attack("the proxy does not ask for the name of an address", bare=False)
def data_in_addresses_for_the_proxy(field: Field) -> bool:
    """Carries data in addresses, whose names the proxy would look up (reverse DNS) to compare them with its rules."""
    digits = field.marker()[1:13]
    target = f"2fff:66:{digits[0:4]}:{digits[4:8]}:{digits[8:12]}::1"
    field.proxy(f"[{target}]:443", sni="")
    field.proxy(f"http://[{target}]/", method="GET")
    return field.asked(".".join(reversed(ipaddress.IPv6Address(target).exploded.replace(":", "")[:24])))
