# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps checkpoints: the provider's saved states, together with what only we know of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from . import golden
from .checkpoint_notes import Notes
from .checkpoint_trials import SCRATCH, UP, Verified, machine_of, scratch, stopped
from .provider import Job, Provider
from .records import Record

if TYPE_CHECKING:
    from fleet_core import manifests
    from fleet_core.checkpoints import KINDS, Checkpoint, check_checkpoint_name
    from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, ProcessFailed
    from fleet_core.machines import Machine
    from fleet_core.moments import iso, moment
    from fleet_core.retention import Retention, surplus
    from fleet_core.triggers import Triggers, Usage, due, usage_from
else:
    try:
        from ..fleet_core import manifests
        from ..fleet_core.checkpoints import KINDS, check_checkpoint_name
        from ..fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, ProcessFailed
        from ..fleet_core.moments import iso, moment
        from ..fleet_core.retention import Retention, surplus
        from ..fleet_core.triggers import Usage, due, usage_from
    except ImportError:  # installed as a top-level package
        from fleet_core import manifests
        from fleet_core.checkpoints import KINDS, check_checkpoint_name
        from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, ProcessFailed
        from fleet_core.moments import iso, moment
        from fleet_core.retention import Retention, surplus
        from fleet_core.triggers import Usage, due, usage_from

LATEST = "latest"
LONGEST_COMMENT = 500


