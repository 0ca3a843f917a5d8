# SPDX-License-Identifier: GPL-3.0-or-later
"""Checkpoints of QEMU's machines: internal snapshots of their disk, with their memory where they run.

What a snapshot cannot hold (its parent, its comment) is in the machine's record. A checkpoint that was being made when
this program was killed has no "made" there: nobody sees it, and the next one removes what is left of it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .provider import Job

if TYPE_CHECKING:
    from fleet_core.checkpoints import Checkpoint, in_order
    from fleet_core.errors import Conflict, FleetError, NotFound, ProcessFailed, Unavailable
    from fleet_core.names import nearest

    from .qemu import Qemu
else:
    try:
        from ..fleet_core.checkpoints import Checkpoint, in_order
        from ..fleet_core.errors import Conflict, FleetError, NotFound, ProcessFailed, Unavailable
        from ..fleet_core.names import nearest
    except ImportError:  # installed as a top-level package
        from fleet_core.checkpoints import Checkpoint, in_order
        from fleet_core.errors import Conflict, FleetError, NotFound, ProcessFailed, Unavailable
        from fleet_core.names import nearest

_FITS = ("cpu", "memory", "type", "accel")  # what must be as it was for a saved memory to fit
_SAVED = {"vmstate": "disk", "devices": ["disk"]}
_CLEANING = 60.0


def of(name: str, record: Mapping[str, Any]) -> tuple[Checkpoint, ...]:
    """Return the checkpoints of a machine's record, parents before children."""
    fields = ("parent", "comment", "created", "live", "size")
    return in_order(
        Checkpoint(checkpoint, name, **{key: data[key] for key in fields if key in data})
        for checkpoint, data in (record.get("checkpoints") or {}).items()
        if data.get("made")
    )


