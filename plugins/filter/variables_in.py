# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.interpolation import variables_in


def names(text: object) -> list[str]:
    if not isinstance(text, str):
        raise AnsibleFilterError(f"expected text, found {type(text).__name__}")
    return list(variables_in(text))


class FilterModule:
    def filters(self) -> dict[str, Callable[..., list[str]]]:
        return {"variables_in": names}
