# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core import egress_clients
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import FleetError


def config(
    url: str, bypass: Sequence[str] = (), authority: str = "", bundle: str = egress_clients.ProxyClient.bundle
) -> dict[str, Any]:
    try:
        client = egress_clients.proxy_client(str(url), [str(name) for name in bypass], str(authority), str(bundle))
    except FleetError as error:
        raise AnsibleFilterError(error.message) from error
    return dict(egress_clients.cloud_config(client))


class FilterModule:
    def filters(self) -> dict[str, Callable[..., dict[str, Any]]]:
        return {"proxy_client_cloud_config": config}
