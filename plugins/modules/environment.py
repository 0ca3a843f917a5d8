#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: environment
short_description: Activate and deactivate environments of projects
version_added: 0.1.0
description:
  - An environment is the set of processes that a project declares in its file C(.runcept.toml), with their
    dependencies, health checks and an inactivity timeout.
  - Activating it starts the processes in the order of their dependencies. Deactivating it stops them in the reverse
    order.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.change
  - autovibe.fleet.fleet.fleetd
  - autovibe.fleet.fleet.wait
options:
  state:
    description:
      - V(active) reads the project files again, and runs the processes that are declared there.
      - V(inactive) stops the processes.
      - V(absent) stops and forgets them. The project's files stay.
    type: str
    choices: [active, inactive, absent]
    default: active
  paths:
    description:
      - Project folders or project files. For a folder without a project file, the folders above it are searched.
    type: list
    elements: path
  names:
    description: Environments by name. They must have been active before.
    type: list
    elements: str
seealso:
  - module: autovibe.fleet.environment_info
  - module: autovibe.fleet.process
"""

EXAMPLES = r"""
- name: Create a project
  ansible.builtin.file:
    path: /tmp/fleet-example
    state: directory
    mode: "0755"

- name: Declare its processes
  ansible.builtin.copy:
    dest: /tmp/fleet-example/.runcept.toml
    mode: "0644"
    content: |
      [environment]
      name = "example"
      inactivity_timeout = "2h"

      [processes.web]
      command = "python3 -m http.server --bind 127.0.0.1 %tcpport"
      health_check_url = "http://127.0.0.1:${tcpport}/"

      [processes.worker]
      command = "sleep 3600"
      depends_on = ["web"]

- name: Run them
  autovibe.fleet.environment:
    paths: [/tmp/fleet-example]
  register: example

- name: Show where the project answers
  ansible.builtin.debug:
    msg: "{{ example.environments[0].processes | map(attribute='urls') | flatten }}"

- name: Stop and forget them
  autovibe.fleet.environment:
    state: absent
    names: [example]
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  type: list
  elements: str
  returned: success
  sample: [activate environment example]
environments:
  description:
    - The environments of the task as they are now. Removed ones are not among them.
    - M(autovibe.fleet.environment_info) returns the same.
  type: list
  elements: dict
  returned: when not in check mode
  contains:
    name:
      description: Its name.
      type: str
      returned: always
      sample: example
    path:
      description: The project file.
      type: str
      returned: always
      sample: /tmp/fleet-example/.runcept.toml
    status:
      description: V(active), V(inactive), V(activating), V(deactivating) or V(error).
      type: str
      returned: always
      sample: active
    processes:
      description: Its processes, each as M(autovibe.fleet.process_info) returns it.
      type: list
      elements: dict
      returned: always
      sample: [{id: example/web, status: running, urls: ["http://127.0.0.1:3000/"]}]
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._arguments import WAIT
from ansible_collections.autovibe.fleet.plugins.module_utils._fleetd import call, waiting
from ansible_collections.autovibe.fleet.plugins.module_utils._module import (
    Result,
    fleet_module,
    run_change,
)
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.changes import change_from_dict

OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["active", "inactive", "absent"], "default": "active"},
    "paths": {"type": "list", "elements": "path"},
    "names": {"type": "list", "elements": "str"},
    **WAIT,
}


def items(params: Mapping[str, Any]) -> list[dict[str, str]]:
    paths = [{"path": path, "state": params["state"]} for path in params["paths"] or ()]
    return paths + [{"name": name, "state": params["state"]} for name in params["names"] or ()]


def plan(params: Mapping[str, Any]) -> Result:
    answer = call(params["state_dir"], "environments.plan", items=items(params))
    return Result(change_from_dict(answer["change"]), {})


def apply(params: Mapping[str, Any]) -> Result:
    answer = call(params["state_dir"], "environments.apply", items=items(params), **waiting(params))
    return Result(change_from_dict(answer["change"]), {"environments": answer["environments"]})


def main() -> None:
    run_change(fleet_module(OPTIONS, required_one_of=[("paths", "names")]), plan, apply)


if __name__ == "__main__":
    main()
