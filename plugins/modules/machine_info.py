#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: machine_info
short_description: List machines
version_added: 0.1.0
description:
  - Lists the machines of a provider, with one call to the provider for all of them.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.info
  - autovibe.fleet.fleet.facts
  - autovibe.fleet.machine_fields.provider
options:
  names:
    description: Only these machines. Those that do not exist are named in RV(missing).
    type: list
    elements: str
  project:
    description: Only the machines of this project. Empty for those of none.
    type: str
  tags:
    description: Only the machines that have all of these tags.
    type: list
    elements: str
  gather:
    description:
      - What to return besides. V(resources) are the sizes that each machine has now, and what the provider measures
        inside, which may cost a call for each machine. Without it, the sizes are those that it was given.
      - V(checkpoints) and V(images) cost one call each.
    type: list
    elements: str
    choices: [resources, checkpoints, images]
    default: []
seealso:
  - module: autovibe.fleet.machine
"""

EXAMPLES = r"""
- name: List all machines
  autovibe.fleet.machine_info:
    provider: multipass
  register: found

- name: Show their addresses
  ansible.builtin.debug:
    msg: "{{ dict(found.machines | map(attribute='name') | zip(found.machines | map(attribute='addresses'))) }}"

- name: See what those of a project use
  autovibe.fleet.machine_info:
    provider: multipass
    project: shop
    gather: [resources, checkpoints]
"""

RETURN = r"""
machines:
  description: The machines, in the order of their names.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its name.
      type: str
      returned: always
      sample: web-1
    provider:
      description: Where it comes from.
      type: str
      returned: always
      sample: multipass
    state:
      description:
        - V(running), V(starting), V(stopping), V(stopped), V(suspended), V(deleted) when it can be recovered, or
          V(unknown).
      type: str
      returned: always
      sample: running
    addresses:
      description: Its IP addresses, none when it does not run.
      type: list
      elements: str
      returned: always
      sample: [10.21.124.56]
    image:
      description: What it was made from, empty when not known.
      type: str
      returned: always
      sample: "24.04"
    cpu:
      description: How many processors it has, 0 when not known.
      type: int
      returned: always
      sample: 2
    memory:
      description: Its memory in bytes, 0 when not known.
      type: int
      returned: always
      sample: 2147483648
    disk:
      description: The size of its disk in bytes, 0 when not known.
      type: int
      returned: always
      sample: 10737418240
    networks:
      description: The further network interfaces that it was made with.
      type: list
      elements: dict
      returned: always
      sample: [{name: br0}]
    user_data:
      description: The hash of the user data that it first booted with, empty when there were none, or not known.
      type: str
      returned: always
      sample: sha256:3b2b0ce8b4a1dcb5
    tags:
      description: Words to find it by.
      type: list
      elements: str
      returned: always
      sample: [web]
    project:
      description: The project that it belongs to.
      type: str
      returned: always
      sample: shop
    checkpoints:
      description: How many checkpoints it has. 0 when neither resources nor checkpoints were gathered.
      type: int
      returned: always
      sample: 1
    checkpoint_tree:
      description: Its checkpoints, each behind its parent.
      type: list
      elements: dict
      returned: O(gather) contains V(checkpoints)
      sample: [{name: clean, machine: web-1, parent: "", comment: "", live: false, size: 0}]
    incomplete:
      description: What is missing of a machine that could not be made wholly, empty when it is whole.
      type: str
      returned: always
      sample: ""
    detail:
      description:
        - What only this provider knows, such as the release, the load and the memory in use.
        - C(interfaces) are its network cards, each with C(network), C(mac), C(address) and C(port), its interface on
          the host, as far as they are known.
      type: dict
      returned: always
      sample:
        release: Ubuntu 24.04 LTS
        interfaces: [{network: vmbr1, mac: "52:54:00:12:34:56", address: "", port: fleet0a1b2c3d4e}]
missing:
  description: Those of O(names) that do not exist.
  type: list
  elements: str
  returned: success
  sample: []
images:
  description: What machines can be made from.
  type: list
  elements: dict
  returned: O(gather) contains V(images)
  sample: [{name: "24.04", kind: remote, aliases: [noble], release: Ubuntu 24.04 LTS}]
ansible_facts:
  description: Facts of the host.
  type: dict
  returned: O(facts=true)
  contains:
    fleet_machines:
      description: The machines by name, each as in RV(machines).
      type: dict
      returned: success
      sample: {web-1: {name: web-1, state: running}}
"""

from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._arguments import PROVIDER
from ansible_collections.autovibe.fleet.plugins.module_utils._machines import listed
from ansible_collections.autovibe.fleet.plugins.module_utils._module import fleet_module, run_info

OPTIONS: dict[str, Any] = {
    **PROVIDER,
    "names": {"type": "list", "elements": "str"},
    "project": {"type": "str"},
    "tags": {"type": "list", "elements": "str"},
    "gather": {"type": "list", "elements": "str", "choices": ["resources", "checkpoints", "images"], "default": []},
    "facts": {"type": "bool", "default": False},
}


def main() -> None:
    run_info(fleet_module(OPTIONS), listed)


if __name__ == "__main__":
    main()
