# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Between the options of checkpoint and checkpoint_info, and the keeper of checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ._machines import provider_of
from ._module import Result
from .fleet_core import checkpoint_plans
from .fleet_core.checkpoint_plans import REMOVE, RESTORE, SAVE, CheckpointPlan, CheckpointStep, shown_diff
from .fleet_core.checkpoints import Checkpoint, check_checkpoint_name
from .fleet_core.errors import FleetError, InvalidInput, NotFound
from .fleet_core.machine_plans import joined
from .fleet_core.machines import check_machine_name
from .fleet_core.manifests import Manifest, compare
from .fleet_core.moments import iso
from .fleet_core.quantities import parse_duration
from .fleet_core.retention import retention_from
from .fleet_core.triggers import triggers_from, usage_from
from .fleet_machines import batches
from .fleet_machines.checkpoints import LATEST, Keeper, automatic_name, check_request, newest_of
from .fleet_machines.provider import Job, Provider
from .fleet_node import paths


class Task:
    """One task of the module checkpoint: what it finds, plans and does. shows: whether differences are wanted."""

    def __init__(self, params: Mapping[str, Any], shows: bool = False) -> None:
        check_names(params)
        self.params = params
        self.shows = shows
        self.provider = provider_of(params)
        self.keeper = keeper_of(params, self.provider)
        self.names = _names(params["machines"])
        self.usage = None if params["usage"] is None else usage_from("usage", params["usage"])
        self.triggers = None if params["triggers"] is None else triggers_from("triggers", params["triggers"])
        self.retention = None if params["retention"] is None else retention_from("retention", params["retention"])
        self.machines = self.provider.describe(self.names)
        missing = [name for name in self.names if name not in self.machines]
        if missing and params["state"] != "absent":
            raise NotFound(f"machine {', '.join(missing)}: not there with provider {params['provider']}")
        self.tree = {**dict.fromkeys(self.names, ()), **self.keeper.tree([*self.machines])}

    @property
    def kind(self) -> str:
        """What is taken because it is due is automatic; what is asked for is manual."""
        return str(self.params["kind"] or ("manual" if self.params["triggers"] is None else "automatic"))

    def plans(self) -> tuple[CheckpointPlan, ...]:
        """Return the plans of all machines. One error tells all that is refused, before anything is done."""
        refused: list[FleetError] = []
        steps: dict[str, tuple[CheckpointStep, ...]] = {}
        make = {"present": self._saving, "restored": self._restoring, "absent": self._removing}[self.params["state"]]
        for name in self.names:
            try:
                steps[name] = make(name)
            except FleetError as error:
                refused.append(error)
        if refused:
            raise type(refused[0])("; ".join(error.message for error in refused))
        pruning = self._pruning(steps)
        return tuple(
            CheckpointPlan(
                name,
                (*steps[name], *pruning.get(name, ())),
                tuple(one.name for one in self.tree[name]),
                self.keeper.notes.current(name),
            )
            for name in self.names
        )

    def take(self, step: CheckpointStep, plan: CheckpointPlan, job: Job) -> None:
        """Take one step."""
        params = self.params
        if step.verb == SAVE:
            self.keeper.take(
                plan.name,
                step.checkpoint,
                job,
                kind=self.kind,
                comment=params["comment"],
                folders=params["folders"],
                usage=self.usage,
                live=params["live"],
                stop=params["stop"],
                reason=step.reason,
            )
        elif step.verb == RESTORE:
            self.keeper.restore(plan.name, step.checkpoint, job)
        else:
            self.keeper.remove(plan.name, step.checkpoint, job)

    def diffs(self, plans: Iterable[CheckpointPlan], done: bool) -> list[dict[str, Any]]:
        """Return the differences of files, of machines that have a manifest. done: whether the steps were taken."""
        if not self.shows:
            return []
        job = Job.lasting(parse_duration("timeout", self.params["timeout"]))
        found = []
        for plan in plans:
            pair = self._pair(plan, done, job) if plan.main else None
            if pair:
                (before, old), (after, new) = pair
                found.append(shown_diff(old, new, compare(old, new), (before, after)))
        return found

    def _pair(
        self, plan: CheckpointPlan, done: bool, job: Job
    ) -> tuple[tuple[str, Manifest], tuple[str, Manifest]] | None:
        """Return the two manifests to compare, each with its title."""
        name, running = plan.name, self.machines[plan.name].state == "running"
        if self.params["state"] == "restored":
            if done or not running or not self.keeper.note(name, plan.main).get("digest"):
                return None
            try:
                wanted = self.keeper.manifest(name, plan.main)
                now = self.keeper.look(name, wanted.folders, job)
            except FleetError:  # what is put back may well be too damaged to be asked
                return None
            return (name, now), (f"{name}.{plan.main}", wanted)
        folders = check_request(name, plan.main, folders=self.params["folders"])
        last = self._last(name, folders)
        if not folders or last is None:
            return None
        now = self.keeper.manifest(name, plan.main) if done else self.keeper.look(name, folders, job)
        return (f"{name}.{last}", self.keeper.manifest(name, last)), (f"{name}.{plan.main}", now)

    def _last(self, name: str, folders: Sequence[str]) -> str | None:
        """Return the newest checkpoint that has a manifest of these folders."""
        known = [
            one for one in self.tree[name] if set(self.keeper.note(name, one.name).get("folders", ())) >= {*folders}
        ]
        newest = newest_of(known)
        return newest.name if newest else None

    def _saving(self, name: str) -> tuple[CheckpointStep, ...]:
        params, known = self.params, self.tree[name]
        taken = [one.name for one in known]
        checkpoint = params["name"] or automatic_name(self.kind, time.time(), taken)
        folders = check_request(name, checkpoint, self.kind, params["comment"], params["folders"])
        reason = self._reason(name)
        if checkpoint in taken or reason is None:
            return ()
        machine = self.machines[name]
        self.keeper.admit(machine, checkpoint, known, folders=folders, live=params["live"], stop=params["stop"])
        return (checkpoint_plans.save(name, checkpoint, reason),)

    def _reason(self, name: str) -> str | None:
        """Return why a checkpoint is made, None for none."""
        if self.triggers is None:
            return ""
        return self.keeper.due(name, self.triggers, self.usage, self.params["risky"], self.tree[name]) or None

    def _restoring(self, name: str) -> tuple[CheckpointStep, ...]:
        return (checkpoint_plans.restore(name, self.keeper.resolve(name, self.params["name"], self.tree[name])),)

    def _removing(self, name: str) -> tuple[CheckpointStep, ...]:
        return checkpoint_plans.remove(name, (one for one in self.tree[name] if one.name == self.params["name"]))

    def _pruning(self, steps: Mapping[str, tuple[CheckpointStep, ...]]) -> dict[str, tuple[CheckpointStep, ...]]:
        """Return what retention removes, once these steps are taken."""
        if self.retention is None or not self.machines:
            return {}
        now = iso(time.time())
        coming = {
            name: Checkpoint(step.checkpoint, name, self.keeper.notes.current(name), created=now, kind=self.kind)
            for name, found in steps.items()
            for step in found
            if step.verb == SAVE
        }
        gone = self.keeper.surplus([*self.machines], self.retention, coming)
        wanted = self.params["name"]
        return {
            name: checkpoint_plans.remove(name, (one for one in found if one.name != wanted))
            for name, found in gone.items()
        }


