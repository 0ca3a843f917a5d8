# SPDX-License-Identifier: GPL-3.0-or-later
"""The state file of gcluster, read and written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fleet_core.agents import agent_definition
from fleet_core.errors import InvalidInput
from fleet_core.gcluster_state import Revision, is_state, read, write

BARE = '(defagent "builder"\n  (pipeline\n    (step "build" (loop build))))'
STORED = f"; id=0281ec2f\n{BARE}\n"
IDENT = "08e730bdcd38bc1d179975defe8a56367ac71dd72683828b2f21791c2736e588"
OLDER = '(defagent "builder"\n  (pipeline\n    (step "build" (call build))))'


def state(**fields: Any) -> dict[str, Any]:
    return {
        "id": IDENT,
        "name": "builder",
        "definition": STORED,
        "revisions": [
            {"id": "older", "timestamp": "2026-02-01T10:00:00.123456789Z", "definition": OLDER},
            {"id": IDENT, "timestamp": "2026-02-01T12:30:00+02:00", "definition": STORED},
        ],
        "state": "running",
        "current_revision": IDENT,
        **fields,
    }


def definition(body: str = "Build it.", kind: str = "loop") -> Any:
    return agent_definition(
        {"name": "builder", "runner": "claude", "methods": {"build": body}, "pipeline": [{kind: "build"}]}
    )


def test_the_shape_is_told_from_others() -> None:
    assert is_state({"objects": []})
    for other in ({}, {"objects": {}}, {"instances": {}}, [], None):
        assert not is_state(other)


def test_agents_come_with_their_revisions() -> None:
    (found,) = read({"objects": [state()]})
    assert (found.name, found.current, found.state) == ("builder", 2, "running")
    assert [revision.definition.pipeline[0].kind for revision in found.revisions] == ["call", "loop"]
    assert found.revisions[0].time == pytest.approx(1769940000.123456789)
    assert found.revisions[1].time == 1769941800
    assert found.revisions[1].definition.runner == "claude"
    assert "apply the .p file" in found.revisions[1].definition.method("build").body


def test_an_object_without_revisions_has_one() -> None:
    (found,) = read({"objects": [state(revisions=None)]}, {"runner": "codex"})
    assert (found.current, found.revisions[0].definition.runner, found.revisions[0].time) == (1, "codex", 0.0)
    assert read({"objects": []}) == ()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"objects": 1}, "expected a list of objects"),
        ({"objects": [1]}, "expected objects with a name"),
        ({"objects": [state(), state()]}, 'agent "builder": stands twice'),
        ({"objects": [state(state="asleep")]}, "state: expected pending, running, stopped"),
        ({"objects": [state(current_revision="x")]}, "current_revision: expected the id of a revision"),
        ({"objects": [state(revisions=[1])]}, "expected a list of revisions"),
        ({"objects": [state(revisions=[{"id": IDENT}])]}, "revision 1: expected a definition"),
        ({"objects": [state(revisions=[{"id": IDENT, "definition": "(defun"}])]}, "revision 1: agent form"),
        ({"objects": [state(name="other")]}, 'expected a definition of it, found one of "builder"'),
        (
            {"objects": [state(revisions=[{"id": IDENT, "definition": STORED, "timestamp": "soon"}])]},
            "timestamp: expected a time such as",
        ),
        (
            {"objects": [state(revisions=[{"id": IDENT, "definition": STORED, "timestamp": "2026-02-31T10:00:00Z"}])]},
            "timestamp: ",
        ),
    ],
)
def test_what_is_wrong_is_named(data: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        read(data)


def test_what_is_written_has_the_ids_of_gcluster() -> None:
    found = write([("builder", [Revision(definition(), 1769940000.0)], 1, "stopped")])
    assert found == {
        "objects": [
            {
                "id": IDENT,
                "name": "builder",
                "definition": STORED,
                "revisions": [{"id": IDENT, "timestamp": "2026-02-01T10:00:00Z", "definition": STORED}],
                "state": "stopped",
                "current_revision": IDENT,
            }
        ]
    }


def test_edited_bodies_are_one_revision_there_and_come_back() -> None:
    revisions = [
        Revision(definition(kind="call"), 1.0),
        Revision(definition("one"), 2.5),
        Revision(definition("two"), 3.0),
    ]
    data = json.loads(json.dumps(write([("builder", revisions, 3, "running")])))
    (found,) = read(data)
    assert [revision.time for revision in found.revisions] == [1.0, 2.5]
    assert (found.current, found.state) == (2, "running")
    again = write([("builder", found.revisions, 2, "running")])
    assert again == data
