# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Between the options of network and the bridges of a host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ._module import Result
from .fleet_core.changes import Change
from .fleet_core.errors import InvalidInput
from .fleet_core.moments import iso
from .fleet_core.network_interfaces import bridges
from .fleet_core.network_sysctls import Forwarding
from .fleet_core.quantities import parse_duration
from .fleet_node.network_apply import HostNetwork, Planned
from .fleet_node.network_changes import Pending, connection


def plan(params: Mapping[str, Any]) -> Result:
    """Return what apply would do."""
    host = HostNetwork(params["state_dir"])
    if params["state"] in ("confirmed", "rolled_back"):
        pending = host.changes.pending()
        verb = "confirm" if params["state"] == "confirmed" else "roll back"
        return _result(host, (f"{verb} change {pending.ident}",) if pending else (), None)
    host.changes.refuse_pending()
    planned = _planned(host, params)
    return _result(host, planned.actions, planned)


def apply(params: Mapping[str, Any]) -> Result:
    """Change the bridges of this host, or end the change that waits."""
    host = HostNetwork(params["state_dir"])
    if params["state"] == "confirmed":
        waiting = host.changes.pending()
        done = host.changes.confirm(params["change"] or "", connection())
        return _result(host, (f"confirm change {waiting.ident}",) if done and waiting else (), None)
    if params["state"] == "rolled_back":
        waiting = host.changes.pending()
        done = host.changes.roll_back("asked")
        return _result(host, (f"roll back change {waiting.ident}",) if done and waiting else (), None)
    host.changes.refuse_pending()
    host.changes.clear()
    planned = _planned(host, params)
    pending = host.apply(planned, _seconds(params))
    return _result(host, planned.actions, planned, pending)


def _planned(host: HostNetwork, params: Mapping[str, Any]) -> Planned:
    absent = params["state"] == "absent"
    if absent and params["bridges"]:
        raise InvalidInput("bridges: expected none with state absent, which removes all that this module has made")
    forwarding = Forwarding(params["ipv4_forwarding"], params["ipv6_forwarding"], params["br_netfilter"])
    _seconds(params)
    wanted = bridges(params["bridges"] or [])
    return host.plan(wanted, Forwarding() if absent else forwarding, params["stack"], params["force"])


def _seconds(params: Mapping[str, Any]) -> float:
    return parse_duration("rollback_after", params["rollback_after"])


def _result(
    host: HostNetwork, actions: tuple[str, ...], planned: Planned | None, pending: Pending | None = None
) -> Result:
    diff = planned.diff() if planned else None
    before = {"actions": []} if actions and diff is None else {}
    after = {"actions": list(actions)} if actions and diff is None else {}
    values: dict[str, Any] = {
        "stack": planned.stack.name if planned else "",
        "running": host.running(planned.wanted if planned else ()),
        "pending": pending is not None,
        "change": pending.ident if pending else "",
        "ends": iso(pending.ends) if pending else "",
    }
    return Result(Change(before, after, actions), values, diff)
