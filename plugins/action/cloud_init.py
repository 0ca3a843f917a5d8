# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The half of cloud_init that works on the control node: fills templates, and checks what comes out of them."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import lookup_loader

from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core import cloud_init
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.cloud_init_values import (
    MachineValues,
    machine_values,
    values_from_env,
)
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.dotenv import parse_dotenv
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import FleetError, InvalidInput
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.names import check_keys, check_name
from ansible_collections.autovibe.fleet.plugins.plugin_utils import cloud_init as documents

MODULE = "autovibe.fleet.cloud_init"
# Options that the control node uses up; the rest go to the module.
_OURS = ("template", "env_file", "values", "machines", "format", "parts", "seeds")
_SEED_KEYS = ("name", "user_data", "meta_data", "network_config")


class ActionModule(ActionBase):
    """Runs cloud_init: the module gets finished texts."""

    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        self._vars = task_vars or {}
        args = dict(self._task.args)
        passed = {key: value for key, value in args.items() if key not in _OURS}
        try:
            if (args.get("template") is None) == (args.get("seeds") is None):
                raise InvalidInput("cloud_init: expected template or seeds, found both or neither")
            machines = self._machines(args) if args.get("template") is not None else []
            if args.get("state", "present") == "absent":
                named = [made.name for made in machines] or [seed.get("name") for seed in args["seeds"]]
                seeds = [{"name": name} for name in named]
            elif machines:
                seeds = [self._seed(args, made) for made in machines]
            else:
                seeds = [_given(number, seed) for number, seed in enumerate(args["seeds"])]
        except FleetError as error:
            raise AnsibleActionFail(error.message) from error
        if args.get("state") == "rendered":
            result.update(changed=False, actions=[], seeds=seeds)
        else:
            passed["seeds"] = seeds
            result.update(self._execute_module(module_name=MODULE, module_args=passed, task_vars=task_vars))
        if not result.get("failed"):
            result["machines"] = [_facts(made) for made in machines]
        return result

    def _machines(self, args: Mapping[str, Any]) -> list[MachineValues]:
        """Return the values of each machine: the file's, then those of all, then its own."""
        shared: dict[str, Any] = {}
        if args.get("env_file"):
            name = str(args["env_file"])
            shared.update(values_from_env(parse_dotenv(self._read(name), name), name))
        shared.update(documents.plain(args.get("values") or {}))
        own = args.get("machines") or [{}]
        found = [machine_values({**shared, **documents.plain(machine)}) for machine in own]
        names = [made.name for made in found]
        for name in names:
            if names.count(name) > 1:
                raise InvalidInput(f'machine "{name}": there are two of this name')
        return found

    def _seed(self, args: Mapping[str, Any], made: MachineValues) -> dict[str, str]:
        source = str(args["template"])
        where = f"{source}, filled for {made.name},"
        parsed = documents.cloud_config(self._fill(source, made), where)
        parts = [(f"{number:02d}-cloud-config", _text(part)) for number, part in enumerate(parsed)]
        extra = [(f"{number:02d}-part", str(text)) for number, text in enumerate(args.get("parts") or (), len(parts))]
        for name, text in extra:
            if cloud_init.part_type(f"part {name}", text) == "text/cloud-config":
                documents.cloud_config(text, f"part {name}", whole=False)
        if args.get("format", "cloud-config") == "mime":
            user_data = cloud_init.mime([*parts, *extra])
        else:
            whole = _text(cloud_init.merge(parsed))
            user_data = cloud_init.mime([("00-cloud-config", whole), *extra]) if extra else whole
        network = ""
        if made.interfaces:
            network = documents.network_config(
                f"{made.name}: network-config", cloud_init.network_config(made.interfaces)
            )
        meta = documents.meta_data(f"{made.name}: meta-data", cloud_init.meta_data(made, user_data, network))
        return {"name": made.name, "user_data": user_data, "meta_data": meta, "network_config": network}

    def _fill(self, source: str, made: MachineValues) -> str:
        """Return the text of a template, by its name or its path, filled with a machine's values."""
        if os.sep in source or source.endswith(".j2"):
            path = self._find("templates", source)
        else:
            path = str(documents.template_path(source))
        more = {"machine": made.to_dict(), "collection": str(documents.COLLECTION)}
        if made.fleet_wheel:
            more["fleet_wheel_content"] = base64.b64encode(self._bytes(made.fleet_wheel)).decode()
        lookup = lookup_loader.get("ansible.builtin.template", loader=self._loader, templar=self._templar)
        try:
            (text,) = lookup.run(
                [path], variables={**self._vars, "ansible_search_path": [], **more}, template_vars=more
            )
        except AnsibleError as error:
            reason = " ".join(str(error).split())
            raise InvalidInput(f"cloud-init template {source}: cannot be filled: {reason}") from error
        return str(text)

    def _find(self, folder: str, name: str) -> str:
        try:
            return str(self._find_needle(folder, os.path.expanduser(name)))
        except AnsibleError as error:
            raise InvalidInput(f"{name}: there is no such file on the control node") from error

    def _read(self, name: str) -> str:
        try:
            return self._bytes(name).decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInput(f"{name}: cannot be read: {error}") from error

    def _bytes(self, name: str) -> bytes:
        """Return a file of the control node, decrypted if it is in a vault."""
        found = self._find("files", name)
        try:
            return Path(self._loader.get_real_file(found)).read_bytes()
        except (AnsibleError, OSError) as error:
            raise InvalidInput(f"{name}: cannot be read: {' '.join(str(error).split())}") from error
        finally:
            self._loader.cleanup_all_tmp_files()


def _text(data: Mapping[str, Any]) -> str:
    return documents.to_yaml(documents.plain(data), cloud_init.HEADER)


def _given(number: int, seed: Any) -> dict[str, str]:
    """Return a seed that the task brings itself, checked and as texts."""
    check_keys(f"seeds[{number}]", seed, _SEED_KEYS)
    name = check_name("seed", str(seed.get("name") or ""))
    user_data = documents.user_data(f"{name}: user-data", seed.get("user_data"))
    network = ""
    if seed.get("network_config"):
        network = documents.network_config(f"{name}: network-config", seed["network_config"])
    ident = cloud_init.instance_id(name, user_data, network)
    meta = {"instance-id": ident, "local-hostname": name, **documents.plain(seed.get("meta_data") or {})}
    return {
        "name": name,
        "user_data": user_data,
        "meta_data": documents.meta_data(f"{name}: meta-data", meta),
        "network_config": network,
    }


def _facts(made: MachineValues) -> dict[str, Any]:
    """Return what a provider needs to know beside the seed."""
    return {
        "name": made.name,
        "distribution": made.distribution.name,
        "user": made.user,
        "cpus": made.cpus,
        "memory": made.memory,
        "disk": made.disk,
    }
