#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: machine_keys
short_description: Keep the keys that lead to machines
version_added: 0.1.0
description:
  - Runs on the host that connects to machines, which mostly is the control node (C(delegate_to)). It keeps two files in
    C(machines) of O(state_dir), which only their owner can read - a key pair of the fleet, C(id_ed25519), and
    C(known_hosts) with the host keys of machines, one line each, under their names.
  - With the options RV(ssh_args), C(ssh) accepts of a machine the key that stands there and no other. The name stands
    for address and port (C(HostKeyAlias)), so a machine may get another address.
  - Where host keys come from is the caller's affair. M(autovibe.fleet.machine_access) reads them through the provider.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.change
options:
  state:
    description:
      - V(present) writes the host keys of O(machines), and makes the key pair if O(key_pair) is true.
      - V(absent) forgets the host keys of O(machines) and O(names), and removes the key pair if O(key_pair) is true.
    type: str
    choices: [present, absent]
    default: present
  machines:
    description: Machines, with their public host keys.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Its name.
        type: str
        required: true
      host_keys:
        description: Its public host keys, of which the best is kept.
        type: list
        elements: str
  names:
    description: Machines to forget.
    type: list
    elements: str
    default: []
  key_pair:
    description: Whether the key pair of the fleet is meant as well. An existing one is kept.
    type: bool
    default: false
seealso:
  - module: autovibe.fleet.machine_access
"""

EXAMPLES = r"""
- name: Have a key pair, and know a machine
  autovibe.fleet.machine_keys:
    key_pair: true
    machines:
      - name: web-1
        host_keys:
          - ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDo2Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6
  delegate_to: localhost

- name: Forget it
  autovibe.fleet.machine_keys:
    state: absent
    names: [web-1]
  delegate_to: localhost
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  type: list
  elements: str
  returned: success
  sample: [make the key pair, add the host key of web-1]
public_key:
  description: The public key of the fleet, empty when there is none.
  type: str
  returned: success
  sample: ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDo2Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6 autovibe-fleet
private_key_file:
  description: Where the private key is, or would be.
  type: str
  returned: success
  sample: /var/lib/autovibe/machines/id_ed25519
known_hosts:
  description: Where the host keys are.
  type: str
  returned: success
  sample: /var/lib/autovibe/machines/known_hosts
known:
  description: The machines whose host keys are known.
  type: list
  elements: str
  returned: success
  sample: [web-1]
ssh_args:
  description: The options of C(ssh) for each machine that is known, to which the way there may be added.
  type: dict
  returned: success
  sample: {web-1: "-o StrictHostKeyChecking=yes -o HostKeyAlias=web-1"}
"""

from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._machine_keys import apply, plan
from ansible_collections.autovibe.fleet.plugins.module_utils._module import fleet_module, run_change

OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "machines": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "host_keys": {"type": "list", "elements": "str", "no_log": False},
        },
    },
    "names": {"type": "list", "elements": "str", "default": []},
    "key_pair": {"type": "bool", "default": False},
}


def main() -> None:
    run_change(fleet_module(OPTIONS), plan, apply)


if __name__ == "__main__":
    main()