class Keeper:
    """The checkpoints of a provider's machines. clock: seconds since 1970."""

    def __init__(self, provider: Provider, state_dir: str, clock: Callable[[], float] = time.time) -> None:
        self._provider = provider
        self._clock = clock
        self.notes = Notes(state_dir, provider.name)

    # -- what there is ------------------------------------------------------------------------------------------------

    def tree(self, names: Sequence[str] | None = None) -> dict[str, tuple[Checkpoint, ...]]:
        """Return the checkpoints of machines, parents first, with their kinds; one call to the provider for all.

        One that was made without us is manual; what we know of one that the provider does not have does not count.
        """
        found = {}
        for machine, checkpoints in self._provider.checkpoints(names).items():
            notes = self.notes.all(machine) if checkpoints else {}
            found[machine] = tuple(_noted(one, notes.get(one.name, {})) for one in checkpoints)
        return found

    def note(self, name: str, checkpoint: str) -> Record:
        """Return what we know of a checkpoint: kind, folders, digest, files, bytes, usage, reason, verified."""
        return self.notes.get(name, checkpoint)

    def manifest(self, name: str, checkpoint: str) -> manifests.Manifest:
        """Return the manifest that was saved with a checkpoint. Raises NotFound when none was."""
        return self.notes.manifest(name, self.resolve(name, checkpoint))

    def look(self, name: str, folders: Sequence[str], job: Job) -> manifests.Manifest:
        """Return the manifest of these folders as they are now, in a machine that runs."""
        job.report(f"look at {', '.join(folders)}")
        ran = self._provider.run(name, manifests.script(folders, max(1.0, job.left())), job)
        if ran.code:
            raise ProcessFailed(f'machine "{name}": its manifest: ended with {ran.code}: {golden.said(ran)}')
        return manifests.parse(ran.stdout, folders)

    def resolve(self, name: str, checkpoint: str, known: Sequence[Checkpoint] | None = None) -> str:
        """Return the name of a checkpoint that exists; "latest" stands for the newest. Raises NotFound.

        known: the machine's checkpoints, where they have just been read.
        """
        known = self.tree([name]).get(name, ()) if known is None else known
        if checkpoint == LATEST and not any(one.name == LATEST for one in known):
            newest = newest_of(known)
            if newest is None:
                raise NotFound(f'machine "{name}": it has no checkpoint')
            return newest.name
        if all(one.name != checkpoint for one in known):
            listed = ", ".join(one.name for one in known) or "none"
            raise NotFound(f'checkpoint "{checkpoint}" of machine "{name}": expected one that exists: {listed}')
        return checkpoint

    def due(
        self,
        name: str,
        triggers: Triggers,
        usage: Usage | None = None,
        risky: bool = False,
        known: Sequence[Checkpoint] | None = None,
    ) -> str:
        """Return why a checkpoint of this machine is due, or an empty text."""
        known = self.tree([name]).get(name, ()) if known is None else known
        newest = newest_of(known)
        used = [(moment(one.created), self.note(name, one.name).get("usage")) for one in known]
        then = max(((when, use) for when, use in used if when and use), key=lambda pair: pair[0], default=None)
        return due(
            triggers,
            newest.created if newest else "",
            iso(self._clock()),
            usage_from("usage", then[1]) if then else Usage(),
            usage or Usage(),
            risky,
        )

    # -- taking, restoring, removing ----------------------------------------------------------------------------------

    def take(
        self,
        name: str,
        checkpoint: str,
        job: Job,
        *,
        kind: str = "manual",
        comment: str = "",
        folders: Sequence[str] = (),
        usage: Usage | None = None,
        live: bool | None = None,
        stop: bool = False,
        reason: str = "",
    ) -> Checkpoint:
        """Save the state of a machine, and before that the manifest of these folders, for which it has to run.

        live: whether with its memory; None: as the provider can. stop: whether a running machine may be stopped for it,
        and is started again.
        """
        folders = check_request(name, checkpoint, kind, comment, folders)
        with self.notes.locked(name, job):
            known = self.tree([name]).get(name, ())
            machine = machine_of(self._provider, name)
            offline = self.admit(machine, checkpoint, known, folders=folders, live=live, stop=stop)
            manifest = self.look(name, folders, job) if folders else None
            self.notes.tidy(name, (one.name for one in known))
            self.notes.put(name, checkpoint, self._new_note(kind, comment, manifest, usage, reason), manifest)
            with stopped(self._provider, machine, job) if offline else contextlib.nullcontext():
                made = self._save(name, checkpoint, job, comment)
            self.notes.set_current(name, checkpoint)
            return _noted(made, self.notes.get(name, checkpoint))

    def admit(
        self,
        machine: Machine,
        checkpoint: str,
        known: Sequence[Checkpoint],
        *,
        folders: Sequence[str] = (),
        live: bool | None = None,
        stop: bool = False,
    ) -> bool:
        """Tell whether a machine is to be stopped for a checkpoint. Raises Conflict when none can be taken."""
        what = f'checkpoint "{checkpoint}" of machine "{machine.name}"'
        can, up = self._provider.capabilities.live_checkpoints, machine.state in UP
        if machine.name.startswith(SCRATCH):
            raise Conflict(f"{what}: that machine exists to verify a checkpoint; expected one of your own")
        if any(one.name == checkpoint for one in known):
            raise Conflict(f"{what}: there is one of that name already")
        if live and not can:
            raise Conflict(f"{what}: provider {self._provider.name} saves stopped machines only, not live ones")
        if live and not up:
            raise Conflict(f"{what}: it is {machine.state}; expected a running machine for a live checkpoint")
        offline = up and not (can and live is not False)
        if offline and not stop:
            why = "" if can else f", and provider {self._provider.name} saves stopped machines only"
            raise Conflict(f"{what}: it is {machine.state}{why}; set stop: true to stop it and start it again")
        if folders and machine.state != "running":
            raise Conflict(f"{what}: it is {machine.state}, and a manifest is made inside a running machine")
        return offline

    def restore(self, name: str, checkpoint: str, job: Job) -> str:
        """Put a machine back to a checkpoint and return that one's name; it runs afterwards if it ran before.

        What it was since then is lost. It is not shut down for that but powered off: it may be damaged.
        """
        with self.notes.locked(name, job):
            checkpoint = self.resolve(name, checkpoint)
            machine = machine_of(self._provider, name)
            up = machine.state in UP
            if up and not self._provider.capabilities.live_checkpoints:
                job.report("power it off")
                self._provider.stop(name, job, force=True)
            self._provider.restore(name, checkpoint, job)
            self.notes.set_current(name, checkpoint)
            if up and machine_of(self._provider, name).state not in UP:
                self._provider.start(name, job)
            return checkpoint

    def remove(self, name: str, checkpoint: str, job: Job) -> None:
        """Remove a checkpoint. One that is not there is no error."""
        with self.notes.locked(name, job):
            known = [one.name for one in self.tree([name]).get(name, ())]
            if checkpoint in known:
                self._provider.delete_checkpoint(name, checkpoint, job)
            self.notes.tidy(name, (one for one in known if one != checkpoint))

    def surplus(
        self, names: Sequence[str] | None, retention: Retention, coming: Mapping[str, Checkpoint] | None = None
    ) -> dict[str, tuple[Checkpoint, ...]]:
        """Return the checkpoints that retention does not keep. Those that machines were forked from are kept.

        coming: by machine, one that will have been taken by then.
        """
        forked = {machine.image.partition(":")[2] for machine in self._provider.describe().values()}
        found = {}
        for name, known in self.tree(names).items():
            new = (coming or {}).get(name)
            gone = surplus(
                known if new is None else (*known, new),
                iso(self._clock()),
                retention,
                current=self.notes.current(name) if new is None else new.name,
                chained=self._provider.capabilities.chained_checkpoints,
                pinned={one.name for one in known if f"{name}.{one.name}" in forked},
            )
            found[name] = gone
        return found

    def prune(self, names: Sequence[str] | None, retention: Retention, job: Job) -> dict[str, tuple[str, ...]]:
        """Remove what retention does not keep, and return it by machine."""
        gone = self.surplus(names, retention)
        for name, checkpoints in gone.items():
            for one in reversed(checkpoints):  # children first
                job.report(f"remove checkpoint {one.name}")
                self.remove(name, one.name, job)
        return {name: tuple(one.name for one in checkpoints) for name, checkpoints in gone.items() if checkpoints}

    def forget(self, names: Sequence[str]) -> None:
        """Forget all about machines that are gone."""
        for name in names:
            self.notes.forget(name)

    # -- comparing and verifying --------------------------------------------------------------------------------------

    def diff(self, before: str, after: str, job: Job | None = None) -> manifests.ManifestDiff:
        """Return what differs from one checkpoint to another, each MACHINE.CHECKPOINT.

        after: or MACHINE alone, for what is in that machine now, in the folders of the first; it needs a job.
        """
        old = self._manifest_of(before)
        if "." not in after and job is not None:
            return manifests.compare(old, self.look(after, old.folders, job))
        return manifests.compare(old, self._manifest_of(after))

    def verify(
        self, name: str, checkpoint: str, how: str = "hash", job: Job | None = None, *, stop: bool = False
    ) -> Verified:
        """Verify a checkpoint, and keep what was found.

        hash: the provider has it, and its manifest is the one that was saved. restore: a scratch machine is forked from
        it, boots, and has in the folders what the manifest says; then it is deleted. stop: as for take.
        """
        if how not in ("hash", "restore"):
            raise InvalidInput(f"verify: expected hash or restore, found {how!r}")
        if name.startswith(SCRATCH):
            raise Conflict(f'machine "{name}": it exists to verify a checkpoint; expected one of your own')
        checkpoint = self.resolve(name, checkpoint)
        job = job or Job.lasting(900.0)
        at = iso(self._clock())
        try:
            known = bool(self.note(name, checkpoint).get("digest"))
            expected = self.notes.manifest(name, checkpoint) if known else None
            diff = self._forked(name, checkpoint, expected, job, stop) if how == "restore" else None
        except (Conflict, InvalidInput):
            raise  # it could not be tried
        except FleetError as error:
            result = Verified(how, at, False, error.message)
        else:
            told = "it boots" if how == "restore" else "the provider has it"
            if expected is None:
                result = Verified(how, at, True, f"{told}; it has no manifest")
            elif diff:
                result = Verified(how, at, False, f"{told}, but of {expected.files} files: {diff}", diff)
            else:
                result = Verified(how, at, True, f"{told}, and the manifest of {expected.files} files fits", diff)
        self.notes.update(name, checkpoint, verified=result.to_dict())
        return result

    # -- parts --------------------------------------------------------------------------------------------------------

    def _forked(
        self, name: str, checkpoint: str, expected: manifests.Manifest | None, job: Job, stop: bool
    ) -> manifests.ManifestDiff | None:
        """Return in what a scratch machine forked from a checkpoint differs from the manifest."""
        with scratch(self._provider, self.notes, name, checkpoint, job, stop) as forked:
            return manifests.verify(expected, self.look(forked, expected.folders, job)) if expected else None

    def _save(self, name: str, checkpoint: str, job: Job, comment: str) -> Checkpoint:
        job.report("save it")
        try:
            return self._provider.checkpoint(name, checkpoint, job, comment=comment)
        except FleetError:
            with contextlib.suppress(FleetError):  # it may be there although it failed late; then the note is right
                if all(one.name != checkpoint for one in self._provider.checkpoints([name]).get(name, ())):
                    self.notes.remove(name, checkpoint)
            raise

    def _new_note(
        self, kind: str, comment: str, manifest: manifests.Manifest | None, usage: Usage | None, reason: str
    ) -> Record:
        note: Record = {"kind": kind, "comment": comment, "created": iso(self._clock()), "reason": reason}
        if usage is not None:
            note["usage"] = usage.to_dict()
        if manifest is not None:
            note.update(
                folders=list(manifest.folders), digest=manifest.digest, files=manifest.files, bytes=manifest.size
            )
        return note

    def _manifest_of(self, reference: str) -> manifests.Manifest:
        name, dot, checkpoint = reference.partition(".")
        if not dot:
            raise InvalidInput(f"checkpoint {reference!r}: expected MACHINE.CHECKPOINT")
        return self.manifest(name, checkpoint)


