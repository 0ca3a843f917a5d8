#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: agent
short_description: Declare, start and stop agents
version_added: 0.1.0
description:
  - An agent is a coding agent's command line, or any other program, that is given prompts in a pipeline or a loop, in
    a workspace of its own, until its work is complete or a limit is reached. fleetd supervises it and keeps what
    it did.
  - All agents of a task are handled in one call, all or nothing. Each change of a definition makes a new revision.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.change
  - autovibe.fleet.fleet.fleetd
  - autovibe.fleet.fleet.wait
  - autovibe.fleet.agent_fields.agents
options:
  state:
    description:
      - V(present) declares the agents; what runs goes on, and takes a new revision up at its next iteration.
      - V(running) declares and starts them. One whose run has come to its end is not started once more, unless its
        definition changed.
      - V(stopped) declares them and ends their runs.
      - V(absent) ends their runs and forgets them, with all that is known of their runs. Workspaces stay.
    type: str
    choices: [present, running, stopped, absent]
    default: present
  names:
    description: Agents that are declared already, by name.
    type: list
    elements: str
  content:
    description:
      - The text of a C(.p) file. The agents in it, whose names begin with C(agent-), are declared as well.
      - It cannot import other files; on the controller P(autovibe.fleet.agent_definitions#lookup) reads files that do.
    type: str
  defaults:
    description: Fields of the agents in O(content), such as C(runner), C(model) and C(limits), as in O(agents).
    type: dict
    default: {}
seealso:
  - module: autovibe.fleet.agent_info
  - module: autovibe.fleet.agent_message
  - plugin: autovibe.fleet.agent_definitions
    plugin_type: lookup
"""

EXAMPLES = r"""
- name: Run an agent that is a program of our own
  autovibe.fleet.agent:
    state: running
    agents:
      - name: greeter
        runner: command
        command: cat; echo; echo DONE
        methods:
          greet:
            parameters: [whom]
            body: Write a greeting to [whom].
        pipeline:
          - loop: greet
            arguments: [everybody]
        completion:
          phrase: DONE
        limits:
          iterations: 3

- name: Declare an agent that builds what is in the backlog, in a clone of a repository
  autovibe.fleet.agent:
    agents:
      - name: builder
        runner: claude
        options:
          permission_mode: acceptEdits
        methods:
          build: Read BACKLOG.md, pick one item, build it, test it, commit it.
        pipeline:
          - loop: build
        limits:
          iterations: 20
          cost: 5
        verification:
          command: "! grep -q '^- \\[ \\]' BACKLOG.md"
        workspace:
          kind: clone
          repository: /srv/shop.git
        env_files: [/etc/autovibe/runners/claude.env]

- name: Declare the same in the other notation
  autovibe.fleet.agent:
    content: "build:\n\tRead BACKLOG.md, pick one item, build it, test it, commit it.\nagent-builder:\n\tloop(build)\n"
    defaults:
      runner: claude
      limits:
        iterations: 20
  check_mode: true

- name: Stop and forget both
  autovibe.fleet.agent:
    state: absent
    names: [greeter, builder]
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  type: list
  elements: str
  returned: success
  sample: [create agent greeter, start agent greeter]
summary:
  description: The names of the agents by what happened to their definitions.
  type: dict
  returned: success
  contains:
    created:
      description: Those that are new.
      type: list
      elements: str
      returned: success
      sample: [greeter]
    updated:
      description: Those with a new revision.
      type: list
      elements: str
      returned: success
      sample: []
    unchanged:
      description: Those whose definition is as it was.
      type: list
      elements: str
      returned: success
      sample: []
    removed:
      description: Those that were forgotten.
      type: list
      elements: str
      returned: success
      sample: []
agents:
  description:
    - The agents of the task as they are now. Removed ones are not among them.
    - M(autovibe.fleet.agent_info) returns the same, and more.
  type: list
  elements: dict
  returned: when not in check mode
  contains:
    name:
      description: Its name.
      type: str
      returned: always
      sample: greeter
    state:
      description:
        - V(stopped), V(starting), V(running), V(paused), V(waiting), V(stopping), or how its last run ended,
          V(completed), V(failed) or V(limited).
      type: str
      returned: always
      sample: running
    revision:
      description: The number of its current revision.
      type: int
      returned: always
      sample: 1
    id:
      description: The SHA-256 of all that changes its behaviour.
      type: str
      returned: always
      sample: 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b
    run:
      description: Its last run, or nothing.
      type: dict
      returned: always
      sample: {id: 1, state: running, totals: {iterations: 1, failed: 0, cost: 0.0, tokens: 0, seconds: 0.2}}
    error:
      description: Why its run failed, or nothing.
      type: str
      returned: always
      sample: ""
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._agents import definitions, readable
from ansible_collections.autovibe.fleet.plugins.module_utils._arguments import AGENTS, WAIT
from ansible_collections.autovibe.fleet.plugins.module_utils._fleetd import call, waiting
from ansible_collections.autovibe.fleet.plugins.module_utils._module import (
    Result,
    fleet_module,
    run_change,
)
from ansible_collections.autovibe.fleet.plugins.module_utils._secrets import take_secrets
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.changes import change_from_dict

OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "running", "stopped", "absent"], "default": "present"},
    **AGENTS,
    "names": {"type": "list", "elements": "str"},
    "content": {"type": "str"},
    "defaults": {"type": "dict", "default": {}},
    **WAIT,
}


def result(answer: Mapping[str, Any], *values: str) -> Result:
    found = {name: answer[name] for name in values}
    return Result(change_from_dict(answer["change"]), found, readable(answer["change"]))


def plan(params: Mapping[str, Any]) -> Result:
    answer = call(params["state_dir"], "agents.plan", items=definitions(params), state=params["state"])
    return result(answer, "summary")


def apply(params: Mapping[str, Any]) -> Result:
    items = definitions(params)
    answer = call(params["state_dir"], "agents.apply", items=items, state=params["state"], **waiting(params))
    return result(answer, "summary", "agents")


def main() -> None:
    module = fleet_module(OPTIONS, required_one_of=[("agents", "names", "content")])
    run_change(module, plan, apply, take_secrets(module, "agents"))


if __name__ == "__main__":
    main()
