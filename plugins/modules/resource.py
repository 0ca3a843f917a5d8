#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: resource
short_description: Claim and release resources
version_added: 0.1.0
description:
  - Claims ports, paths, GPUs and whatever else has a type, for owners. A value has one owner at a time on a host,
    however many callers ask at once.
  - An owner that asks again keeps its values. All the claims of one task are made, or none.
  - Processes claim what they need themselves; see M(autovibe.fleet.process).
  - Does not need fleetd.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.change
options:
  state:
    description:
      - V(present) claims the resources. What the owners hold beyond them stays.
      - V(absent) releases the resources, or all that an owner holds when it has no O(claims[].resources).
    type: str
    choices: [present, absent]
    default: present
  claims:
    description: What owners hold.
    type: list
    elements: dict
    required: true
    suboptions:
      owner:
        description: Who holds it. Any text; for a process its id.
        type: str
        required: true
      resources:
        description:
          - Each is a type such as V(tcpport), which takes the next free value of a counter, a type with a value such as
            V(tcpport:8080), or a mapping with C(type), C(name) and C(value).
          - An owner knows a claim by its name, which is the type unless it is given. Two claims of one type need two
            names.
        type: list
        elements: raw
  exclusive:
    description:
      - Whether O(claims) names all the owners there should be. With V(true), what others hold is released, except what
        declared processes hold.
      - This is how claims of vanished owners are given back; M(autovibe.fleet.resource_info) lists them.
    type: bool
    default: false
seealso:
  - module: autovibe.fleet.resource_info
  - module: autovibe.fleet.resource_type
  - plugin: autovibe.fleet.resource
    plugin_type: lookup
"""

EXAMPLES = r"""
- name: Claim two ports and a folder for the shop
  autovibe.fleet.resource:
    claims:
      - owner: shop
        resources:
          - tcpport
          - {type: tcpport, name: admin}
          - datadir:/srv/shop
  register: claimed

- name: Show one of them
  ansible.builtin.debug:
    msg: The shop listens on {{ claimed.claims.shop.tcpport }}

- name: Claim a port for each of many owners
  autovibe.fleet.resource:
    claims:
      - {owner: worker-1, resources: [tcpport]}
      - {owner: worker-2, resources: [tcpport]}

- name: Release one claim of the shop, and all that the first worker holds
  autovibe.fleet.resource:
    state: absent
    claims:
      - {owner: shop, resources: [{type: tcpport, name: admin}]}
      - {owner: worker-1}

- name: Release what nobody but the shop and the declared processes holds
  autovibe.fleet.resource:
    claims:
      - {owner: shop}
    exclusive: true
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  type: list
  elements: str
  returned: success
  sample: ["claim tcpport:3000 for shop"]
claims:
  description:
    - What the owners of the task hold now - owner to name to value.
    - In check mode a prediction; another caller may be faster.
  type: dict
  returned: success
  sample: {shop: {tcpport: "3000", admin: "3001", datadir: /srv/shop}}
released:
  description: What was given back.
  type: list
  elements: dict
  returned: success
  sample: [{type: tcpport, value: "3002", owner: worker-1, name: tcpport}]
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._module import (
    Result,
    fleet_module,
    run_change,
)
from ansible_collections.autovibe.fleet.plugins.module_utils._store import (
    store_to_read,
    store_to_write,
)
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.resources import Allocation, Claim
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_node import declarations, resources
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_node.store import Store

OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "claims": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {
            "owner": {"type": "str", "required": True},
            "resources": {"type": "list", "elements": "raw"},
        },
    },
    "exclusive": {"type": "bool", "default": False},
}


def owners(params: Mapping[str, Any]) -> list[str]:
    return [item["owner"] for item in params["claims"]]


def unwanted(store: Store, params: Mapping[str, Any]) -> list[Claim]:
    found = [] if params["state"] == "present" else declarations.to_release(store, params["claims"])
    return found + (resources.vanished(store, owners(params)) if params["exclusive"] else [])


def result(held: list[Claim], allocation: Allocation, released: list[Claim]) -> Result:
    """held: what the owners of the task hold in the end."""
    claims: dict[str, dict[str, str]] = {}
    for claim in held:
        claims.setdefault(claim.owner, {})[claim.name] = claim.value
    given_back = [*released, *allocation.released]
    change = declarations.claims_change(allocation.claimed, given_back)
    return Result(change, {"claims": claims, "released": [claim.to_dict() for claim in given_back]})


def plan(params: Mapping[str, Any]) -> Result:
    with store_to_read(params["state_dir"]) as store:
        released = unwanted(store, params)
        allocation = Allocation()
        if params["state"] == "present":
            allocation = resources.plan(store, declarations.requests(params["claims"]))
        gone = {*released, *allocation.released}
        held = [claim for claim in store.claims(owners(params)) if claim not in gone]
    return result([*held, *allocation.claimed], allocation, released)


def apply(params: Mapping[str, Any]) -> Result:
    with store_to_write(params["state_dir"]) as store:
        released = unwanted(store, params)
        allocation = Allocation()
        if params["state"] == "present":
            allocation = resources.claim(store, declarations.requests(params["claims"]))
        store.release_claims(released)
        return result(store.claims(owners(params)), allocation, released)


def main() -> None:
    run_change(fleet_module(OPTIONS), plan, apply)


if __name__ == "__main__":
    main()
