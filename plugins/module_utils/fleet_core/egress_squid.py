# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration of squid as the explicit proxy of a fence: the audited way out, by name.

A guest reaches what the grants of its scope name, on their ports, by CONNECT or plain HTTP. Names are compared before
they are resolved, so that a name that is not allowed never reaches a resolver. An allowed name must not lead to a
special address. Where squid can do it, the name in the TLS greeting (SNI) must belong to the same allowed name as the
one in CONNECT. What is inside TLS stays unseen: another Host header in there is for mitmproxy.

A grant that ends is one that the next configuration does not have: squid's acl "time" knows weekdays, not dates.

Sources: squid.conf.documented of Squid 5 and 6.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

from .egress_names import widest
from .egress_networks import granted_networks, special_networks
from .egress_presets import DOH4, DOH6, DOH_NAMES
from .errors import Unavailable
from .fences import Fence, Grant, Ports, Scope

# Servers speak first there, or what is spoken is no TLS: no greeting could be looked at.
PLAIN_PORTS = (21, 22, 25, 110, 143, 587, 3306, 5432, 6379, 9418)
# What else is spoken there is HTTP, whose Host header would choose another site: no tunnel for it.
WEB_PORTS = (80, 443, 8000, 8008, 8080, 8443, 8888)
CONNECTIONS = 512  # of one guest at once
NAMES_A_LINE = 20
# Up to so many different names, the name in the greeting must belong to the same one as that of CONNECT; with more of
# them, to any of the scope's: squid looks for an acl along all of them, and stands still while it reads.
EXACT_NAMES = 2000
_VERSION = re.compile(r"^Squid Cache: Version (?P<major>\d+)\.(?P<minor>\d+)", re.MULTILINE)
# URL-quoted where a guest chose the words, so that each line stays JSON.
_LOG = (
    '{"time":%ts.%03tu,"source":"%>a","method":"%#rm","host":"%#>rd","port":"%>rP","sni":"%#ssl::>sni",'
    '"tls":"%ssl::bump_mode","verdict":"%Ss","status":%>Hs,"address":"%<a","received":%>st,"sent":%<st,"milliseconds":%tr}'
)


@dataclass(frozen=True)
class Build:
    """A squid: its version and whether it can look at TLS greetings (the package squid-openssl of Debian)."""

    version: tuple[int, int]
    looks_at_tls: bool


@dataclass(frozen=True)
class Settings:
    """How this host runs squid.

    user: whom squid becomes when root starts it. certificate: a PEM file with key and certificate that no guest ever
    sees; squid wants one before it looks at TLS greetings; empty where it cannot. See certificate_command().
    """

    user: str = "proxy"
    certificate: str = ""


def build(text: str) -> Build:
    """Read what `squid -v` prints. Raises Unavailable for the words of another program."""
    version = _VERSION.search(text)
    if not version:
        first = text.strip().partition("\n")[0]
        raise Unavailable(f'squid: expected "Squid Cache: Version N.N", found "{first}"')
    return Build((int(version["major"]), int(version["minor"])), "--with-openssl" in text)


def certificate_command(path: str) -> list[str]:
    """Return the command that makes Settings.certificate; the file must be made with mode 0600."""
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    return [*made, "-days", "3650", "-subj", "/CN=not allowed by the network policy", "-keyout", path, "-out", path]


def configuration(fence: Fence, folder: str, settings: Settings = Settings()) -> str:
    """Return squid.conf. folder: of proxy.log (JSON lines) and squid.log; settings.user may write there."""
    lines = [
        "# The way out of the guests. Written by fleet: changes are lost.",
        *_ports(fence, settings),
        *_process(folder, settings),
        *_resolving(fence),
        *_bounds(),
        *_silence(),
        *_beginning(fence),
        *(line for scope in fence.scopes for line in _scope(fence, scope)),
        "http_access deny all",
        *(_greetings(fence) if settings.certificate else []),
    ]
    return "\n".join(lines) + "\n"


def _ports(fence: Fence, settings: Settings) -> list[str]:
    bump = f" ssl-bump tls-cert={settings.certificate} generate-host-certificates=off" if settings.certificate else ""
    fours = [str(ipaddress.ip_interface(bridge.address4).ip) for bridge in fence.bridges if bridge.address4]
    sixes = [f"[{ipaddress.ip_interface(bridge.address6).ip}]" for bridge in fence.bridges if bridge.address6]
    return [f"http_port {address}:{fence.proxy.port}{bump}" for address in [*fours, *sixes]]


