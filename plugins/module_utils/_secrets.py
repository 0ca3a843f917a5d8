# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets among a module's env, vars and provider_settings options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from .fleet_core.processes import hide_secrets

# A shorter secret is hidden under its own name only; everywhere else it would blank half of what a module returns.
_SHORTEST = 6
# The secrets of providers, by the names of their settings.
_SETTINGS = ("password", "token_secret")


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


def show_settings(module: AnsibleModule) -> None:
    """Show what provider_settings holds beside secrets: its values, such as a node's name, are in results too.

    As a no_log option it gets into no system log. It may also hold the settings of several providers, by their names.
    """
    settings = module.params.get("provider_settings")
    if not isinstance(settings, Mapping):
        return
    several = [settings, *(value for value in settings.values() if isinstance(value, Mapping))]
    secrets = {str(one[name]) for one in several for name in _SETTINGS if one.get(name)}
    module.no_log_values.difference_update(set(_texts(settings)) - secrets)


def _texts(value: Any) -> Iterable[str]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
    else:
        yield str(value)