def plan(params: Mapping[str, Any]) -> Result:
    """Return what would be done."""
    task = Task(params, params["_diff"])
    plans = task.plans()
    return Result(joined(plans), _pruned(plans), task.diffs(plans, done=False) or None)


def apply(params: Mapping[str, Any]) -> Result:
    """Do it, for many machines at once. Raises BatchFailed if one failed."""
    task = Task(params, params["_diff"])
    plans = task.plans()
    restored = params["state"] == "restored"
    diffs = task.diffs(plans, done=False) if restored else []  # what is put back is not there any more afterwards
    events: list[str] = []
    outcomes = batches.carry_out(
        plans,
        task.take,
        timeout=parse_duration("timeout", params["timeout"]),
        parallel=params["parallel"],
        report=lambda event: events.append(str(event)),
    )
    values = {"outcomes": [outcome.to_dict() for outcome in outcomes], "progress": events, **_pruned(plans)}
    if not all(outcome.ok for outcome in outcomes):
        done = [action for outcome in outcomes for action in outcome.done]
        error = batches.BatchFailed(outcomes)
        error.values = {"changed": bool(done), "actions": done, **values}
        raise error
    tree = task.keeper.tree([*task.machines])
    main = {plan.name: plan.main for plan in plans if plan.main}
    values["checkpoints"] = [
        described(task.keeper, one) for name in main for one in tree.get(name, ()) if one.name == main[name]
    ]
    if not restored:
        diffs = task.diffs(plans, done=True)
    return Result(joined(plans), values, diffs or None)


