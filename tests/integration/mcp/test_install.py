# SPDX-License-Identifier: GPL-3.0-or-later
"""`fleet mcp install` changes one entry of a client's settings, and nothing else."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from autovibe_fleet.mcp.clients import CLIENTS, NAMES
from autovibe_fleet.mcp.json_editing import JsonText
from autovibe_fleet.mcp.toml_editing import toml

from .conftest import PROGRAM, Host

CODEX = """\
model = "gpt-5"  # the big one

# mine
[mcp_servers.other]
command = "x"
"""
ZED = """\
// Zed
{
  "theme": "One", // nice
  "context_servers": {
    "other": { "command": "x" }, // last
  },
}
"""


def entry(file: Path, *path: str) -> Any:
    text = file.read_text()
    found: Any = toml.loads(text) if file.suffix == ".toml" else JsonText(text).root().value
    for key in path:
        found = found[key]
    return found


@pytest.mark.parametrize("client", CLIENTS, ids=NAMES)
def test_each_client_gets_an_entry_of_its_shape(host: Host, client: Any) -> None:
    assert host.fleet("mcp", "install", "--client", client.name).returncode == 0
    found = entry(client.file(None, host.home), *client.key, "fleet")
    words = found["command"] if isinstance(found["command"], list) else [found["command"], *found["args"]]
    assert words == [PROGRAM, "mcp"]
    assert found[client.env_key] == {"FLEET_STATE_DIR": str(host.state)}
    assert stat.S_IMODE(client.file(None, host.home).stat().st_mode) == 0o600


@pytest.mark.parametrize(("name", "path", "text"), [("codex", ".codex/config.toml", CODEX)])
def test_toml_keeps_its_comments_and_uninstall_gives_the_file_back(host: Host, name: str, path: str, text: str) -> None:
    file = host.home / path
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert host.fleet("mcp", "install", "--client", name).returncode == 0
    assert file.read_text().startswith(text)
    assert Path(f"{file}.fleet.bak").read_text() == text
    assert host.fleet("mcp", "uninstall", "--client", name).returncode == 0
    assert file.read_text() == text


def test_json_with_comments_keeps_them_and_uninstall_gives_the_file_back(host: Host) -> None:
    file = host.home / ".config" / "zed" / "settings.json"
    file.parent.mkdir(parents=True)
    file.write_text(ZED)
    file.chmod(0o640)
    host.fleet("mcp", "install", "--client", "zed")
    assert "// nice" in file.read_text()
    assert set(entry(file, "context_servers")) == {"other", "fleet"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    host.fleet("mcp", "uninstall", "--client", "zed")
    assert file.read_text() == ZED


def test_a_second_time_nothing_changes(host: Host) -> None:
    words = ("--json", "mcp", "install", "--client", "claude", "--client", "codex")
    first = json.loads(host.fleet(*words).stdout)
    assert [item["action"] for item in first["clients"]] == ["created", "created"]
    files = [Path(item["file"]) for item in first["clients"]]
    before = [file.stat().st_mtime_ns for file in files]
    second = json.loads(host.fleet(*words).stdout)
    assert [item["action"] for item in second["clients"]] == ["unchanged", "unchanged"]
    assert [file.stat().st_mtime_ns for file in files] == before


def test_an_entry_is_brought_in_line_and_keeps_what_its_owner_added(host: Host) -> None:
    file = host.home / ".claude.json"
    old = {"command": "/old/fleet", "args": ["mcp"], "timeout": 9, "env": {"MINE": "1"}}
    file.write_text(json.dumps({"numStartups": 3, "mcpServers": {"fleet": old}}))
    done = host.fleet("--json", "mcp", "install", "--client", "claude")
    assert json.loads(done.stdout)["clients"][0]["action"] == "updated"
    found = entry(file, "mcpServers", "fleet")
    assert (found["command"], found["timeout"], found["env"]["MINE"]) == (PROGRAM, 9, "1")
    assert entry(file, "numStartups") == 3


def test_another_server_of_that_name_is_left_alone(host: Host) -> None:
    file = host.home / ".claude.json"
    text = json.dumps({"mcpServers": {"fleet": {"command": "other-fleet", "args": ["mcp"]}}})
    file.write_text(text)
    for command in ("install", "uninstall"):
        done = host.fleet("mcp", command, "--client", "claude")
        assert done.returncode == 4
        assert '"fleet" is another server; give ours a name of its own by --name' in done.stderr
    assert file.read_text() == text
    assert host.fleet("mcp", "install", "--client", "claude", "--name", "ours").returncode == 0
    assert set(entry(file, "mcpServers")) == {"fleet", "ours"}


@pytest.mark.parametrize("text", ["{", "[]", '{"mcpServers": 3}', "\x00", '{"a": 1, "a": 2}'])
def test_a_file_that_cannot_be_read_is_left_alone_and_named(host: Host, text: str) -> None:
    file = host.home / ".claude.json"
    file.write_text(text)
    done = host.fleet("mcp", "install", "--client", "claude", "--client", "gemini")
    assert done.returncode == 2
    assert str(file) in done.stderr
    assert file.read_text() == text
    assert (host.home / ".gemini" / "settings.json").exists()  # one that fails keeps no other from it


def test_dry_run_writes_nothing(host: Host) -> None:
    done = host.fleet("mcp", "install", "--client", "claude", "--client", "codex", "--dry-run")
    assert "claude: would be created in" in done.stdout
    assert not (host.home / ".claude.json").exists()
    assert not (host.home / ".codex").exists()


def test_without_a_client_those_that_are_here_are_chosen(host: Host) -> None:
    done = host.fleet("mcp", "install", PATH="/usr/bin:/bin")
    assert done.returncode == 3
    assert "no client was found here" in done.stderr
    (host.home / ".gemini").mkdir()
    done = host.fleet("mcp", "install", PATH="/usr/bin:/bin")
    assert done.stdout.startswith("gemini: created in ")


def test_a_project_has_files_of_its_own_that_others_may_read(host: Host) -> None:
    done = host.fleet("mcp", "install", "--project", "--client", "claude", "--client", "vscode", cwd=host.project)
    assert done.returncode == 0
    assert entry(host.project / ".mcp.json", "mcpServers", "fleet")["type"] == "stdio"
    assert entry(host.project / ".vscode" / "mcp.json", "servers", "fleet")["type"] == "stdio"
    assert stat.S_IMODE((host.project / ".mcp.json").stat().st_mode) == 0o644
    done = host.fleet("mcp", "install", "--project", "--client", "windsurf", cwd=host.project)
    assert "Windsurf: has no settings of its own in a project" in done.stderr


def test_the_copy_of_the_old_file_is_written_through_no_link(host: Host) -> None:
    """A project that somebody else wrote must not choose which file of ours is overwritten."""
    ours = host.home / "authorized_keys"
    ours.write_text("ours\n")
    host.project.joinpath(".mcp.json").write_text('{"theirs": 1}')
    copy = host.project / ".mcp.json.fleet.bak"
    copy.symlink_to(ours)
    assert host.fleet("mcp", "install", "--project", "--client", "claude", cwd=host.project).returncode == 0
    assert ours.read_text() == "ours\n"
    assert (copy.is_symlink(), copy.read_text()) == (False, '{"theirs": 1}')


def test_an_unknown_client_is_named_with_the_nearest(host: Host) -> None:
    done = host.fleet("mcp", "install", "--client", "claud")
    assert done.returncode == 3
    assert 'client "claud": not known, did you mean "claude"?' in done.stderr


def test_what_was_entered_starts_the_server(host: Host) -> None:
    from mcp.client.stdio import StdioServerParameters

    from .conftest import connected

    host.fleet("mcp", "install", "--client", "claude")
    found = entry(host.home / ".claude.json", "mcpServers", "fleet")
    with connected(
        StdioServerParameters(command=found["command"], args=found["args"], env={**host.environ, **found["env"]})
    ) as assistant:
        assert assistant.ok("get_daemon_status")["state_dir"] == str(host.state)
