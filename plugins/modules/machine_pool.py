#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: machine_pool
short_description: Keep machines ready, and hand them out
version_added: 0.1.0
description:
  - A pool holds machines of one kind that were made, have booted, and wait until somebody takes one. Taking one is a
    matter of a second or, if they wait stopped, of a start.
  - A machine is handed out to one owner only, whatever takes at the same time and whenever a task is killed. The same
    owner, which is a O(project) and a O(key), gets the same machine when it asks again.
  - What a machine is to a pool stands in its tags, with its provider - C(pool-NAME) when it is free, C(filling-NAME)
    while it is made, C(taken-NAME) when it was handed out.
  - The lock is one of the host that the task runs on, so all tasks of a pool run on the same host.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.change
  - autovibe.fleet.machine_fields.provider
options:
  state:
    description:
      - V(present) makes, deletes and replaces free machines until there are O(size) of them, each as in O(machine).
        One that differs is replaced, for nobody has worked on it. Taking one is not followed by making another one;
        that is another task with V(present).
      - V(taken) hands a machine out, running, and returns it as RV(machine). It stays until M(autovibe.fleet.machine)
        deletes it.
      - V(absent) deletes the free machines. Those that were handed out stay.
    type: str
    choices: [present, taken, absent]
    default: present
  name:
    description: The pool's name. A small letter, then small letters, digits and C(-). Its machines begin with it.
    type: str
    required: true
  size:
    description: How many free machines the pool shall have.
    type: int
    default: 1
  kept:
    description: Whether free machines wait running or stopped.
    type: str
    choices: [running, stopped]
    default: running
  machine:
    description:
      - What the machines look like. O(state=taken) needs it only if it may have to make one.
    type: dict
    default: {}
    suboptions:
      image:
        description: What they are made from, as in M(autovibe.fleet.machine).
        type: str
      cpu:
        description: How many processors they have.
        type: int
      memory:
        description: Their memory, such as V(4G).
        type: str
      disk:
        description: The size of their disk, such as V(20G).
        type: str
      networks:
        description: Their further network interfaces, in order.
        type: list
        elements: dict
        suboptions:
          name:
            description: The network or bridge, as the provider calls it.
            type: str
            required: true
          mac:
            description: The hardware address. Of use in a pool of one machine only.
            type: str
          address:
            description: V(dhcp), or an address with its prefix length.
            type: str
          gateway:
            description: The gateway of that network.
            type: str
      user_data:
        description:
          - The user data for cloud-init. In it, V(name-of-the-machine) stands for the name of each machine.
          - They are not shown in results, differences and logs.
        type: str
      tags:
        description: Words to find them by.
        type: list
        elements: str
      project:
        description: The project that free machines belong to.
        type: str
      login:
        description: The account that Ansible and people log in with.
        type: str
  project:
    description: The project that takes a machine.
    type: str
  key:
    description: A text of the project's own choice. Who takes with the same one gets the same machine.
    type: str
  tags:
    description: Further tags of the machine that is taken.
    type: list
    elements: str
  login:
    description: The account to log in with on the machine that is taken. By default that of O(machine).
    type: str
  create:
    description: Whether O(state=taken) makes a machine when none is free, instead of failing.
    type: bool
    default: true
  parallel:
    description: How many machines are worked on at the same time.
    type: int
    default: 4
  timeout:
    description: How long all of it may take. A number of seconds, or a text such as V(90s) or V(20m).
    type: str
    default: 15m
seealso:
  - module: autovibe.fleet.machine
"""

EXAMPLES = r"""
- name: Have two machines ready
  autovibe.fleet.machine_pool:
    provider: multipass
    name: dev
    size: 2
    machine:
      image: "24.04"
      cpu: 2
      memory: 2G

- name: Take one for the shop
  autovibe.fleet.machine_pool:
    state: taken
    provider: multipass
    name: dev
    project: shop
    key: issue-12
    tags: [web]
  register: taken

- name: Delete it when the work is done
  autovibe.fleet.machine:
    state: absent
    provider: multipass
    names: ["{{ taken.machine.name }}"]

- name: Delete those that are left
  autovibe.fleet.machine_pool:
    state: absent
    provider: multipass
    name: dev
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  type: list
  elements: str
  returned: success
  sample: [make 2 machines for pool dev]
machine:
  description: The machine that was taken, as M(autovibe.fleet.machine_info) returns it.
  type: dict
  returned: O(state=taken)
  sample: {name: dev-5f2c9a01, provider: multipass, state: running, addresses: [10.21.124.56], project: shop}
free:
  description: The machines that can be taken.
  type: list
  elements: str
  returned: success
  sample: [dev-5f2c9a01, dev-77d02c1e]
filling:
  description: The machines that are being made, or were left half made.
  type: list
  elements: str
  returned: success
  sample: []
taken:
  description: The machines that were handed out and are still there.
  type: list
  elements: str
  returned: success
  sample: [dev-09b1e44c]
progress:
  description: What was done when, one line each.
  type: list
  elements: str
  returned: success
  sample: ["0.1s make machine dev-5f2c9a01"]
"""

from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._arguments import MACHINES, PROVIDER
from ansible_collections.autovibe.fleet.plugins.module_utils._module import fleet_module, run_change
from ansible_collections.autovibe.fleet.plugins.module_utils._pools import apply, plan

_FIELDS = {name: option for name, option in MACHINES["machines"]["options"].items() if name != "name"}
OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "taken", "absent"], "default": "present"},
    **PROVIDER,
    "name": {"type": "str", "required": True},
    "size": {"type": "int", "default": 1},
    "kept": {"type": "str", "choices": ["running", "stopped"], "default": "running"},
    "machine": {"type": "dict", "default": {}, "options": _FIELDS},
    "project": {"type": "str"},
    "key": {"type": "str", "no_log": False},
    "tags": {"type": "list", "elements": "str"},
    "login": {"type": "str"},
    "create": {"type": "bool", "default": True},
    "parallel": {"type": "int", "default": 4},
    "timeout": {"type": "str", "default": "15m"},
}


def main() -> None:
    run_change(fleet_module(OPTIONS, required_if=[("state", "taken", ("project", "key"))]), plan, apply)


if __name__ == "__main__":
    main()
