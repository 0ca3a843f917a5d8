# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands on resource types, claims, templates and the state as a whole. None of them needs fleetd."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fleet_core.agents import agent_definition
from fleet_node.agents import AgentStore

from .conftest import Fleet

TEMPLATES = Path(__file__).resolve().parents[3] / "templates" / "processes"


def test_types_are_added_changed_shown_and_removed(fleet: Fleet) -> None:
    add = ("resource-type", "add", "slot", "--check=test ! -e /tmp/slot${value}", "--check-means=free")
    assert fleet.ok(*add, "--counter", "--start=1", "--end=3").out == "Added resource type slot\n"
    assert fleet.ok(*add, "--counter", "--start=1", "--end=3").out == "Resource type slot is unchanged\n"
    assert fleet.ok("resource-type", "add", "slot", "--end=4").out == "Changed resource type slot\n"
    shown = fleet.json("resource-type", "show", "slot")["resource_type"]
    assert (shown["start"], shown["end"], shown["check_means"]) == (1, 4, "free")
    assert "succeeds: test ! -e" in fleet.ok("resource-type", "list").out
    assert "1-4" in fleet.ok("resource-type", "show", "slot").out
    fleet.ok("resources", "claim", "me", "slot")
    assert fleet("resource-type", "remove", "slot").code == 4
    fleet.ok("resources", "release", "me")
    assert fleet.ok("resource-type", "remove", "slot").out == "Removed resource type slot\n"
    assert fleet("resource-type", "show", "slot").code == 3


def test_a_check_needs_its_meaning(fleet: Fleet) -> None:
    result = fleet("resource-type", "add", "lamp", "--check=true")
    assert result.code == 2
    assert "--check-means=free" in result.err


def test_a_default_type_can_be_replaced_by_a_probe(fleet: Fleet) -> None:
    fleet.ok("resource-type", "add", "webport", "--probe=tcp", "--counter", "--start=20000", "--end=20010")
    assert fleet.ok("resources", "claim", "me", "webport").out.startswith("webport=200")
    names = [kind["name"] for kind in fleet.json("resource-type")["resource_types"]]
    assert {"tcpport", "vncport", "serialport", "dbfile", "socket", "datadir", "workdir", "webport"} <= set(names)


def test_claims_are_made_listed_released_and_reaped(fleet: Fleet) -> None:
    claimed = fleet.ok("resources", "claim", "me", "tcpport", "admin=tcpport", "dbfile:/tmp/no/such.db").out
    values = dict(line.split("=") for line in claimed.splitlines())
    assert set(values) == {"tcpport", "admin", "dbfile"}
    assert fleet.ok("resources", "claim", "me", "tcpport").out == f"tcpport={values['tcpport']}\n"
    assert [item["name"] for item in fleet.json("resources", "list", "--type", "tcpport")["resources"]] == [
        "tcpport", "admin",
    ]  # fmt: skip
    result = fleet("resources", "claim", "you", f"tcpport:{values['admin']}", "other=tcpport")
    assert result.code == 4
    assert 'held by "me"' in result.err
    assert fleet.json("resources", "list", "--owner", "you") == {"resources": []}
    assert fleet.ok("resources", "release", "me", "admin=tcpport").out == f"Released tcpport:{values['admin']} of me\n"
    assert fleet("resources", "release", "nobody").code == 3
    assert len(fleet.json("resources", "list", "--vanished")["resources"]) == 2
    assert len(fleet.json("resources", "reap", "--dry-run")["resources"]) == 2
    assert fleet.json("resources", "reap", "--keep", "me")["resources"] == []
    assert fleet.ok("resources", "reap").out.count("Released") == 2
    assert fleet.ok("resources").out == "Nothing is claimed.\n"
    assert fleet("resources", "claim", "me", "tcpprot").err == (
        'fleet: resource type "tcpprot": not defined, did you mean "tcpport"?\n'
    )
    assert fleet("resources", "claim", "me", "tcpport:").code == 2


def test_callers_at_once_never_share_a_value(fleet: Fleet) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: fleet.ok("resources", "claim", f"o{n}", "tcpport", "vncport").out, range(16)))
    values = [line for answer in made for line in answer.split()]
    assert len(set(values)) == 32


def test_the_shipped_templates_are_added_shown_exported_and_removed(fleet: Fleet, tmp_path: Path) -> None:
    files = sorted(str(file) for file in TEMPLATES.glob("*.json"))
    assert len(files) >= 4
    fleet.ok("template", "add", *files)
    assert fleet.ok("template", "add", files[0]).out == f"Template {Path(files[0]).stem} is unchanged\n"
    assert "PostgreSQL" in fleet.ok("template").out
    assert "Resources:" in fleet.ok("template", "show", "postgres").out
    exported = fleet.ok("template", "export", "postgres").out
    original = json.loads((TEMPLATES / "postgres.json").read_text())
    assert json.loads(exported)["command"] == original["command"]
    assert fleet.ok("template", "remove", "postgres").out == "Removed template postgres\n"
    assert fleet.ok("template", "add", "-", stdin=exported).out == "Added template postgres\n"
    fleet.ok("template", "export", "--output", str(tmp_path / "all.json"))
    assert stat.S_IMODE((tmp_path / "all.json").stat().st_mode) == 0o600
    assert {item["id"] for item in json.loads((tmp_path / "all.json").read_text())} == {Path(f).stem for f in files}
    assert fleet("template", "show", "postgers").err == (
        'fleet: template "postgers": not defined, did you mean "postgres"?\n'
    )


