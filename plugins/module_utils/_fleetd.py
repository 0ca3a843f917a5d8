# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls that modules make to fleetd."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .fleet_core.errors import Unavailable
from .fleet_core.quantities import parse_duration
from .fleet_node.client import Client


def call(state_dir: str | None, method: str, **params: Any) -> Mapping[str, Any]:
    """Return what fleetd answers. When none runs, the error names the state folder and the role that installs it."""
    with Client(state_dir) as client:
        try:
            answer: Mapping[str, Any] = client.call(method, **params)
        except Unavailable as error:
            raise Unavailable(
                f"{error.message} (state_dir: {client.folder}; the role autovibe.fleet.node installs and starts fleetd)"
            ) from error
    return answer


def waiting(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the RPC's wait and timeout (seconds) from a module's options of these names."""
    return {"wait": params["wait"], "timeout": parse_duration("timeout", params["timeout"])}
