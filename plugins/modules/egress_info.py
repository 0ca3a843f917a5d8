#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: egress_info
short_description: Tell what machines may reach now
version_added: 0.1.0
description:
  - Tells what M(autovibe.fleet.egress_policy) has put in force on this host - who may reach what with all presets and
    live changes, what names have led to, how much went through, what was denied last, and what gets in the way.
  - What cannot be found out is named in RV(problems), such as the rules in the kernel, which only root can read.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.info
options:
  denials:
    description: How many of the last denials to return.
    type: int
    default: 20
  find_conflicts:
    description: Whether to look for rules of others and settings that get in the way.
    type: bool
    default: true
seealso:
  - module: autovibe.fleet.egress_policy
"""

EXAMPLES = r"""
- name: See what is in force
  autovibe.fleet.egress_info:
  register: egress

- name: Insist that the rules are loaded and that nobody's rules stand in the way
  ansible.builtin.assert:
    that:
      - egress.loaded
      - egress.conflicts | length == 0
"""

RETURN = r"""
applied:
  description: Whether a policy is in force.
  type: bool
  returned: success
  sample: true
backend:
  description: What the rules are made with.
  type: str
  returned: success
  sample: nftables
since:
  description: When the policy was last changed.
  type: str
  returned: success
  sample: "2030-01-31T08:00:00Z"
loaded:
  description: Whether the kernel has the rules that were applied; null where that is not known.
  type: bool
  returned: success
  sample: true
scopes:
  description: The policies that are in force, with all that they inherit.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: V(default), C(project-NAME) or C(machine-NAME).
      type: str
      returned: always
      sample: project-shop
    mode:
      description: V(open), V(allowlist), V(strict) or V(locked).
      type: str
      returned: always
      sample: allowlist
    hub:
      description: Whether the hub may be reached.
      type: bool
      returned: always
      sample: true
    resolver_port:
      description: The port of its resolver on this host, 0 for none.
      type: int
      returned: always
      sample: 15300
    machines:
      description: The machines that it is for.
      type: list
      elements: str
      returned: always
      sample: [web-1]
    presets:
      description: The presets that are part of it.
      type: list
      elements: str
      returned: always
      sample: [debian]
    allow:
      description: What may be reached, presets resolved.
      type: list
      elements: str
      returned: always
      sample: [deb.example.org, "192.0.2.7:22", "files.example.org until 2030-01-31T08:30:00Z"]
    deny:
      description: What stays closed.
      type: list
      elements: str
      returned: always
      sample: [upload.registry.example.org]
machines:
  description: The network cards of machines.
  type: list
  elements: dict
  returned: success
  contains:
    name:
      description: The machine.
      type: str
      returned: always
      sample: web-1
    project:
      description: Its project.
      type: str
      returned: always
      sample: shop
    scope:
      description: The policy that counts for it.
      type: str
      returned: always
      sample: project-shop
    network:
      description: The bridge.
      type: str
      returned: always
      sample: vmbr1
    mac:
      description: The hardware address.
      type: str
      returned: always
      sample: "52:54:00:12:34:56"
    address:
      description: The IPv4 address.
      type: str
      returned: always
      sample: 192.168.100.10
    address6:
      description: The IPv6 address.
      type: str
      returned: always
      sample: "fd00:100::10"
    port:
      description: Its interface on this host, empty where it is not known.
      type: str
      returned: always
      sample: tap0
    peers:
      description: Machines of the same network that it may talk to.
      type: list
      elements: str
      returned: always
      sample: []
live:
  description: Changes that were made with C(fleet egress) and have not ended.
  type: list
  elements: dict
  returned: success
  sample:
    - {scope: machine-web-1, verb: allow, entry: example.org, until: "2030-01-31T08:30:00Z", at: "2030-01-31T08:00:00Z"}
learned:
  description: What allowed names have led to.
  type: list
  elements: dict
  returned: success
  sample: [{scope: project-shop, name: registry.example.org, addresses: [192.0.2.80]}]
counters:
  description: Packets and bytes of each policy since it exists.
  type: list
  elements: dict
  returned: success
  sample: [{scope: project-shop, allowed: {packets: 812, bytes: 91234}, denied: {packets: 3, bytes: 180}}]
denials:
  description: What was denied last, oldest first; alike ones of about a second are one.
  type: list
  elements: dict
  returned: success
  contains:
    time:
      description: When.
      type: str
      returned: always
      sample: "2030-01-31T08:00:00Z"
    machine:
      description: The machine, empty for one that is not known.
      type: str
      returned: always
      sample: web-1
    project:
      description: Its project.
      type: str
      returned: always
      sample: shop
    scope:
      description: Its policy.
      type: str
      returned: always
      sample: project-shop
    reason:
      description:
        - V(forward) for what is not allowed, V(denied) for what is closed, V(expired) for what was open for a time,
          V(dns) for a name that is not allowed and for DNS elsewhere, V(input) for services of this host, V(peer) for
          another machine, V(metadata), V(spoof) for a foreign address, V(inbound) for a connection from elsewhere.
      type: str
      returned: always
      sample: forward
    source:
      description: The address that it came from.
      type: str
      returned: always
      sample: 192.168.100.10
    destination:
      description: The address that it went to.
      type: str
      returned: always
      sample: 198.51.100.7
    protocol:
      description: The protocol.
      type: str
      returned: always
      sample: tcp
    port:
      description: The port of the destination; of ICMP its type.
      type: int
      returned: always
      sample: 443
    name:
      description: The name that was asked for.
      type: str
      returned: always
      sample: ""
    count:
      description: How often.
      type: int
      returned: always
      sample: 1
services:
  description: The processes of the policy.
  type: list
  elements: dict
  returned: success
  sample: [{id: egress-dns-project-shop, status: running, pid: 4242, error: ""}]
conflicts:
  description: What gets in the way, one sentence each.
  type: list
  elements: str
  returned: success
  sample: []
problems:
  description: What could not be found out, one sentence each.
  type: list
  elements: str
  returned: success
  sample: []
"""

from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._egress import info
from ansible_collections.autovibe.fleet.plugins.module_utils._module import fleet_module, run_info

OPTIONS: dict[str, Any] = {
    "denials": {"type": "int", "default": 20},
    "find_conflicts": {"type": "bool", "default": True},
}


def main() -> None:
    run_info(fleet_module(OPTIONS), info)


if __name__ == "__main__":
    main()
