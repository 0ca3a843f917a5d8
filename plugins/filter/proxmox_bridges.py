# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import FleetError
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.network_interfaces import bridges
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.network_proxmox import staged


def plan(
    found: Sequence[Mapping[str, Any]],
    wanted: object,
    node: str,
    take_over: Sequence[str] = (),
    management: bool = False,
) -> dict[str, list[Any]]:
    try:
        return staged(node, bridges(wanted), found, take_over, management)
    except FleetError as error:
        raise AnsibleFilterError(error.message) from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., dict[str, list[Any]]]]:
        return {"proxmox_bridges": plan}
