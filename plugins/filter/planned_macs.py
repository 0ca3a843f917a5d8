# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core import machine_cards
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import FleetError


def planned_macs(
    machines: Sequence[Mapping[str, Any]], networks: Sequence[str], there: Sequence[str] = (), salt: str = ""
) -> list[dict[str, Any]]:
    try:
        return machine_cards.with_macs(machines, networks, there, salt)
    except FleetError as error:
        raise AnsibleFilterError(error.message) from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"planned_macs": planned_macs}