def _process(folder: str, settings: Settings) -> list[str]:
    return [
        f"cache_effective_user {settings.user}",
        # Squid writes it as root and follows links, which its user could lay in the folder. Nothing of ours reads it.
        "pid_filename none",
        f"cache_log {folder}/squid.log",
        f"logformat fleet {_LOG}",
        f"access_log stdio:{folder}/proxy.log logformat=fleet",
        "logfile_rotate 0",
        f"coredump_dir {folder}",
        "netdb_filename none",
        "pinger_enable off",
        "shutdown_lifetime 1 second",
        "visible_hostname fleet-proxy",
    ]


def _resolving(fence: Fence) -> list[str]:
    """Squid asks resolvers on port 53 only; upstreams elsewhere leave it with those of this host."""
    usable = [upstream.partition("#")[0] for upstream in fence.upstreams if upstream.partition("#")[2] in ("", "53")]
    return [
        *([f"dns_nameservers {' '.join(usable)}"] if usable else []),
        "dns_defnames off",
        "hosts_file none",
        "positive_dns_ttl 5 minutes",
        # Also how long an answer is kept at least: the address that was looked at is the one that is connected to.
        "negative_dns_ttl 30 seconds",
    ]


def _bounds() -> list[str]:
    """No cache, and as much memory and time as a guest can make squid spend."""
    return [
        "cache deny all",
        "cache_mem 0 MB",
        "maximum_object_size_in_memory 0 KB",
        "memory_pools off",
        "ipcache_size 4096",
        "fqdncache_size 16",
        "request_header_max_size 64 KB",
        "reply_header_max_size 64 KB",
        "client_lifetime 24 hours",
        "client_idle_pconn_timeout 1 minute",
        "request_timeout 30 seconds",
        "connect_timeout 15 seconds",
        "max_filedescriptors 16384",
    ]


def _silence() -> list[str]:
    """Say nothing about this host, to servers or to guests."""
    return [
        "via off",
        "forwarded_for delete",
        "follow_x_forwarded_for deny all",
        "httpd_suppress_version_string on",
        'url_rewrite_extras "%>a"',  # what it is unset looks up the names of guests
        'store_id_extras "%>a"',
        *(f"request_header_access {name} deny all" for name in ("Via", "X-Forwarded-For", "Proxy-Authorization")),
        *(f"reply_header_access {name} deny all" for name in ("Via", "X-Cache", "X-Cache-Lookup")),
        "cachemgr_passwd disable all",
        "global_internal_static off",
        "host_verify_strict on",
    ]


def _beginning(fence: Fence) -> list[str]:
    opened = any(scope.mode == "open" for scope in fence.scopes)
    return [
        *(_domains("encrypted_dns", DOH_NAMES) if opened else []),
        *(_acl("encrypted_dns_at dst", (*DOH4, *DOH6)) if opened else []),
        "acl connect method CONNECT",
        "acl foreign proto FTP URN WHOIS HTTPS",
        f"acl crowd maxconn {CONNECTIONS}",
        "acl names_elsewhere port 53 853",
        "http_access deny manager",
        "http_access deny foreign !connect",
        "http_access deny crowd",
    ]


def _scope(fence: Fence, scope: Scope) -> list[str]:
    """What the guests of a scope may reach. The special addresses come last: only then squid resolves the name."""
    guests = fence.guests_of(scope.name)
    addresses = [address for guest in guests for address in (guest.address4, guest.address6) if address]
    if scope.mode == "locked" or not addresses:
        return []
    ours = f"s_{_digits(scope.name)}"
    lines = [f"# {scope.name}: {scope.mode}", *_acl(f"{ours} src", addresses)]
    if scope.denied_names:
        lines += [*_domains(f"{ours}_no", scope.denied_names), f"http_access deny {ours} {ours}_no"]
    lines += _acl(f"{ours}_special dst", special_networks(fence, scope))
    grants = _of_tcp(scope)
    for grant in grants:
        lines += _grant(fence, scope, grant)
    lines += _leading(fence, scope, grants)
    if scope.mode == "open":
        lines.append(f"http_access allow {ours} !names_elsewhere !encrypted_dns !{ours}_special !encrypted_dns_at")
    return lines


