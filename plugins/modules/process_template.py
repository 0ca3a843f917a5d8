#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: process_template
short_description: Define templates of processes
version_added: 0.1.0
description:
  - A template holds the fields that many processes share - a command with variables, the resources to claim, checks,
    limits.
  - A process is made from it with M(autovibe.fleet.process), or with C(fleet start TEMPLATE NAME --variable=value).
  - A process keeps the fields with which it was declared when its template changes or goes.
  - Does not need fleetd.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.change
  - autovibe.fleet.process_fields.templates
options:
  state:
    description:
      - V(present) defines the templates exactly as given.
      - V(absent) removes them; only the ids count.
    type: str
    choices: [present, absent]
    default: present
seealso:
  - module: autovibe.fleet.process
"""

EXAMPLES = r"""
- name: Define a web server of files
  autovibe.fleet.process_template:
    templates:
      - id: files
        label: A folder over HTTP
        command: python3 -m http.server --bind ${address} --directory ${root} %tcpport
        vars:
          root:            # null: to be given with each process
          address: 127.0.0.1
        readiness:
          url: http://${address}:${tcpport}/
        restart:
          policy: always

- name: Define a PostgreSQL server
  autovibe.fleet.process_template:
    templates:
      - id: postgres
        command: postgres -D ${datadir} -p ${tcpport} -k ${datadir}
        resources: [tcpport, datadir]
        stop_signal: SIGINT
        readiness:
          url: cmd://pg_isready --quiet --host ${datadir} --port ${tcpport}
          interval: 1s

- name: Remove them again
  autovibe.fleet.process_template:
    state: absent
    templates:
      - id: files
      - id: postgres
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  type: list
  elements: str
  returned: success
  sample: [create process template files]
templates:
  description:
    - The templates that the task named, by id, in the format of the process manager. Removed ones are not among them.
    - Values are hidden under names that look like those of secrets.
  type: dict
  returned: success
  sample:
    files:
      id: files
      command: python3 -m http.server --bind ${address} --directory ${root} %tcpport
      resources: []
      vars: {root: null, address: 127.0.0.1}
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._arguments import TEMPLATES, given
from ansible_collections.autovibe.fleet.plugins.module_utils._module import (
    Result,
    fleet_module,
    run_change,
)
from ansible_collections.autovibe.fleet.plugins.module_utils._secrets import take_secrets
from ansible_collections.autovibe.fleet.plugins.module_utils._store import (
    store_to_read,
    store_to_write,
)
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_node.declarations import (
    TemplatesPlan,
    plan_templates,
    public_template,
)
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_node.store import Store

OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    **TEMPLATES,
}


def planned(store: Store, params: Mapping[str, Any]) -> tuple[TemplatesPlan, Result]:
    items = [given(item) for item in params["templates"]]
    found = plan_templates(store, items, params["state"] == "present")
    after = {**store.templates(), **{made.id: made for made in found.put}}
    names = [item["id"] for item in items if item["id"] in after and item["id"] not in found.remove]
    return found, Result(found.change, {"templates": {name: public_template(after[name].to_dict()) for name in names}})


def plan(params: Mapping[str, Any]) -> Result:
    with store_to_read(params["state_dir"]) as store:
        return planned(store, params)[1]


def apply(params: Mapping[str, Any]) -> Result:
    with store_to_write(params["state_dir"]) as store, store.transaction():
        found, result = planned(store, params)
        found.apply(store)
    return result


def main() -> None:
    module = fleet_module(OPTIONS)
    run_change(module, plan, apply, take_secrets(module, "templates"))


if __name__ == "__main__":
    main()
