#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: agent_message
short_description: Send steering messages to agents
version_added: 0.1.0
description:
  - Sends a message to an agent, which reads it in its running iteration where its runner can, else at the beginning of
    the next one.
  - Messages keep their order, and none is dropped. What is sent to an agent that does not run waits until it does.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.change
  - autovibe.fleet.fleet.fleetd
attributes:
  idempotent:
    description: When run twice in a row with the same options, the second run changes nothing.
    support: none
    details: A message is sent each time.
options:
  name:
    description: The agent.
    type: str
    required: true
  text:
    description: What to tell it.
    type: str
    required: true
  step:
    description: The step of its pipeline that is to read it. By default whichever runs next.
    type: str
  iteration:
    description: The id of the iteration that is to read it. The message is refused when that has ended.
    type: int
  sender:
    description: Who sends it. By default fleetd notes the user.
    type: str
  wait:
    description:
      - Whether to wait until the message is delivered. A message to an agent that does not run is not waited for.
      - A message that is refused fails the task, waited for or not.
    type: bool
    default: true
  timeout:
    description: How long to wait. A number of seconds, or a text such as V(90s) or V(2m30s).
    type: str
    default: 5m
seealso:
  - module: autovibe.fleet.agent
  - module: autovibe.fleet.agent_info
"""

EXAMPLES = r"""
- name: Declare an agent
  autovibe.fleet.agent:
    agents:
      - name: reader
        runner: command
        command: cat
        methods:
          read: Say what you have been told.

- name: Tell it something
  autovibe.fleet.agent_message:
    name: reader
    text: The meeting has been moved to Monday.
  register: told

- name: Show that the message waits for the next run
  ansible.builtin.debug:
    msg: "{{ told.message.state }}"

- name: Forget the agent
  autovibe.fleet.agent:
    state: absent
    names: [reader]
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  type: list
  elements: str
  returned: success
  sample: [send a message to agent reader]
message:
  description: The message as it is now.
  type: dict
  returned: when not in check mode
  contains:
    id:
      description: Its number; messages are delivered in this order.
      type: int
      returned: always
      sample: 2
    agent:
      description: The agent.
      type: str
      returned: always
      sample: reader
    text:
      description: What was said.
      type: str
      returned: always
      sample: The meeting has been moved to Monday.
    state:
      description: V(queued), V(sent) to a runner that has not confirmed it yet, or V(delivered).
      type: str
      returned: always
      sample: delivered
    delivered_in:
      description: The id of the iteration in which it was delivered, or nothing.
      type: int
      returned: always
      sample: 31
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._agents import check_receiver, delivered
from ansible_collections.autovibe.fleet.plugins.module_utils._fleetd import call
from ansible_collections.autovibe.fleet.plugins.module_utils._module import (
    Result,
    fleet_module,
    run_change,
)
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.changes import Change

OPTIONS: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "text": {"type": "str", "required": True},
    "step": {"type": "str"},
    "iteration": {"type": "int"},
    "sender": {"type": "str"},
    "wait": {"type": "bool", "default": True},
    "timeout": {"type": "str", "default": "5m"},
}


def change(params: Mapping[str, Any]) -> Change:
    return Change({}, {params["name"]: params["text"]}, (f"send a message to agent {params['name']}",))


def plan(params: Mapping[str, Any]) -> Result:
    check_receiver(params)
    return Result(change(params), {})


def apply(params: Mapping[str, Any]) -> Result:
    given = {key: params[key] for key in ("name", "text", "step", "iteration", "sender") if params[key] is not None}
    sent = call(params["state_dir"], "agents.inject", **given)["injection"]
    return Result(change(params), {"message": delivered(params, sent)})


def main() -> None:
    run_change(fleet_module(OPTIONS), plan, apply)


if __name__ == "__main__":
    main()
