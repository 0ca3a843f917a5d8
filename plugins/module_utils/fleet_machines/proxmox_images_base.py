# SPDX-License-Identifier: GPL-3.0-or-later
"""What golden images of Proxmox VE are made from: a download, a file, a volume, a template or a machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import posixpath
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .provider import Job
from .proxmox_api import Session, reply_of, segment
from .proxmox_machines import Guest, Guests
from .proxmox_qm import check_url, checksum_parts, file_name
from .proxmox_tasks import TaskFailed, Tasks

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, Unavailable
    from fleet_core.images import ImageSpec
else:
    try:
        from ..fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, Unavailable
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, Unavailable

IMPORTS = (8, 4)  # the first version whose API imports disks
DISKS = (".qcow2", ".raw", ".vmdk")
INSTANCE = "instance:"
_VOLUME = re.compile(
    r"(?P<storage>[A-Za-z][A-Za-z0-9._-]*):(?P<name>(?:import|iso|images|\d+)/\S+|(?:vm|base)-\d+-\S+)"
)
_CHUNK = 1024**2


@dataclass(frozen=True)
class Base:
    """volume: that a disk is imported from; or guest: that is cloned, at snapshot or as it is."""

    volume: str = ""
    guest: Guest | None = None
    snapshot: str = ""


def is_fetched(base: str) -> bool:
    """Tell whether a base is an address to download from, or a path."""
    return "://" in base or base.startswith("/")


def shown(base: str) -> str:
    """Return a base without what may be secret in it: a password, a signature."""
    found = re.sub(r"//[^/@]*@", "//", base)
    return found.partition("?")[0]


class Bases:
    """Finds bases, and brings them to a node."""

    def __init__(self, session: Session, tasks: Tasks, guests: Guests) -> None:
        self._session, self._tasks, self._guests = session, tasks, guests

    def guest(self, what: str, base: str) -> Base:
        """Return the template or machine of this name or id. Raises NotFound or Conflict."""
        name, _dot, snapshot = base, "", ""
        if base.startswith(INSTANCE):
            name, _dot, snapshot = base[len(INSTANCE) :].partition(".")
        found = [one for one in self._guests.all() if name in (one.machine_name, str(one.vmid))]
        if not found:
            raise NotFound(
                f"{what}: base {base!r}: expected https://… with a checksum, a path, a volume such as "
                '"local:import/debian-12.qcow2", or the name or id of a template or machine; there is none of that name'
            )
        if len(found) > 1:
            ids = ", ".join(f"{one.vmid} on {one.node}" for one in found)
            raise Conflict(f"{what}: base {base!r}: {len(found)} guests have this name: {ids}; give the id")
        guest = found[0]
        if guest.status == "running" and not snapshot:
            raise Conflict(
                f"{what}: base {base!r}: it runs; stop it, or give a checkpoint: {INSTANCE}{name}.CHECKPOINT"
            )
        return Base(guest=guest, snapshot=snapshot)

    def volume(self, what: str, spec: ImageSpec, node: str, stores: Sequence[Mapping[str, Any]], job: Job) -> Base:
        """Return the volume of a base that is none of the guests, downloaded or uploaded when it is not there."""
        if "://" in spec.base and not spec.base.startswith("file:"):
            check_url(what, spec.base)
            checksum_parts(what, spec.checksum)
            name = file_name(spec.base, spec.checksum)
            return Base(
                self._once(
                    what, name, node, stores, job, lambda store: self._download(what, spec, name, node, store, job)
                )
            )
        if is_fetched(spec.base):
            path = spec.base[len("file://") :] if spec.base.startswith("file:") else spec.base
            name = _called(what, path, spec.checksum)
            return Base(
                self._once(
                    what, name, node, stores, job, lambda store: self._upload(what, path, name, node, store, job)
                )
            )
        found = _VOLUME.fullmatch(spec.base)
        if found is None:
            raise InvalidInput(f"{what}: base {spec.base!r}: provider proxmox does not build that; QEMU does")
        if not self._there(what, node, found["storage"], spec.base):
            raise NotFound(f"{what}: base: storage {found['storage']} of {node} has no volume {spec.base!r}")
        return Base(spec.base)

    def import_storage(self, what: str, node: str, stores: Sequence[Mapping[str, Any]]) -> str:
        """Return the storage that disk images are put on. Raises Conflict, which tells how to get one."""
        able = [str(one["storage"]) for one in stores if "import" in _content(one)]
        wanted = self._session.settings.iso_storage
        if able:
            return wanted if wanted in able else sorted(able)[0]
        files = [one for one in stores if {"iso", "vztmpl", "backup", "snippets"} & _content(one)]
        store = next((one for one in files if one["storage"] == wanted), files[0] if files else {"storage": "local"})
        content = ",".join(sorted({*_content(store), "import"}))
        raise Conflict(
            f'{what}: no storage of {node} takes disk images: expected one with the content "import"; turn it on in '
            f"Datacenter, Storage, {store['storage']}, Content, or by: pvesm set {store['storage']} --content {content}"
        )

    # -- parts --------------------------------------------------------------------------------------------------------

    def _once(self, what: str, name: str, node: str, stores: Sequence[Mapping[str, Any]], job: Job, bring: Any) -> str:
        """Bring a file to a node unless it is there, and return its volume. Its name tells its checksum."""
        if self._session.release() < IMPORTS:
            numbers = ".".join(map(str, self._session.release()))
            raise Unavailable(
                f"{what}: Proxmox VE {numbers} cannot import a disk by its API; expected 8.4 or newer, a template as "
                "base, or the setting ssh for qm"
            )
        store = self.import_storage(what, node, stores)
        volume = f"{store}:import/{name}"
        if self._there(what, node, store, volume):
            job.report(f"{name} is there already")
            return volume
        try:
            bring(store)
        except FleetError:
            # Another build was faster, or the answer was lost.
            if not self._there(what, node, store, volume):
                raise
        return volume

    def _there(self, what: str, node: str, storage: str, volume: str) -> bool:
        path = f"/nodes/{node}/storage/{storage}/content"
        listed = self._session.get(path, what=what, asked=f"list the volumes of {storage}")
        return any(one.get("volid") == volume for one in listed or ())

    def _download(self, what: str, spec: ImageSpec, name: str, node: str, store: str, job: Job) -> None:
        algorithm, digits = checksum_parts(what, spec.checksum)
        job.report(f"download {name}")
        values = {
            "content": "import",
            "filename": name,
            "url": spec.base,
            "checksum": digits,
            "checksum-algorithm": algorithm,
        }
        path = f"/nodes/{node}/storage/{store}/download-url"
        doing = f"download {shown(spec.base)}"
        upid = self._session.post(path, values, what=what, asked=doing, job=job)
        try:
            self._tasks.run(upid, job, what=what, doing=doing)
        except TaskFailed as error:
            if "checksum" in error.said.lower():
                raise InvalidInput(f"{error.message}; the base is not the one that its checksum is of") from error
            raise

    def _upload(self, what: str, path: str, name: str, node: str, store: str, job: Job) -> None:
        job.report(f"upload {name}")
        # Proxmox calls it as the file is called.
        with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
            link = os.path.join(folder, name)
            os.symlink(os.path.abspath(path), link)
            with open(link, "rb") as file:
                upid = self._session.upload(node, store, file, "import", what=what, asked="upload the base", job=job)
        self._tasks.run(upid, job, what=what, doing="upload the base")


def pick_node(session: Session, what: str) -> str:
    """Return the node that an image is built on: the one of the settings, or that with the most free memory."""
    if session.settings.node:
        return session.settings.node
    nodes = session.get("/nodes", what=what, asked="list the nodes") or ()
    online = [one for one in nodes if one.get("status") == "online"]
    if not online:
        raise Conflict(f"{what}: no node of {session.settings.where} is online")
    return str(max(online, key=lambda node: int(node.get("maxmem") or 0) - int(node.get("mem") or 0))["node"])


def stores_of(session: Session, what: str, node: str) -> Sequence[Mapping[str, Any]]:
    """Return the storages of a node that are switched on."""
    asked = f"list the storages of {node}"
    found: Sequence[Mapping[str, Any]] = session.get(
        f"/nodes/{node}/storage", {"enabled": True}, what=what, asked=asked
    )
    return found or ()


def disk_storage(session: Session, what: str, node: str, stores: Sequence[Mapping[str, Any]]) -> str:
    """Return the storage for the disks: the one of the settings, or that with the most free space."""
    able = [one for one in stores if "images" in _content(one)]
    wanted = session.settings.storage
    if wanted and not any(one["storage"] == wanted for one in able):
        raise Conflict(f'{what}: storage {wanted} of {node} does not take the content "images"')
    if not able:
        raise Conflict(f'{what}: no storage of {node} takes the content "images"')
    return wanted or str(max(able, key=lambda one: int(one.get("avail") or 0))["storage"])


def remove_file(session: Session, tasks: Tasks, what: str, node: str, volume: str, job: Job) -> None:
    """Remove a volume of files, such as local:iso/x.iso. One that is not there is no error."""
    path = f"/nodes/{node}/storage/{volume.partition(':')[0]}/content/{segment(volume)}"
    try:
        upid = session.delete(path, what=what, asked=f"remove {volume}", job=job, repeat=True)
        tasks.run(upid, job, what=what, doing=f"remove {volume}")
    except FleetError as error:
        if not (isinstance(error, NotFound) or reply_of(error).missing):
            raise


def _content(store: Mapping[str, Any]) -> set[str]:
    return set(str(store.get("content") or "").split(","))


def _called(what: str, path: str, checksum: str) -> str:
    """Return the name of a local file: with its checksum, which is verified when one is given."""
    algorithm, digits = checksum_parts(what, checksum) if checksum else ("sha256", "")
    found = hashlib.new(algorithm)
    try:
        with open(path, "rb") as file:
            for piece in iter(lambda: file.read(_CHUNK), b""):
                found.update(piece)
    except OSError as error:
        raise NotFound(f"{what}: base {path!r}: it cannot be read: {error.strerror}") from error
    if digits and digits != found.hexdigest():
        raise InvalidInput(f"{what}: base {path!r}: expected the checksum {digits}, found {found.hexdigest()}")
    with contextlib.suppress(ValueError):
        return file_name(f"file://{posixpath.abspath(path)}", f"{algorithm}:{found.hexdigest()}")
    raise InvalidInput(f"{what}: base {path!r}: expected the path of a disk image")
