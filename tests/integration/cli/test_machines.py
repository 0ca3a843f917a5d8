# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands on machines, against the fake of Multipass. None of them needs fleetd."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest
from tests.fakes.multipass_host import Host

from autovibe_fleet.cli.machine_checkpoints import tree
from autovibe_fleet.cli.machine_shell import check_reachable, ssh_argv
from fleet_core.checkpoints import Checkpoint
from fleet_core.errors import Conflict
from fleet_core.machines import Machine, MachineSpec
from fleet_machines.known_hosts import Keys
from fleet_machines.provider import Job

from .conftest import PROGRAM, Fleet


@pytest.fixture
def host(tmp_path: Path, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host with Multipass, of the fleet command's state folder."""
    found = Host(tmp_path)
    found.state_dir = fleet.state
    monkeypatch.setenv("FAKE_MULTIPASS", str(found.folder))
    fleet.environ.update(found.environ)
    return found


def make(host: Host, name: str, **fields: object) -> None:
    spec = MachineSpec(name, "multipass", image="24.04", **fields)  # type: ignore[arg-type]
    host.adapter().create(spec, Job.lasting(60))


@pytest.fixture
def two(host: Host) -> Host:
    make(host, "web-1", cpu=2, memory=2 * 1024**3, project="shop", tags=("web", "blue"))
    make(host, "db-1", project="shop", tags=("db",))
    host.calls()
    return host


def test_list_shows_all_with_one_call_and_filters(fleet: Fleet, two: Host) -> None:
    lines = fleet.ok("machines").out.splitlines()
    assert two.calls() == [["list", "--format", "json"]]
    assert lines[0].split()[:3] == ["NAME", "PROVIDER", "STATE"]
    assert [line.split()[:4] for line in lines[1:]] == [
        ["db-1", "multipass", "running", "24.04"],
        ["web-1", "multipass", "running", "24.04"],
    ]
    assert "2.0G" in lines[2]
    names = {
        ("--tag", "web"): ["web-1"],
        ("--tag", "web", "--tag", "db"): [],
        ("--project", "shop"): ["db-1", "web-1"],
        ("--project", ""): [],
        ("--state", "stopped"): [],
        ("--state", "stopped", "--state", "running"): ["db-1", "web-1"],
    }
    for words, wanted in names.items():
        assert [machine["name"] for machine in fleet.json("machines", "list", *words)["machines"]] == wanted
    assert fleet.ok("machines", "list", "--tag", "no").out == "No machine is as asked for.\n"
    assert 'did you mean "running"?' in fleet("machines", "list", "--state", "runing").err


def test_what_cannot_be_used_here_is_said_and_why(fleet: Fleet) -> None:
    fleet.environ["PATH"] = "/nowhere"
    assert "No machine" in fleet.ok("machines").out
    assert fleet.json("machines") == {"machines": [], "errors": []}
    row = next(row for row in fleet.json("machines", "providers")["providers"] if row["name"] == "multipass")
    assert (row["usable"], row["code"]) == (False, "unavailable")
    assert "not installed" in fleet.ok("machines", "providers").out
    result = fleet("machines", "list", "--provider", "multipass", "--json")
    assert (result.code, result.error["code"]) == (7, "unavailable")
    result = fleet("machines", "show", "web-1")
    assert result.code == 3
    assert result.err.startswith('fleet: machine "web-1": not there with ')


def test_machines_are_stopped_started_restarted_and_deleted(fleet: Fleet, two: Host) -> None:
    stopped = fleet.ok("machines", "stop", "web-1", "db-1")
    assert stopped.out == "Stopped web-1\nStopped db-1\n"
    assert "web-1: stop machine web-1" in stopped.err
    assert fleet.ok("machines", "stop", "web-1").out == "web-1 is stopped already\n"
    assert fleet.ok("machines", "start", "web-1").out.startswith("Started web-1 (")
    assert fleet.ok("machines", "start", "web-1").out == "web-1 is running already\n"
    assert fleet.ok("machines", "restart", "web-1").out.startswith("Restarted web-1 (")
    answer = fleet.json("machines", "restart", "db-1")
    assert [machine["state"] for machine in answer["machines"]] == ["running"]
    assert answer["outcomes"][0]["ok"]

    refused = fleet("machines", "delete", "web-1")
    assert (refused.code, refused.err) == (2, "fleet: delete: it is for good; confirm with --yes\n")
    assert "web-1" in two.instances()
    assert fleet.ok("machines", "delete", "web-1", "db-1", "--yes").out == "Deleted web-1\nDeleted db-1\n"
    assert two.instances() == {}
    assert two.left() == []


def test_nothing_is_done_when_a_machine_is_missing(fleet: Fleet, two: Host) -> None:
    result = fleet("machines", "stop", "web-1", "web-2")
    assert result.code == 3
    assert result.err.startswith('fleet: machine "web-2": not there with multipass')
    assert result.err.endswith(', did you mean "web-1"?\n')
    assert two.instances()["web-1"]["state"] == "Running"
    assert fleet("machines", "stop", "../x").code == 2


def test_the_outcome_of_each_machine_is_told_when_one_fails(fleet: Fleet, two: Host) -> None:
    two.faults({"command": "stop", "name": "web-1", "code": 2, "message": "stop failed: it hangs"})
    result = fleet("machines", "stop", "web-1", "db-1", "--json")
    outcomes = {row["name"]: row["ok"] for row in result.data["outcomes"]}
    assert outcomes == {"web-1": False, "db-1": True}
    assert result.code == 6
    assert "1 of 2 machines failed" in result.error["message"]


def test_a_person_is_asked_before_a_machine_is_deleted(fleet: Fleet, two: Host) -> None:
    parent, child = pty.openpty()
    try:
        os.write(parent, b"n\n")
        done = subprocess.run(
            [PROGRAM, "machines", "delete", "web-1"],
            stdin=child,
            capture_output=True,
            text=True,
            env=fleet.environ,
            check=False,
        )
    finally:
        os.close(parent)
        os.close(child)
    assert done.returncode == 130
    assert "Delete web-1 with all that is on their disks?" in done.stderr
    assert "web-1" in two.instances()


def test_show_tells_one_machine_and_its_checkpoints(fleet: Fleet, two: Host) -> None:
    fleet.ok("machines", "stop", "web-1")
    assert fleet.ok("machines", "checkpoint", "web-1", "clean", "-m", "as new").out == "Saved web-1 as clean\n"
    made = fleet.json("machines", "checkpoint", "web-1")["checkpoint"]
    assert (made["name"].startswith("manual-"), made["parent"]) == (True, "clean")
    text = fleet.ok("machines", "show", "web-1").out
    assert "Project:     shop" in " ".join(text.split()).replace("Project: ", "Project:     ")
    answer = fleet.json("machines", "show", "web-1")
    assert answer["machine"]["memory"] == 2 * 1024**3
    assert [one["name"] for one in answer["checkpoints"]] == ["clean", made["name"]]
    shown = fleet.ok("machines", "checkpoints", "web-1").out.splitlines()
    assert shown[1].startswith("clean")
    assert shown[2].startswith(f"└─ {made['name']}")

    assert "confirm with --yes" in fleet("machines", "restore", "web-1", "clean").err
    assert 'did you mean "clean"?' in fleet("machines", "restore", "web-1", "clear", "--yes").err
    assert fleet.ok("machines", "restore", "web-1", "clean", "-y").out == "Put web-1 back to clean; it is stopped\n"


def test_a_script_runs_inside_and_its_exit_code_is_passed_on(fleet: Fleet, two: Host, tmp_path: Path) -> None:
    two.calls()
    script = tmp_path / "script"
    script.write_text("echo hello")
    fleet("machines", "run", "web-1", "--file", str(script))
    fleet("machines", "run", "web-1", "--", "echo", "a b")
    fleet("machines", "run", "web-1", "-f", "-", stdin="id")
    assert two.calls("exec") == [["exec", "web-1", "--", "sudo", "sh", "-s"]] * 3
    two.faults({"command": "exec", "code": 42, "message": "no such thing"})
    result = fleet("machines", "run", "web-1", "--", "false")
    assert (result.code, result.err) == (42, "no such thing\n")
    assert fleet("machines", "run", "web-1").code == 2
    assert fleet("machines", "run", "web-1", "--file", "/no/such").code == 2


def test_images_are_listed(fleet: Fleet, two: Host) -> None:
    assert "24.04" in fleet.ok("machines", "images").out
    assert {image["provider"] for image in fleet.json("machines", "images")["images"]} == {"multipass"}


def fake_ssh(host: Host) -> None:
    program = host.executable.with_name("ssh")
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 7\n')
    program.chmod(0o755)


def test_ssh_goes_on_with_ones_own_keys_where_the_fleet_cannot_get_in(fleet: Fleet, two: Host) -> None:
    fake_ssh(two)
    two.faults({"command": "exec", "code": 2, "message": "exec failed: no agent"})
    result = fleet("machines", "ssh", "web-1", "-l", "me", "--", "uname", "-a")
    address = fleet.json("machines", "show", "web-1")["machine"]["addresses"][0]
    assert result.code == 7
    assert result.out.splitlines() == ["-l", "me", "--", address, "uname", "-a"]
    assert "ssh goes on with your own keys" in result.err
    two.faults({"command": "exec", "code": 2, "message": "exec failed: no agent"})
    assert fleet("machines", "ssh", "web-1", "-l", "me", "--grant").code == 6
    fleet.ok("machines", "stop", "web-1")
    assert "start it with `fleet machines start web-1`" in fleet("machines", "ssh", "web-1").err


def test_ssh_trusts_the_host_key_that_the_provider_told_and_delete_forgets_it(fleet: Fleet, two: Host) -> None:
    fake_ssh(two)
    first = fleet("machines", "ssh", "web-1", "-l", "me")
    assert "web-1: authorize a key" in first.err
    words = first.out.splitlines()
    assert "StrictHostKeyChecking=yes" in words
    assert "HostKeyAlias=web-1" in words
    assert words[words.index("-i") + 1] == str(fleet.state / "machines" / "id_ed25519")
    assert (fleet.state / "machines" / "known_hosts").read_text().startswith("web-1 ssh-ed25519 ")
    assert two.instances()["web-1"]["authorized"] == [(fleet.state / "machines" / "id_ed25519.pub").read_text().strip()]
    two.calls()
    assert fleet("machines", "ssh", "web-1", "-l", "me").out == first.out
    assert two.calls("exec") == []
    fleet.ok("machines", "delete", "web-1", "-y")
    assert not (fleet.state / "machines" / "known_hosts").exists()
    assert two.left() == ["db-1.json", "id_ed25519", "id_ed25519.pub"]


def test_ssh_uses_the_port_and_the_login_of_the_machine(tmp_path: Path) -> None:
    machine = Machine("web", "qemu", "running", ("127.0.0.1",), port=2201, login="debian")
    assert ssh_argv(machine, Keys(tmp_path)) == ["ssh", "-p", "2201", "-l", "debian", "--", "127.0.0.1"]
    with pytest.raises(Conflict, match=r"no address$"):
        check_reachable(Machine("web", "qemu", "running"))


def test_settings_come_from_the_file_the_command_line_and_standard_input(fleet: Fleet, two: Host) -> None:
    fleet.environ["PATH"] = f"{Path(PROGRAM).parent}:/usr/bin:/bin"
    executable = str(two.executable)
    assert fleet("machines", "list", "-p", "multipass").code == 7
    assert len(fleet.json("machines", "list", "-p", "multipass", "-s", f"executable={executable}")["machines"]) == 2
    given = f'{{"executable": "{executable}"}}'
    found = fleet.json("machines", "list", "-p", "multipass", "--settings-input", stdin=given)
    assert len(found["machines"]) == 2
    (fleet.state / "providers.yml").write_text(f"multipass:\n  executable: {executable}\n")
    assert len(fleet.json("machines")["machines"]) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("multipas: {}", 'unknown key "multipas", did you mean "multipass"?'),
        ("multipass: [1]", "multipass: expected a mapping of settings, found list [1]"),
        ("multipass: {exe: 1}", 'settings of provider "multipass": unknown key "exe"'),
        ("multipass: {token_secret: x}", "token_secret is a secret; expected it in the environment"),
        ("a: [", "expected"),
    ],
)
def test_a_wrong_file_of_providers_is_told(fleet: Fleet, text: str, said: str) -> None:
    fleet.state.mkdir(mode=0o700, exist_ok=True)
    (fleet.state / "providers.yml").write_text(text)
    result = fleet("machines")
    assert said in result.err
    assert result.code == 2


