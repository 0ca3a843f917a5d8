# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The options of machines and of their providers."""

    PROVIDER = r"""
options:
  provider:
    description:
      - Where the machines come from.
      - V(qemu) runs them on the managed host, a Linux host with QEMU and a running fleetd.
      - V(multipass) uses the command C(multipass) of the managed host, on Linux and macOS.
      - V(proxmox) uses the API of a Proxmox VE cluster, version 8 or 9. The managed host needs the Python packages
        proxmoxer and requests.
    type: str
    required: true
  provider_settings:
    description:
      - How to reach the provider.
      - V(qemu) takes C(executable), the path of QEMU, C(accel) (V(auto), V(kvm) or V(tcg)), C(folder), where
        machines and images lie, C(cache) and C(mirror).
      - V(multipass) takes C(executable), the path of the command where it is not in E(PATH).
      - V(proxmox) takes C(host), C(port), C(token_id) and C(token_secret) or C(user) and C(password), C(verify)
        (V(true), V(false) or the file of a CA), C(timeout), C(node), C(storage), C(iso_storage), C(bridge), C(pool),
        C(clone) (V(auto), V(linked) or V(full)), C(hotplug), C(thorough) and C(ssh). What is not given is taken from
        the environment, such as E(PROXMOX_HOST) and E(PROXMOX_TOKEN_SECRET).
      - Its C(password) and C(token_secret) are in no log and no result.
    type: dict
    default: {}
notes:
  - It runs on the host that the provider runs on. What the provider cannot hold about a machine, such as its project
    and its tags, is kept in O(state_dir) of that host.
"""

    MACHINES = r"""
options:
  machines:
    description:
      - The machines. What is not given of one is not changed, and a new one gets the provider's default.
      - Nothing is done if one of them is refused.
    type: list
    elements: dict
    suboptions:
      name:
        description: Its name, which is a host name. A letter, then letters, digits and C(-).
        type: str
        required: true
      image:
        description:
          - What it is made from, an image of the provider or a golden image.
          - With V(qemu) a golden image by its name or family, the path of a disk file, C(instance:NAME) to copy a
            machine that is stopped, or C(instance:NAME.CHECKPOINT).
          - With V(multipass) a release or an alias that C(multipass find) lists, a C(https://) or C(file://) address,
            the name of a golden image, or C(instance:NAME) and C(instance:NAME.CHECKPOINT) to clone any machine that
            is stopped.
          - With V(proxmox) a template or golden image by its name, family or number, C(instance:NAME) to clone a
            machine that is stopped, or C(instance:NAME.CHECKPOINT).
        type: str
      cpu:
        description: How many processors it has.
        type: int
      memory:
        description: Its memory, such as V(4G).
        type: str
      disk:
        description: The size of its disk, such as V(20G). It can only grow.
        type: str
      networks:
        description: Its further network interfaces, in order.
        type: list
        elements: dict
        suboptions:
          name:
            description: The network or bridge, as the provider calls it. With V(qemu) V(user), V(isolated) or a bridge.
            type: str
            required: true
          mac:
            description: The hardware address. By default any.
            type: str
          address:
            description: V(dhcp), or an address with its prefix length. Not every provider takes it.
            type: str
          gateway:
            description: The gateway of that network. Not every provider takes it.
            type: str
      user_data:
        description:
          - The user data for cloud-init, which are applied when the machine first boots. Only their hash is kept.
          - They are not shown in results, differences and logs.
        type: str
      tags:
        description: Words to find it by.
        type: list
        elements: str
      project:
        description: The project that it belongs to.
        type: str
      login:
        description: The account that Ansible and people log in with, for the inventory.
        type: str
"""
