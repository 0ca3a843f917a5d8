# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: resource
short_description: Claim resources on the control node
version_added: 0.1.0
author:
  - autovibe contributors (@autovibe)
description:
  - Claims ports, paths and whatever else has a type in the fleet's state on the control node, and returns the values.
  - It is meant for templates of hosts that are the control node, such as a local environment. On other hosts use
    M(autovibe.fleet.resource).
  - The same owner gets the same value each time, so a template stays as it is.
  - A lookup is not told about check mode. It claims there as well.
options:
  _terms:
    description:
      - Each is a type such as V(tcpport), a type with a value such as V(tcpport:8080), or a mapping with C(type),
        C(name) and C(value).
    type: list
    elements: raw
    required: true
  owner:
    description: Who holds the claims. Any text.
    type: str
    required: true
  state_dir:
    description:
      - The folder that holds the fleet's state on the control node.
      - By default E(FLEET_STATE_DIR), else C(/var/lib/autovibe) for root, else C(autovibe) in E(XDG_STATE_HOME), which
        is C(~/.local/state) when not set.
    type: path
    vars:
      - name: fleet_state_dir
seealso:
  - module: autovibe.fleet.resource
"""

EXAMPLES = r"""
- name: Show a port for the shop
  ansible.builtin.debug:
    msg: http://127.0.0.1:{{ lookup('autovibe.fleet.resource', 'tcpport', owner='shop') }}/

- name: Show two ports and a folder, each under a name of its own
  ansible.builtin.debug:
    msg: "{{ query('autovibe.fleet.resource', 'tcpport', admin, 'datadir:/srv/shop', owner='shop') }}"
  vars:
    admin: {type: tcpport, name: admin}
"""

RETURN = r"""
_raw:
  description: The values, in the order of the terms.
  type: list
  elements: str
  sample: ["3000"]
"""

from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import FleetError
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_node import resources
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_node.declarations import requests
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_node.store import Store


class LookupModule(LookupBase):
    """Claims for one owner; the values in the order of the terms."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[str]:
        self.set_options(var_options=variables, direct=kwargs)
        owner = self.get_option("owner")
        try:
            asked = [requests([{"owner": owner, "resources": [term]}])[0] for term in terms]
            requests([{"owner": owner, "resources": terms}])
            store = Store(self.get_option("state_dir"))
            try:
                found = resources.granted(resources.claim(store, dict.fromkeys(asked)))
            finally:
                store.close()
        except FleetError as error:
            raise AnsibleLookupError(error.message) from error
        return [found[owner][one.name].value for one in asked]
