#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: environment_info
short_description: List environments and their processes
version_added: 0.1.0
description:
  - Lists the environments that fleetd knows on a host, active or not.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.info
  - autovibe.fleet.fleet.facts
  - autovibe.fleet.fleet.fleetd
options:
  names:
    description: Only these environments. Those that do not exist are named in RV(missing).
    type: list
    elements: str
seealso:
  - module: autovibe.fleet.environment
  - module: autovibe.fleet.process_info
"""

EXAMPLES = r"""
- name: List all environments
  autovibe.fleet.environment_info:
  register: found

- name: Show the addresses of all that is active
  ansible.builtin.debug:
    msg: "{{ found.environments | map(attribute='processes') | flatten | map(attribute='urls') | flatten }}"

- name: Set the environments as facts of the host
  autovibe.fleet.environment_info:
    facts: true

- name: Show the names of the environments of every host
  ansible.builtin.debug:
    msg: "{{ ansible_facts.fleet_environments | list }}"
"""

RETURN = r"""
environments:
  description: The environments, in the order of their names.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its name.
      type: str
      returned: always
      sample: shop
    path:
      description: The project file.
      type: str
      returned: always
      sample: /srv/shop/.runcept.toml
    project_dir:
      description: The project's folder.
      type: str
      returned: always
      sample: /srv/shop
    status:
      description: V(active), V(inactive), V(activating), V(deactivating) or V(error).
      type: str
      returned: always
      sample: active
    inactivity_timeout:
      description: After how many seconds without activity it is deactivated; 0 for never.
      type: float
      returned: always
      sample: 7200.0
    idle:
      description: For how many seconds there was no activity; 0 when it is not active.
      type: int
      returned: always
      sample: 12
    last_activity:
      description: When there was activity, in UTC.
      type: str
      returned: always
      sample: "2026-01-31T12:00:00+00:00"
    error:
      description: The error of its first process that has one, or nothing.
      type: str
      returned: always
      sample: ""
    processes:
      description: Its processes, each as M(autovibe.fleet.process_info) returns it.
      type: list
      elements: dict
      returned: always
      sample: [{id: shop/web, status: running, urls: ["http://127.0.0.1:3000/"]}]
missing:
  description: Those of O(names) that do not exist.
  type: list
  elements: str
  returned: success
  sample: []
ansible_facts:
  description: Facts of the host.
  type: dict
  returned: O(facts=true)
  contains:
    fleet_environments:
      description: The environments by name, each as in RV(environments).
      type: dict
      returned: success
      sample: {shop: {name: shop, status: active, path: /srv/shop/.runcept.toml}}
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._fleetd import call
from ansible_collections.autovibe.fleet.plugins.module_utils._module import fleet_module, run_info

OPTIONS: dict[str, Any] = {
    "names": {"type": "list", "elements": "str"},
    "facts": {"type": "bool", "default": False},
}


def read(params: Mapping[str, Any]) -> Mapping[str, Any]:
    known = {item["name"]: item for item in call(params["state_dir"], "environments.list")["environments"]}
    names = sorted(known) if params["names"] is None else params["names"]
    found = {name: known[name] for name in names if name in known}
    values = {"environments": list(found.values()), "missing": [name for name in names if name not in known]}
    return {**values, "ansible_facts": {"fleet_environments": found}} if params["facts"] else values


def main() -> None:
    run_info(fleet_module(OPTIONS), read)


if __name__ == "__main__":
    main()
