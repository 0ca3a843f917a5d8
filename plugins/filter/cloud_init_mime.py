# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core import cloud_init
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import FleetError, InvalidInput
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.names import check_keys
from ansible_collections.autovibe.fleet.plugins.plugin_utils import cloud_init as documents


def message(parts: Any) -> str:
    try:
        if not isinstance(parts, (list, tuple)):
            raise InvalidInput("parts: expected a list")
        return cloud_init.mime([_part(number, part) for number, part in enumerate(parts)])
    except FleetError as error:
        raise AnsibleFilterError(error.message) from error


def _part(number: int, part: Any) -> tuple[str, str]:
    """Return file name and text of a part, which is a text, or a mapping of name and content."""
    named = part if isinstance(part, Mapping) else {"content": part}
    check_keys(f"parts[{number}]", named, ("name", "content"))
    name, text = str(named.get("name") or f"{number:02d}-part"), named.get("content")
    if not isinstance(text, str):
        raise InvalidInput(f"parts[{number}]: expected text, found {type(text).__name__}")
    if cloud_init.part_type(f'part "{name}"', str(text)) == "text/cloud-config":
        documents.cloud_config(str(text), f'part "{name}"', whole=False)
    return name, str(text)


class FilterModule:
    def filters(self) -> dict[str, Callable[..., str]]:
        return {"cloud_init_mime": message}
