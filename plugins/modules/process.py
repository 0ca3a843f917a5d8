#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: process
short_description: Run supervised processes
version_added: 0.1.0
description:
  - Declares, starts, stops, restarts and removes processes that fleetd supervises - with claimed resources, readiness
    and health checks, restart policies, dependencies and limits.
  - All processes of a task are handled in one call, in the order of their dependencies, which is much faster than a
    loop.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.change
  - autovibe.fleet.fleet.fleetd
  - autovibe.fleet.fleet.wait
  - autovibe.fleet.process_fields.processes
options:
  state:
    description:
      - V(started) declares the processes and runs them. One that runs with another declaration is restarted.
      - V(stopped) ends them and releases what they claimed.
      - V(restarted) ends and starts them, with the same claims; it always changes something.
      - V(absent) stops them and forgets their declaration.
      - V(present) declares them; what runs keeps running as it was started.
    type: str
    choices: [started, stopped, restarted, absent, present]
    default: started
  ids:
    description:
      - Processes of which nothing but the id is needed, such as those to stop. The same as O(processes) with only an
        O(processes[].id) each.
    type: list
    elements: str
seealso:
  - module: autovibe.fleet.process_info
  - module: autovibe.fleet.process_template
  - module: autovibe.fleet.environment
"""

EXAMPLES = r"""
- name: Run a web server on the next free port
  autovibe.fleet.process:
    processes:
      - id: files
        command: python3 -m http.server --bind 127.0.0.1 %tcpport
        working_dir: /usr/share
        readiness:
          url: http://127.0.0.1:${tcpport}/
        restart:
          policy: always
  register: web

- name: Show where it answers
  ansible.builtin.debug:
    msg: http://127.0.0.1:{{ web.processes[0].resources.tcpport }}/

- name: Run a worker once the web server is healthy
  autovibe.fleet.process:
    processes:
      - id: worker
        command: sleep ${pause}
        vars:
          pause: 3600
        env:
          LOG_LEVEL: info
        depends_on:
          - process: files
            condition: healthy
        limits:
          memory: 256M

- name: Restart the worker
  autovibe.fleet.process:
    state: restarted
    ids: [worker]

- name: Stop and forget both
  autovibe.fleet.process:
    state: absent
    ids: [worker, files]
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  type: list
  elements: str
  returned: success
  sample: [declare process files, start process files]
processes:
  description:
    - The processes of the task as they are now. Removed ones are not among them.
    - M(autovibe.fleet.process_info) returns the same.
  type: list
  elements: dict
  returned: when not in check mode
  contains:
    id:
      description: Its id.
      type: str
      returned: always
      sample: files
    status:
      description: V(stopped), V(starting), V(running), V(unhealthy), V(backoff), V(stopping) or V(error).
      type: str
      returned: always
      sample: running
    pid:
      description: Its process id, 0 when it does not run.
      type: int
      returned: always
      sample: 4242
    command:
      description: What it runs, variables replaced.
      type: str
      returned: always
      sample: python3 -m http.server --bind 127.0.0.1 3000
    resources:
      description: What it claimed - name to value.
      type: dict
      returned: always
      sample: {tcpport: "3000"}
    urls:
      description: Where it can be reached.
      type: list
      elements: str
      returned: always
      sample: ["http://127.0.0.1:3000/"]
    healthy:
      description: What its last check said; null before the first one.
      type: bool
      returned: always
      sample: true
    error:
      description: Why it does not run, or nothing.
      type: str
      returned: always
      sample: ""
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._arguments import (
    PROCESSES,
    WAIT,
    given,
)
from ansible_collections.autovibe.fleet.plugins.module_utils._fleetd import call, waiting
from ansible_collections.autovibe.fleet.plugins.module_utils._module import (
    Result,
    fleet_module,
    run_change,
)
from ansible_collections.autovibe.fleet.plugins.module_utils._secrets import take_secrets
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.changes import change_from_dict

OPTIONS: dict[str, Any] = {
    "state": {
        "type": "str",
        "choices": ["started", "stopped", "restarted", "absent", "present"],
        "default": "started",
    },
    "ids": {"type": "list", "elements": "str"},
    **PROCESSES,
    **WAIT,
}


def items(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*(given(item) for item in params["processes"] or ()), *({"id": name} for name in params["ids"] or ())]


def plan(params: Mapping[str, Any]) -> Result:
    answer = call(params["state_dir"], "processes.plan", items=items(params), state=params["state"])
    return Result(change_from_dict(answer["change"]), {})


def apply(params: Mapping[str, Any]) -> Result:
    answer = call(params["state_dir"], "processes.apply", items=items(params), state=params["state"], **waiting(params))
    return Result(change_from_dict(answer["change"]), {"processes": answer["processes"]})


def main() -> None:
    module = fleet_module(OPTIONS, required_one_of=[("processes", "ids")])
    run_change(module, plan, apply, take_secrets(module, "processes"))


if __name__ == "__main__":
    main()
