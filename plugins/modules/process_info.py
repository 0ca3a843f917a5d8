#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: process_info
short_description: List processes and their status
version_added: 0.1.0
description:
  - Lists what fleetd supervises on a host.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.info
  - autovibe.fleet.fleet.facts
  - autovibe.fleet.fleet.fleetd
options:
  ids:
    description: Only these processes. Those that do not exist are named in RV(missing).
    type: list
    elements: str
  environment:
    description: Only the processes of this environment.
    type: str
seealso:
  - module: autovibe.fleet.process
  - module: autovibe.fleet.environment_info
"""

EXAMPLES = r"""
- name: List all processes
  autovibe.fleet.process_info:
  register: found

- name: Show what does not run as it should
  ansible.builtin.debug:
    msg: "{{ found.processes | selectattr('status', 'in', ['error', 'backoff', 'unhealthy']) | map(attribute='id') }}"

- name: Set the processes as facts of the host
  autovibe.fleet.process_info:
    facts: true

- name: Group hosts by whether the web server runs there
  ansible.builtin.group_by:
    key: web_{{ (ansible_facts.fleet_processes.files | default({})).status | default('absent') }}
"""

RETURN = r"""
processes:
  description: The processes, in the order of their ids.
  type: list
  elements: dict
  returned: success
  contains:
    id:
      description: Its id, C(NAME) or C(ENVIRONMENT/NAME).
      type: str
      returned: always
      sample: files
    name:
      description: The id without the environment.
      type: str
      returned: always
      sample: files
    environment:
      description: The environment that it belongs to, or nothing.
      type: str
      returned: always
      sample: ""
    template:
      description: The template that it was made from, or nothing.
      type: str
      returned: always
      sample: ""
    label:
      description: Its title.
      type: str
      returned: always
      sample: ""
    command:
      description: What it runs, variables replaced.
      type: str
      returned: always
      sample: python3 -m http.server --bind 127.0.0.1 3000
    status:
      description: V(stopped), V(starting), V(running), V(unhealthy), V(backoff), V(stopping) or V(error).
      type: str
      returned: always
      sample: running
    desired:
      description: What it should be, V(running) or V(stopped).
      type: str
      returned: always
      sample: running
    pid:
      description: Its process id, 0 when it does not run.
      type: int
      returned: always
      sample: 4242
    started:
      description: When it was started, in UTC; null when it does not run.
      type: str
      returned: always
      sample: "2026-01-31T12:00:00+00:00"
    uptime:
      description: For how many seconds it has run.
      type: int
      returned: always
      sample: 61
    restarts:
      description: How often it was restarted since it was last started on request.
      type: int
      returned: always
      sample: 0
    exit_code:
      description: How the last run ended; negative for a signal, null when unknown.
      type: int
      returned: always
      sample: null
    healthy:
      description: What its last check said; null before the first one.
      type: bool
      returned: always
      sample: true
    completed:
      description: Whether it ran to its end with the exit code 0 and is not wanted back.
      type: bool
      returned: always
      sample: false
    error:
      description: Why it does not run, or nothing.
      type: str
      returned: always
      sample: ""
    waiting_for:
      description: What it waits for before it starts, or nothing.
      type: str
      returned: always
      sample: ""
    driver:
      description: What supervises it, V(native) or V(systemd).
      type: str
      returned: always
      sample: native
    resources:
      description: What it claimed - name to value.
      type: dict
      returned: always
      sample: {tcpport: "3000"}
    types:
      description: The types of what it claimed - name to type.
      type: dict
      returned: always
      sample: {tcpport: tcpport}
    urls:
      description: Where it can be reached.
      type: list
      elements: str
      returned: always
      sample: ["http://127.0.0.1:3000/"]
    memory:
      description: The bytes of memory that it uses.
      type: int
      returned: always
      sample: 20123648
    cpu:
      description: The seconds of CPU that it has used.
      type: float
      returned: always
      sample: 0.21
    user:
      description: The user that it runs as.
      type: str
      returned: always
      sample: root
    working_dir:
      description: The folder that it runs in.
      type: str
      returned: always
      sample: /usr/share
    depends_on:
      description: The processes that must be up first.
      type: list
      elements: dict
      returned: always
      sample: []
    log_file:
      description: Where its log is.
      type: str
      returned: always
      sample: /var/lib/autovibe/logs/files.log
    adopted:
      description: Whether it ran before fleetd took it over.
      type: bool
      returned: always
      sample: false
missing:
  description: Those of O(ids) that do not exist.
  type: list
  elements: str
  returned: success
  sample: []
ansible_facts:
  description: Facts of the host.
  type: dict
  returned: O(facts=true)
  contains:
    fleet_processes:
      description: The processes by id, each as in RV(processes).
      type: dict
      returned: success
      sample: {files: {id: files, status: running, resources: {tcpport: "3000"}}}
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._fleetd import call
from ansible_collections.autovibe.fleet.plugins.module_utils._module import fleet_module, run_info

OPTIONS: dict[str, Any] = {
    "ids": {"type": "list", "elements": "str"},
    "environment": {"type": "str"},
    "facts": {"type": "bool", "default": False},
}


def read(params: Mapping[str, Any]) -> Mapping[str, Any]:
    filters = {"environment": params["environment"]} if params["environment"] else {}
    known = {item["id"]: item for item in call(params["state_dir"], "processes.list", **filters)["processes"]}
    ids = sorted(known) if params["ids"] is None else params["ids"]
    found = {name: known[name] for name in ids if name in known}
    values = {"processes": list(found.values()), "missing": [name for name in ids if name not in known]}
    return {**values, "ansible_facts": {"fleet_processes": found}} if params["facts"] else values


def main() -> None:
    run_info(fleet_module(OPTIONS), read)


if __name__ == "__main__":
    main()
