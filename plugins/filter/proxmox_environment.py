# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

from ansible.errors import AnsibleFilterError

from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import FleetError
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_machines.proxmox_settings import settings_of


def environment(given: Mapping[str, Any]) -> dict[str, str]:
    try:
        settings = settings_of(given)
    except FleetError as error:
        raise AnsibleFilterError(error.message) from error
    found = {"HOST": settings.host, "PORT": str(settings.port), "USER": settings.user}
    found["API_TIMEOUT"] = str(int(settings.timeout))
    if settings.token_id:
        found.update({"TOKEN_ID": settings.token_id, "TOKEN_SECRET": settings.token_secret, "PASSWORD": ""})
    else:
        found["PASSWORD"] = settings.password
    if isinstance(settings.verify, str):
        found["CA_PATH"] = settings.verify
    found["VALIDATE_CERTS"] = "false" if settings.verify is False else "true"
    return {f"PROXMOX_{name}": value for name, value in found.items()}


class FilterModule:
    def filters(self) -> dict[str, Callable[..., dict[str, str]]]:
        return {"proxmox_environment": environment}
