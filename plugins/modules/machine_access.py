#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: machine_access
short_description: Let people and Ansible log in to machines
version_added: 0.1.0
description:
  - Adds public SSH keys to the account of running machines, and returns the machines' own host keys with the address
    and the port that lead to them.
  - All of that goes through the provider - its guest agent, or its C(exec) - and not over the network. So the host keys
    can be believed, and M(autovibe.fleet.machine_keys) can write them into C(known_hosts) before the first connection.
  - An account that is not there is added, with the right to use C(sudo).
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.change
  - autovibe.fleet.machine_fields.provider
options:
  machines:
    description:
      - The machines, which must be running. In check mode those that are not are left out.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Its name.
        type: str
        required: true
      login:
        description: The account to log in with. By default the one that the machine was made with.
        type: str
  authorized_keys:
    description: Public SSH keys, whole lines of C(.pub) files. Others that are there already stay.
    type: list
    elements: str
    required: true
  parallel:
    description: How many machines are worked on at the same time.
    type: int
    default: 8
  timeout:
    description: How long all machines together may take. A number of seconds, or a text such as V(90s).
    type: str
    default: 5m
seealso:
  - module: autovibe.fleet.machine_keys
  - module: autovibe.fleet.machine
"""

EXAMPLES = r"""
- name: Have a machine
  autovibe.fleet.machine:
    state: started
    provider: multipass
    machines:
      - name: shell-1

- name: Let Ada log in
  autovibe.fleet.machine_access:
    provider: multipass
    machines:
      - name: shell-1
        login: ada
    authorized_keys:
      - ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDo2Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6 ada@example.com
  register: access

- name: Know its host key from now on
  autovibe.fleet.machine_keys:
    machines:
      - name: shell-1
        host_keys: "{{ access.machines[0].host_keys }}"
  delegate_to: localhost

- name: Delete it
  autovibe.fleet.machine:
    state: absent
    provider: multipass
    names: [shell-1]
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  type: list
  elements: str
  returned: success
  sample: ["machine shell-1: authorize a key"]
machines:
  description: How to reach the machines.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its name.
      type: str
      returned: always
      sample: shell-1
    login:
      description: The account to log in with.
      type: str
      returned: always
      sample: ada
    address:
      description: Its address, as the host that the provider runs on reaches it.
      type: str
      returned: always
      sample: 10.21.124.56
    port:
      description: The port of SSH at that address.
      type: int
      returned: always
      sample: 22
    host_keys:
      description: Its public host keys.
      type: list
      elements: str
      returned: always
      sample: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDo2Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6]
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._arguments import PROVIDER
from ansible_collections.autovibe.fleet.plugins.module_utils._machines import provider_of
from ansible_collections.autovibe.fleet.plugins.module_utils._module import Result, fleet_module, run_change
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.changes import Change
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.machines import check_machine_name
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.names import as_int
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.quantities import parse_duration
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_machines import access
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_machines.batches import MOST_AT_ONCE

OPTIONS: dict[str, Any] = {
    **PROVIDER,
    "machines": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {"name": {"type": "str", "required": True}, "login": {"type": "str"}},
    },
    "authorized_keys": {"type": "list", "elements": "str", "required": True, "no_log": False},
    "parallel": {"type": "int", "default": 8},
    "timeout": {"type": "str", "default": "5m"},
}


def _granted(params: Mapping[str, Any], change: bool) -> Result:
    found = access.grant(
        provider_of(params),
        {check_machine_name(item["name"]): item["login"] or "" for item in params["machines"]},
        params["authorized_keys"],
        timeout=parse_duration("timeout", params["timeout"]),
        parallel=as_int("parallel", params["parallel"], 1, MOST_AT_ONCE),
        change=change,
    )
    done = {one.name: list(one.done) for one in found if one.done}
    actions = tuple(f"machine {name}: {text}" for name, texts in done.items() for text in texts)
    machines = [{key: value for key, value in asdict(one).items() if key != "done"} for one in found]
    values: dict[str, Any] = {"machines": machines}
    if access.shared(found):
        values["warnings"] = list(access.shared(found))
    return Result(Change({}, done, actions), values)


def plan(params: Mapping[str, Any]) -> Result:
    return _granted(params, change=False)


def apply(params: Mapping[str, Any]) -> Result:
    return _granted(params, change=True)


def main() -> None:
    run_change(fleet_module(OPTIONS), plan, apply)


if __name__ == "__main__":
    main()
