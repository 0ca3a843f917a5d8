# SPDX-License-Identifier: GPL-3.0-or-later
"""The life of a project's machine with QEMU: provisioned, worked in, forked, and gone without a trace."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.machines.playbooks import Hypervisor
from tests.requirements import require_tool
from tests.system.vm.machines import LOGIN, Machines

from fleet_core.images import Image

HOST = "10.0.2.2"  # what a machine with user networking calls its host
FLEET = str(Path(sys.executable).with_name("fleet"))
TASKS = """version: 1
tasks:
  - {name: build, run: "mkdir dist && cp greeting.txt dist/", artifacts: [dist]}
  - {name: test, run: "grep hello dist/greeting.txt && hostname", needs: [build]}
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a repository on this computer's loopback, as a machine reaches it."""
    git = require_tool("git", "to serve a repository to a machine")
    base = tmp_path_factory.mktemp("git")
    work = base / "shop"
    work.mkdir()
    (work / "greeting.txt").write_text("hello from the repository\n")
    (work / "tasks.yml").write_text(TASKS)
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "First"], ["tag", "v1"]):
        names = ["-c", "user.name=Ada", "-c", "user.email=ada@example.com"]
        subprocess.run([git, *names, *words], cwd=work, check=True, capture_output=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [git, "daemon", "--export-all", f"--base-path={base}", "--listen=127.0.0.1", f"--port={port}", str(base)],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 10
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < end, "git daemon does not listen"
            time.sleep(0.1)
        yield f"git://{HOST}:{port}/shop/.git"
    finally:
        os.killpg(server.pid, 15)
        server.wait(10)


def left(vms: Machines) -> dict[str, Any]:
    """What of machines is there: their processes, their claims, their files."""
    environ = {**os.environ, "FLEET_STATE_DIR": str(vms.folder)}

    def fleet(*words: str) -> Any:
        done = subprocess.run([FLEET, "--json", *words], env=environ, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    folder = vms.folder / "machines"
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return {
        "processes": [one["id"] for one in fleet("ps")["processes"]],
        "files": sorted(name for name in names if not name.startswith(("qemu/images/", "id_ed25519"))),
    }


@pytest.mark.timeout(900)
def test_a_project_lives_in_a_machine_of_its_own(vms: Machines, golden: Image, repository: str, tmp_path: Path) -> None:
    before = left(vms)
    more = {
        "machine_provider_settings": vms.settings,
        "machine_defaults": {"image": golden.name, "login": LOGIN, "cpu": 2, "memory": "1G"},
    }
    run = Hypervisor(tmp_path, vms.folder, {}, provider="qemu", more=more)
    project = {
        "provision_project": "shop",
        "provision_repository": repository,
        "provision_ref": "v1",
        "provision_node": False,
        "provision_activate": False,
        "provision_settings": {"TOKEN": "hunter2"},
    }
    work = [
        {"name": "Provision", "ansible.builtin.import_playbook": "autovibe.fleet.machine_provision"},
        {
            "hosts": "provisioned",
            "gather_facts": False,
            "tasks": [
                {
                    "name": "Work in it",
                    "autovibe.fleet.agent_task": {
                        "tasks": [
                            {"name": "build", "run": "mkdir -p dist && cp greeting.txt dist/"},
                            {"name": "test", "run": "cat dist/greeting.txt; hostname", "needs": ["build"]},
                        ],
                        "workdir": "{{ provision_folder }}",
                    },
                    "vars": {"provision_folder": f"/home/{LOGIN}/shop"},
                }
            ],
        },
    ]
    made = run(work, **project)
    said = str(made.of("Work in it", "shop"))
    assert "hello from the repository" in said
    assert "shop" in said
    assert "hunter2" not in made.output
    known = (vms.folder / "machines" / "known_hosts").read_text().splitlines()
    assert [line.split()[:2] for line in known] == [["shop", "ssh-ed25519"]]
    assert run("autovibe.fleet.machine_provision", **project).changed == []

    vms.provider.stop("shop", vms.job())  # two that boot starve each other where they are emulated
    forks = {"machine_forks": [{"from": "shop", "checkpoint": "genesis", "count": 1}]}
    look = {
        "hosts": "shop-fork-1",
        "gather_facts": False,
        "tasks": [{"name": "Look", "ansible.builtin.command": f"sh -c 'hostname; ls -A /home/{LOGIN}/shop'"}],
    }
    forked = run([{"name": "Fork", "ansible.builtin.import_playbook": "autovibe.fleet.machines"}, look], **forks)
    inside = forked.of("Look", "shop-fork-1")["stdout_lines"]
    assert inside[0] == "shop-fork-1"
    assert ".env" in inside
    assert "greeting.txt" in inside
    assert "dist" not in inside  # it was made after the checkpoint
    known = (vms.folder / "machines" / "known_hosts").read_text().splitlines()
    assert len({line.split()[2] for line in known}) == 2

    gone = run("autovibe.fleet.machine_destroy", destroy_machines=["shop", "shop-fork-1"])
    assert "nothing is left on localhost" in gone.output
    assert left(vms) == before
    assert run("autovibe.fleet.machine_destroy", destroy_machines=["shop", "shop-fork-1"]).changed == []
