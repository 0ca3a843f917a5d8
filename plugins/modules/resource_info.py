#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: resource_info
short_description: List claims and types of resources
version_added: 0.1.0
description:
  - Lists who holds what on a host, the types of resources, and what each counter gives out next.
  - Does not need fleetd.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.info
  - autovibe.fleet.fleet.facts
options:
  owners:
    description: Only claims of these owners.
    type: list
    elements: str
  types:
    description: Only claims of these types, and only these types.
    type: list
    elements: str
seealso:
  - module: autovibe.fleet.resource
  - module: autovibe.fleet.resource_type
"""

EXAMPLES = r"""
- name: List all claims
  autovibe.fleet.resource_info:
  register: resources

- name: Show who holds which port
  autovibe.fleet.resource_info:
    types: [tcpport]
  register: ports

- name: List the claims of vanished owners
  ansible.builtin.debug:
    var: resources.vanished
"""

RETURN = r"""
claims:
  description: The claims, in the order of type and value.
  type: list
  elements: dict
  returned: success
  sample: [{type: tcpport, value: "3000", owner: shop, name: tcpport}]
vanished:
  description:
    - Those of the claims whose owner is no declared process. Somebody else may still use them - a claim made with
      M(autovibe.fleet.resource) is among them.
    - O(autovibe.fleet.resource#module:exclusive) gives them back.
  type: list
  elements: dict
  returned: success
  sample: []
owners:
  description: What each owner holds - owner to name to value.
  type: dict
  returned: success
  sample: {shop: {tcpport: "3000"}}
types:
  description: The types by name.
  type: dict
  returned: success
  sample:
    tcpport: {name: tcpport, counter: true, start: 3000, end: 9999, probe: tcp, description: A TCP port of this host}
counters:
  description: The value that each counter gives out next, if it is free.
  type: dict
  returned: success
  sample: {tcpport: 3001}
ansible_facts:
  description: Facts of the host.
  type: dict
  returned: O(facts=true)
  contains:
    fleet_resources:
      description: What each owner holds, as in RV(owners).
      type: dict
      returned: success
      sample: {shop: {tcpport: "3000"}}
"""

from collections.abc import Mapping
from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._module import fleet_module, run_info
from ansible_collections.autovibe.fleet.plugins.module_utils._store import store_to_read
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.resources import Claim, type_named
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_node.resources import vanished

OPTIONS: dict[str, Any] = {
    "owners": {"type": "list", "elements": "str"},
    "types": {"type": "list", "elements": "str"},
    "facts": {"type": "bool", "default": False},
}


def read(params: Mapping[str, Any]) -> Mapping[str, Any]:
    with store_to_read(params["state_dir"]) as store:
        view = store.view()
        asked = list(view.types) if params["types"] is None else params["types"]
        types = {name: type_named(view.types, name) for name in asked}
        claims = [claim for claim in store.claims(params["owners"]) if claim.type in types]
        unknown = set(vanished(store))
    owners: dict[str, dict[str, str]] = {}
    for claim in claims:
        owners.setdefault(claim.owner, {})[claim.name] = claim.value
    found = {
        "claims": plain(claims),
        "vanished": plain([claim for claim in claims if claim in unknown]),
        "owners": owners,
        "types": {name: kind.to_dict() for name, kind in types.items()},
        "counters": {name: view.counters.get(name, kind.start) for name, kind in types.items() if kind.counter},
    }
    return {**found, "ansible_facts": {"fleet_resources": owners}} if params["facts"] else found


def plain(claims: list[Claim]) -> list[dict[str, str]]:
    return [claim.to_dict() for claim in claims]


def main() -> None:
    run_info(fleet_module(OPTIONS), read)


if __name__ == "__main__":
    main()
