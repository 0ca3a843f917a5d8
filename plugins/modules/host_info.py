#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: Tell what a host lacks to run machines
version_added: 0.1.0
description:
  - Looks for the programs that the providers of machines need, their versions, hardware virtualization, free memory
    and free disk space, and asks the providers whether they answer.
  - It works on Linux and macOS, without root. It is what the role P(autovibe.fleet.host_setup#role) decides by.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.info
options:
  providers:
    description: Where machines are to come from.
    type: list
    elements: str
    choices: [multipass, proxmox, qemu]
    default: [qemu]
  provider_settings:
    description: For each of O(providers) what the option of that name of M(autovibe.fleet.machine) takes.
    type: dict
    default: {}
  min_memory:
    description: How much memory the host must have, such as V(2G).
    type: str
    default: 1G
  min_disk:
    description: How much must be free on the disk of the machines, such as V(20G).
    type: str
    default: 5G
  debian_images:
    description: Whether images are to be built from the packages of Debian, such as V(debian:12) with V(qemu).
    type: bool
    default: true
  ask:
    description: Whether to ask the providers for their machines, which tells whether they answer.
    type: bool
    default: true
seealso:
  - module: autovibe.fleet.machine
"""

EXAMPLES = r"""
- name: See what is missing
  autovibe.fleet.host_info:
    providers: [qemu]
    min_disk: 20G
  register: host

- name: Say what to do
  ansible.builtin.debug:
    msg: "{{ host.table }}"

- name: Stop here if machines cannot run
  ansible.builtin.assert:
    that: host.missing | length == 0
"""

RETURN = r"""
checks:
  description: What was looked at.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: What it is.
      type: str
      returned: always
      sample: kvm
    provider:
      description: Who needs it, empty when all machines do.
      type: str
      returned: always
      sample: qemu
    state:
      description: V(ok), V(missing) when machines cannot run without, or V(advice) when they can.
      type: str
      returned: always
      sample: ok
    found:
      description: What is there.
      type: str
      returned: always
      sample: vmx, /dev/kvm
    advice:
      description: What to do, empty when it is as it should be.
      type: str
      returned: always
      sample: ""
missing:
  description: The names of what is missing.
  type: list
  elements: str
  returned: success
  sample: [mmdebstrap]
advised:
  description: The names of what would be better.
  type: list
  elements: str
  returned: success
  sample: [kvm]
kvm:
  description: Hardware virtualization, on Linux with the provider V(qemu).
  type: dict
  returned: success
  contains:
    device:
      description: Whether C(/dev/kvm) is there.
      type: bool
      returned: always
      sample: true
    usable:
      description: Whether the user may open it.
      type: bool
      returned: always
      sample: false
    group:
      description: The group that it belongs to.
      type: str
      returned: always
      sample: kvm
    joinable:
      description: Whether all that the user lacks is to be in that group.
      type: bool
      returned: always
      sample: true
python:
  description: The Python that modules run with.
  type: dict
  returned: success
  contains:
    executable:
      description: Its path.
      type: str
      returned: always
      sample: /usr/bin/python3
    venv:
      description: Whether it is that of a virtual environment.
      type: bool
      returned: always
      sample: false
snap:
  description: Whether the host has the command C(snap).
  type: bool
  returned: success
  sample: false
table:
  description: The same for people, a line each.
  type: list
  elements: str
  returned: success
  sample: ["CHECK     STATE  FOUND            WHAT TO DO", "qemu kvm  ok     vmx, /dev/kvm  -"]
"""

import shutil
import sys
from collections.abc import Mapping
from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._module import fleet_module, run_info
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core import host_checks
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.quantities import parse_size
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_machines import hosts

OPTIONS: dict[str, Any] = {
    "providers": {
        "type": "list",
        "elements": "str",
        "choices": ["multipass", "proxmox", "qemu"],
        "default": ["qemu"],
    },
    "provider_settings": {"type": "dict", "default": {}, "no_log": True},
    "min_memory": {"type": "str", "default": "1G"},
    "min_disk": {"type": "str", "default": "5G"},
    "debian_images": {"type": "bool", "default": True},
    "ask": {"type": "bool", "default": True},
}


def read(params: Mapping[str, Any]) -> dict[str, Any]:
    providers = host_checks.check_providers(params["providers"])
    memory, disk = (parse_size(name, params[name]) for name in ("min_memory", "min_disk"))
    settings = {name: params["provider_settings"].get(name) or {} for name in providers}
    found = hosts.look(providers, params["state_dir"], settings, ask=params["ask"])
    rows = host_checks.checks(found, providers, memory=memory, disk=disk, builds=params["debian_images"])
    return {
        "checks": [row.to_dict() for row in rows],
        "missing": [row.name for row in rows if row.state == host_checks.MISSING],
        "advised": [row.name for row in rows if row.state == host_checks.ADVICE],
        "kvm": {name: getattr(found.kvm, name) for name in ("device", "usable", "group", "joinable")},
        "python": {"executable": sys.executable, "venv": sys.prefix != sys.base_prefix},
        "snap": shutil.which("snap") is not None,
        "table": host_checks.table(rows),
    }


def main() -> None:
    run_info(fleet_module(OPTIONS), read)


if __name__ == "__main__":
    main()
