# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: machines
short_description: The machines of all providers as hosts
version_added: 0.1.0
author:
  - autovibe contributors (@autovibe)
description:
  - Asks the providers of machines, each node with one call whatever the number of its machines, and makes a host of
    each machine, with what Ansible needs to log in.
  - Its configuration file ends in C(machines.yml) or C(machines.yaml).
  - Machines are in groups by provider, image, project, tag, state and node. Those that were deleted and can still be
    recovered are left out unless O(states) names V(deleted).
  - Hosts have the variable C(fleet_machine), a dictionary with all that M(autovibe.fleet.machine_info) returns of a
    machine, and its C(node). C(ansible_host), C(ansible_port) and C(ansible_user) are set as far as they are known.
  - A machine whose host key the role P(autovibe.fleet.machine#role) has read through the provider is trusted by that
    key alone, and by its name rather than its address. Machines behind another host are reached through that host.
  - Texts of machines, such as their tags, are never templated.
extends_documentation_fragment:
  - ansible.builtin.constructed
  - ansible.builtin.inventory_cache
options:
  plugin:
    description: The name of this plugin.
    type: str
    required: true
    choices: [autovibe.fleet.machines]
  providers:
    description:
      - Whom to ask. An entry that needs nothing else may be the name of the provider alone.
      - Values may be templates, which see the extra variables.
    type: list
    elements: raw
    required: true
    suboptions:
      name:
        description: The provider, such as V(qemu), V(multipass) or V(proxmox).
        type: str
        required: true
      node:
        description:
          - What to call this node in groups, variables and messages.
          - By default O(providers[].host), else the provider's setting C(host), else C(localhost). Where the provider
            tells the node of each machine, as a cluster of Proxmox does, that one is used for the machine.
        type: str
      host:
        description:
          - The host that the provider runs on, as OpenSSH takes it, V(HOST) or V(USER@HOST). There, C(fleet) must be
            installed, and the login must be possible without a question.
          - By default, the provider is asked from here. That is right for all that has an API, such as Proxmox.
        type: str
      settings:
        description:
          - How to reach the provider, as O(autovibe.fleet.machine_info#module:provider_settings). They go to
            O(providers[].host) by standard input, and are never cached.
        type: dict
        default: {}
      state_dir:
        description: The state folder on the node. By default O(state_dir) here, and the one of its user elsewhere.
        type: str
      command:
        description: The C(fleet) command on O(providers[].host), with words before it such as V(sudo -n fleet).
        type: str
        default: fleet
      ssh_args:
        description: More arguments of OpenSSH on the way to O(providers[].host), such as V(-F ssh_config).
        type: str
        default: ""
      jump:
        description:
          - The host through which the node's machines are reached. By default O(providers[].host). Empty if they are
            reached directly.
        type: str
      timeout:
        description: How long O(providers[].host) may take to answer. A number of seconds, or a text such as V(2m).
        type: str
        default: 60s
      full:
        description:
          - Whether to ask also what costs the provider a call for each machine, such as the addresses that guest agents
            of Proxmox tell.
        type: bool
        default: false
  state_dir:
    description:
      - The state folder on the control node, with the records of providers here, the host keys of machines and the key
        to log in with.
      - By default E(FLEET_STATE_DIR), else C(/var/lib/autovibe) for root, else C(autovibe) in E(XDG_STATE_HOME).
    type: path
  projects:
    description: Only the machines of these projects. An empty name is that of machines of no project.
    type: list
    elements: str
    default: []
  tags:
    description: Only the machines that have all of these tags.
    type: list
    elements: str
    default: []
  states:
    description: Only the machines in one of these states. By default in any but V(deleted).
    type: list
    elements: str
    choices: [running, starting, stopping, stopped, suspended, deleted, unknown]
    default: []
  skip_incomplete:
    description: Whether to leave out machines that could not be made wholly.
    type: bool
    default: false
  group_by:
    description: What to make groups of.
    type: list
    elements: str
    choices: [provider, image, project, tag, state, node]
    default: [provider, image, project, tag, state, node]
  group_prefix:
    description:
      - What the names of these groups begin with. What follows is the kind and the value, such as C(project_shop).
      - What is no letter, digit or C(_) in a value becomes C(_).
    type: str
    default: ""
  hostname:
    description:
      - A Jinja2 expression for the name of a host. It sees the host's variables, such as C(fleet_machine).
      - By default, the name of the machine.
    type: str
  duplicates:
    description:
      - What to do when two machines would be the same host, such as those of one name with two providers.
      - V(suffix) calls each of them C(NAME.PROVIDER), and C(NAME.PROVIDER.NODE) when that is the same, too. The node
        C(localhost) is C(here) then.
    type: str
    choices: [error, suffix]
    default: error
  strict_nodes:
    description:
      - Whether a node that cannot be asked is an error. If not, it is a warning, and its machines are missing.
    type: bool
    default: true
requirements:
  - OpenSSH, for nodes on other hosts
  - proxmoxer and requests, for Proxmox
notes:
  - The cache has an entry for each node, which is found again as long as what the node is asked stays the same.
    Filters, groups and names are made anew from it each time. C(--flush-cache) asks all nodes again.
  - For machines behind O(providers[].host), and for those whose host key is known, C(ansible_ssh_common_args) is set,
    which takes precedence over that of groups. O(compose) can change it.
seealso:
  - module: autovibe.fleet.machine
  - module: autovibe.fleet.machine_info
"""

EXAMPLES = r"""
# machines.yml: the machines of this computer
plugin: autovibe.fleet.machines
providers: [qemu, multipass]

---
# lab.machines.yml: two hypervisors and a cluster
plugin: autovibe.fleet.machines
providers:
  - name: qemu
    host: fleet@rack-1.example.org
    command: sudo -n fleet
  - name: multipass
    host: mac-mini.example.org
    node: mini
  - name: proxmox
    settings:
      host: pve.example.org
      user: ansible@pve
      token_id: inventory
      token_secret: "{{ lookup('ansible.builtin.env', 'PROXMOX_TOKEN_SECRET') }}"
projects: [shop]
states: [running]
# One rack that is down takes only its own machines away.
strict_nodes: false
duplicates: suffix
group_prefix: fleet_
compose:
  ansible_python_interpreter: "'/usr/bin/python3'"
  agents: fleet_machine.tags | select('match', 'agent-') | list
groups:
  large: fleet_machine.memory >= 16 * 1024 ** 3
keyed_groups:
  - key: fleet_machine.detail.release | default('')
    prefix: release
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: ~/.cache/autovibe-fleet/inventory
cache_timeout: 300
"""

from collections.abc import Iterable, Sequence
from typing import Any

from ansible.errors import AnsibleError, AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible.template import trust_as_template

from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import FleetError, InvalidInput
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_machines.known_hosts import Keys
from ansible_collections.autovibe.fleet.plugins.plugin_utils import machine_hosts, machine_nodes
from ansible_collections.autovibe.fleet.plugins.plugin_utils.machine_hosts import Found, Reach
from ansible_collections.autovibe.fleet.plugins.plugin_utils.machine_nodes import Answer, Node

ENDINGS = ("machines.yml", "machines.yaml")


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """See DOCUMENTATION. What machines say is never trusted as a template: trusted_by_default stays False."""

    NAME = "autovibe.fleet.machines"

    def verify_file(self, path: str) -> bool:
        return bool(super().verify_file(path)) and path.endswith(ENDINGS)

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        try:
            self._add(self._wanted(self._answers(self._nodes(), path, cache)))
        except FleetError as error:
            raise AnsibleParserError(error.message) from error

    def _nodes(self) -> tuple[Node, ...]:
        self.templar.available_variables = self._vars
        given = self.templar.template(self.get_option("providers"))
        return machine_nodes.nodes_from(plain(given), str(self.get_option("state_dir") or ""))

    def _answers(self, nodes: Sequence[Node], path: str, cache: bool) -> list[Answer]:
        """Return what the nodes say, or have said: one whose answer is cached is not asked."""
        caching = self.get_option("cache")
        prefix = self.get_cache_key(path)
        found: dict[str, Answer] = {}
        for node in nodes if caching and cache else ():
            try:
                cached = self._cache[f"{prefix}_{node.fingerprint}"]["machines"]
                found[str(node)] = Answer(node, machine_nodes.machines_from(cached, str(node)))
            except (KeyError, TypeError, FleetError):  # not there, too old, or of another program
                continue
        for answer in machine_nodes.ask_all([node for node in nodes if str(node) not in found]):
            found[str(answer.node)] = answer
            if answer.error is not None:
                self._told(answer.error)
            elif caching:
                self._cache[f"{prefix}_{answer.node.fingerprint}"] = {"machines": answer.machines}
        return [found[str(node)] for node in nodes]

    def _told(self, error: FleetError) -> None:
        if self.get_option("strict_nodes"):
            raise AnsibleParserError(f"{error.message}; strict_nodes: false goes on without this node") from error
        self.display.warning(f"{error.message}; its machines are missing in the inventory")

    def _wanted(self, answers: Iterable[Answer]) -> list[Found]:
        found = [Found(machine, answer.node.place) for answer in answers for machine in answer.machines]
        options = [self.get_option(name) for name in ("projects", "tags", "states", "skip_incomplete")]
        return [one for one in found if machine_hosts.wanted(one, *options)]

    def _add(self, found: Sequence[Found]) -> None:
        keys = Keys(self.get_option("state_dir"))
        private = str(keys.private_key) if keys.private_key.exists() else ""
        reach = Reach(str(keys.known_hosts), frozenset(keys.known()), private)
        hosts: list[tuple[Found, str, dict[str, Any]]] = []
        for one in found:
            variables = machine_hosts.variables_of(one, reach)
            try:
                hosts.append((one, machine_hosts.check_host_name(self._name(one, variables)), variables))
            except InvalidInput as error:
                self.display.warning(f"{one.place.provider} on {one.place.node}: {error.message}; it is left out")
        names = machine_hosts.unique(
            [name for _found, name, _variables in hosts], [one[0] for one in hosts], self.get_option("duplicates")
        )
        for name, (one, _name, variables) in zip(names, hosts):
            self._add_host(name, one, variables)

    def _name(self, found: Found, variables: dict[str, Any]) -> str:
        expression = self.get_option("hostname")
        if not expression:
            return found.name
        try:
            return str(self._compose(expression, variables))
        except Exception as error:
            raise AnsibleError(f"hostname: cannot be told for machine {found.name!r}: {error}") from error

    def _add_host(self, name: str, found: Found, variables: dict[str, Any]) -> None:
        self.inventory.add_host(name)
        for key, value in variables.items():
            self.inventory.set_variable(name, key, checked(key, value))
        for group in machine_hosts.groups_of(found, self.get_option("group_by"), self.get_option("group_prefix")):
            self.inventory.add_group(group)
            self.inventory.add_child(group, name)
        strict = self.get_option("strict")
        compose, groups, keyed = (self.get_option(option) for option in ("compose", "groups", "keyed_groups"))
        if not (compose or groups or keyed):
            return
        seen = self.inventory.get_host(name).get_vars()
        self._set_composite_vars(compose, seen, name, strict=strict)
        self._add_host_to_composed_groups(groups, seen, name, strict=strict)
        self._add_host_to_keyed_groups(keyed, seen, name, strict=strict)


def checked(key: str, value: Any) -> Any:
    """Return what we have composed of checked parts as text like any other, so that `ansible-inventory --list` shows
    it plainly. What machines say stays untrusted."""
    if key != machine_hosts.VARIABLE and isinstance(value, str) and "{" not in value:
        return trust_as_template(value)
    return value


def plain(value: Any) -> Any:
    """Return a value of a configuration file without Ansible's own kinds of text, lists and mappings."""
    if isinstance(value, dict):
        return {str.__str__(key) if isinstance(key, str) else key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, str) else value