class Checkpoints:
    """The checkpoints of the machines of a provider. Callers hold the machine's lock."""

    def __init__(self, provider: Qemu) -> None:
        self._provider = provider

    def take(self, name: str, checkpoint: str, job: Job, comment: str) -> Checkpoint:
        """Save a machine's disk and, if it runs, its memory."""
        what = f'checkpoint "{checkpoint}" of machine "{name}"'
        record = self._clean(name, job)
        saved = dict(record.get("checkpoints") or {})
        if checkpoint in saved:
            raise Conflict(f"{what}: there is one of that name already")
        live = self._provider.running(name)
        entry: dict[str, Any] = {
            "parent": record.get("at") or "",
            "comment": comment,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "live": live,
            **{key: record.get(key) for key in _FITS},
            "made": False,
        }
        self._provider.records.update(name, checkpoints={**saved, checkpoint: entry})
        try:
            entry["size"] = self._take_live(name, checkpoint, job) if live else self._take_cold(name, checkpoint, job)
        except FleetError:
            with contextlib.suppress(FleetError):
                self._clean(name, Job.lasting(_CLEANING, job.report))
            raise
        entry["made"] = True
        self._provider.records.update(name, checkpoints={**saved, checkpoint: entry}, at=checkpoint)
        return next(one for one in of(name, self._provider.records.get(name)) if one.name == checkpoint)

    def restore(self, name: str, checkpoint: str, job: Job) -> None:
        """Put a machine back. It runs afterwards if the checkpoint holds its memory, or if it ran before."""
        record = self._clean(name, job)
        entry = self._entry(name, checkpoint, record)
        ran = self._provider.running(name)
        # Whatever comes in between: the disk is that of the checkpoint or, until then, the one that it was.
        live = bool(entry.get("live"))
        changed = [key for key in _FITS if entry.get(key) != record.get(key)]
        if live and changed:
            job.report(f"its {' and '.join(changed)} changed since: only its disk is restored, and it boots")
        elif live and self._load(name, checkpoint, job):
            self._note(name, checkpoint)
            return
        self._provider.power_off(name, job)
        self._provider.image_tool(name, "-a", checkpoint, job)
        self._note(name, checkpoint)
        if ran or live:
            self._provider.boot(name, job)

    def remove(self, name: str, checkpoint: str, job: Job) -> None:
        """Remove a checkpoint. Its children become those of its parent."""
        record = self._clean(name, job)
        entry = self._entry(name, checkpoint, record)
        # From here on it is one that is being removed: nobody sees it, and the next call removes what is left.
        saved = {key: dict(value) for key, value in record["checkpoints"].items()}
        for value in saved.values():
            if value.get("parent") == checkpoint:
                value["parent"] = entry.get("parent") or ""
        saved[checkpoint]["made"] = False
        at = entry.get("parent") or "" if record.get("at") == checkpoint else record.get("at") or ""
        self._provider.records.update(name, checkpoints=saved, at=at)
        self._clean(name, job)

    def _take_live(self, name: str, checkpoint: str, job: Job) -> int:
        guest = self._provider.guest(name)
        job.report("save its memory and its disk")
        guest.flush()  # the memory is saved too, but a fork starts from the disk alone
        with guest.monitor() as monitor:
            monitor.job("snapshot-save", max(job.left(), 1.0), tag=checkpoint, **_SAVED)
            for node in monitor.call("query-named-block-nodes"):
                for one in (node.get("image") or {}).get("snapshots") or ():
                    if one.get("name") == checkpoint:
                        return int(one.get("vm-state-size") or 0)
        raise ProcessFailed(f'checkpoint "{checkpoint}" of machine "{name}": QEMU made it, but does not list it')

    def _take_cold(self, name: str, checkpoint: str, job: Job) -> int:
        job.report("save its disk")
        self._provider.image_tool(name, "-c", checkpoint, job)
        return 0

    def _load(self, name: str, checkpoint: str, job: Job) -> bool:
        """Load a saved memory into a running QEMU, started for it if need be; tell whether it fitted."""
        job.report("load its memory and its disk")
        self._provider.power_on(name, job)
        guest = self._provider.guest(name)
        try:
            with guest.monitor() as monitor:
                if monitor.running():
                    monitor.call("stop")
                monitor.job("snapshot-load", max(job.left(), 1.0), tag=checkpoint, **_SAVED)
                monitor.call("cont")
        except (ProcessFailed, Unavailable) as error:
            job.report(f"it did not fit ({error.message}): only its disk is restored, and it boots")
            return False
        guest.woken()
        return True

    def _note(self, name: str, checkpoint: str) -> None:
        size = self._provider.disks.size(name)
        self._provider.records.update(name, at=checkpoint, **({"disk": size} if size else {}))

    def _entry(self, name: str, checkpoint: str, record: Mapping[str, Any]) -> Mapping[str, Any]:
        saved: Mapping[str, Any] = record.get("checkpoints") or {}
        entry: Mapping[str, Any] = saved.get(checkpoint) or {}
        if not entry.get("made"):
            raise NotFound(f'checkpoint "{checkpoint}" of machine "{name}": not there{nearest(checkpoint, saved)}')
        return entry

    def _clean(self, name: str, job: Job) -> dict[str, Any]:
        """Remove what is left of checkpoints that were not wholly made or removed, and return the record."""
        record = self._provider.records.get(name)
        saved = dict(record.get("checkpoints") or {})
        broken = [key for key, value in saved.items() if not value.get("made")]
        for checkpoint in broken:
            if self._provider.running(name):
                with self._provider.guest(name).monitor() as monitor:
                    monitor.job("snapshot-delete", max(job.left(), 1.0), tag=checkpoint, devices=["disk"])
            else:
                with contextlib.suppress(ProcessFailed):  # it may not be there
                    self._provider.image_tool(name, "-d", checkpoint, job)
            del saved[checkpoint]
        return self._provider.records.update(name, checkpoints=saved) if broken else record
