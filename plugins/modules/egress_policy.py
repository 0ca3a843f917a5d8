#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: egress_policy
short_description: Put in force what machines may reach
version_added: 0.1.0
description:
  - Runs on the host whose bridges the machines hang on, as root. All is enforced there, outside of the machines - rules
    for packets, a resolver for each policy that answers allowed names only, DHCP, and a proxy where one is wanted.
  - The rules are replaced as a whole. Connections that are still allowed go on, and so does what names have led to;
    connections that are no longer allowed are cut. A task that is killed leaves the old rules or the new ones in
    force, and the next one finishes what it began.
  - What was opened or closed with C(fleet egress) stays until it ends, unless O(live=clear).
  - If others have removed or changed the rules, they are loaded again, and the task has changed something.
  - The rules hold whether fleetd, the resolvers and the proxy run or not. What does not run opens nothing.
extends_documentation_fragment:
  - autovibe.fleet.fleet
  - autovibe.fleet.fleet.change
  - autovibe.fleet.fleet.fleetd
options:
  state:
    description:
      - V(present) puts the policy in force.
      - V(absent) removes rules, processes and files. Then nothing of this collection keeps machines from anything.
    type: str
    choices: [present, absent]
    default: present
  backend:
    description: What the rules are made with. Both do the same.
    type: str
    choices: [nftables, iptables]
    default: nftables
  networks:
    description: The bridges of this host whose gateway it is. They need not exist yet.
    type: list
    elements: dict
    suboptions:
      name:
        description: The name of the bridge.
        type: str
        required: true
      address:
        description: Its own IPv4 address with prefix length, such as V(192.168.100.1/24).
        type: str
      address6:
        description: Its own IPv6 address with prefix length, such as V(fd00:100::1/64).
        type: str
      nat:
        description: Whether machines get out under this host's addresses.
        type: bool
        default: true
      dhcp:
        description: Whether machines are given their addresses by DHCP.
        type: bool
        default: true
  machines:
    description: The network cards of machines. A card that is not among them gets nothing through.
    type: list
    elements: dict
    suboptions:
      name:
        description: The name of the machine.
        type: str
        required: true
      network:
        description: The bridge that the card hangs on.
        type: str
        required: true
      mac:
        description: Its hardware address.
        type: str
        required: true
      address:
        description: Its IPv4 address. By default one of the network, always the same.
        type: str
      address6:
        description: Its IPv6 address. By default one of the network, always the same.
        type: str
      port:
        description:
          - Its interface on this host, such as V(tap0). Without it, cards are told apart by hardware address only.
        type: str
      project:
        description: The project that the machine belongs to.
        type: str
  policies:
    description:
      - Who may reach what. A machine's policy builds on its project's, and that on the default one.
      - Without any, machines reach nothing but the hub.
    type: dict
    suboptions:
      default:
        description: The policy of all machines.
        type: dict
        suboptions:
          mode:
            description:
              - V(locked) lets nothing through, not even names.
              - V(strict) forwards nothing; the proxy is the only way out, and the hub.
              - V(allowlist) lets through what is allowed.
              - V(open) lets everything through but private networks, metadata services, other machines, this host,
                other resolvers and encrypted DNS.
              - By default as above it, at last V(allowlist).
            type: str
            choices: [open, allowlist, strict, locked]
          inherit:
            description: Whether it adds to the policy above it. Denials of live changes are always inherited.
            type: bool
          presets:
            description: Names of presets, such as V(debian), or mappings of C(preset) and C(for) or C(until).
            type: list
            elements: raw
          allow:
            description:
              - What may be reached, as text C(TARGET[:PORTS][/PROTOCOL]) or as a mapping.
              - C(TARGET) is a domain, which stands for all below it too, an address or a network. An IPv6 address that
                ports follow is in brackets. C(PORTS) are numbers and ranges with commas between them, or V(any); those
                of a domain are by default 443. C(PROTOCOL) is V(tcp) by default, V(udp), V(icmp) or V(any).
              - A mapping has one of C(domain), C(host) and C(network), and may have C(ports), C(protocol), C(for) such
                as V(30m) or C(until) such as V(2030-01-31T08:00:00Z), C(comment), and C(force), which lets a name pass
                that looks wrong.
            type: list
            elements: raw
          deny:
            description: Domains, addresses and networks that stay closed, whatever is allowed.
            type: list
            elements: raw
          hub:
            description: Whether the hub may be reached. By default as above it, at last V(true).
            type: bool
          peers:
            description:
              - Which machines of the same network may be talked to - V(none), V(project) or a list of names. Both sides
                must name each other.
            type: raw
      projects:
        description: Policies by the names of projects, with the same keys as O(policies.default).
        type: dict
      machines:
        description: Policies by the names of machines, with the same keys as O(policies.default).
        type: dict
  hub:
    description: Where the hub is, which machines may reach in the modes V(strict), V(allowlist) and V(open).
    type: dict
    suboptions:
      name:
        description: The name under which machines know it.
        type: str
      addresses:
        description: Its addresses.
        type: list
        elements: str
      ports:
        description: Its ports of TCP.
        type: list
        elements: int
  proxy:
    description: The explicit proxy on the addresses of the bridges.
    type: dict
    suboptions:
      kind:
        description:
          - V(squid) decides by names and looks into nothing. V(mitmproxy) sees what machines say that trust its
            certificate.
        type: str
        choices: [none, squid, mitmproxy]
        default: none
      port:
        description: Its port.
        type: int
        default: 3128
  resolvers:
    description:
      - Resolvers that allowed names are asked of, as C(ADDRESS) or C(ADDRESS#PORT). By default this host's own.
    type: list
    elements: str
  special_networks:
    description:
      - Networks that names must not lead to. By default those that are not of the internet, such as private ones.
    type: list
    elements: str
  log_rate:
    description: How many denials of each policy are logged in a second.
    type: int
    default: 10
  live:
    description:
      - What becomes of changes that were made with C(fleet egress).
      - V(keep) leaves those that have not ended. V(clear) ends all of them.
    type: str
    choices: [keep, clear]
    default: keep
notes:
  - It needs C(nft), or C(iptables), C(ipset) and C(nft); C(dnsmasq) and C(conntrack); and C(squid) or C(mitmdump) for
    a proxy.
seealso:
  - module: autovibe.fleet.egress_info
"""

EXAMPLES = r"""
- name: Let machines reach Debian and the hub, those of a project a little more
  autovibe.fleet.egress_policy:
    networks:
      - name: vmbr1
        address: 192.168.100.1/24
        address6: fd00:100::1/64
    machines:
      - name: web-1
        network: vmbr1
        mac: "52:54:00:12:34:56"
        port: tap0
        project: shop
    policies:
      default:
        presets: [debian]
      projects:
        shop:
          presets: [claude, github]
          allow:
            - registry.example.org
            - 192.0.2.7:22
            - domain: files.example.org
              for: 30m
          deny: [upload.registry.example.org]
    hub:
      name: hub.fleet
      addresses: [10.0.1.20]
      ports: [8000]

- name: Show what another policy would change
  autovibe.fleet.egress_policy:
    networks:
      - name: vmbr1
        address: 192.168.100.1/24
    machines: []
    policies:
      default:
        mode: locked
  check_mode: true
  diff: true

- name: Remove all of it
  autovibe.fleet.egress_policy:
    state: absent
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  type: list
  elements: str
  returned: success
  sample: [replace the rules, change dns-project-shop.conf, restart process egress-dns-project-shop]
machines:
  description: The network cards with the addresses that they have.
  type: list
  elements: dict
  returned: success
  sample: [{name: web-1, network: vmbr1, scope: project-shop, address: 192.168.100.10, address6: "fd00:100::10"}]
scopes:
  description: The policies that are in force, and the machines that each is for.
  type: list
  elements: dict
  returned: success
  sample: [{name: project-shop, mode: allowlist, machines: [web-1]}]
live_changes:
  description: Changes that were made with C(fleet egress) and have not ended.
  type: list
  elements: dict
  returned: success
  sample:
    - {scope: machine-web-1, verb: allow, entry: example.org, until: "2030-01-31T08:30:00Z", at: "2030-01-31T08:00:00Z"}
boot_script:
  description: What loads the rules when the host boots, before its bridges exist.
  type: str
  returned: success
  sample: /var/lib/autovibe/egress/boot.sh
"""

from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._egress import DOCUMENT, apply, plan
from ansible_collections.autovibe.fleet.plugins.module_utils._module import fleet_module, run_change

OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    **DOCUMENT,
    "live": {"type": "str", "choices": ["keep", "clear"], "default": "keep"},
}


def main() -> None:
    run_change(fleet_module(OPTIONS, required_if=[("state", "present", ["networks", "machines"])]), plan, apply)


if __name__ == "__main__":
    main()
