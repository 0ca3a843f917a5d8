# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Between the options of machine_keys and the files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from ._module import Result
from .fleet_core.changes import Change
from .fleet_core.errors import InvalidInput
from .fleet_core.known_hosts import best, ssh_options
from .fleet_core.machines import check_machine_name
from .fleet_machines.known_hosts import Keys


def plan(params: Mapping[str, Any]) -> Result:
    """Return what apply would do."""
    keys = Keys(params["state_dir"])
    return _result(keys, *_planned(keys, params))


def apply(params: Mapping[str, Any]) -> Result:
    """Write and forget host keys, make or remove the key pair."""
    keys = Keys(params["state_dir"])
    change, wanted, gone = _planned(keys, params)
    if "make the key pair" in change.actions:
        keys.make_key()
    if "remove the key pair" in change.actions:
        keys.remove_key()
    if change.before or change.after:
        keys.update(wanted, gone)
    return _result(keys, change, wanted, gone)


def _planned(keys: Keys, params: Mapping[str, Any]) -> tuple[Change, dict[str, str], list[str]]:
    known, wanted, gone = keys.known(), {}, []  # type: ignore[var-annotated]
    pair = bool(keys.public_key())
    for item in params["machines"]:
        name = check_machine_name(item["name"])
        if params["state"] == "absent":
            gone.append(name)
        elif item["host_keys"]:
            wanted[name] = best(f'machine "{name}"', item["host_keys"])
    if params["state"] == "present" and params["names"]:
        raise InvalidInput("names: expected with state absent only, which forgets them")
    gone = sorted({*gone, *map(check_machine_name, params["names"])} & set(known))
    wanted = {name: key for name, key in wanted.items() if known.get(name) != key}
    actions = [
        *(["make the key pair"] if params["key_pair"] and params["state"] == "present" and not pair else []),
        *(["remove the key pair"] if params["key_pair"] and params["state"] == "absent" and pair else []),
        *(f"{'replace' if name in known else 'add'} the host key of {name}" for name in wanted),
        *(f"forget the host key of {name}" for name in gone),
    ]
    before = {name: known[name] for name in (*wanted, *gone) if name in known}
    return Change(before, wanted, tuple(actions)), wanted, gone


def _result(keys: Keys, change: Change, wanted: Mapping[str, str], gone: list[str]) -> Result:
    known = sorted({*keys.known(), *wanted} - set(gone))
    values = {
        "public_key": keys.public_key(),
        "private_key_file": str(keys.private_key),
        "known_hosts": str(keys.known_hosts),
        "known": known,
        "ssh_args": {name: shlex.join(ssh_options(name, str(keys.known_hosts))) for name in known},
    }
    return Result(change, values)
