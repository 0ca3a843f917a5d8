# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps checkpoints: the provider's saved states, together with what only we know of them."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import golden
from .checkpoint_notes import Notes
from .provider import Job, Provider
from .records import Record

if TYPE_CHECKING:
    from fleet_core import manifests
    from fleet_core.checkpoints import KINDS, Checkpoint, check_checkpoint_name
    from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, ProcessFailed
    from fleet_core.machines import Machine, MachineSpec, Network
    from fleet_core.moments import iso, moment
    from fleet_core.retention import Retention, surplus
    from fleet_core.triggers import Triggers, Usage, due, usage_from
else:
    try:
        from ..fleet_core import manifests
        from ..fleet_core.checkpoints import KINDS, check_checkpoint_name
        from ..fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, ProcessFailed
        from ..fleet_core.machines import MachineSpec, Network
        from ..fleet_core.moments import iso, moment
        from ..fleet_core.retention import Retention, surplus
        from ..fleet_core.triggers import Usage, due, usage_from
    except ImportError:  # installed as a top-level package
        from fleet_core import manifests
        from fleet_core.checkpoints import KINDS, check_checkpoint_name
        from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, ProcessFailed
        from fleet_core.machines import MachineSpec, Network
        from fleet_core.moments import iso, moment
        from fleet_core.retention import Retention, surplus
        from fleet_core.triggers import Usage, due, usage_from

LATEST = "latest"
SCRATCH = "verify-"  # what a machine is called that exists to verify a checkpoint
_TO_PUT_BACK = 180.0  # seconds for what must be done whatever the deadline
_LONGEST_COMMENT = 500
_UP = ("running", "starting", "suspended")