@pytest.mark.parametrize(
    ("name", "text", "code", "message"),
    [
        ("bad.json", "{", 2, "bad.json"),
        ("list.json", "3", 2, "expected a template with id and command"),
        ("typo.yaml", "comand: true", 2, 'template "typo"'),
        ("bad.yaml", "a: [", 2, "bad.yaml"),
        ("latin.json", b"\xff\xfe\xff", 2, "UTF-8"),
    ],
)
def test_a_wrong_template_file_is_named(fleet: Fleet, name: str, text: str | bytes, code: int, message: str) -> None:
    (fleet.folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    result = fleet("template", "add", name)
    assert result.code == code
    assert message in result.err
    assert fleet("template", "add", "missing.json").code == 3


def test_the_state_goes_out_and_comes_in(fleet: Fleet, tmp_path: Path) -> None:
    fleet.ok("resource-type", "add", "slot", "--counter", "--start=1", "--end=3")
    fleet.ok("template", "add", str(TEMPLATES / "redis.json"))
    fleet.ok("start", "kept", "--set", "resources=slot", "--", "sleep", "600")
    fleet.ok("resources", "claim", "outside", "slot")
    file = tmp_path / "state.json"
    assert fleet.ok("state", "export", str(file)).out == f"Wrote {file}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(fleet.ok("state", "export").out)["instances"]["kept"]["status"] == "running"
    assert fleet.ok("state", "import", str(file)).out == "Nothing to import: it is all here already.\n"
    fleet.ok("stop", "kept")
    other = ("--state-dir", str(fleet.state.parent / "other"))
    dry = fleet.ok("state", "import", str(file), "--dry-run", *other)
    assert "would create process kept" in dry.out
    assert fleet.json("template", *other)["templates"] == []
    done = fleet.json("state", "import", str(file), *other)
    assert done["stopped"] == ["kept"]
    assert [item["id"] for item in fleet.json("template", *other)["templates"]] == ["redis"]
    assert fleet.json("resources", *other)["resources"] == [
        {"type": "slot", "value": "2", "owner": "outside", "name": "slot"}
    ]
    assert fleet("state", "import", "missing.json").code == 3
    assert fleet("state", "import").code == 3
    assert fleet("state", "import", str(file), "--check-means", "slot").code == 2


def test_an_import_under_a_running_fleetd_is_seen_by_it(fleet: Fleet, tmp_path: Path) -> None:
    fleet.ok("start", "here", "--", "sleep", "600")
    pid = fleet.process("here")["pid"]
    state = {"instances": {"old": {"name": "old", "template": "", "command": "sleep 500", "pid": 0, "status": "stopped",
                                   "resources": {}, "started": 0}}}  # fmt: skip
    (tmp_path / "state.json").write_text(json.dumps(state))
    fleet.ok("state", "import", str(tmp_path / "state.json"))
    assert fleet.process("here")["pid"] == pid
    assert fleet.ok("start", "old").out.startswith("Started old (pid ")


def test_agents_go_out_and_come_in_with_the_state_and_as_gcluster_keeps_them(fleet: Fleet, tmp_path: Path) -> None:
    store = AgentStore(fleet.state)
    for body in ("Build it.", "Build it well."):
        methods = {"build": body}
        item = {"name": "builder", "runner": "codex", "methods": methods, "pipeline": [{"loop": "build"}]}
        store.put_agents([(agent_definition(item), "apply")])
    ident, legacy = (store.agent("builder")[key] for key in ("id", "legacy_id"))
    store.close()
    whole, theirs = tmp_path / "state.json", tmp_path / ".gcluster" / "state.json"
    theirs.parent.mkdir()
    fleet.ok("state", "export", str(whole))
    fleet.ok("state", "export", "--gcluster", str(theirs))
    assert [item["id"] for item in json.loads(theirs.read_text())["objects"]] == [legacy]
    other = ("--state-dir", str(fleet.state.parent / "other"))
    assert fleet.ok("state", "import", str(whole), "--dry-run", *other).out == "would create agent builder\n"
    assert fleet.ok("state", "import", str(whole), *other).out == "create agent builder\n"
    assert fleet.ok("state", "import", str(whole), *other).out == "Nothing to import: it is all here already.\n"
    third = fleet.state.parent / "third"
    assert fleet.ok("state", "import", str(theirs), "--state-dir", str(third)).out == "create agent builder\n"
    for folder, wanted, revision in ((fleet.state.parent / "other", ident, 2), (third, "", 1)):
        found = AgentStore(folder)
        row = found.agent("builder")
        found.close()
        assert (row["legacy_id"], row["revision"], row["id"] == ident) == (legacy, revision, bool(wanted))


def test_a_corrupt_file_of_gcluster_is_kept_under_another_name(fleet: Fleet, tmp_path: Path) -> None:
    file = tmp_path / ".gcluster" / "state.json"
    file.parent.mkdir()
    file.write_text('{"objects": [')
    assert fleet("state", "import", str(file), "--dry-run").code == 2
    assert file.exists()
    failed = fleet("state", "import", str(file))
    assert failed.code == 2
    assert f"it is kept as {file}.corrupt" in failed.err.replace("\n", " ")
    assert file.with_name("state.json.corrupt").read_text() == '{"objects": ['