def keeper_of(params: Mapping[str, Any], provider: Provider) -> Keeper:
    return Keeper(provider, str(paths.state_dir(params["state_dir"])))


def described(keeper: Keeper, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return a checkpoint and what we know of it."""
    note = keeper.note(checkpoint.machine, checkpoint.name)
    return {
        **checkpoint.to_dict(),
        "current": keeper.notes.current(checkpoint.machine) == checkpoint.name,
        "folders": note.get("folders", []),
        "files": note.get("files", 0),
        "bytes": note.get("bytes", 0),
        "digest": note.get("digest", ""),
        "reason": note.get("reason", ""),
        "usage": note.get("usage", {}),
        "verified": note.get("verified", {}),
    }


def read(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what checkpoint_info returns."""
    provider = provider_of(params)
    keeper = keeper_of(params, provider)
    names = None if params["machines"] is None else _names(params["machines"])
    tree = keeper.tree(names)
    missing = [name for name in names or () if name not in tree]
    job = Job.lasting(parse_duration("timeout", params["timeout"]))
    if params["verify"]:
        _verify(params, keeper, tree, job)
    checkpoints = [described(keeper, one) for known in tree.values() for one in known if _wanted(params, one)]
    values: dict[str, Any] = {"checkpoints": checkpoints, "trees": _trees(tree), "missing": missing}
    if params["manifests"]:
        for one in checkpoints:
            if one["digest"]:
                one["manifest"] = keeper.manifest(one["machine"], one["name"]).to_dict()["entries"]
    if params["diff"]:
        before, after = params["diff"]["from"], params["diff"]["to"]
        diff = keeper.diff(before, after, job)
        values["difference"] = {"from": before, "to": after, "same": not diff, **diff.to_dict()}
    if params["verify"]:
        values["failed"] = False  # what does not hold is told, not raised
        values["unverified"] = [
            f"{one['machine']}.{one['name']}: {one['verified']['found']}"
            for one in checkpoints
            if one["verified"] and not one["verified"]["ok"]
        ]
    return values


def _verify(params: Mapping[str, Any], keeper: Keeper, tree: Mapping[str, Sequence[Checkpoint]], job: Job) -> None:
    for name, known in tree.items():
        for one in known:
            if _wanted(params, one):
                keeper.verify(name, one.name, params["verify"], job, stop=params["stop"])


def _wanted(params: Mapping[str, Any], checkpoint: Checkpoint) -> bool:
    kinds, names = params["kinds"], params["names"]
    return (not kinds or checkpoint.kind in kinds) and (not names or checkpoint.name in names)


def _trees(tree: Mapping[str, Sequence[Checkpoint]]) -> dict[str, list[str]]:
    """Return the tree of each machine as lines for people, each indented below its parent."""
    found = {}
    for name, known in tree.items():
        depth: dict[str, int] = {}
        rows = []
        for one in known:
            depth[one.name] = depth[one.parent] + 1 if one.parent in depth else 0
            rows.append(f"{'  ' * depth[one.name]}{one.name} ({one.kind}{', live' if one.live else ''})")
        found[name] = rows
    return found


def _pruned(plans: Iterable[CheckpointPlan]) -> dict[str, Any]:
    return {
        "pruned": {
            plan.name: [step.checkpoint for step in plan.steps if step.verb == REMOVE]
            for plan in plans
            if any(step.verb == REMOVE for step in plan.steps)
        }
    }


def _names(names: Sequence[str]) -> list[str]:
    for name in names:
        check_machine_name(name)
        if list(names).count(name) > 1:
            raise InvalidInput(f'machine "{name}": stands twice in the list of machines')
    return list(names)


def check_names(params: Mapping[str, Any]) -> None:
    """Raise InvalidInput for a name that is none, before anybody is asked."""
    name, state = params["name"], params["state"]
    if state == "restored" and name == LATEST:
        return
    if name == LATEST:
        raise InvalidInput(f'checkpoint name "{LATEST}": it stands for the newest one; expected another name')
    if name is not None:
        check_checkpoint_name(name)
