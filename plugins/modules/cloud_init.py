#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cloud_init
short_description: Render and check what cloud-init reads
version_added: 0.1.0
description:
  - Fills a template of user data with the values of machines, adds meta data and the network configuration, checks all
    of it against the schemas of cloud-init, and writes it to a folder for each machine - C(user-data), C(meta-data),
    and C(network-config) if a machine has network interfaces of its own. These are the files of the datasource NoCloud.
  - Templates are filled and checked on the control node, so the managed host needs Python and nothing else. Where it
    has C(cloud-init), the C(schema) command of that version is asked as well.
  - Bad YAML, an unknown key, a missing SSH key or a password in user data fail the task, before anything is written.
  - The files can be read by their owner alone. They hold no secrets, and the module refuses passwords and private keys.
  - Templates and values are described in C(docs/cloud-init.md).
  - Does not need fleetd.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.change
attributes:
  action:
    description: Has an action plugin, which fills and checks templates on the control node.
    support: full
options:
  state:
    description:
      - V(present) writes the files.
      - V(absent) removes them, and their folder when it is empty; only the names count.
      - V(rendered) writes nothing, and returns the documents in RV(seeds), checked by the schemas that the collection
        brings.
    type: str
    choices: [present, absent, rendered]
    default: present
  dest:
    description:
      - The folder on the managed host that holds a folder for each machine. Required unless O(state=rendered).
    type: path
  template:
    description:
      - A template of the collection by its name - V(python), V(nodejs), V(agent), V(hub) - or the path of one on the
        control node, which ends in C(.j2). A path is searched below C(templates) of the role or the playbook.
      - Either this or O(seeds) is required.
    type: str
  env_file:
    description:
      - A file on the control node with values as C(NAME=value) lines, such as C(VM_NAME) and C(SSH_PUBLIC_KEY).
    type: path
  values:
    description:
      - Values of all machines, by their names in inventories. They replace those of O(env_file).
      - Known are C(name), C(distribution), C(user), C(ssh_public_keys), C(git_name), C(git_email), C(cpus), C(memory),
        C(disk), C(timezone), C(packages), C(runners), C(fleet_package), C(fleet_wheel), C(pip_index), C(npm_registry),
        C(python_mirror), C(interfaces), and for one interface C(mac_address), C(addresses), C(gateway), C(nameservers).
    type: dict
  machines:
    description:
      - The machines, each with values of its own as in O(values), which they replace.
      - Without it there is one machine, of O(values).
    type: list
    elements: dict
  format:
    description:
      - V(cloud-config) merges the documents of a template into one.
      - V(mime) keeps each as a part of a multi-part message, to be merged by cloud-init.
    type: str
    choices: [cloud-config, mime]
    default: cloud-config
  parts:
    description:
      - More parts of user data - scripts, cloud-config, and what else cloud-init knows by its first line. With them
        user data is a multi-part message.
    type: list
    elements: str
  seeds:
    description:
      - Finished documents instead of O(template).
    type: list
    elements: dict
    suboptions:
      name:
        description: The machine's name, which also is that of its folder.
        type: str
        required: true
      user_data:
        description: User data, as text with its first line, or as a mapping of keys of cloud-config.
        type: raw
      meta_data:
        description:
          - Keys of meta data. By default C(instance-id), which changes with the other documents, and C(local-hostname).
        type: raw
      network_config:
        description: The network configuration of version 1 or 2.
        type: raw
  schema_check:
    description:
      - Whether to ask C(cloud-init schema) of the managed host about user data that is to be written, if it has it.
    type: bool
    default: true
seealso:
  - plugin: autovibe.fleet.cloud_config
    plugin_type: filter
  - plugin: autovibe.fleet.cloud_init_mime
    plugin_type: filter
"""

EXAMPLES = r"""
- name: Write the seeds of two machines
  autovibe.fleet.cloud_init:
    dest: /tmp/fleet-example/seeds
    template: python
    values:
      distribution: debian-13
      git_name: Ada
      git_email: ada@example.com
      ssh_public_keys:
        - ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDo2Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6 ada@example.com
    machines:
      - name: dev-1
      - name: dev-2
        memory: 8G
        interfaces:
          - mac_address: "52:54:00:12:34:02"
            addresses: [192.168.100.12/24]
            gateway: 192.168.100.1
            nameservers: [192.168.100.1]

- name: Write a seed of one's own
  autovibe.fleet.cloud_init:
    dest: /tmp/fleet-example/seeds
    seeds:
      - name: small
        user_data:
          ssh_authorized_keys:
            - ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDo2Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6 ada@example.com
          packages: [git]

- name: Fill a template for a task that makes machines
  autovibe.fleet.cloud_init:
    state: rendered
    template: python
    values:
      name: dev-3
      distribution: debian-13
      ssh_public_keys:
        - ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDo2Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6 ada@example.com

- name: Remove a seed
  autovibe.fleet.cloud_init:
    state: absent
    dest: /tmp/fleet-example/seeds
    seeds:
      - name: small
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  type: list
  elements: str
  returned: success
  sample: [write /var/lib/autovibe/seeds/dev-1/user-data]
seeds:
  description:
    - The folders of the machines, in the order of the task. With O(state=rendered) the documents themselves, as
      C(user_data), C(meta_data) and C(network_config).
  type: list
  elements: dict
  returned: success
  sample:
    - name: dev-1
      path: /var/lib/autovibe/seeds/dev-1
      files: [/var/lib/autovibe/seeds/dev-1/user-data, /var/lib/autovibe/seeds/dev-1/meta-data]
machines:
  description: What else is known of the machines of O(template), sizes in bytes. With O(seeds) it is empty.
  type: list
  elements: dict
  returned: success
  sample:
    - name: dev-1
      distribution: debian-13
      user: dev
      cpus: 2
      memory: 4294967296
      disk: 21474836480
"""

from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._cloud_init import apply, plan
from ansible_collections.autovibe.fleet.plugins.module_utils._module import fleet_module, run_change

OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent", "rendered"], "default": "present"},
    "dest": {"type": "path"},
    "template": {"type": "str"},
    "env_file": {"type": "path"},
    "values": {"type": "dict"},
    "machines": {"type": "list", "elements": "dict"},
    "format": {"type": "str", "choices": ["cloud-config", "mime"], "default": "cloud-config"},
    "parts": {"type": "list", "elements": "str"},
    "seeds": {
        "type": "list",
        "elements": "dict",
        "options": {
            "name": {"type": "str", "required": True},
            "user_data": {"type": "raw"},
            "meta_data": {"type": "raw"},
            "network_config": {"type": "raw"},
        },
    },
    "schema_check": {"type": "bool", "default": True},
}


def main() -> None:
    required = [("state", state, ("dest",)) for state in ("present", "absent")]
    run_change(fleet_module(OPTIONS, required_if=required), plan, apply)


if __name__ == "__main__":
    main()
