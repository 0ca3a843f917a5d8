#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: network
short_description: Make the bridges of a host, with a rollback unless confirmed
version_added: 0.1.0
description:
  - Writes bridges for the network stack that the host uses, brings them up, and sets what the kernel must know of
    forwarding. A change that does not work takes itself back at once.
  - A change that works takes itself back after O(rollback_after), unless the module is run again with
    O(state=confirmed) over a new connection. So a change that cuts off the host heals itself. The time is kept by
    systemd - it does not matter whether the connection or this module lives on, and a boot in the meantime rolls back,
    too.
  - What comes back are files, interfaces, addresses, routes and kernel settings, those too that no file of the stack
    knows of.
  - It writes files of its own and touches no file of others. What stands in its way is refused with a sentence - a
    bridge of another, a port with an address that the bridge would not have, the default route.
  - The role P(autovibe.fleet.network#role) does both steps.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.change
requirements:
  - systemd, C(ip) and C(flock)
  - ifupdown2, netplan, systemd-networkd or NetworkManager
options:
  state:
    description:
      - V(present) makes O(bridges) be all the bridges that this module has made. One that is no longer among them is
        deleted.
      - V(confirmed) keeps the change that waits. It fails when that was rolled back already, and over the connection
        by which the change was made.
      - V(rolled_back) goes back now to what was before the change that waits.
      - V(absent) deletes all bridges and files that this module has made. Kernel settings stay until the next boot.
    type: str
    choices: [present, confirmed, rolled_back, absent]
    default: present
  bridges:
    description: The bridges of the host, without spanning tree and forwarding delay.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: Its name, such as V(vmbr1), at most 15 characters.
        type: str
        required: true
      ports:
        description:
          - Interfaces of the host that it takes. Machines and containers join by themselves, and stay.
          - A port gives its addresses to the bridge, so they must be in O(bridges[].addresses).
        type: list
        elements: str
      addresses:
        description: Its addresses of both families, with prefix length.
        type: list
        elements: str
      gateway4:
        description: The default route of IPv4.
        type: str
      gateway6:
        description: The default route of IPv6.
        type: str
      dhcp4:
        description: Whether it asks for an address of IPv4.
        type: bool
      accept_ra:
        description: Whether it listens to routers (IPv6). Never where machines are that are not trusted.
        type: bool
      nameservers:
        description: Resolvers that the host asks through it.
        type: list
        elements: str
      vlan_aware:
        description: Whether it knows VLANs.
        type: bool
      vlans:
        description: The VLANs that its ports carry with a tag, as numbers and ranges. By default V(2-4094).
        type: list
        elements: str
      mtu:
        description: Its MTU and that of its ports, from 1280 to 65535.
        type: int
      mac:
        description: Its MAC address. By default the stack's choice.
        type: str
      comment:
        description: A line that says what it is for.
        type: str
  stack:
    description:
      - The network stack. V(auto) is the one in use - ifupdown2 where it is enabled, netplan where it has files,
        NetworkManager where it runs, else systemd-networkd, which leaves alone all interfaces that no file names.
      - Below a netplan whose renderer is NetworkManager, bridges are given to NetworkManager itself.
    type: str
    choices: [auto, ifupdown2, netplan, networkd, networkmanager]
    default: auto
  ipv4_forwarding:
    description: Whether the host forwards IPv4. By default that stays as it is.
    type: bool
  ipv6_forwarding:
    description:
      - Whether the host forwards IPv6. By default that stays as it is.
      - Interfaces that have their default route from a router go on listening to it.
    type: bool
  br_netfilter:
    description:
      - Whether packets between ports of one bridge go through iptables, V(disabled) being the usual wish. Either way
        the kernel's module is loaded at boot, so that no other program loads it later with its own idea of it.
      - V(unmanaged) leaves that as it is.
    type: str
    choices: [disabled, enabled, unmanaged]
    default: unmanaged
  rollback_after:
    description:
      - When a change that is not confirmed takes itself back. At least V(10s). V(0) keeps a change that works here,
        without asking whether the host can still be reached.
    type: str
    default: 60s
  change:
    description: With O(state=confirmed), the change that is meant, RV(change). By default the one that waits.
    type: str
  force:
    description:
      - Whether to go on where the host would be reached by other addresses afterwards, where a bridge of that name
        exists that is not this module's, or where a bridge that is deleted has ports of machines.
    type: bool
    default: false
notes:
  - Files of C(/etc/network/interfaces.d) are not shown by the web interface of Proxmox VE. Where that matters, the role
    makes bridges by the API.
seealso:
  - module: community.proxmox.proxmox_node_network
"""

EXAMPLES = r"""
- name: Have a network of machines
  autovibe.fleet.network:
    bridges:
      - name: vmbr1
        addresses: [192.168.100.1/24, "fd00:100::1/64"]
    ipv4_forwarding: true
    ipv6_forwarding: true
    br_netfilter: disabled
  register: made

- name: Come back by a new connection
  ansible.builtin.meta: reset_connection

- name: Keep it
  autovibe.fleet.network:
    state: confirmed
    change: "{{ made.change }}"
  when: made.pending

- name: Give the address of management to a bridge
  autovibe.fleet.network:
    bridges:
      - name: vmbr0
        ports: [ens18]
        addresses: [10.0.1.10/24]
        gateway4: 10.0.1.1
        vlan_aware: true
    rollback_after: 2m
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  type: list
  elements: str
  returned: success
  sample: [write /etc/systemd/network/05-autovibe-fleet-vmbr1.netdev, bring up bridge vmbr1]
pending:
  description: Whether a change waits for its confirmation.
  type: bool
  returned: success
  sample: true
change:
  description: The change that waits, empty for none.
  type: str
  returned: success
  sample: "3f0a6c1e"
ends:
  description: When it takes itself back, empty for none.
  type: str
  returned: success
  sample: "2026-01-31T08:01:00Z"
stack:
  description: The network stack that was chosen, empty where none was asked.
  type: str
  returned: success
  sample: networkd
running:
  description: How the bridges run.
  type: list
  elements: dict
  returned: success
  sample:
    - {name: vmbr1, up: true, addresses: [192.168.100.1/24, "fd00:100::1/64"], ports: [], vlan_aware: false, mtu: 1500}
"""

from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._module import fleet_module, run_change
from ansible_collections.autovibe.fleet.plugins.module_utils._network import apply, plan

_WORDS: dict[str, Any] = {"type": "list", "elements": "str"}
OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "confirmed", "rolled_back", "absent"], "default": "present"},
    "bridges": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "ports": _WORDS,
            "addresses": _WORDS,
            "gateway4": {"type": "str"},
            "gateway6": {"type": "str"},
            "dhcp4": {"type": "bool"},
            "accept_ra": {"type": "bool"},
            "nameservers": _WORDS,
            "vlan_aware": {"type": "bool"},
            "vlans": _WORDS,
            "mtu": {"type": "int"},
            "mac": {"type": "str"},
            "comment": {"type": "str"},
        },
    },
    "stack": {
        "type": "str",
        "choices": ["auto", "ifupdown2", "netplan", "networkd", "networkmanager"],
        "default": "auto",
    },
    "ipv4_forwarding": {"type": "bool"},
    "ipv6_forwarding": {"type": "bool"},
    "br_netfilter": {"type": "str", "choices": ["disabled", "enabled", "unmanaged"], "default": "unmanaged"},
    "rollback_after": {"type": "str", "default": "60s"},
    "change": {"type": "str"},
    "force": {"type": "bool", "default": False},
}


def main() -> None:
    run_change(fleet_module(OPTIONS), plan, apply)


if __name__ == "__main__":
    main()
