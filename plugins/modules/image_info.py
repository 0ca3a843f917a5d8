#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: image_info
short_description: List images, and the machines that run an older one
version_added: 0.1.0
description:
  - Lists what machines can be made from. That are golden images, and what the provider itself has.
  - Tells which machines were made from an image that has a newer one of its family. They have drifted.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.info
  - autovibe.fleet.fleet.facts
  - autovibe.fleet.machine_fields.provider
options:
  names:
    description: Only these images, by whole names, families or aliases. Unknown ones are named in RV(missing).
    type: list
    elements: str
  kind:
    description: Only golden images, or only those that the provider fetches.
    type: str
    choices: [golden, remote]
  drift:
    description: Whether to tell which machines run an older image. That costs one call more.
    type: bool
    default: false
seealso:
  - module: autovibe.fleet.image
"""

EXAMPLES = r"""
- name: See which machines run an older image
  autovibe.fleet.image_info:
    provider: multipass
    kind: golden
    drift: true
  register: found

- name: Tell it
  ansible.builtin.debug:
    var: found.drift_report
  when: found.drift_report | length > 0
"""

RETURN = r"""
images:
  description: The images.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: Its name.
      type: str
      returned: always
      sample: worker-3f2a90c1d4
    provider:
      description: Where it is.
      type: str
      returned: always
      sample: multipass
    kind:
      description: V(golden), built here and sealed, or V(remote), which the provider fetches.
      type: str
      returned: always
      sample: golden
    family:
      description: The family of a golden image, else its name.
      type: str
      returned: always
      sample: worker
    aliases:
      description: Other names that it has.
      type: list
      elements: str
      returned: always
      sample: []
    release:
      description: The release that a remote image is of, or the base of a golden one.
      type: str
      returned: always
      sample: "24.04"
    version:
      description: The version of a remote image.
      type: str
      returned: always
      sample: ""
    inputs:
      description: The hash of what a golden image was built from.
      type: str
      returned: always
      sample: sha256:3f2a90c1d4b5a6c7
    incomplete:
      description: What is missing of one whose build failed.
      type: str
      returned: always
      sample: ""
    created:
      description: When it was made, empty when not known.
      type: str
      returned: always
      sample: "2026-01-31T08:00:00.000000Z"
    size:
      description: Its size in bytes, 0 when not known.
      type: int
      returned: always
      sample: 0
    detail:
      description: What only this provider knows. Of a golden image also C(parts), the hashes of its inputs.
      type: dict
      returned: always
      sample: {parts: {commands: sha256:9e107d9d372bb682}}
newest:
  description: The newest whole image of each family among RV(images).
  type: dict
  returned: success
  sample: {worker: worker-3f2a90c1d4}
missing:
  description: Those of O(names) that do not exist.
  type: list
  elements: str
  returned: success
  sample: []
drift:
  description: The machines that run an older image of their family.
  type: list
  elements: dict
  returned: O(drift=true)
  contains:
    machine:
      description: The machine.
      type: str
      returned: always
      sample: worker-1
    image:
      description: What it was made from.
      type: str
      returned: always
      sample: worker-91b0a7e2c5
    newest:
      description: The newest image of the family.
      type: str
      returned: always
      sample: worker-3f2a90c1d4
drift_report:
  description: The same, one sentence each.
  type: list
  elements: str
  returned: O(drift=true)
  sample: ["machine worker-1 runs worker-91b0a7e2c5, the newest is worker-3f2a90c1d4"]
ansible_facts:
  description: Facts of the host.
  type: dict
  returned: O(facts=true)
  contains:
    fleet_images:
      description: The images by name, each as in RV(images).
      type: dict
      returned: success
      sample: {worker-3f2a90c1d4: {name: worker-3f2a90c1d4, kind: golden}}
"""

from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._arguments import PROVIDER
from ansible_collections.autovibe.fleet.plugins.module_utils._images import read
from ansible_collections.autovibe.fleet.plugins.module_utils._module import fleet_module, run_info

OPTIONS: dict[str, Any] = {
    **PROVIDER,
    "names": {"type": "list", "elements": "str"},
    "kind": {"type": "str", "choices": ["golden", "remote"]},
    "drift": {"type": "bool", "default": False},
    "facts": {"type": "bool", "default": False},
}


def main() -> None:
    run_info(fleet_module(OPTIONS), read)


if __name__ == "__main__":
    main()