def _grant(fence: Fence, scope: Scope, grant: Grant) -> list[str]:
    ours = f"s_{_digits(scope.name)}"
    lines = _acl(f"p_{grant.key} port", _ranges(grant.ports))
    if grant.names:
        lines += _domains(f"n_{grant.key}", grant.names)
        lines.append(f"http_access allow {ours} n_{grant.key}{_there(grant)} !{ours}_special")
    networks = granted_networks(fence, scope, grant)
    if networks:
        lines += _acl(f"a_{grant.key} dst -n", networks)
        lines.append(f"http_access allow {ours} a_{grant.key}{_there(grant)}")
    return lines


def _there(grant: Grant) -> str:
    return f" p_{grant.key}" if grant.ports else ""


def _leading(fence: Fence, scope: Scope, grants: list[Grant]) -> list[str]:
    """An allowed name may lead to special addresses that a grant opens, on the ports of that grant."""
    ours = f"s_{_digits(scope.name)}"
    networks = {grant: granted_networks(fence, scope, grant) for grant in grants}
    names = {name for grant in grants for name in grant.names}
    if not names or not any(networks.values()):
        return []
    closed = special_networks(fence, scope, [network for each in networks.values() for network in each])
    lines = [*_domains(f"{ours}_names", names), *_acl(f"{ours}_closed dst", closed)]
    for grant in (grant for grant in grants if networks[grant]):
        lines += _acl(f"l_{grant.key} dst", networks[grant])
        lines.append(f"http_access allow {ours} {ours}_names{_there(grant)} l_{grant.key} !{ours}_closed")
    return lines


def _greetings(fence: Fence) -> list[str]:
    """Look at the name in the TLS greeting; pass it on unread when it belongs to the same name as that of CONNECT."""
    lines = [
        "acl greeting at_step SslBump1",
        f"acl no_greeting port {' '.join(map(str, PLAIN_PORTS))}",
        "acl literal dst -n all",
        f"acl web port {' '.join(map(str, WEB_PORTS))}",
        "on_unsupported_protocol tunnel !web",
        "on_unsupported_protocol respond all",
        "ssl_bump splice greeting no_greeting",
        "ssl_bump splice greeting literal",
        "ssl_bump peek greeting",
    ]
    names = sorted({name for scope in fence.scopes for name in _named(scope)})
    exact = len(names) <= EXACT_NAMES
    for name in names if exact else ():
        word = _digits(name)
        lines += [f"acl c_{word} dstdomain -n .{name}", f"acl t_{word} ssl::server_name --client-requested .{name}"]
    lines += [line for scope in fence.scopes for line in _greeted(fence, scope, exact)]
    return [*lines, "ssl_bump terminate all"]


def _named(scope: Scope) -> tuple[str, ...]:
    return widest(name for grant in _of_tcp(scope) for name in grant.names)


def _of_tcp(scope: Scope) -> list[Grant]:
    return [grant for grant in scope.grants if grant.protocol in ("tcp", "any")]


def _greeted(fence: Fence, scope: Scope, exact: bool) -> list[str]:
    ours = f"s_{_digits(scope.name)}"
    if scope.mode == "locked" or not fence.guests_of(scope.name):
        return []
    lines = []
    if scope.denied_names:
        denied = [f".{name}" for name in widest(scope.denied_names)]
        lines += _acl(f"{ours}_hidden ssl::server_name --client-requested", denied)
        lines.append(f"ssl_bump terminate {ours} {ours}_hidden")
    if exact:
        lines += [f"ssl_bump splice {ours} c_{_digits(name)} t_{_digits(name)}" for name in _named(scope)]
    elif _named(scope):
        lines += _acl(f"{ours}_seen ssl::server_name --client-requested", [f".{name}" for name in _named(scope)])
        lines.append(f"ssl_bump splice {ours} {ours}_seen")
    return [*lines, f"ssl_bump splice {ours}"] if scope.mode == "open" else lines


def _domains(acl: str, names: Iterable[str]) -> list[str]:
    """-n: an address is not looked up backwards, where its owner could answer with a name that is allowed."""
    return _acl(f"{acl} dstdomain -n", [f".{name}" for name in widest(names)])  # squid refuses two of one branch


def _ranges(ports: Ports) -> list[str]:
    return [str(first) if first == last else f"{first}-{last}" for first, last in ports]


def _acl(start: str, values: Iterable[str]) -> list[str]:
    listed = list(values)
    chunks = [listed[at : at + NAMES_A_LINE] for at in range(0, len(listed), NAMES_A_LINE)]
    return [f"acl {start} {' '.join(chunk)}" for chunk in chunks]


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
