# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps of checkpoints, and their differences for people."""

from __future__ import annotations

from fleet_core.checkpoint_plans import MOST_LINES, CheckpointPlan, remove, restore, save, shown_diff
from fleet_core.checkpoints import Checkpoint
from fleet_core.manifests import Entry, Manifest, compare


def test_a_plan_tells_what_the_tree_will_be() -> None:
    gone = remove("dev", [Checkpoint("a", "dev"), Checkpoint("b", "dev")])
    plan = CheckpointPlan("dev", (save("dev", "c", "before a risky step"), *gone), ("a", "b"), "b")
    assert plan.main == "c"
    assert plan.change.before == {"dev": {"checkpoints": ["a", "b"], "at": "b"}}
    assert plan.change.after == {"dev": {"checkpoints": ["c"], "at": "c"}}
    assert plan.change.actions == (
        "save checkpoint c of machine dev: before a risky step",
        "remove checkpoint b of machine dev",
        "remove checkpoint a of machine dev",
    )
    back = CheckpointPlan("dev", (restore("dev", "a"),), ("a", "b"), "b")
    assert back.change.after == {"dev": {"checkpoints": ["a", "b"], "at": "a"}}
    assert not CheckpointPlan("dev").change.changed


def test_a_difference_shows_what_is_not_the_same_and_no_more_than_fits() -> None:
    same = {"/a/same": Entry("file", 3, "0" * 64, 0o644)}
    many = {f"/a/{number:04}": Entry("file", 2048, "1" * 64, 0o600) for number in range(MOST_LINES + 7)}
    link = {"/a/link": Entry("link", target="/etc")}
    before, after = Manifest(("/a",), {**same, **link}), Manifest(("/a",), {**same, **many})
    shown = shown_diff(before, after, compare(before, after), ("dev.one", "dev"))
    assert (shown["before_header"], shown["after_header"]) == ("dev.one", "dev")
    assert shown["before"] == "0000       link -            /a/link -> /etc\n"
    lines = shown["after"].splitlines()
    assert lines[0] == "0600         2K 111111111111 /a/0000"
    assert (len(lines), lines[-1]) == (MOST_LINES + 1, "... and 7 more")
