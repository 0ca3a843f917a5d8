# SPDX-License-Identifier: GPL-3.0-or-later
"""What no provider holds about a checkpoint: its kind, its manifest, what had been used by then, how it was verified.

STATE_DIR/machines/PROVIDER/checkpoints/MACHINE/ has NAME.json for each, and manifests/NAME.json. A note counts only as
long as the provider has the checkpoint; it is written before the checkpoint is made, so that a crash loses none.
"""

from __future__ import annotations

import base64
import contextlib
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .provider import Job
from .records import Record, Records, forget_checkpoints

if TYPE_CHECKING:
    from fleet_core.errors import FleetError, NotFound, StateDamaged
    from fleet_core.manifests import Manifest, from_dict
    from fleet_node import paths
else:
    try:
        from ..fleet_core.errors import FleetError, NotFound, StateDamaged
        from ..fleet_core.manifests import from_dict
        from ..fleet_node import paths
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import FleetError, NotFound, StateDamaged
        from fleet_core.manifests import from_dict
        from fleet_node import paths

_CURRENT = "_current"  # no checkpoint is called so: theirs begin with a letter


class Notes:
    """The notes of one provider's checkpoints. Reading makes no folder."""

    def __init__(self, state_dir: str, provider: str) -> None:
        self._state_dir = state_dir
        self._provider = provider
        self._folder = Path(state_dir) / "machines" / provider / "checkpoints"

    def all(self, machine: str) -> dict[str, Record]:
        """Return the notes of a machine by the names of its checkpoints, also of those that are gone."""
        return {name: note for name, note in self._of(machine).all().items() if name != _CURRENT}

    def get(self, machine: str, checkpoint: str) -> Record:
        return self._of(machine).get(checkpoint)

    def put(self, machine: str, checkpoint: str, note: Record, manifest: Manifest | None = None) -> None:
        """Write a note, and before it the manifest that it speaks of."""
        self._make(machine)
        if manifest is not None:
            packed = zlib.compress(json.dumps(manifest.to_dict(), separators=(",", ":")).encode(), 6)
            self._manifests(machine).put(checkpoint, {"packed": base64.b64encode(packed).decode()})
        self._of(machine).put(checkpoint, note)

    def update(self, machine: str, checkpoint: str, **values: object) -> None:
        self.put(machine, checkpoint, {**self.get(machine, checkpoint), **values})

    def remove(self, machine: str, checkpoint: str) -> None:
        self._of(machine).remove(checkpoint)
        self._manifests(machine).remove(checkpoint)

    def manifest(self, machine: str, checkpoint: str) -> Manifest:
        """Return a manifest. Raises NotFound when there is none, StateDamaged when it is not the one that was saved."""
        what = f'checkpoint "{checkpoint}" of machine "{machine}"'
        note, record = self.get(machine, checkpoint), self._manifests(machine).get(checkpoint)
        if not note.get("digest"):
            raise NotFound(f"{what}: it has no manifest; expected one that was made with folders")
        try:
            found = from_dict(json.loads(zlib.decompress(base64.b64decode(record["packed"], validate=True))))
        except (KeyError, ValueError, TypeError, zlib.error, FleetError) as error:
            raise StateDamaged(f"{what}: its manifest cannot be read: {type(error).__name__}") from error
        if found.digest != note["digest"]:
            raise StateDamaged(f"{what}: its manifest is not the one that was saved: the hash differs")
        return found

    def current(self, machine: str) -> str:
        """Return the checkpoint that the machine was last at, empty when that is not known."""
        return str(self._of(machine).get(_CURRENT).get("checkpoint", ""))

    def set_current(self, machine: str, checkpoint: str) -> None:
        self._make(machine)
        self._of(machine).put(_CURRENT, {"checkpoint": checkpoint})

    def tidy(self, machine: str, there: Iterable[str]) -> None:
        """Forget the checkpoints that the provider does not have."""
        for name in self.all(machine).keys() - set(there):
            self.remove(machine, name)

    def forget(self, machine: str) -> None:
        """Forget all about a machine that is gone."""
        forget_checkpoints(self._state_dir, self._provider, machine)

    @contextlib.contextmanager
    def locked(self, machine: str, job: Job) -> Iterator[None]:
        """Hold a machine's checkpoints against others that take, restore or remove some."""
        self._make(machine)
        with Records(self._state_dir, f"{self._provider}/checkpoints").locked(machine, job):
            yield

    def _of(self, machine: str) -> Records:
        return Records(self._state_dir, f"{self._provider}/checkpoints/{machine}")

    def _manifests(self, machine: str) -> Records:
        return Records(self._state_dir, f"{self._provider}/checkpoints/{machine}/manifests")

    def _make(self, machine: str) -> None:
        for folder in (Path(self._state_dir), self._folder.parent.parent, self._folder.parent, self._folder):
            paths.make_private(folder)
        paths.make_private(self._folder / machine)
