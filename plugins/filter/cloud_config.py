# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core import cloud_init
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import FleetError, InvalidInput
from ansible_collections.autovibe.fleet.plugins.plugin_utils import cloud_init as documents


def render(value: Any, kind: str = "user-data") -> str:
    try:
        if kind == "network-config":
            return documents.network_config(kind, value)
        if kind == "meta-data":
            return documents.meta_data(kind, value)
        if kind != "user-data":
            raise InvalidInput(f'kind: expected {", ".join(cloud_init.FILES)}, found "{kind}"')
        if isinstance(value, str):
            parsed = documents.cloud_config(str(value), kind)
            return documents.to_yaml(documents.plain(cloud_init.merge(parsed)), cloud_init.HEADER)
        parts = [value] if isinstance(value, Mapping) else documents.plain(value)
        if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
            raise InvalidInput(f"{kind}: expected text, a mapping or a list of mappings")
        return documents.user_data(kind, cloud_init.merge([documents.plain(part) for part in parts]))
    except FleetError as error:
        raise AnsibleFilterError(error.message) from error


class FilterModule:
    def filters(self) -> dict[str, Callable[..., str]]:
        return {"cloud_config": render}
