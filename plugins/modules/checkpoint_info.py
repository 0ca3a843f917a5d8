#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: checkpoint_info
short_description: List, compare and verify the saved states of machines
version_added: 0.1.0
description:
  - Lists the checkpoints of machines, with one call to the provider for all of them.
  - Compares the files of two checkpoints, or of a checkpoint and what is in the machine now, by their manifests.
  - Verifies checkpoints. What does not hold is told in RV(unverified) and does not fail the task.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.info
  - autovibe.fleet.machine_fields.provider
options:
  machines:
    description: Only the checkpoints of these machines. Those that do not exist are named in RV(missing).
    type: list
    elements: str
  names:
    description: Only these checkpoints.
    type: list
    elements: str
  kinds:
    description: Only checkpoints of these kinds.
    type: list
    elements: str
    choices: [genesis, automatic, manual, final, hub_daily]
  manifests:
    description: Whether to return the manifests as well. They may be long.
    type: bool
    default: false
  diff:
    description: Compare the files of two checkpoints.
    type: dict
    suboptions:
      from:
        description: A checkpoint that has a manifest, as C(MACHINE.CHECKPOINT).
        type: str
        required: true
      to:
        description: Another one, also of another machine, or C(MACHINE) alone for what is in that machine now.
        type: str
        required: true
  verify:
    description:
      - Verify the checkpoints that are listed. The result is kept with them. In check mode none is verified.
      - V(hash) asks whether the provider has it, and whether its manifest is the one that was saved.
      - V(restore) forks a scratch machine from it, waits until that has booted, compares the files in the folders of
        the manifest, and deletes it.
    type: str
    choices: [hash, restore]
  stop:
    description: Whether a running machine may be stopped to fork from it, where the provider forks stopped ones only.
    type: bool
    default: false
  timeout:
    description: How long it may take. A number of seconds, or a text such as V(90s) or V(20m).
    type: str
    default: 15m
seealso:
  - module: autovibe.fleet.checkpoint
"""

EXAMPLES = r"""
- name: Have a machine
  autovibe.fleet.machine:
    state: started
    provider: multipass
    machines:
      - name: shop-4

- name: Save it
  autovibe.fleet.checkpoint:
    provider: multipass
    machines: [shop-4]
    name: ready
    folders: [/srv]
    stop: true

- name: List the checkpoints of a machine
  autovibe.fleet.checkpoint_info:
    provider: multipass
    machines: [shop-4]
  register: found

- name: Show them as a tree
  ansible.builtin.debug:
    var: found.trees

- name: See what changed since
  autovibe.fleet.checkpoint_info:
    provider: multipass
    machines: [shop-4]
    diff:
      from: shop-4.ready
      to: shop-4

- name: See whether its checkpoints can be restored
  autovibe.fleet.checkpoint_info:
    provider: multipass
    machines: [shop-4]
    verify: restore
    stop: true
  register: verified
  failed_when: verified.unverified | length > 0
"""

RETURN = r"""
checkpoints:
  description: The checkpoints, machine by machine, each behind its parent.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its name.
      type: str
      returned: always
      sample: before-upgrade
    machine:
      description: The machine.
      type: str
      returned: always
      sample: web-1
    kind:
      description: V(genesis), V(automatic), V(manual), V(final) or V(hub_daily).
      type: str
      returned: always
      sample: manual
    parent:
      description: The checkpoint that the machine was at before, empty for the first.
      type: str
      returned: always
      sample: genesis
    comment:
      description: A line for people.
      type: str
      returned: always
      sample: PostgreSQL 15
    created:
      description: When it was made.
      type: str
      returned: always
      sample: "2026-01-31T08:00:00Z"
    live:
      description: Whether it holds the memory of a running machine.
      type: bool
      returned: always
      sample: false
    size:
      description: Its size in bytes, 0 when not known.
      type: int
      returned: always
      sample: 0
    current:
      description: Whether the machine was last saved as or restored to it.
      type: bool
      returned: always
      sample: true
    folders:
      description: The folders of its manifest.
      type: list
      elements: str
      returned: always
      sample: [/etc, /srv]
    files:
      description: How many files its manifest has.
      type: int
      returned: always
      sample: 1204
    bytes:
      description: The size of these files.
      type: int
      returned: always
      sample: 18200110
    digest:
      description: The hash of its manifest, empty when it has none.
      type: str
      returned: always
      sample: sha256:3f2a90c1d4b5a6c73f2a90c1d4b5a6c73f2a90c1d4b5a6c73f2a90c1d4b5a6c7
    reason:
      description: Why an automatic one was made.
      type: str
      returned: always
      sample: 1h5m after the last one
    usage:
      description: What had been used by then.
      type: dict
      returned: always
      sample: {api_calls: 120, budget_used: 0.35}
    verified:
      description: When and how it was last verified, whether it held, and what was found.
      type: dict
      returned: always
      sample:
        how: restore
        at: "2026-01-31T08:10:00Z"
        ok: true
        found: it boots, and the manifest of 1204 files fits
    manifest:
      description: Kind, size, hash, mode and target of each path.
      type: dict
      returned: O(manifests=true), of those that have one
      sample: {/srv/app.py: [file, 15, 0d6e4079e36703ebd37c00722f5891d28b0e2811dc114b129215123adcce3605, 420, ""]}
trees:
  description: The tree of each machine, one line a checkpoint, indented below its parent.
  type: dict
  returned: success
  sample: {web-1: [genesis (genesis), "  before-upgrade (manual)"]}
missing:
  description: Those of O(machines) that do not exist.
  type: list
  elements: str
  returned: success
  sample: []
difference:
  description: What is different in O(diff.to).
  type: dict
  returned: O(diff) is given
  sample:
    from: web-1.before-upgrade
    to: web-1
    same: false
    added: [/srv/new]
    removed: []
    changed: {/srv/app.py: content}
unverified:
  description: The checkpoints that could not be verified, one sentence each.
  type: list
  elements: str
  returned: O(verify) is given
  sample: ["web-1.before-upgrade: it boots, but of 1204 files: 1 changed"]
"""

from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._arguments import PROVIDER
from ansible_collections.autovibe.fleet.plugins.module_utils._checkpoints import read
from ansible_collections.autovibe.fleet.plugins.module_utils._module import fleet_module, run_info

OPTIONS: dict[str, Any] = {
    **PROVIDER,
    "machines": {"type": "list", "elements": "str"},
    "names": {"type": "list", "elements": "str"},
    "kinds": {
        "type": "list",
        "elements": "str",
        "choices": ["genesis", "automatic", "manual", "final", "hub_daily"],
    },
    "manifests": {"type": "bool", "default": False},
    "diff": {
        "type": "dict",
        "options": {"from": {"type": "str", "required": True}, "to": {"type": "str", "required": True}},
    },
    "verify": {"type": "str", "choices": ["hash", "restore"]},
    "stop": {"type": "bool", "default": False},
    "timeout": {"type": "str", "default": "15m"},
}


def main() -> None:
    run_info(fleet_module(OPTIONS), read, verify=None)  # verifying makes machines, and keeps what it found


if __name__ == "__main__":
    main()