@dataclass(frozen=True)
class Verified:
    """how: "hash" or "restore". found: what was found, for people. diff: in what a restored machine differs."""

    how: str
    at: str
    ok: bool
    found: str
    diff: manifests.ManifestDiff | None = None

    def to_dict(self) -> dict[str, Any]:
        values = {"how": self.how, "at": self.at, "ok": self.ok, "found": self.found}
        return values if self.diff is None else {**values, "diff": self.diff.to_dict()}


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

    def resolve(self, name: str, checkpoint: str) -> str:
        """Return the name of a checkpoint that exists; "latest" stands for the newest. Raises NotFound."""
        known = self.tree([name]).get(name, ())
        if checkpoint == LATEST and not any(one.name == LATEST for one in known):
            newest = newest_of(known)
            if newest is None:
                raise NotFound(f'machine "{name}": it has no checkpoint')
            return newest.name
        if all(one.name != checkpoint for one in known):
            listed = ", ".join(one.name for one in known) or "none"
            raise NotFound(f'checkpoint "{checkpoint}" of machine "{name}": expected one that exists: {listed}')
        return checkpoint

    def due(self, name: str, triggers: Triggers, usage: Usage | None = None, risky: bool = False) -> str:
        """Return why a checkpoint of this machine is due, or an empty text."""
        known = self.tree([name]).get(name, ())
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
        check_checkpoint_name(checkpoint)
        what = f'checkpoint "{checkpoint}" of machine "{name}"'
        if kind not in KINDS:
            raise InvalidInput(f"{what}: kind: expected one of {', '.join(KINDS)}, found {kind!r}")
        if len(comment) > _LONGEST_COMMENT or not comment.isprintable():
            raise InvalidInput(f"{what}: comment: expected one line of at most {_LONGEST_COMMENT} characters")
        folders = manifests.check_folders(f"{what}: folders", tuple(folders))
        with self.notes.locked(name, job):
            known = self.tree([name]).get(name, ())
            if any(one.name == checkpoint for one in known):
                raise Conflict(f"{what}: there is one of that name already")
            machine = self._machine(name)
            offline = self._offline(machine, what, live, stop)
            if folders and machine.state != "running":
                raise Conflict(f"{what}: it is {machine.state}, and a manifest is made inside a running machine")
            manifest = self.look(name, folders, job) if folders else None
            self.notes.tidy(name, (one.name for one in known))
            self.notes.put(name, checkpoint, self._new_note(kind, comment, manifest, usage, reason), manifest)
            with self._stopped(machine, job) if offline else contextlib.nullcontext():
                made = self._save(name, checkpoint, job, comment)
            self.notes.set_current(name, checkpoint)
            return _noted(made, self.notes.get(name, checkpoint))

    def restore(self, name: str, checkpoint: str, job: Job) -> str:
        """Put a machine back to a checkpoint and return that one's name; it runs afterwards if it ran before.

        What it was since then is lost. It is not shut down for that but powered off: it may be damaged.
        """
        with self.notes.locked(name, job):
            checkpoint = self.resolve(name, checkpoint)
            machine = self._machine(name)
            up = machine.state in _UP
            if up and not self._provider.capabilities.live_checkpoints:
                job.report("power it off")
                self._provider.stop(name, job, force=True)
            self._provider.restore(name, checkpoint, job)
            self.notes.set_current(name, checkpoint)
            if up and self._machine(name).state not in _UP:
                self._provider.start(name, job)
            return checkpoint

    def remove(self, name: str, checkpoint: str, job: Job) -> None:
        """Remove a checkpoint. One that is not there is no error."""
        with self.notes.locked(name, job):
            known = [one.name for one in self.tree([name]).get(name, ())]
            if checkpoint in known:
                self._provider.delete_checkpoint(name, checkpoint, job)
            self.notes.tidy(name, (one for one in known if one != checkpoint))

    def surplus(self, names: Sequence[str] | None, retention: Retention) -> dict[str, tuple[Checkpoint, ...]]:
        """Return the checkpoints that retention does not keep. Those that machines were forked from are kept."""
        forked = {machine.image.partition(":")[2] for machine in self._provider.describe().values()}
        found = {}
        for name, known in self.tree(names).items():
            gone = surplus(
                known,
                iso(self._clock()),
                retention,
                current=self.notes.current(name),
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
        checkpoint = self.resolve(name, checkpoint)
        job = job or Job.lasting(900.0)
        at = iso(self._clock())
        try:
            known = bool(self.note(name, checkpoint).get("digest"))
            expected = self.notes.manifest(name, checkpoint) if known else None
            diff = self._restored(name, checkpoint, expected, job, stop) if how == "restore" else None
        except (Conflict, InvalidInput):
            raise  # it could not be tried
        except FleetError as error:
            found = Verified(how, at, False, error.message)
        else:
            told = "it boots" if how == "restore" else "the provider has it"
            if expected is None:
                found = Verified(how, at, True, f"{told}; it has no manifest")
            elif diff:
                found = Verified(how, at, False, f"{told}, but of {expected.files} files: {diff}", diff)
            else:
                found = Verified(how, at, True, f"{told}, and the manifest of {expected.files} files fits", diff)
        self.notes.update(name, checkpoint, verified=found.to_dict())
        return found

    # -- parts --------------------------------------------------------------------------------------------------------

    def _machine(self, name: str) -> Machine:
        found = self._provider.describe([name]).get(name)
        if found is None:
            raise NotFound(f'machine "{name}": not there with provider {self._provider.name}')
        return found

    def _offline(self, machine: Machine, what: str, live: bool | None, stop: bool) -> bool:
        """Tell whether the machine is to be stopped. Raises Conflict when that is not allowed, or it cannot be live."""
        can, up = self._provider.capabilities.live_checkpoints, machine.state in _UP
        if live and not can:
            raise Conflict(f"{what}: provider {self._provider.name} saves stopped machines only, not live ones")
        if live and not up:
            raise Conflict(f"{what}: it is {machine.state}; expected a running machine for a live checkpoint")
        if not up or (can and live is not False):
            return False
        if not stop:
            why = "" if can else f", and provider {self._provider.name} saves stopped machines only"
            raise Conflict(f"{what}: it is {machine.state}{why}; set stop: true to stop it and start it again")
        return True

    @contextlib.contextmanager
    def _stopped(self, machine: Machine, job: Job) -> Iterator[None]:
        """Stop a machine and start it again, whatever happened meanwhile."""
        job.report("stop it")
        self._provider.stop(machine.name, job)
        try:
            yield
        finally:
            late = Job.lasting(max(job.left(), _TO_PUT_BACK), job.report)
            if self._machine(machine.name).state not in ("running", "starting"):
                self._provider.start(machine.name, late)

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

    def _restored(
        self, name: str, checkpoint: str, expected: manifests.Manifest | None, job: Job, stop: bool
    ) -> manifests.ManifestDiff | None:
        """Fork a scratch machine and return in what it differs; nothing of it is left."""
        scratch = SCRATCH + hashlib.sha256(f"{name}.{checkpoint}".encode()).hexdigest()[:10]
        image = f"instance:{name}.{checkpoint}"
        what = f'checkpoint "{checkpoint}" of machine "{name}"'
        capabilities = self._provider.capabilities
        if name.startswith(SCRATCH):
            raise Conflict(f"{what}: it is a machine that exists to verify another; expected one of your own")
        with self.notes.locked(scratch, job):
            left = self._provider.describe([scratch]).get(scratch)
            if left is not None and left.image not in (image, ""):
                raise Conflict(f'machine "{scratch}": expected none, found one made from {left.image}')
            machine = self._machine(name)
            up = machine.state in _UP and not capabilities.live_checkpoints
            if up and not stop:
                raise Conflict(
                    f"{what}: machine {name} is {machine.state}, and provider {self._provider.name} forks stopped ones "
                    "only; set stop: true to stop it and start it again"
                )
            networks = (Network(capabilities.isolated),) if capabilities.isolated else None
            spec = MachineSpec(scratch, self._provider.name, image, networks=networks, tags=("scratch",))
            try:
                if left is not None:
                    self._provider.delete(scratch, job)
                job.report(f"fork {scratch} from it")
                with self._stopped(machine, job) if up else contextlib.nullcontext():
                    self._provider.create(spec, job)
                if expected is None:
                    return None
                return manifests.verify(expected, self.look(scratch, expected.folders, job))
            finally:
                job.report(f"delete {scratch}")
                self._provider.delete(scratch, Job.lasting(max(job.left(), _TO_PUT_BACK), job.report))
                self.notes.forget(scratch)


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
