# SPDX-License-Identifier: GPL-3.0-or-later
"""The fake Proxmox VE with images to import, a bad network, and requests that can be held while their client is killed.

Scripts are never run here: sealing an image would seal this computer. They get the answer that ``inside`` holds for a
text that occurs in them, else success.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakepve import PveError, TaskError
from fakepve.lxc import format_size
from fakepve.qemu import join_drive, split_drive
from tests.fakes.proxmox_host import GIB, Host, Pve

CHANGING = ("POST", "PUT", "DELETE")


@dataclass
class Trouble:
    """What happens to requests of a method whose path matches. kind: before (the connection breaks before anything is
    done), after (it is done, but the answer is lost), hang (it is done, but the answer comes late), hold (it waits
    until somebody lets it go on). method: empty for all that change something, or any. times: how often; skip: how many
    go through before; share: of the rest, how many meet with it, the same ones in each run."""

    kind: str
    method: str = ""
    path: str = ""
    times: int = 1
    skip: int = 0
    share: float = 1.0
    seconds: float = 5.0
    reached: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    seen: int = 0
    chance: random.Random = field(default_factory=lambda: random.Random(4711))

    def meets(self, method: str, path: str) -> bool:
        wanted = self.method in (method, "any") if self.method else method in CHANGING
        if not wanted or self.times <= 0 or not re.search(self.path, path):
            return False
        self.seen += 1
        if self.seen <= self.skip or (self.share < 1 and self.chance.random() >= self.share):
            return False
        self.times -= 1
        return True


class FaultyPve(Pve):
    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.shell = False
        self.troubles: list[Trouble] = []
        self.inside: dict[str, dict[str, Any]] = {}
        self.scripts: list[str] = []
        self.web: dict[str, str] = {}  # what there is to download: checksums by address
        self.task_endings: dict[str, str] = {}  # by type: another end than OK, such as "WARNINGS: 1"
        self._answers: dict[int, dict[str, Any]] = {}

    # -- trouble ------------------------------------------------------------------------------------------------------

    async def _answer(self, request: Any, handler: Any, generic: Any, path_node: Any) -> Any:
        trouble = next((one for one in self.troubles if one.meets(request.method, request.path)), None)
        if trouble is None:
            return await super()._answer(request, handler, generic, path_node)
        if trouble.kind == "before":
            return self._cut(request)
        if trouble.kind == "hold":
            trouble.reached.set()
            await asyncio.get_running_loop().run_in_executor(None, trouble.go_on.wait)
        # What was begun goes on, although its client is gone.
        response = await asyncio.shield(asyncio.ensure_future(super()._answer(request, handler, generic, path_node)))
        if trouble.kind == "after":
            return self._cut(request)
        if trouble.kind == "hang":
            await asyncio.sleep(trouble.seconds)
        return response

    @staticmethod
    def _cut(request: Any) -> Any:
        request.transport.abort()  # to close it waits for a client that may be gone
        raise ConnectionResetError("the connection breaks")

    async def task(self, node: str, ttype: str, tid: Any, user: str, body: Any, *rest: Any, **how: Any) -> str:
        """With an ending of task_endings: a warning comes after the work, an error before it."""
        ending = self.task_endings.get(ttype, "")

        async def fails() -> None:
            raise TaskError(ending)

        if ending and not ending.startswith("WARNINGS"):
            body = fails
        upid: str = await super().task(node, ttype, tid, user, body, *rest, **how)
        if ending.startswith("WARNINGS") and self.tasks[upid].get("exitstatus") == "OK":
            self.tasks[upid]["exitstatus"] = ending
        return upid

    # -- images -------------------------------------------------------------------------------------------------------

    def _qm_check_drive(self, user: str, vmid: int, pool: Any, key: str, value: str, default: Any) -> None:
        volume, props = split_drive(value)
        if "import-from" in props:
            if not volume.endswith(":0"):
                raise PveError(400, "Parameter verification failed.", {key: "import-from needs <storage>:0"})
            if self._qm_source(props["import-from"]) is None:
                raise PveError(500, f"cannot import from '{props['import-from']}': it does not exist")
        super()._qm_check_drive(user, vmid, pool, key, value, default)

    def _qm_new_drive(self, vmid: int, key: str, value: str, default: Any) -> Any:
        volume, props = split_drive(value)
        source = props.pop("import-from", None)
        if source is not None:
            storage = volume.partition(":")[0]
            size = int(self._qm_source(source)["size"])
            volid, _form = self._qm_alloc(storage, vmid, None, size)
            return join_drive(volid, {**props, "size": format_size(size)}), [volid]
        if volume.endswith(":cloudinit"):
            made = f"vm-{vmid}-cloudinit"
            store = self.storages[volume.partition(":")[0]]
            store.setdefault("volumes", {})[made] = {
                "content": "images",
                "format": "raw",
                "size": 4 << 20,
                "vmid": vmid,
            }
            volid = f"{volume.partition(':')[0]}:{made}"
            return f"{volid},media=cdrom", [volid]
        return super()._qm_new_drive(vmid, key, value, default)

    def _qm_source(self, volid: str) -> Any:
        storage, _colon, name = volid.partition(":")
        return self.storages.get(storage, {}).get("volumes", {}).get(name)

    async def _apply_config(self, vm: Any, user: str, p: dict[str, Any]) -> Any:
        gone = [str(vm.config.get(key, "")) for key in str(p.get("delete") or "").split(",")]
        result = await super()._apply_config(vm, user, p)
        for value in gone:
            if "-cloudinit" in value:  # Proxmox removes such a drive with its volume
                self._qm_free(value.split(",")[0])
        return result

    async def _download_url(self, request: Any) -> Any:
        from fakepve.server import USER, ok, params

        given = await params(request)
        store = self.storages[request.match_info["storage"]]
        if f"import/{given.get('filename')}" in store.get("volumes", {}):
            raise PveError(500, f"refusing to override existing file '{given['filename']}'")
        served = self.web.get(str(given.get("url")))
        if served == given.get("checksum"):
            return await super()._download_url(request)

        async def fails() -> None:
            if served is None:
                raise TaskError("download failed: 404 Not Found")
            raise TaskError(f"checksum mismatch: got '{served}' != expect '{given.get('checksum')}'")

        return ok(await self.task(request.match_info["node"], "download", "", request[USER], fails))

    async def _upload(self, request: Any) -> Any:
        from fakepve.server import USER, ok

        body = await request.read()
        if not re.search(rb'name="content"\r\n\r\nimport\r\n', body):
            return await super()._upload(request)
        name = request.match_info["storage"]
        if "import" not in str(self.storages[name].get("content")).split(","):
            raise PveError(500, f"storage '{name}' does not support 'import' content")
        found = re.search(rb'filename="([^"]+)"', body)
        assert found is not None

        async def stores() -> None:
            self.store_file(name, found[1].decode(), 2 * GIB, "import")

        return ok(await self.task(request.match_info["node"], "imgcopy", "", request[USER], stores))

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _agent_call(self, match: Any, values: dict[str, Any]) -> Any:
        vm = self.find(values["node"], values["vmid"])
        command = match.template.rsplit("/", 1)[1]
        if command == "exec" and vm.status == "running" and (vm.agent is not None or self.with_agents):
            vm.agent_pid += 1
            script = str(values.get("input-data") or "")
            self.scripts.append(script)
            found = next((answer for text, answer in self.inside.items() if text in script), {})
            self._answers[vm.agent_pid] = {"exited": 1, "exitcode": 0, "out-data": "", "err-data": "", **found}
            return {"pid": vm.agent_pid}
        if command == "exec-status" and int(values["pid"]) in self._answers:
            return self._answers[int(values["pid"])]
        return await super()._agent_call(match, values)


class FaultyHost(Host):
    """trouble: what is to go wrong. left: all that is on the cluster and was not there at first."""

    pve_class = FaultyPve
    pve: FaultyPve

    def __init__(self, folder: Path, time_scale: float = 0.0) -> None:
        super().__init__(folder, time_scale)
        self.importing()
        self._first = self._everything()

    def importing(self, on: bool = True) -> None:
        """Let the storage "local" take disk images to import, or not."""
        content = "iso,vztmpl,backup" + (",import" if on else "")
        self.pve.storages["local"]["content"] = content

    def serve(self, url: str, checksum: str) -> None:
        self.pve.web[url] = checksum

    def trouble(self, kind: str, method: str = "", path: str = "", **how: Any) -> Trouble:
        found = Trouble(kind, method, path, **how)
        self.pve.troubles.append(found)
        return found

    def calm(self) -> None:
        self.pve.troubles.clear()
        self.pve.failures.clear()
        self.pve.task_endings.clear()
        for vm in self.pve.vms:
            vm.start_error = None

    def left(self) -> list[str]:
        """All machines, volumes and files that are there beyond the first ones, sorted."""
        return sorted(self._everything() - self._first)

    def _everything(self) -> set[str]:
        found = {f"vm {vm.vmid} {vm.name}" for vm in self.pve.vms}
        for storage, store in self.pve.storages.items():
            found |= {f"{storage}:{name}" for name in store.get("volumes", {})}
            found |= {f"{storage}:iso/{name}" for name in store.get("files", ())}
        return found


__all__ = ["FaultyHost", "FaultyPve", "Trouble"]
