# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core import machine_cards
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import FleetError


def policy_machines(
    machines: Sequence[Mapping[str, Any]],
    networks: Sequence[str],
    declared: Sequence[Mapping[str, Any]] = (),
    salt: str = "",
    ports: bool = True,
) -> dict[str, list[dict[str, str]]]:
    try:
        return machine_cards.policy_machines(machines, networks, declared, salt, ports)
    except FleetError as error:
        raise AnsibleFilterError(error.message) from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"policy_machines": policy_machines}
