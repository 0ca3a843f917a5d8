# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Between the options of proxmox_fence and the firewall of Proxmox VE."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from ._module import Result
from .fleet_core import egress, egress_fence
from .fleet_core.errors import InvalidInput
from .fleet_core.proxmox_fences import Outline, check, outline
from .fleet_machines.provider import Surroundings
from .fleet_machines.proxmox import Proxmox
from .fleet_machines.proxmox_fence import Planned, ProxmoxFence


def plan(params: Mapping[str, Any]) -> Result:
    """Return what apply would do."""
    wanted, fence = _wanted(params), _fence(params)
    return _result(wanted, _planned(params, fence, wanted))


def apply(params: Mapping[str, Any]) -> Result:
    """Make the firewall of the cluster as the policy wants it."""
    wanted, fence = _wanted(params), _fence(params)
    planned = _planned(params, fence, wanted)
    return _result(wanted, planned, fence.apply(planned, wanted))


def _wanted(params: Mapping[str, Any]) -> Outline:
    if params["state"] == "absent":
        return Outline({}, {}, {}, {})
    found = outline(egress_fence.compile(egress.parse(params["policy"])), exact=params["exact"])
    check(found)
    return found


def _fence(params: Mapping[str, Any]) -> ProxmoxFence:
    provider = Proxmox(Surroundings("", params["provider_settings"]))
    return ProxmoxFence(provider.session, provider.guests, thorough=params["thorough"])


def _planned(params: Mapping[str, Any], fence: ProxmoxFence, wanted: Outline) -> Planned:
    management = []
    for text in params["management"]:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise InvalidInput(f'management: expected an address or a network, found "{text}"') from None
        whole = network.prefixlen == network.max_prefixlen
        management.append(str(network.network_address) if whole else str(network))
    return fence.plan(wanted, enable=params["enable"], management=management)


def _result(wanted: Outline, planned: Planned, waiting: tuple[str, ...] = ()) -> Result:
    values = {
        "machines": sorted(set(wanted.guests) - set(planned.missing)),
        "missing": list(planned.missing),
        "enforced": planned.enforced,
        "problems": [*planned.warnings, *waiting],
    }
    return Result(planned.change, values)
