# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets among a module's env and vars options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from .fleet_core.processes import hide_secrets

# A shorter secret is hidden under its own name only; everywhere else it would blank half of what a module returns.
_SHORTEST = 6


def take_secrets(module: AnsibleModule, option: str) -> dict[str, Any]:
    """Return the module's parameters; what the module itself keeps, and reports as its invocation, has no secrets.

    option: the list whose items have env and vars. Both are no_log options, so that nothing of them gets into the
    host's system log. In results only those values are hidden whose name looks like a secret's: a plain DEBUG=1 must
    not blank every "1".
    """
    params = dict(module.params)
    items: Iterable[Mapping[str, Any]] = params.get(option) or ()
    public, secrets = [], set()
    for item in items:
        shown = dict(item)
        for key in ("env", "vars"):
            if key not in item:
                continue
            given = item.get(key) or {}
            shown[key] = hide_secrets({str(name): value for name, value in given.items()}) if given else item.get(key)
            secrets |= {str(value) for name, value in given.items() if value and shown[key][str(name)] != value}
        public.append(shown)
    module.params[option] = public if items else params.get(option)
    module.no_log_values.intersection_update({value for value in secrets if len(value) >= _SHORTEST})
    return params
