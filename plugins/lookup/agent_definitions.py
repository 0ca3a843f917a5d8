# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: agent_definitions
short_description: Read definitions of agents from files of the control node
version_added: 0.1.0
author:
  - autovibe contributors (@autovibe)
description:
  - Reads files with definitions of agents, checks them, and returns them as O(autovibe.fleet.agent#module:agents) takes
    them.
  - A file that ends in C(.yml), C(.yaml) or C(.json) holds a definition, a list of them, or a mapping with C(agents)
    and the C(methods) that they share.
  - A C(.p) file holds methods and agents, and may import others with C(@file.p), relative to itself.
options:
  _terms:
    description:
      - The files. They are searched as those of P(ansible.builtin.file#lookup) are, below C(files) of the role or the
        playbook.
    type: list
    elements: str
    required: true
  defaults:
    description: Fields of the agents of C(.p) files, such as C(runner), C(model) and C(limits).
    type: dict
    default: {}
  folder:
    description:
      - The folder, on the managed host, that relative paths of a definition belong to, such as the one of a workspace.
      - Without it they are an error.
    type: str
    default: ""
seealso:
  - module: autovibe.fleet.agent
"""

EXAMPLES = r"""
- name: Show which agents a file holds
  ansible.builtin.debug:
    msg: "{{ query('autovibe.fleet.agent_definitions', file) | map(attribute='name') }}"
  vars:
    file: "{{ playbook_dir }}/agents.yml"
"""

RETURN = r"""
_raw:
  description: The definitions, in the order of the files.
  type: list
  elements: dict
  sample: [{name: builder, runner: claude, methods: {build: Build it.}}]
"""

from pathlib import Path
from typing import Any

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core import prompt_agents, prompt_files
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.agents import (
    AgentDefinition,
    agent_definitions,
    check_names,
)
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import (
    FleetError,
    InvalidInput,
    NotFound,
)


class LookupModule(LookupBase):
    """Reads files of the controller; the definitions in the order of the files."""

    def run(self, terms: list[Any], variables: dict[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        self.set_options(var_options=variables, direct=kwargs)
        found: list[AgentDefinition] = []
        for term in terms:
            path = self.find_file_in_search_path(variables, "files", str(term))
            if path is None:
                raise AnsibleLookupError(f"agents file {term}: expected a file, found none")
            try:
                found += self._read(Path(str(path)))
                check_names(found)
            except FleetError as error:
                raise AnsibleLookupError(error.message) from error
        return [item.to_dict() for item in found]

    def _read(self, path: Path) -> tuple[AgentDefinition, ...]:
        text = read(path)
        if path.suffix == ".p":
            parsed = prompt_files.parse(text, str(path), lambda name: read(Path(name)))
            return prompt_agents.agents(parsed, self.get_option("defaults"))
        data = self._loader.load(text, str(path))
        try:
            return agent_definitions(data, self.get_option("folder"))
        except InvalidInput as error:
            raise InvalidInput(f"{path}: {error.message}") from error


def read(path: Path) -> str:
    """Return a file's text. Raises NotFound and InvalidInput."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise NotFound(f"agents file {path}: not there") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"agents file {path}: expected a readable text: {error}") from error
