#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: checkpoint
short_description: Save, restore and remove the states of machines
version_added: 0.1.0
description:
  - Saves the state of machines, many at once, puts them back to a saved state, and removes saved states.
  - Checkpoints of a machine form a tree. The parent of one is the checkpoint that the machine was at before.
  - With O(folders), a manifest is made inside the machine before it is saved, the paths, sizes and hashes of all that
    is in these folders. By it is told what changed since, and a checkpoint is verified. No content is read out.
  - With O(triggers), a checkpoint is made only when one is due. With O(retention), old ones are removed.
  - If one machine is refused, nothing is done for any of them. One that fails later does not keep the others from what
    they need. RV(outcomes) tells what became of each, also when the task fails.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.change
  - autovibe.fleet.machine_fields.provider
attributes:
  diff_mode:
    details: Shows which files differ, of machines that have a manifest. For that it looks into machines that run.
  idempotent:
    support: partial
    details: >-
      O(state=restored) restores each time. O(state=present) without O(name) and without O(triggers) saves each time.
options:
  state:
    description:
      - V(present) saves the machines, unless they have a checkpoint of this O(name) already.
      - V(restored) puts them back. What they were since then is lost. They run afterwards if they ran before.
      - V(absent) removes the checkpoint O(name), and what O(retention) does not keep.
    type: str
    choices: [present, restored, absent]
    default: present
  machines:
    description: The machines, by name.
    type: list
    elements: str
    required: true
  name:
    description:
      - The name of the checkpoint. A letter, then letters, digits and C(-).
      - With O(state=present) it is made of the kind and the time by default, as in C(automatic-20260131-080000).
      - With O(state=restored) V(latest) stands for the newest of each machine.
    type: str
  kind:
    description:
      - V(genesis) is the first of a machine, V(final) the last before it goes away. Both are never pruned.
      - V(automatic) is the default with O(triggers), V(manual) without. V(hub_daily) is the daily one of the hub.
    type: str
    choices: [genesis, automatic, manual, final, hub_daily]
  comment:
    description: A line for people.
    type: str
    default: ''
  folders:
    description:
      - The folders of the manifest, absolute paths in the machine, which must run for it. Links in them are recorded
        and not followed, and other file systems are not entered.
    type: list
    elements: str
    default: []
  live:
    description:
      - Whether to save a running machine with its memory. By default as the provider can.
      - V(false) needs O(stop) where the machine runs. V(true) is refused where the provider saves stopped machines
        only.
    type: bool
  stop:
    description: Whether a running machine may be stopped to save it. It is started again, also when that failed.
    type: bool
    default: false
  triggers:
    description: Save only when a checkpoint is due, for one of these reasons. 0 turns one off.
    type: dict
    suboptions:
      every:
        description: The time since the last one, such as V(5m). By default 5 minutes.
        type: str
      api_calls:
        description: How many API calls since the last one. By default 5.
        type: int
      budget_step:
        description: Each such part of the budget, V(0.1) for each tenth of it. By default 0.1.
        type: float
      risky:
        description: Whether to save before risky steps. By default it does.
        type: bool
  usage:
    description: What has been used so far, for O(triggers). It is kept with the checkpoint.
    type: dict
    suboptions:
      api_calls:
        description: The API calls so far.
        type: int
      budget_used:
        description: The part of the budget that is used, V(1.0) for all of it.
        type: float
  risky:
    description: Whether what comes next is risky, for O(triggers).
    type: bool
    default: false
  retention:
    description:
      - Remove checkpoints that are too old, of the O(retention.kinds) alone. An empty dictionary takes the defaults.
      - V(genesis) and V(final) ones stay, as do the newest, the one that the machine is at, and those that machines
        were forked from.
    type: dict
    suboptions:
      machine:
        description: Of all but V(hub_daily). By default all for 7 days, one a day for 30 days, one a week for 183 days.
        type: dict
        suboptions:
          all:
            description: How long all are kept.
            type: str
          daily:
            description: How long the last one of each day is kept.
            type: str
          weekly:
            description: How long the last one of each week is kept.
            type: str
      hub:
        description: Of V(hub_daily). By default one a day for 30 days, one a week for 365 days.
        type: dict
        suboptions:
          all:
            description: How long all are kept.
            type: str
          daily:
            description: How long the last one of each day is kept.
            type: str
          weekly:
            description: How long the last one of each week is kept.
            type: str
      kinds:
        description: What may be removed. By default V(automatic) and V(hub_daily), nothing that people made.
        type: list
        elements: str
        choices: [automatic, manual, hub_daily]
  parallel:
    description: How many machines are worked on at the same time.
    type: int
    default: 4
  timeout:
    description: How long all machines together may take. A number of seconds, or a text such as V(90s) or V(20m).
    type: str
    default: 15m
