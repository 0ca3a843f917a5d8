# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of one machine's checkpoints: save, restore, remove."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .changes import Change
from .checkpoints import Checkpoint
from .machine_plans import Step
from .manifests import Manifest, ManifestDiff, lines

SAVE, RESTORE, REMOVE = "save", "restore", "remove"
MOST_LINES = 500


@dataclass(frozen=True)
class CheckpointStep(Step):
    """checkpoint: its name. reason: why an automatic one is due."""

    checkpoint: str = ""
    reason: str = ""


@dataclass(frozen=True)
class CheckpointPlan:
    """name: of the machine. before: the names of its checkpoints. at: the one that it is at, where that is known."""

    name: str
    steps: tuple[CheckpointStep, ...] = ()
    before: tuple[str, ...] = ()
    at: str = ""

    @property
    def change(self) -> Change:
        if not self.steps:
            return Change()
        after, at = list(self.before), self.at
        for step in self.steps:
            if step.verb == REMOVE:
                after.remove(step.checkpoint)
            else:
                after += [step.checkpoint] if step.verb == SAVE else []
                at = step.checkpoint
        old = {"checkpoints": list(self.before), "at": self.at}
        new = {"checkpoints": after, "at": at}
        return Change({self.name: old}, {self.name: new}, tuple(step.text for step in self.steps))

    @property
    def main(self) -> str:
        """The checkpoint that is saved or restored, empty when none is."""
        return next((step.checkpoint for step in self.steps if step.verb != REMOVE), "")


def save(machine: str, checkpoint: str, reason: str = "") -> CheckpointStep:
    why = f": {reason}" if reason else ""
    return CheckpointStep(SAVE, f"save checkpoint {checkpoint} of machine {machine}{why}", checkpoint, reason)


def restore(machine: str, checkpoint: str) -> CheckpointStep:
    return CheckpointStep(RESTORE, f"restore machine {machine} to checkpoint {checkpoint}", checkpoint)


def remove(machine: str, checkpoints: Iterable[Checkpoint]) -> tuple[CheckpointStep, ...]:
    """Return the steps that remove checkpoints, children before parents where the order given is by time."""
    return tuple(
        CheckpointStep(REMOVE, f"remove checkpoint {one.name} of machine {machine}", one.name)
        for one in reversed(tuple(checkpoints))
    )


def shown_diff(before: Manifest, after: Manifest, diff: ManifestDiff, titles: Sequence[str]) -> dict[str, str]:
    """Return the difference of two manifests as Ansible shows one: a line for each path that is not the same."""
    paths = (*diff.removed, *diff.changed, *diff.added)
    return {
        "before_header": titles[0],
        "after_header": titles[1],
        "before": _text(lines(before, paths)),
        "after": _text(lines(after, paths)),
    }


def _text(all_lines: Iterable[str]) -> str:
    found = list(all_lines)
    rest = len(found) - MOST_LINES
    shown = found[:MOST_LINES] + ([f"... and {rest} more"] if rest > 0 else [])
    return "".join(f"{line}\n" for line in shown)
