# SPDX-License-Identifier: GPL-3.0-or-later
"""mitmproxy as the explicit proxy of a fence: what its addon enforces, its options, the command that runs it.

It reads what is inside TLS, so that the name in CONNECT, the one in the TLS greeting and the Host header are one, and
what guests do can be analysed. Guests have to trust its certificate authority (client_files() of egress_clients).

Sources: options and hooks of mitmproxy 10 to 12 (docs.mitmproxy.org).
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any

from .egress_networks import granted_networks, special_networks
from .egress_presets import DOH4, DOH6, DOH_NAMES
from .fences import Fence, Guest, Scope

AUTHORITY = "mitmproxy-ca-cert.pem"  # in its folder: what guests have to trust


def policy(fence: Fence) -> str:
    """Return what the addon enforces, as JSON; it is read again whenever it changes.

    guests: source address to who that is. scopes: what each may reach; until: seconds since the epoch, 0 for ever.
    """
    document = {
        "version": 1,
        "guests": {
            address: _guest(guest) for guest in fence.guests for address in (guest.address4, guest.address6) if address
        },
        "scopes": {scope.name: _scope(fence, scope) for scope in fence.scopes},
    }
    return json.dumps(document, indent=1, sort_keys=True) + "\n"


def _guest(guest: Guest) -> dict[str, str]:
    return {"machine": guest.name, "project": guest.project, "scope": guest.scope}


def _scope(fence: Fence, scope: Scope) -> dict[str, Any]:
    grants = [grant for grant in scope.grants if grant.protocol in ("tcp", "any") and scope.mode != "locked"]
    return {
        "mode": scope.mode,
        "denied_names": sorted(scope.denied_names),
        "names": [
            {"domain": name, "ports": [list(ports) for ports in grant.ports], "until": grant.until}
            for grant in grants
            for name in sorted(grant.names)
        ],
        "networks": [
            {"network": network, "ports": [list(ports) for ports in grant.ports], "until": grant.until}
            for grant in grants
            for network in granted_networks(fence, scope, grant)
        ],
        "special": special_networks(fence, scope),
        **({"closed_names": list(DOH_NAMES), "closed_networks": [*DOH4, *DOH6]} if scope.mode == "open" else {}),
    }


def options(fence: Fence, folder: str, trusted: str = "") -> str:
    """Return config.yaml, which is JSON here. folder: of it, policy, log and certificate authority.

    trusted: a file of the certificate authorities that servers are verified with; empty for mitmproxy's own list.
    """
    addresses = [bridge.address4 for bridge in fence.bridges if bridge.address4]
    addresses += [bridge.address6 for bridge in fence.bridges if bridge.address6]
    values: dict[str, Any] = {
        "mode": [f"regular@{ipaddress.ip_interface(address).ip}:{fence.proxy.port}" for address in addresses],
        "fleet_policy": f"{folder}/mitmproxy.json",
        "fleet_log": f"{folder}/proxy.log",
        # Nothing is connected to before the addon has seen what for; certificates are made from names alone.
        "connection_strategy": "lazy",
        "upstream_cert": False,
        "ssl_insecure": False,
        "onboarding": False,
        "http3": False,
        "block_global": False,  # the addon knows who is a guest
        "flow_detail": 0,
        "termlog_verbosity": "warn",
        "showhost": False,
    }
    if trusted:
        values["ssl_verify_upstream_trusted_ca"] = trusted
    return json.dumps(values, indent=1, sort_keys=True) + "\n"


def command(mitmdump: str, folder: str, user: str = "") -> list[str]:
    """Return the command that runs it in the foreground. mitmdump: its path; user: who it becomes, empty for no other.

    folder: holds config.yaml, mitmproxy.json and addon.py, and belongs to user.
    """
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs"] if user else []
    return [*become, mitmdump, "--quiet", "--set", f"confdir={folder}", "--scripts", f"{folder}/addon.py"]
