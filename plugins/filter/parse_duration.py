# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import FleetError
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.quantities import parse_duration


def seconds(value: object) -> float:
    try:
        return parse_duration("duration", value)
    except FleetError as error:
        raise AnsibleFilterError(error.message) from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., float]]:
        return {"parse_duration": seconds}