def test_a_wrong_setting_is_told_and_a_secret_is_refused(fleet: Fleet) -> None:
    assert "expected --provider beside it" in fleet("machines", "list", "-s", "a=b").err
    assert 'expected KEY=VALUE, found "a"' in fleet("machines", "list", "-p", "multipass", "-s", "a").err
    refused = fleet("machines", "list", "-p", "multipass", "-s", "token_secret=hunter2")
    assert refused.code == 2
    assert "hunter2" not in refused.err
    assert "expected a JSON object" in fleet("machines", "list", "-p", "multipass", "--settings-input", stdin="[]").err
    assert 'did you mean "multipass"?' in fleet("machines", "list", "-p", "multipas").err


def test_a_provider_of_the_file_that_fails_makes_the_list_fail_after_the_others(fleet: Fleet, two: Host) -> None:
    (fleet.state / "providers.yml").write_text("multipass:\n  executable: /no/such/multipass\n")
    result = fleet("machines", "--json")
    assert result.code == 7
    assert result.data["errors"][0]["name"] == "multipass"


def test_names_that_somebody_else_chose_cannot_move_the_cursor(fleet: Fleet, two: Host) -> None:
    (fleet.state / "machines" / "multipass" / "web-1.json").write_text('{"tags": ["\\u001b[2J{{ 7*7 }}\\n"]}')
    out = fleet.ok("machines").out
    assert "\x1b" not in out
    assert "{{ 7*7 }}\\n" in out


def checkpoint(name: str, parent: str = "") -> Checkpoint:
    return Checkpoint(name, "m", parent)


def test_checkpoints_are_drawn_as_a_tree() -> None:
    saved = [
        checkpoint("a"), checkpoint("b", "a"), checkpoint("c", "b"), checkpoint("d", "a"), checkpoint("e", "gone"),
        checkpoint("x", "y"), checkpoint("y", "x"),
    ]  # fmt: skip
    assert [text for text, _one in tree(saved)] == ["a", "├─ b", "│  └─ c", "└─ d", "e", "x", "y"]


def test_names_are_completed_without_asking_a_provider(fleet: Fleet, two: Host) -> None:
    done = subprocess.run(
        [PROGRAM],
        env={
            **fleet.environ,
            "_FLEET_COMPLETE": "complete_bash",
            "COMP_WORDS": "fleet machines stop w",
            "COMP_CWORD": "3",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["web-1"]
    assert two.calls() == []
