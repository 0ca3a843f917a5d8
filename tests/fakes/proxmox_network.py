# SPDX-License-Identifier: GPL-3.0-or-later
"""The networks of the nodes of a Proxmox VE, which the package fakepve leaves out: changes are staged, then applied.

As the real one, it keeps staged changes in another file (/etc/network/interfaces.new) and shows their difference as
"changes" beside the data.
"""

from __future__ import annotations

import difflib
import json
from typing import Any

from fakepve import PveError
from tests.fakes.proxmox_host import Host, Pve

Interfaces = dict[str, dict[str, Any]]


def _text(interfaces: Interfaces) -> list[str]:
    return [f"{name} {json.dumps(config, sort_keys=True)}" for name, config in sorted(interfaces.items())]


class NetworkPve(Pve):
    """A cluster whose nodes have ens18 in the bridge vmbr0, as the installer makes it, and a free ens19."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.applied: dict[str, Interfaces] = {}
        self.staged: dict[str, Interfaces] = {}
        self.reloads = 0
        self.refuses_to_stage = ""  # the name of an interface

    def node_network(self, node: str) -> Interfaces:
        """What runs on a node."""
        management = {"cidr": "10.0.1.10/24", "gateway": "10.0.1.1", "bridge_ports": "ens18", "autostart": 1}
        plain: Interfaces = {
            "ens18": {"type": "eth", "active": 1, "exists": 1},
            "ens19": {"type": "eth", "active": 1, "exists": 1},
            "vmbr0": {"type": "bridge", "active": 1, **management},
        }
        return self.applied.setdefault(node, plain)

    def _routes_networks(self) -> list[Any]:
        base = "/nodes/{node}/network"
        return [
            ("GET", base, self._network_list),
            ("POST", base, self._network_create),
            ("PUT", base, self._network_apply),
            ("DELETE", base, self._network_revert),
            ("PUT", base + "/{iface}", self._network_update),
            ("DELETE", base + "/{iface}", self._network_delete),
        ]

    async def _answer(self, request: Any, handler: Any, generic: Any, path_node: Any) -> Any:
        response = await super()._answer(request, handler, generic, path_node)
        parts = request.path.rstrip("/").split("/")
        if request.method == "GET" and parts[-1] == "network" and parts[-3] == "nodes" and parts[-2] in self.staged:
            body = json.loads(response.text)
            before, after = _text(self.node_network(parts[-2])), _text(self.staged[parts[-2]])
            body["changes"] = "\n".join(difflib.unified_diff(before, after, lineterm="")) + "\n"
            response.text = json.dumps(body)
        return response

    def _work(self, node: str) -> Interfaces:
        """What is staged on a node, which is what runs there at first."""
        return self.staged.setdefault(node, json.loads(json.dumps(self.node_network(node))))

    async def _network_list(self, v: dict[str, Any], user: str) -> list[Any]:
        found = self.staged.get(v["node"], self.node_network(v["node"]))
        return [{"iface": name, **config} for name, config in found.items() if v.get("type") in (None, config["type"])]

    async def _network_create(self, v: dict[str, Any], user: str) -> None:
        config = {key: value for key, value in v.items() if key not in ("node", "iface")}
        if v["iface"] == self.refuses_to_stage:
            raise PveError(500, f"unable to stage '{v['iface']}'")
        if v["iface"] in self.staged.get(v["node"], self.node_network(v["node"])):
            raise PveError(400, "interface already exists")
        self._check(config)
        self._work(v["node"])[v["iface"]] = config

    async def _network_update(self, v: dict[str, Any], user: str) -> None:
        work = self._work(v["node"])
        if v["iface"] not in work:
            raise PveError(400, "interface does not exist")
        config = {**work[v["iface"]], **{k: x for k, x in v.items() if k not in ("node", "iface", "delete")}}
        given = v.get("delete") or []
        for key in given if isinstance(given, list) else str(given).replace(";", ",").split(","):
            config.pop(key.strip(), None)
        self._check(config)
        work[v["iface"]] = config

    async def _network_delete(self, v: dict[str, Any], user: str) -> None:
        if self._work(v["node"]).pop(v["iface"], None) is None:
            raise PveError(400, "interface does not exist")

    async def _network_apply(self, v: dict[str, Any], user: str) -> Any:
        async def body() -> None:
            self.reloads += 1
            if v["node"] in self.staged:
                self.applied[v["node"]] = self.staged.pop(v["node"])

        return await self.task(v["node"], "srvreload", "networking", user or "root@pam", body)

    async def _network_revert(self, v: dict[str, Any], user: str) -> None:
        self.staged.pop(v["node"], None)

    @staticmethod
    def _check(config: dict[str, Any]) -> None:
        if config.get("gateway") and not config.get("cidr"):
            raise PveError(400, "Parameter verification failed.", {"gateway": "needs an address"})


class NetworkHost(Host):
    """A running cluster whose nodes have networks."""

    pve_class = NetworkPve
    pve: NetworkPve
