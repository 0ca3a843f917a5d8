#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: proxmox_fence
short_description: Let Proxmox VE's own firewall hold machines to their network policy, too
version_added: 0.1.0
description:
  - Writes the network policy of M(autovibe.fleet.egress_policy) into the firewall of a Proxmox VE cluster, version 8 or
    9, by its API. It is a second fence, at the card of each machine, for the day on which the first one is not there.
  - Each policy becomes a security group, and what it names IP sets. Each machine is given its group, the policies
    C(DROP) for both directions, the filter of hardware addresses, and for each of its cards an IP set with the only
    addresses that it may use. It may speak DHCP and neighbour discovery, and send no router advertisements.
  - Names of hosts mean nothing to that firewall. What names open is the internet without special networks.
  - Machines that need nothing cost no request of their own. What they were given is remembered in a tag. With
    O(thorough=true) each of them is read nevertheless.
  - What is not of this module, rules, sets and groups of others, is left alone.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.change
options:
  state:
    description:
      - V(present) puts the fence round the machines of O(policy), and takes it off all others that have one.
      - V(absent) takes it off all of them, and removes groups and sets. The firewall of the cluster stays as it is.
    type: str
    choices: [present, absent]
    default: present
  provider_settings:
    description:
      - How the cluster is reached, as M(autovibe.fleet.machine) takes it for the provider C(proxmox). What is not given
        comes from the environment, such as E(PROXMOX_HOST) and E(PROXMOX_TOKEN_SECRET).
      - The account needs C(Sys.Audit) and C(Sys.Modify) on C(/), and C(VM.Audit), C(VM.Config.Network) and
        C(VM.Config.Options) on the machines.
    type: dict
    default: {}
  policy:
    description:
      - What M(autovibe.fleet.egress_policy) takes, with the same keys - C(networks), C(machines), C(policies), C(hub),
        C(proxy) and C(special_networks). Each machine needs its addresses, as that module returns them.
      - Machines are found by name, their cards by hardware address.
    type: dict
  exact:
    description:
      - Whether to open those ports on the internet only that the policy names.
      - By default all are open there but those of DNS, DNS over TLS and QUIC, and the first fence decides. So what is
        opened with C(fleet egress allow) works at once.
      - Private networks are open only as far as the policy names them in either case.
    type: bool
    default: false
  thorough:
    description: Whether to read the firewall of every machine, and so find what others changed.
    type: bool
    default: false
  enable:
    description:
      - Whether to switch the firewall of the cluster on if it is off, which it is by default. Nothing is enforced
        without it.
      - It closes the nodes to all but their own network and O(management).
    type: bool
    default: false
  management:
    description:
      - Addresses and networks from which the nodes are managed. They are added to the IP set C(management) when the
        firewall is switched on.
    type: list
    elements: str
    default: []
seealso:
  - module: autovibe.fleet.egress_policy
  - module: community.proxmox.proxmox_firewall
  - name: Proxmox VE Firewall
    description: What security groups, IP sets and filters do.
    link: https://pve.proxmox.com/pve-docs/chapter-pve-firewall.html
"""

EXAMPLES = r"""
- name: Put the second fence round a machine
  autovibe.fleet.proxmox_fence:
    provider_settings:
      host: pve.example.com
      user: fleet@pve
      token_id: ansible
      token_secret: "{{ vault_proxmox_token_secret }}"
    policy:
      networks:
        - name: vmbr1
          address: 192.168.100.1/24
      machines:
        - name: web-1
          network: vmbr1
          mac: "bc:24:11:12:34:56"
          address: 192.168.100.10
          project: shop
      policies:
        projects:
          shop:
            presets: [github]
            allow: ["10.0.1.30:5432"]
    enable: true
    management: [10.0.1.0/24]

- name: Look for what others changed
  autovibe.fleet.proxmox_fence:
    provider_settings:
      host: pve.example.com
    policy: "{{ network_policy }}"
    thorough: true
  check_mode: true
  diff: true
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  type: list
  elements: str
  returned: success
  sample: [make security group project-shop, put the second fence round machine web-1]
machines:
  description: The machines that have the fence.
  type: list
  elements: str
  returned: success
  sample: [web-1]
missing:
  description: Machines of the policy that the cluster does not have, or not yet.
  type: list
  elements: str
  returned: success
  sample: []
enforced:
  description: Whether the firewall of the cluster is switched on.
  type: bool
  returned: success
  sample: true
problems:
  description: What weakens the fence, one sentence each.
  type: list
  elements: str
  returned: success
  sample: ['machine "web-1": rules of others stay in its firewall: out ACCEPT']
"""

from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._module import fleet_module, run_change
from ansible_collections.autovibe.fleet.plugins.module_utils._proxmox_fence import apply, plan

OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    # It may hold the secret of a token: see _secrets.show_settings.
    "provider_settings": {"type": "dict", "default": {}, "no_log": True},
    "policy": {"type": "dict"},
    "exact": {"type": "bool", "default": False},
    "thorough": {"type": "bool", "default": False},
    "enable": {"type": "bool", "default": False},
    "management": {"type": "list", "elements": "str", "default": []},
}


def main() -> None:
    run_change(fleet_module(OPTIONS, required_if=[("state", "present", ["policy"])]), plan, apply)


if __name__ == "__main__":
    main()
