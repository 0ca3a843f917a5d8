#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: resource_type
short_description: Define types of resources
version_added: 0.1.0
description:
  - A resource is a pair of type and value, such as C(tcpport:8080), that has one owner at a time.
  - A type says how its values are counted, and how to find out whether a value is available on the host.
  - These exist from the beginning - C(tcpport), C(vncport), C(serialport) (counters of TCP ports), C(dbfile), C(socket)
    (paths that must not exist yet), C(datadir), C(workdir), C(gpu), C(license), C(dbconn).
  - Does not need fleetd.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.change
options:
  state:
    description:
      - V(present) defines the types. What is not given stays as it is in a type that exists.
      - V(absent) removes them. A type with claimed values cannot be removed.
    type: str
    choices: [present, absent]
    default: present
  types:
    description: The types. With O(state=absent) only the names count.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Letters, digits and underscores.
        type: str
        required: true
      check:
        description:
          - A shell command that tells whether a value is available. C(${value}) is replaced by the value, quoted.
          - It replaces a O(types[].probe).
        type: str
      check_means:
        description:
          - What the exit code 0 of the check says. Required with O(types[].check), because both are common.
        type: str
        choices: [free, in_use]
      timeout:
        description: The time that a check may take. Default V(5s).
        type: str
      probe:
        description:
          - A check without a command. V(tcp) - nothing listens on the port. V(path) - nothing has this path.
          - It replaces a O(types[].check). Values of all types with the same probe are unique together.
        type: str
        choices: [tcp, path]
      counter:
        description: Whether values are whole numbers that are given out in turn.
        type: bool
      start:
        description: The first value of a counter.
        type: int
      end:
        description: The last value of a counter; the first one follows it.
        type: int
      description:
        description: What it is, for people.
        type: str
seealso:
  - module: autovibe.fleet.resource
  - module: autovibe.fleet.resource_info
"""

EXAMPLES = r"""
- name: Give out ports from 20000 on
  autovibe.fleet.resource_type:
    types:
      - name: tcpport
        start: 20000
        end: 29999

- name: Define types of our own
  autovibe.fleet.resource_type:
    types:
      - name: vlan
        counter: true
        start: 100
        end: 199
      - name: mount
        check: mountpoint -q ${value}
        check_means: in_use
        timeout: 2s
        description: A mount point that nothing is mounted on

- name: Remove them again
  autovibe.fleet.resource_type:
    state: absent
    types:
      - name: vlan
      - name: mount
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  type: list
  elements: str
  returned: success
  sample: [create resource type vlan]
types:
  description: The definitions of the types that the task named, by name. Removed ones are not among them.
  type: dict
  returned: success
  sample:
    vlan: {name: vlan, counter: true, start: 100, end: 199}
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._arguments import given
from ansible_collections.autovibe.fleet.plugins.module_utils._module import (
    Result,
    fleet_module,
    run_change,
)
from ansible_collections.autovibe.fleet.plugins.module_utils._store import (
    store_to_read,
    store_to_write,
)
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_node.declarations import (
    TypesPlan,
    plan_types,
)
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_node.store import Store

OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "types": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "name": {"type": "str", "required": True},
            "check": {"type": "str"},
            "check_means": {"type": "str", "choices": ["free", "in_use"]},
            "timeout": {"type": "str"},
            "probe": {"type": "str", "choices": ["tcp", "path"]},
            "counter": {"type": "bool"},
            "start": {"type": "int"},
            "end": {"type": "int"},
            "description": {"type": "str"},
        },
    },
}


def planned(store: Store, params: Mapping[str, Any]) -> tuple[TypesPlan, Result]:
    names = [item["name"] for item in params["types"]]
    found = plan_types(store, [given(item, {}) for item in params["types"]], params["state"] == "present")
    after = {**{kind.name: kind for kind in store.types().values()}, **{kind.name: kind for kind in found.put}}
    kept = {name: after[name].to_dict() for name in names if name in after and name not in found.remove}
    return found, Result(found.change, {"types": kept})


def plan(params: Mapping[str, Any]) -> Result:
    with store_to_read(params["state_dir"]) as store:
        return planned(store, params)[1]


def apply(params: Mapping[str, Any]) -> Result:
    with store_to_write(params["state_dir"]) as store, store.transaction():
        found, result = planned(store, params)
        found.apply(store)
    return result


def main() -> None:
    run_change(fleet_module(OPTIONS), plan, apply)


if __name__ == "__main__":
    main()
