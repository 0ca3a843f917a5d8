#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: machine
short_description: Create, change, start, stop and delete machines
version_added: 0.1.0
description:
  - Machines are made from images by a provider, and are started, stopped, changed and deleted, many at once.
  - A task first finds out what is to be done for each machine. If one is refused, nothing is done for any of them.
    Then the machines are worked on in parallel, and one that fails does not keep the others from what they need.
    RV(outcomes) tells what became of each, also when the task fails.
  - What a provider can change in place is changed in place. What it cannot change needs O(recreate).
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.change
  - autovibe.fleet.machine_fields.provider
  - autovibe.fleet.machine_fields.machines
attributes:
  idempotent:
    support: partial
    details: All but O(state=restarted), which restarts each time.
options:
  state:
    description:
      - V(present) makes the machines that are not there, and changes those that are. A new machine is started, for it
        has to boot once. One that is there stays started or stopped.
      - V(started) and V(stopped) do the same, and then start or stop them.
      - V(restarted) does the same, and restarts those that run.
      - V(absent) deletes them with their disks and checkpoints.
    type: str
    choices: [present, absent, started, stopped, restarted]
    default: present
  names:
    description: Machines that are there already, by name. With O(state=absent) they may be gone.
    type: list
    elements: str
  recreate:
    description:
      - Whether to delete a machine and make it anew when something differs that cannot be changed in place, such as
        its image or its user data. All that is on its disk is lost.
    type: bool
    default: false
  reboot:
    description:
      - Whether to stop a running machine and start it again when something differs that can be changed only while it
        is stopped, such as its memory. O(state=stopped) and O(state=restarted) need no such consent.
    type: bool
    default: false
  force:
    description: Whether to power machines off that are to be stopped, instead of shutting them down.
    type: bool
    default: false
  parallel:
    description: How many machines are worked on at the same time.
    type: int
    default: 4
  timeout:
    description:
      - How long all machines together may take. A number of seconds, or a text such as V(90s) or V(20m).
      - What has not begun by then is not begun. A machine that is left incomplete says so in
        M(autovibe.fleet.machine_info), and is finished by the next run.
    type: str
    default: 15m
seealso:
  - module: autovibe.fleet.machine_info
"""

EXAMPLES = r"""
- name: Have two machines
  autovibe.fleet.machine:
    state: started
    provider: multipass
    machines:
      - name: web-1
        image: "24.04"
        cpu: 2
        memory: 2G
        disk: 10G
        tags: [web]
        project: shop
        user_data: |
          #cloud-config
          packages: [git]
      - name: web-2
        image: "24.04"
        project: shop

- name: Give the first more memory, which needs a restart
  autovibe.fleet.machine:
    provider: multipass
    reboot: true
    machines:
      - name: web-1
        memory: 4G

- name: Stop both
  autovibe.fleet.machine:
    state: stopped
    provider: multipass
    names: [web-1, web-2]

- name: Fork a third from the second
  autovibe.fleet.machine:
    provider: multipass
    machines:
      - name: web-3
        image: instance:web-2

- name: Delete them all, with their disks
  autovibe.fleet.machine:
    state: absent
    provider: multipass
    names: [web-1, web-2, web-3]
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  type: list
  elements: str
  returned: always
  sample: [create machine web-1, "change machine web-2: memory from 1G to 2G"]
machines:
  description:
    - The machines of the task as they are now. Deleted ones are not among them.
    - M(autovibe.fleet.machine_info) returns the same, and more.
  type: list
  elements: dict
  returned: when not in check mode
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
    project:
      description: The project that it belongs to.
      type: str
      returned: always
      sample: shop
    tags:
      description: Words to find it by.
      type: list
      elements: str
      returned: always
      sample: [web]
outcomes:
  description: What became of each machine, in the order of the task.
  type: list
  elements: dict
  returned: when not in check mode, also when the task failed
  contains:
    name:
      description: Its name.
      type: str
      returned: always
      sample: web-1
    ok:
      description: Whether all that was to be done was done.
      type: bool
      returned: always
      sample: true
    done:
      description: What was done.
      type: list
      elements: str
      returned: always
      sample: [create machine web-1]
    not_done:
      description: What was not done.
      type: list
      elements: str
      returned: always
      sample: []
    error:
      description: Why not.
      type: str
      returned: always
      sample: ""
    code:
      description: The kind of error, a stable word such as V(timed_out) or V(unavailable).
      type: str
      returned: always
      sample: ""
    seconds:
      description: How long it took.
      type: float
      returned: always
      sample: 31.4
progress:
  description: What was done when, one line each.
  type: list
  elements: str
  returned: when not in check mode, also when the task failed
  sample: ["0.0s web-1: create machine web-1", "0.1s web-1: launch it"]
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._arguments import MACHINES, PROVIDER
from ansible_collections.autovibe.fleet.plugins.module_utils._machines import carried_out, plans_of, provider_of
from ansible_collections.autovibe.fleet.plugins.module_utils._module import (
    Result,
    fleet_module,
    run_change,
)
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.machine_plans import joined

OPTIONS: dict[str, Any] = {
    "state": {
        "type": "str",
        "choices": ["present", "absent", "started", "stopped", "restarted"],
        "default": "present",
    },
    **PROVIDER,
    **MACHINES,
    "names": {"type": "list", "elements": "str"},
    "recreate": {"type": "bool", "default": False},
    "reboot": {"type": "bool", "default": False},
    "force": {"type": "bool", "default": False},
    "parallel": {"type": "int", "default": 4},
    "timeout": {"type": "str", "default": "15m"},
}


def plan(params: Mapping[str, Any]) -> Result:
    return Result(joined(plans_of(params, provider_of(params))), {})


def apply(params: Mapping[str, Any]) -> Result:
    provider = provider_of(params)
    plans = plans_of(params, provider)
    return Result(joined(plans), carried_out(params, provider, plans))


def main() -> None:
    run_change(fleet_module(OPTIONS, required_one_of=[("machines", "names")]), plan, apply)


if __name__ == "__main__":
    main()