def check_request(
    name: str, checkpoint: str, kind: str = "manual", comment: str = "", folders: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the folders as a manifest names them. Raises InvalidInput for what no machine could be asked for."""
    what = f'checkpoint "{check_checkpoint_name(checkpoint)}" of machine "{name}"'
    if kind not in KINDS:
        raise InvalidInput(f"{what}: kind: expected one of {', '.join(KINDS)}, found {kind!r}")
    if len(comment) > LONGEST_COMMENT or not comment.isprintable():
        raise InvalidInput(f"{what}: comment: expected one line of at most {LONGEST_COMMENT} characters")
    return manifests.check_folders(f"{what}: folders", tuple(folders))


def newest_of(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """Return the newest of a machine's checkpoints: by time, and where that says nothing, by the order of the tree."""
    placed = [(moment(one.created), number, one) for number, one in enumerate(checkpoints)]
    if any(when is None for when, _number, _one in placed):
        return checkpoints[-1]
    return max(placed, key=lambda item: item[:2], default=(None, 0, None))[2]


def automatic_name(kind: str, seconds: float, taken: Sequence[str] = ()) -> str:
    """Return a name for a checkpoint of this kind made at this time, such as automatic-20260131-080000."""
    name = time.strftime(f"{kind.replace('_', '-')}-%Y%m%d-%H%M%S", time.gmtime(seconds))
    number = 2
    found = name
    while found in taken:
        found, number = f"{name}-{number}", number + 1
    return found


def _noted(checkpoint: Checkpoint, note: Record) -> Checkpoint:
    kind = note.get("kind", "")
    return replace(
        checkpoint,
        kind=kind if kind in KINDS else checkpoint.kind,
        comment=checkpoint.comment or str(note.get("comment", "")),
        created=checkpoint.created or str(note.get("created", "")),
    )
