# SPDX-License-Identifier: GPL-3.0-or-later
"""Agents in exports and imports of the state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fleet_core.agent_forms import form, legacy_id, stored_form
from fleet_core.agents import AgentDefinition, agent_definition
from fleet_core.errors import Conflict, InvalidInput
from fleet_node import agent_state, state_file
from fleet_node.agents import AgentStore
from fleet_node.store import Store


def definition(body: str = "Build it.") -> AgentDefinition:
    data = {"name": "builder", "runner": "codex", "methods": {"build": body}, "pipeline": [{"loop": "build"}]}
    return agent_definition(data)


@pytest.fixture
def exported(tmp_path: Path) -> dict[str, Any]:
    """The export of a state folder with one agent of three revisions, the first one in use again."""
    agents = AgentStore(tmp_path / "old")
    for body, origin in (("one", "apply"), ("two", "edit"), ("one", "rollback")):
        agents.put_agents([(definition(body), origin)])
    agents.set_desired("builder", "running")
    agents.set_next_run("builder", 4e9)
    agents.inject("builder", "hello")
    agents.close()
    store = Store(tmp_path / "old")
    data: dict[str, Any] = json.loads(state_file.render(state_file.export_state(store)))
    store.close()
    return data


def import_into(folder: Path, data: dict[str, Any]) -> state_file.Import:
    store = Store(folder)
    try:
        return state_file.import_state(store, data)
    finally:
        store.close()


def test_an_export_brings_agents_with_their_revisions_to_another_folder(
    tmp_path: Path, exported: dict[str, Any]
) -> None:
    found = import_into(tmp_path / "new", exported)
    assert found.change.actions == ("create agent builder",)
    agents = AgentStore(tmp_path / "new")
    row = agents.agents()["builder"]
    assert (row["revision"], row["desired"], row["next_run"]) == (3, "stopped", 4e9)
    assert [(r["origin"], r["definition"]["methods"]["build"]) for r in agents.revisions("builder")] == [
        ("apply", "one"),
        ("edit", "two"),
        ("rollback", "one"),
    ]
    assert agents.revisions("builder")[0]["time"] == exported["fleet"]["agents"]["builder"]["revisions"][0]["time"]
    agents.put_agents([(definition("three"), "apply")])
    assert agents.agents()["builder"]["revision"] == 4
    agents.close()
    with pytest.raises(Conflict, match="exists already with another definition"):
        import_into(tmp_path / "new", exported)


def test_a_second_import_changes_nothing(tmp_path: Path, exported: dict[str, Any]) -> None:
    import_into(tmp_path / "new", exported)
    assert not import_into(tmp_path / "new", exported).change.changed


def test_a_bad_agent_keeps_everything_out(tmp_path: Path, exported: dict[str, Any]) -> None:
    exported["templates"] = {"web": {"id": "web", "command": "serve"}}
    exported["fleet"]["agents"]["builder"]["revisions"][1]["definition"]["colour"] = "red"
    with pytest.raises(InvalidInput, match="colour"):
        import_into(tmp_path / "new", exported)
    store = Store(tmp_path / "new")
    assert store.templates() == {}
    store.close()


def test_a_folder_without_agents_exports_none_and_gets_no_database(tmp_path: Path) -> None:
    store = Store(tmp_path)
    data = state_file.export_state(store)
    assert data["fleet"]["agents"] == {}
    assert not state_file.plan_import(store, data).change.changed
    assert not (tmp_path / "agents.db").exists()
    store.close()


def test_the_state_of_gcluster_is_imported(tmp_path: Path) -> None:
    text = stored_form(form(definition()))
    item = {
        "id": legacy_id(definition()),
        "name": "builder",
        "definition": text,
        "revisions": [{"id": legacy_id(definition()), "timestamp": "2026-02-01T10:00:00Z", "definition": text}],
        "state": "running",
        "current_revision": legacy_id(definition()),
    }
    assert import_into(tmp_path, {"objects": [item]}).change.actions == ("create agent builder",)
    agents = AgentStore(tmp_path)
    assert agents.agents()["builder"]["legacy_id"] == item["id"]
    assert agents.agents()["builder"]["desired"] == "stopped"
    assert agents.revisions("builder")[0]["time"] == 1769940000
    agents.put_agents([(definition(), "apply")])  # the .p file is applied again: same form, now with its prompts
    agents.close()
    assert not import_into(tmp_path, {"objects": [item]}).change.changed


def test_what_was_exported_is_written_for_gcluster(exported: dict[str, Any]) -> None:
    (item,) = agent_state.to_gcluster(exported["fleet"]["agents"])["objects"]
    assert item["id"] == item["current_revision"] == legacy_id(definition())
    assert len(item["revisions"]) == 1  # it cannot tell bodies apart
    assert item["state"] == "stopped"


def test_only_a_corrupt_file_of_gcluster_is_renamed(tmp_path: Path) -> None:
    folder = tmp_path / ".gcluster"
    folder.mkdir()
    other, sound, corrupt = tmp_path / "state.json", folder / "sound.json", folder / "state.json"
    other.write_text("{")
    sound.write_text("{}")
    corrupt.write_text("{")
    assert agent_state.keep_corrupt(other) is None
    assert agent_state.keep_corrupt(sound) is None
    assert agent_state.keep_corrupt(corrupt) == folder / "state.json.corrupt"
    assert (folder / "state.json.corrupt").read_text() == "{"
    corrupt.write_text('{"objects": []}')
    assert agent_state.keep_corrupt(corrupt) is None
