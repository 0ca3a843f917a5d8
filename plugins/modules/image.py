#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image
short_description: Build and delete golden images
version_added: 0.1.0
description:
  - A golden image is a base image with software in it, verified and sealed. Machines are made from it in seconds.
  - It is built in a machine of its own that boots from the base with the user data, runs the commands and the checks,
    and is sealed. Identity, keys, passwords, histories, credentials, logs and caches are removed, and that nothing of
    them is left is verified. An image that fails a check does not come to be.
  - Images form families. An image is called by its family and a hash of all that went into it, as in
    C(python-3f2a90c1d4). A machine whose image is a family gets the newest of it.
  - Nothing is built when the newest image of the family has these inputs. Otherwise RV(reason) says which of them
    changed, also in check mode.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.change
  - autovibe.fleet.machine_fields.provider
attributes:
  idempotent:
    support: partial
    details: All but O(rebuild=true), which builds each time.
options:
  state:
    description:
      - V(present) builds an image if the newest of the family has other inputs.
      - V(absent) deletes an image by its whole name, or all those of a family. One that machines were made from is
        refused, unless O(force) is set.
    type: str
    choices: [present, absent]
    default: present
  name:
    description:
      - The family. A letter, then letters, digits and C(-), at most 52.
      - With O(state=absent) also the whole name of one image.
    type: str
    required: true
  base:
    description:
      - What it is built on, needed for O(state=present). A C(https://) address, the absolute path of a file, or what
        the provider itself knows. With V(multipass) that is a release such as V(24.04). With V(qemu) V(debian:12) and
        V(debian:13) are built from the packages of Debian. With V(proxmox) a template or a volume.
    type: str
  checksum:
    description: The checksum of a base that is downloaded, V(sha256:...) or V(sha512:...). It is verified.
    type: str
  user_data:
    description:
      - The user data for cloud-init that the machine boots with in which the image is built.
      - They are not shown in results, differences and logs. Nothing of them stays in the image.
    type: str
  commands:
    description: Shell texts that run as root inside, in their order, when cloud-init is done. Each must succeed.
    type: list
    elements: str
    default: []
  checks:
    description: What is verified inside, as root, before the image is sealed.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: What is verified.
        type: str
        required: true
      run:
        description: A shell text that must end with 0.
        type: str
        required: true
  cpu:
    description: How many processors the machine has that it is built in, and clones that name none.
    type: int
  memory:
    description: Their memory, such as V(2G).
    type: str
  disk:
    description: The size of their disk, such as V(10G).
    type: str
  login:
    description: The account that machines made from it have.
    type: str
  keep:
    description:
      - How many older images of the family stay. Those that machines were made from stay in any case.
      - By default none is deleted.
    type: int
  rebuild:
    description: Whether to build it although no input changed, for newer packages. The image that is there stays.
    type: bool
    default: false
  force:
    description: Whether to delete an image that machines were made from. With some providers they need it.
    type: bool
    default: false
  timeout:
    description: How long it may take. A number of seconds, or a text such as V(90s) or V(1h).
    type: str
    default: 1h
seealso:
  - module: autovibe.fleet.image_info
  - module: autovibe.fleet.machine
"""

EXAMPLES = r"""
- name: Have an image with git
  autovibe.fleet.image:
    provider: multipass
    name: worker
    base: "24.04"
    disk: 10G
    user_data: |
      #cloud-config
      packages: [git]
    commands:
      - git config --system init.defaultBranch main
    checks:
      - name: git
        run: git --version
    keep: 2

- name: Make a machine from the newest image of the family
  autovibe.fleet.machine:
    provider: multipass
    machines:
      - name: worker-1
        image: worker

- name: Build it again with the packages of today
  autovibe.fleet.image:
    provider: multipass
    name: worker
    base: "24.04"
    rebuild: true

- name: Delete the machine
  autovibe.fleet.machine:
    state: absent
    provider: multipass
    names: [worker-1]

- name: Delete all images of the family
  autovibe.fleet.image:
    state: absent
    provider: multipass
    name: worker
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  type: list
  elements: str
  returned: always
  sample: ["build image worker-3f2a90c1d4: commands changed since worker-91b0a7e2c5", delete image worker-0a1b2c3d4e]
image:
  description: The newest image of the family, as it is now. Empty when there is none.
  type: dict
  returned: success
  sample:
    name: worker-3f2a90c1d4
    family: worker
    provider: multipass
    kind: golden
    inputs: sha256:3f2a90c1d4b5a6c7
    created: "2026-01-31T08:00:00.000000Z"
    incomplete: ""
built:
  description: Whether an image was built, or would be built in check mode.
  type: bool
  returned: success
  sample: true
reason:
  description: Why, empty when nothing was to be built.
  type: str
  returned: always
  sample: commands changed since worker-91b0a7e2c5
changed_inputs:
  description: By which inputs the newest image of the family differed from what is wanted.
  type: list
  elements: str
  returned: success
  sample: [commands]
pruned:
  description: The older images that were deleted, or would be deleted in check mode.
  type: list
  elements: str
  returned: success
  sample: [worker-0a1b2c3d4e]
progress:
  description: What was done when, one line each.
  type: list
  elements: str
  returned: when not in check mode, also when the task failed
  sample: ["0.0s build worker-3f2a90c1d4: there is none of this family", "31.2s check git", "31.4s seal it"]
"""

from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._arguments import PROVIDER
from ansible_collections.autovibe.fleet.plugins.module_utils._images import apply, plan
from ansible_collections.autovibe.fleet.plugins.module_utils._module import fleet_module, run_change

OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    **PROVIDER,
    "name": {"type": "str", "required": True},
    "base": {"type": "str"},
    "checksum": {"type": "str"},
    "user_data": {"type": "str", "no_log": True},
    "commands": {"type": "list", "elements": "str", "default": []},
    "checks": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"name": {"type": "str", "required": True}, "run": {"type": "str", "required": True}},
    },
    "cpu": {"type": "int"},
    "memory": {"type": "str"},
    "disk": {"type": "str"},
    "login": {"type": "str"},
    "keep": {"type": "int"},
    "rebuild": {"type": "bool", "default": False},
    "force": {"type": "bool", "default": False},
    "timeout": {"type": "str", "default": "1h"},
}


def main() -> None:
    run_change(fleet_module(OPTIONS, required_if=[("state", "present", ["base"])]), plan, apply)


if __name__ == "__main__":
    main()
