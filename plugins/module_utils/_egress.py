# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Between the options of egress_policy and egress_info and the engine of the network policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._module import Result
from .fleet_core.egress import KEYS
from .fleet_node.egress_engine import Engine
from .fleet_node.egress_plans import Planned
from .fleet_node.egress_report import report, shown_live

_NETWORK: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "address": {"type": "str"},
    "address6": {"type": "str"},
    "nat": {"type": "bool", "default": True},
    "dhcp": {"type": "bool", "default": True},
}
_MACHINE: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "network": {"type": "str", "required": True},
    "mac": {"type": "str", "required": True},
    "address": {"type": "str"},
    "address6": {"type": "str"},
    "port": {"type": "str"},
    "project": {"type": "str"},
}
_POLICY: dict[str, Any] = {
    "mode": {"type": "str", "choices": ["open", "allowlist", "strict", "locked"]},
    "inherit": {"type": "bool"},
    "presets": {"type": "list", "elements": "raw"},
    "allow": {"type": "list", "elements": "raw"},
    "deny": {"type": "list", "elements": "raw"},
    "hub": {"type": "bool"},
    "peers": {"type": "raw"},
}
DOCUMENT: dict[str, Any] = {
    "backend": {"type": "str", "choices": ["nftables", "iptables"], "default": "nftables"},
    "networks": {"type": "list", "elements": "dict", "options": _NETWORK},
    "machines": {"type": "list", "elements": "dict", "options": _MACHINE},
    "policies": {
        "type": "dict",
        "options": {
            "default": {"type": "dict", "options": _POLICY},
            "projects": {"type": "dict"},
            "machines": {"type": "dict"},
        },
    },
    "hub": {
        "type": "dict",
        "options": {
            "name": {"type": "str"},
            "addresses": {"type": "list", "elements": "str"},
            "ports": {"type": "list", "elements": "int"},
        },
    },
    "proxy": {
        "type": "dict",
        "options": {
            "kind": {"type": "str", "choices": ["none", "squid", "mitmproxy"], "default": "none"},
            "port": {"type": "int", "default": 3128},
        },
    },
    "resolvers": {"type": "list", "elements": "str"},
    "special_networks": {"type": "list", "elements": "str"},
    "log_rate": {"type": "int", "default": 10},
}


def plan(params: Mapping[str, Any]) -> Result:
    """Return what apply would do."""
    engine = Engine(params["state_dir"])
    if params["state"] == "absent":
        return _result(engine, engine.plan_removal())
    return _result(engine, engine.plan(_document(params), _clears(params)))


def apply(params: Mapping[str, Any]) -> Result:
    """Put the policy in force, or remove all of it."""
    engine = Engine(params["state_dir"])
    if params["state"] == "absent":
        return _result(engine, engine.remove())
    return _result(engine, engine.apply(_document(params), _clears(params)))


def info(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is in force."""
    return report(Engine(params["state_dir"]), params["denials"], params["find_conflicts"])


def _document(params: Mapping[str, Any]) -> dict[str, Any]:
    return {key: params[key] for key in KEYS if params[key] is not None}


def _clears(params: Mapping[str, Any]) -> bool:
    return bool(params["live"] == "clear")


def _result(engine: Engine, planned: Planned) -> Result:
    fence = planned.fence
    values = {
        "machines": [
            {
                "name": guest.name,
                "network": guest.bridge,
                "scope": guest.scope,
                "address": guest.address4,
                "address6": guest.address6,
            }
            for guest in (fence.guests if fence else ())
        ],
        "scopes": [
            {
                "name": scope.name,
                "mode": scope.mode,
                "machines": sorted({one.name for one in fence.guests_of(scope.name)}),
            }
            for scope in (fence.scopes if fence else ())
        ],
        "live_changes": [shown_live(one) for one in planned.live],
        "boot_script": str(engine.store.folder / "boot.sh"),
        **({"warnings": list(planned.notices)} if planned.notices else {}),
    }
    return Result(planned.change, values, [dict(one) for one in planned.diff])