seealso:
  - module: autovibe.fleet.checkpoint_info
  - module: autovibe.fleet.machine
"""

EXAMPLES = r"""
- name: Have two machines
  autovibe.fleet.machine:
    provider: multipass
    machines:
      - name: shop-1
      - name: shop-2

- name: Save one before an upgrade
  autovibe.fleet.checkpoint:
    provider: multipass
    machines: [shop-1]
    name: before-upgrade
    comment: PostgreSQL 15
    folders: [/srv]
    stop: true

- name: Put it back
  autovibe.fleet.checkpoint:
    state: restored
    provider: multipass
    machines: [shop-1]
    name: before-upgrade

- name: Save both when it is due, and remove what is too old
  autovibe.fleet.checkpoint:
    provider: multipass
    machines: [shop-1, shop-2]
    triggers:
      every: 1h
      api_calls: 50
    usage:
      api_calls: 120
      budget_used: 0.35
    retention: {}
    stop: true

- name: Stop it, as Multipass forks stopped machines only
  autovibe.fleet.machine:
    state: stopped
    provider: multipass
    names: [shop-1]

- name: Fork a machine from a checkpoint
  autovibe.fleet.machine:
    provider: multipass
    machines:
      - name: shop-3
        image: instance:shop-1.before-upgrade

- name: Remove the checkpoint
  autovibe.fleet.checkpoint:
    state: absent
    provider: multipass
    machines: [shop-1]
    name: before-upgrade
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  type: list
  elements: str
  returned: always
  sample: ["save checkpoint automatic-20260131-080000 of machine web-1: 1h5m after the last one"]
checkpoints:
  description: The checkpoints that were saved or restored. M(autovibe.fleet.checkpoint_info) returns the same.
  type: list
  elements: dict
  returned: when not in check mode
  sample:
    - name: before-upgrade
      machine: web-1
      kind: manual
      parent: genesis
      current: true
      files: 1204
      digest: sha256:3f2a90c1d4b5a6c73f2a90c1d4b5a6c73f2a90c1d4b5a6c73f2a90c1d4b5a6c7
pruned:
  description: The checkpoints that were removed, or would be in check mode, by machine.
  type: dict
  returned: success
  sample: {web-1: [automatic-20250701-080000]}
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
      sample: [save checkpoint before-upgrade of machine web-1]
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
      sample: 4.2
progress:
  description: What was done when, one line each.
  type: list
  elements: str
  returned: when not in check mode, also when the task failed
  sample: ["0.0s web-1: look at /srv, /etc", "0.4s web-1: stop it", "3.1s web-1: save it", "3.3s web-1: start it"]
"""

from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._arguments import PROVIDER
from ansible_collections.autovibe.fleet.plugins.module_utils._checkpoints import apply, plan
from ansible_collections.autovibe.fleet.plugins.module_utils._module import fleet_module, run_change

POLICY: dict[str, Any] = {
    "type": "dict",
    "options": {"all": {"type": "str"}, "daily": {"type": "str"}, "weekly": {"type": "str"}},
}

OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "restored", "absent"], "default": "present"},
    **PROVIDER,
    "machines": {"type": "list", "elements": "str", "required": True},
    "name": {"type": "str"},
    "kind": {"type": "str", "choices": ["genesis", "automatic", "manual", "final", "hub_daily"]},
    "comment": {"type": "str", "default": ""},
    "folders": {"type": "list", "elements": "str", "default": []},
    "live": {"type": "bool"},
    "stop": {"type": "bool", "default": False},
    "triggers": {
        "type": "dict",
        "options": {
            "every": {"type": "str"},
            "api_calls": {"type": "int"},
            "budget_step": {"type": "float"},
            "risky": {"type": "bool"},
        },
    },
    "usage": {"type": "dict", "options": {"api_calls": {"type": "int"}, "budget_used": {"type": "float"}}},
    "risky": {"type": "bool", "default": False},
    "retention": {
        "type": "dict",
        "options": {
            "machine": POLICY,
            "hub": POLICY,
            "kinds": {"type": "list", "elements": "str", "choices": ["automatic", "manual", "hub_daily"]},
        },
    },
    "parallel": {"type": "int", "default": 4},
    "timeout": {"type": "str", "default": "15m"},
}


def main() -> None:
    module = fleet_module(
        OPTIONS,
        required_if=[("state", "restored", ["name"]), ("state", "absent", ["name", "retention"], True)],
    )
    run_change(module, plan, apply, {**module.params, "_diff": module._diff})


if __name__ == "__main__":
    main()
