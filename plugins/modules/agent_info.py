#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: agent_info
short_description: List agents and what they did
version_added: 0.1.0
description:
  - Lists the agents that fleetd runs on a host, and on request their revisions, runs, iterations, messages and
    statistics.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.info
  - autovibe.fleet.fleet.facts
  - autovibe.fleet.fleet.fleetd
options:
  names:
    description: Only these agents. Those that do not exist are named in RV(missing).
    type: list
    elements: str
  gather:
    description: What to return of each agent besides its state.
    type: list
    elements: str
    choices: [revisions, runs, iterations, messages, injections, statistics]
    default: []
  limit:
    description: How many runs, iterations, messages and injections to return of each agent, the last ones.
    type: int
    default: 20
seealso:
  - module: autovibe.fleet.agent
  - module: autovibe.fleet.agent_message
  - module: autovibe.fleet.process_info
"""

EXAMPLES = r"""
- name: List all agents
  autovibe.fleet.agent_info:
  register: found

- name: Show which have come to an end
  ansible.builtin.debug:
    msg: "{{ found.agents | selectattr('state', 'in', ['completed', 'failed', 'limited']) | map(attribute='name') }}"

- name: Read what the last iterations were and what they cost
  autovibe.fleet.agent_info:
    gather: [iterations, statistics]
    limit: 5
"""

RETURN = r"""
agents:
  description: The agents, in the order of their names.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its name.
      type: str
      returned: always
      sample: builder
    state:
      description:
        - V(stopped), V(starting), V(running), V(paused), V(waiting), V(stopping), or how its last run ended,
          V(completed), V(failed) or V(limited).
      type: str
      returned: always
      sample: running
    desired:
      description: What it should be, V(running), V(stopped) or V(paused).
      type: str
      returned: always
      sample: running
    description:
      description: What it is for.
      type: str
      returned: always
      sample: Works through the backlog
    runner:
      description: The program that does the work.
      type: str
      returned: always
      sample: claude
    model:
      description: The model, or nothing for the runner's own choice.
      type: str
      returned: always
      sample: ""
    revision:
      description: The number of its current revision.
      type: int
      returned: always
      sample: 3
    id:
      description: The SHA-256 of all that changes its behaviour.
      type: str
      returned: always
      sample: 2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b
    legacy_id:
      description: The id of the same agent in the notation of C(.p) files.
      type: str
      returned: always
      sample: 08e730bdcd38bc1d179975defe8a56367ac71dd72683828b2f21791c2736e588
    process:
      description: The process that it runs as, see M(autovibe.fleet.process_info).
      type: str
      returned: always
      sample: agents/builder
    pid:
      description: The process id, 0 when it does not run.
      type: int
      returned: always
      sample: 4242
    run:
      description: Its last run as in RV(agents[].runs), or nothing.
      type: dict
      returned: always
      sample: {id: 7, state: running, totals: {iterations: 4, failed: 0, cost: 0.4, tokens: 41200, seconds: 310.0}}
    steps:
      description: The steps of its pipeline, with how many iterations each has had and the last of them.
      type: list
      elements: dict
      returned: always
      sample: [{label: build, kind: loop, method: build, iterations: 4}]
    queued:
      description: How many steering messages wait for it.
      type: int
      returned: always
      sample: 0
    next_run:
      description: When its schedule starts it next, in seconds since 1970, or nothing.
      type: float
      returned: always
      sample: null
    error:
      description: Why its run failed, or nothing.
      type: str
      returned: always
      sample: ""
    revisions:
      description: All revisions, oldest first, each with its definition.
      type: list
      elements: dict
      returned: O(gather) contains V(revisions)
      sample: [{number: 1, origin: apply, definition: {name: builder, runner: claude}}]
    runs:
      description: Its runs, newest first.
      type: list
      elements: dict
      returned: O(gather) contains V(runs)
      sample: [{id: 7, revision: 3, state: running}]
    iterations:
      description: Its iterations, newest first.
      type: list
      elements: dict
      returned: O(gather) contains V(iterations)
      sample: [{id: 31, number: 4, step: build, state: succeeded, duration: 71.4, result: Added the login page.}]
    messages:
      description: What was said in its iterations, oldest first.
      type: list
      elements: dict
      returned: O(gather) contains V(messages)
      sample: [{id: 900, iteration: 31, type: text, content: Added the login page.}]
    injections:
      description: The steering messages that were sent to it, oldest first.
      type: list
      elements: dict
      returned: O(gather) contains V(injections)
      sample: [{id: 2, text: Use the new logo., state: delivered}]
    statistics:
      description: Mean and standard deviation of the duration and the tokens of its iterations, and sums.
      type: dict
      returned: O(gather) contains V(statistics)
      sample: {iterations: 4, succeeded: 4, failed: 0, cost: 0.4}
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
    fleet_agents:
      description: The agents by name, each as in RV(agents).
      type: dict
      returned: success
      sample: {builder: {name: builder, state: running}}
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._agents import gather
from ansible_collections.autovibe.fleet.plugins.module_utils._fleetd import call
from ansible_collections.autovibe.fleet.plugins.module_utils._module import fleet_module, run_info

OPTIONS: dict[str, Any] = {
    "names": {"type": "list", "elements": "str"},
    "gather": {
        "type": "list",
        "elements": "str",
        "choices": ["revisions", "runs", "iterations", "messages", "injections", "statistics"],
        "default": [],
    },
    "limit": {"type": "int", "default": 20},
    "facts": {"type": "bool", "default": False},
}


def read(params: Mapping[str, Any]) -> Mapping[str, Any]:
    known = {item["name"]: item for item in call(params["state_dir"], "agents.list")["agents"]}
    names = sorted(known) if params["names"] is None else params["names"]
    found = {name: {**known[name], **gather(params, name)} for name in names if name in known}
    values = {"agents": list(found.values()), "missing": [name for name in names if name not in known]}
    return {**values, "ansible_facts": {"fleet_agents": found}} if params["facts"] else values


def main() -> None:
    run_info(fleet_module(OPTIONS), read)


if __name__ == "__main__":
    main()
