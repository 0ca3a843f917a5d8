# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.dotenv import parse_dotenv
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import FleetError


def variables(text: object, name: str = ".env") -> dict[str, str]:
    try:
        return parse_dotenv(str(text), str(name))
    except FleetError as error:
        raise AnsibleFilterError(error.message) from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., dict[str, str]]]:
        return {"dotenv": variables}
