# SPDX-License-Identifier: GPL-3.0-or-later
"""A Proxmox VE cluster without machines: the package fakepve, over TLS, with what it leaves out and tests need.

What it leaves out: the list of tasks of the cluster, the new size of a disk, cloud-init drives, what a guest agent
runs, the content of uploads, tags in lower case, and that the list of machines is some seconds old.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import subprocess
import time
import urllib.parse
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakepve import FakePve, PveError, TaskError
from fakepve.certs import make_cert
from fakepve.pytest_plugin import _Serving

from fleet_machines.provider import Surroundings
from fleet_machines.proxmox import Proxmox

API = "/api2/json"
TOKEN, SECRET = "fleet@pve!ansible", "12345678-token-secret"
GIB = 1024**3


@dataclass(frozen=True)
class Request:
    """One request as it came: params: of the address and the body together, files as their names."""

    method: str
    path: str
    params: Mapping[str, Any]


class Pve(FakePve):
    """fakepve, nearer to the real one."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.seen: list[Request] = []
        self.isos: dict[str, bytes] = {}
        self.with_agents = True  # whether the machines have a guest agent that answers
        self.shell = True  # whether it runs commands: here, in this process's own environment
        self.programs = Path("/nonexistent")  # where they find theirs first
        self.cloud_init = 0  # what `cloud-init status --wait` ends with inside
        self.lagging: list[dict[str, Any]] | None = None
        self._results: dict[int, dict[str, Any]] = {}

    def lag(self, on: bool = True) -> None:
        """Let the list of machines tell what is true at this moment from now on, but for tags and locks."""
        self.lagging = [] if on else None
        if on:
            for vm in self.vms:
                usage = self._vm_usage(vm)
                self.lagging.append({"vmid": vm.vmid, "name": vm.name, "status": vm.status, **usage})

    # -- requests -----------------------------------------------------------------------------------------------------

    def _record(self, request: Any, body: bytes) -> None:
        super()._record(request, body)
        params: dict[str, Any] = dict(request.query)
        if request.content_type == "multipart/form-data":
            for name, file in re.findall(rb'name="([^"]+)"(?:; filename="([^"]+)")?', body):
                value = re.search(rb'name="' + name + rb'"\r\n\r\n([^\r]*)', body)
                params[name.decode()] = (file or (value[1] if value else b"")).decode()
        elif request.content_type == "application/json":
            params.update(json.loads(body or b"{}"))
        else:
            for key, value in urllib.parse.parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True):
                if key == "command":
                    params[key] = [*params.get(key, []), value]
                else:
                    params[key] = value
        path = urllib.parse.unquote(request.path)
        self.seen.append(Request(request.method, path[len(API) :] if path.startswith(API) else path, params))

    # -- tasks --------------------------------------------------------------------------------------------------------

    def _routes_fleet(self) -> list[Any]:
        qemu = "/nodes/{node}/qemu/{vmid}"
        return [("GET", "/cluster/tasks", self._cluster_tasks), ("PUT", qemu + "/resize", self._resize)]

    async def _cluster_tasks(self, v: dict[str, Any], user: str) -> list[Any]:
        active = [task for task in self.tasklog if "endtime" not in task]
        ended = [task for task in self.tasklog if "endtime" in task][-25 * len(self.nodes) :]
        return [self._task_view(task, True) for task in [*active, *ended] if self._task_owner(user, task)]

    # -- machines -----------------------------------------------------------------------------------------------------

    async def _resources(self, request: Any) -> Any:
        response = await super()._resources(request)
        if self.lagging is None:
            return response
        old = {item["vmid"]: item for item in self.lagging}
        body = json.loads(response.text)
        for item in body["data"]:
            if item.get("type") != "qemu":
                continue
            told = old.get(item["vmid"])
            if told is None:  # no node has told of it yet
                for key in ("name", "maxcpu", "maxmem", "maxdisk", "template"):
                    item.pop(key, None)
                item["status"] = "unknown"
            else:
                item.update(told)
        response.text = json.dumps(body)
        return response

    async def _resize(self, v: dict[str, Any], user: str) -> Any:
        vm = self.find(v["node"], v["vmid"])
        slot = v["disk"]
        if slot not in vm.config:
            raise PveError(500, f"disk '{slot}' does not exist")

        async def body() -> None:
            before = re.search(r"size=(\d+)([KMGT]?)", str(vm.config[slot]))
            unit = {"": 1, "K": 1024, "M": 1024**2, "G": GIB, "T": 1024 * GIB}
            old = int(before[1]) * unit[before[2]] if before else 0
            found = re.fullmatch(r"(\+?)(\d+)([KMGT]?)", v["size"])
            assert found is not None
            new = int(found[2]) * unit[found[3]] + (old if found[1] else 0)
            if new < old:
                raise TaskError(f"shrinking disks is not supported ({slot})")
            text = f"size={new // GIB}G" if new % GIB == 0 else f"size={new // 1024**2}M"
            vm.config[slot] = (
                re.sub(r"size=[^,]*", text, str(vm.config[slot])) if before else f"{vm.config[slot]},{text}"
            )

        return await self.task(vm.node, "resize", vm.vmid, user, body, vm=vm)

    async def _apply_config(self, vm: Any, user: str, p: dict[str, Any]) -> Any:
        p = dict(p)
        for key, value in p.items():
            if str(value).partition(",")[0].endswith(":cloudinit"):
                p[key] = f"{str(value).partition(':')[0]}:vm-{vm.vmid}-cloudinit,media=cdrom"
            iso = re.fullmatch(r"([^:,]+):iso/([^,]+),media=cdrom", str(value))
            if iso and iso[2] not in self.storages[iso[1]]["files"]:
                raise PveError(500, f"volume '{iso[1]}:iso/{iso[2]}' does not exist")
        if "tags" in p:
            p["tags"] = ";".join(sorted({tag.lower() for tag in re.split("[;, ]+", str(p["tags"])) if tag}))
        return await super()._apply_config(vm, user, p)

    async def _do_start(self, vm: Any, user: str, p: dict[str, Any]) -> Any:
        for value in vm.config.values():
            iso = re.match(r"([^:,]+):iso/([^,]+)", str(value))
            if iso and iso[2] not in self.storages[iso[1]]["files"]:
                vm.start_error = f"volume '{iso[0]}' does not exist"
        return await super()._do_start(vm, user, p)

    async def _upload(self, request: Any) -> Any:
        body = await request.read()
        found = re.search(rb'filename="([^"]+)"[^\r]*\r\n(?:[^\r]+\r\n)*\r\n', body)
        if found:
            end = body.rfind(b"\r\n--")
            self.isos[found[1].decode()] = body[found.end() : end]
        return await super()._upload(request)

    # -- guest agents -------------------------------------------------------------------------------------------------

    async def _agent_call(self, match: Any, values: dict[str, Any]) -> Any:
        vm = self.find(values["node"], values["vmid"])
        command = match.template.rsplit("/", 1)[1]
        if vm.agent is None and self.with_agents and vm.status == "running":
            vm.agent = {"as configured": True}
        if vm.agent is not None and ("interfaces" not in vm.agent or "as configured" in vm.agent):
            vm.agent["interfaces"] = self._interfaces(vm)
        if self.shell and vm.agent is not None and vm.status == "running" and not vm.agent_hangs:
            if command == "exec":
                vm.agent_requests.append((command, dict(values)))
                return await self._run(vm, values)
            if command == "exec-status":
                return self._results.get(int(values["pid"]), {"exited": 0})
        return await super()._agent_call(match, values)

    async def _run(self, vm: Any, values: dict[str, Any]) -> dict[str, Any]:
        text = values.get("input-data") or ""
        if "authorized_keys" in text or "machine-id" in text:
            raise AssertionError("sealing an image would seal this computer: set shell to False")
        if any(ord(char) > 255 for char in text):
            raise PveError(500, "Wide character in subroutine entry at Agent.pm line 245.")
        vm.agent_pid += 1
        pid = vm.agent_pid * 1000 + vm.vmid
        command = list(values["command"])

        def wait() -> None:
            path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
            environ = {"PATH": path, "CLOUD_INIT_ENDS": str(self.cloud_init)}
            done = subprocess.run(
                command, check=False, input=text.encode("latin-1"), capture_output=True, env=environ, timeout=60
            )
            ended = {"exitcode": done.returncode} if done.returncode >= 0 else {"signal": -done.returncode}
            # The bytes are handed over as if they were characters.
            data = {"out-data": done.stdout.decode("latin-1"), "err-data": done.stderr.decode("latin-1")}
            self._results[pid] = {"exited": 1, **ended, **data}

        asyncio.get_running_loop().run_in_executor(None, wait)
        return {"pid": pid}

    @staticmethod
    def _interfaces(vm: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [_interface("lo", "00:00:00:00:00:00", "127.0.0.1")]
        found.append(_interface("docker0", "02:42:00:00:00:01", "172.17.0.1"))
        for key, value in sorted(vm.config.items()):
            if not re.fullmatch(r"net\d+", key):
                continue
            mac = re.search(r"=((?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2})", str(value))
            given = re.search(r"ip=(\d[^/,]+)/", str(vm.config.get(f"ipconfig{key[3:]}", "")))
            address = given[1] if given else f"10.{int(key[3:])}.{vm.vmid // 256 % 256}.{vm.vmid % 256}"
            found.append(_interface(f"eth{key[3:]}", mac[1].lower() if mac else "", address))
        return found


def _interface(name: str, mac: str, address: str) -> dict[str, Any]:
    addresses = [
        {"ip-address": "fe80::1", "ip-address-type": "ipv6", "prefix": 64},
        {"ip-address": address, "ip-address-type": "ipv4", "prefix": 24},
    ]
    return {"name": name, "hardware-address": mac, "ip-addresses": addresses}


class Host:
    """A running cluster with one node, pve1, a template and a token that may do everything."""

    pve_class: type[Pve] = Pve

    def __init__(self, folder: Path, time_scale: float = 0.0) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self._earlier: list[Request] = []
        pki = folder / "pki"
        pki.mkdir()
        self.ca, key, _der = make_cert(str(pki), hosts=("127.0.0.1",))
        self.pve = self.pve_class(user="root@pam", password="secret", host="127.0.0.1", port=0)
        self.pve.time_scale = time_scale
        self.pve.max_requests = 100_000
        self.pve.apitokens[TOKEN] = SECRET
        self.pve.programs = folder / "bin"
        self.pve.programs.mkdir()
        program = self.pve.programs / "cloud-init"
        program.write_text('#!/bin/sh\necho "status: $CLOUD_INIT_ENDS"\nexit "$CLOUD_INIT_ENDS"\n')
        program.chmod(0o755)
        self._serving = _Serving(self.pve, self.ca, key)
        self.template()

    def stop(self) -> None:
        self._serving.stop()
        # Connections that a test broke off are no leaks of ours.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()

    @property
    def settings(self) -> dict[str, Any]:
        return {"host": self.pve.url, "token_id": TOKEN, "token_secret": SECRET, "verify": self.ca, "timeout": 10}

    def adapter(self, **settings: Any) -> Proxmox:
        adapter = Proxmox(Surroundings(str(self.state_dir), {**self.settings, **settings}))
        adapter.session.first_pause = 0.01
        adapter.session.lock_wait = 1.0
        adapter.tasks.first_pause = 0.01
        adapter.agent.first_pause = 0.01
        return adapter

    def template(self, vmid: int = 9000, name: str = "debian-12", node: str = "pve1", **config: Any) -> Any:
        """Add a template with a disk of 4 GiB, a network, a cloud-init drive and a guest agent."""
        volume = f"base-{vmid}-disk-0"
        self.pve.storages["local-lvm"].setdefault("volumes", {})[volume] = {
            "content": "images", "format": "raw", "size": 4 * GIB, "vmid": vmid, "ctime": int(time.time()),
        }  # fmt: skip
        values = {
            "template": 1,
            "cores": 1,
            "memory": 1024,
            "agent": "1",
            "scsihw": "virtio-scsi-pci",
            "scsi0": f"local-lvm:{volume},size=4G",
            "boot": "order=scsi0",
            "net0": "virtio=BC:24:11:AA:AA:AA,bridge=vmbr0,firewall=1",
            "ide2": f"local-lvm:vm-{vmid}-cloudinit,media=cdrom",
            **config,
        }
        values = {key: value for key, value in values.items() if value is not None}
        return self.pve.add_vm(vmid, name, node=node, config=values, template=True)

    def machine(self, vmid: int, name: str, node: str = "pve1", status: str = "stopped", **config: Any) -> Any:
        """Add a machine that was made by hand."""
        values = {"cores": 2, "memory": 2048, "scsi0": f"local-lvm:vm-{vmid}-disk-0,size=8G", "agent": "1", **config}
        return self.pve.add_vm(vmid, name, node=node, status=status, config=values)

    def vm(self, name: str) -> Any:
        found = [vm for vm in self.pve.vms if vm.name == name]
        return found[0] if len(found) == 1 else None

    def names(self) -> list[str]:
        """The machines, without templates."""
        return sorted(vm.name for vm in self.pve.vms if not vm.template)

    def requests(self, *methods: str) -> list[Request]:
        """What was asked since the last time, and forget it."""
        seen, self.pve.seen = self.pve.seen, []
        self._earlier += seen
        return [request for request in seen if not methods or request.method in methods]

    def all_requests(self) -> list[Request]:
        """All that was asked since the beginning."""
        return [*self._earlier, *self.pve.seen]

    def forget_tasks(self) -> None:
        """Let all that was done be long ago."""
        self.pve.tasklog.clear()

    def volumes(self) -> list[str]:
        """What is on all storages, without the disks of templates."""
        return sorted(
            f"{storage}:{name}"
            for storage, store in self.pve.storages.items()
            for name in store.get("volumes", {})
            if not name.startswith("base-")
        )
