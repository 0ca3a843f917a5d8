# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine is made from: a golden image, a file, or another machine, now or at a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .qemu_base_disks import inspect
from .qemu_images import Disk

if TYPE_CHECKING:
    from fleet_core.checkpoints import check_checkpoint_name
    from fleet_core.errors import Conflict, InvalidInput, NotFound
    from fleet_core.machines import MACHINE_NAME
    from fleet_core.names import nearest
else:
    try:
        from ..fleet_core.checkpoints import check_checkpoint_name
        from ..fleet_core.errors import Conflict, InvalidInput, NotFound
        from ..fleet_core.machines import MACHINE_NAME
        from ..fleet_core.names import nearest
    except ImportError:  # installed as a top-level package
        from fleet_core.checkpoints import check_checkpoint_name
        from fleet_core.errors import Conflict, InvalidInput, NotFound
        from fleet_core.machines import MACHINE_NAME
        from fleet_core.names import nearest

PREFIX = "instance:"
FILE = "file://"


@dataclass(frozen=True)
class Source:
    """image: what is recorded. Of a file: its path, format and size in bytes. Of a machine: its name, and a checkpoint
    or nothing. defaults: what a machine gets that does not say: cpu, memory, disk, login."""

    image: str
    path: Path = Path()
    format: str = ""
    size: int = 0
    machine: str = ""
    checkpoint: str = ""
    defaults: Mapping[str, Any] | None = None


def instance(what: str, image: str) -> tuple[str, str] | None:
    """Return the machine and the checkpoint that "instance:NAME.CHECKPOINT" names, or None for another image."""
    if not image.startswith(PREFIX):
        return None
    name, _dot, checkpoint = image[len(PREFIX) :].partition(".")
    if not MACHINE_NAME.fullmatch(name) or image.endswith("."):
        raise InvalidInput(f"{what}: image {image!r}: expected {PREFIX}NAME or {PREFIX}NAME.CHECKPOINT")
    return name, check_checkpoint_name(checkpoint) if checkpoint else ""


def source_of(
    what: str, image: str, records: Mapping[str, Mapping[str, Any]], disk_of: Callable[[str], Disk]
) -> Source:
    """Return what a machine is made from. what: begins the sentences of errors. disk_of: of golden images.

    Raises InvalidInput, NotFound or Conflict for what cannot be used.
    """
    if not image:
        raise InvalidInput(f"{what}: expected an image: the name of a golden image, {PREFIX}NAME or the path of a file")
    other = instance(what, image)
    if other is not None:
        return _machine(what, image, *other, records)
    path = image[len(FILE) :] if image.startswith(FILE) else image
    if path.startswith("/"):
        found = inspect(Path(path), what)
        return Source(image, found.path, found.format, found.size)
    try:
        return over(disk_of(image), image)
    except (NotFound, Conflict) as error:
        raise type(error)(f"{what}: {error.message}") from error


def over(disk: Disk, image: str = "") -> Source:
    """Return the source that a disk of an image, or of a build, is."""
    defaults = {"cpu": disk.cpu, "memory": disk.memory, "login": disk.login}
    return Source(disk.name or image, disk.path, disk.format, disk.size, defaults=defaults)


def _machine(what: str, image: str, name: str, checkpoint: str, records: Mapping[str, Mapping[str, Any]]) -> Source:
    record = records.get(name)
    if not record:
        raise NotFound(f'{what}: the machine "{name}" to copy does not exist{nearest(name, records)}')
    if record.get("incomplete"):
        raise Conflict(f'{what}: the machine "{name}" to copy is incomplete: {record["incomplete"]}')
    saved = record.get("checkpoints") or {}
    if checkpoint and not (saved.get(checkpoint) or {}).get("made"):
        raise NotFound(f'{what}: machine "{name}" has no checkpoint "{checkpoint}"{nearest(checkpoint, saved)}')
    return Source(image, machine=name, checkpoint=checkpoint, format=str(record.get("base") or ""), defaults=record)
