# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import FleetError, InvalidInput
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.interpolation import interpolate
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.names import as_text, as_text_map


def fill(text: object, values: Mapping[str, Any] | None = None, counters: Mapping[str, Any] | None = None) -> str:
    try:
        if not isinstance(text, str):
            raise InvalidInput(f"expected text, found {type(text).__name__}")
        known = as_text_map("values", values)
        return interpolate(as_text("text", text), known, as_text_map("counters", counters))
    except FleetError as error:
        raise AnsibleFilterError(error.message) from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., str]]:
        return {"interpolate": fill}
