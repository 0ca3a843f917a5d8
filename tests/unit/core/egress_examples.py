# SPDX-License-Identifier: GPL-3.0-or-later
"""One fence with all that renderers of names and proxies have to care for."""

from __future__ import annotations

from fleet_core.fences import Bridge, Fence, Grant, Guest, Hub, Proxy, Scope

WEB = Grant("0000aaaa", ("example.org", "deep.example.org", "other.net"), protocol="tcp", ports=((443, 443), (80, 80)))
API = Grant(
    "0000bbbb",
    ("api.example.org",),
    ("10.9.0.0/16", "169.254.169.254/32", "192.168.0.0/16"),
    ("fd09::/48",),
    "tcp",
    ((8000, 8100), (2222, 2222)),
)
HOUR = Grant("0000cccc", ("later.net",), protocol="any", until=2_000_000_000, mark=7)
TIME = Grant("0000dddd", ("time.net",), protocol="udp", ports=((123, 123),))
SCOPES = (
    Scope(
        "default",
        "allowlist",
        (WEB, API, HOUR, TIME),
        ("bad.example.org", "evil.net"),
        ("10.9.9.0/24",),
        (),
        5301,
        True,
    ),
    Scope("project-open", "open", (WEB,), ("bad.example.org",), (), (), 5302),
    Scope("machine-strict-1", "strict", (WEB,), (), (), (), 5303, True),
    Scope("machine-locked-1", "locked", (WEB,)),
)
FENCE = Fence(
    bridges=(
        Bridge("vmbr1", "192.168.100.1/24", "fd00:100::1/64"),
        Bridge("vmbr2", "192.168.101.1/24", dhcp=False),
    ),
    guests=(
        Guest("web-1", "vmbr1", "52:54:00:00:00:01", "192.168.100.10", "fd00:100::10", project="shop"),
        Guest("web-2", "vmbr2", "52:54:00:00:00:02", "192.168.101.10", project="shop"),
        Guest("open-1", "vmbr1", "52:54:00:00:00:03", "192.168.100.11", project="open", scope="project-open"),
        Guest("strict-1", "vmbr1", "52:54:00:00:00:04", "", "fd00:100::12", scope="machine-strict-1"),
        Guest("locked-1", "vmbr1", "52:54:00:00:00:05", "192.168.100.13", scope="machine-locked-1"),
    ),
    scopes=SCOPES,
    proxy=Proxy("squid", 3128),
    hub=Hub("hub.fleet", ("10.0.1.20", "fd00:1::20"), (8000,)),
    upstreams=("10.0.1.1", "10.0.1.2#5353"),
)
