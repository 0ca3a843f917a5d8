# SPDX-License-Identifier: GPL-3.0-or-later
"""The role golden_image and its playbook, on a host with Multipass."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.fakes.multipass_host import Host
from tests.integration.machines.playbooks import REPOSITORY, Hypervisor

from fleet_core.images import family_of
from fleet_core.machines import MachineSpec
from fleet_machines.provider import Job

SECRET = "hunter2-in-user-data"
PYTHON = {"name": "python", "base": "24.04", "template": "python", "disk": "10G"}
PLAIN = {
    "name": "plain",
    "base": "22.04",
    "user_data": f"#cloud-config\npassword: {SECRET}\n",
    "checks": [{"name": "shell", "run": "test -x /bin/sh"}],
}
PLAYBOOK = "autovibe.fleet.golden_images"
VARS = yaml.safe_load((REPOSITORY / "roles/golden_image/vars/main.yml").read_text())


@pytest.fixture
def run(host: Host, tmp_path: Path) -> Hypervisor:
    return Hypervisor(tmp_path, host.state_dir, host.environ, more={"golden_image_provider": "multipass"})


def results(run: Any, task: str = "Build images whose inputs changed") -> dict[str, Any]:
    return {family_of(one["image"]["name"]): one for one in run.of(task)["results"] if one["image"]}


def test_images_are_predicted_built_once_and_drift_is_told(run: Hypervisor, host: Host) -> None:
    both = {"golden_image_images": [PYTHON, PLAIN]}
    predicted = run(PLAYBOOK, "--check", "--diff", **both)
    assert host.instances() == {}
    assert [one["built"] for one in predicted.of("Build images")["results"]] == [True, True]

    made = run(PLAYBOOK, "--diff", **both)
    assert SECRET not in made.output
    images = results(made)
    assert made.of("Note the images")["ansible_facts"]["golden_image_newest"] == {
        family: one["image"]["name"] for family, one in images.items()
    }
    instance = host.instances()[images["python"]["image"]["name"]]
    assert instance["sealed"]
    assert "nobody@golden-image" in instance["user_data"]
    scripts = "".join(instance["scripts"])
    for check in (VARS["_golden_image_steps"], *VARS["_golden_image_checks"]["python"]):
        assert check["run"].strip() in scripts
    assert "test -x /bin/sh" in "".join(host.instances()[images["plain"]["image"]["name"]]["scripts"])
    assert images["python"]["image"]["detail"]["login"] == "dev"
    assert "Tell which machines" not in [name for name, _host in made.results if "msg" in made.of(name)]

    again = run(PLAYBOOK, **both)
    assert again.changed == []
    assert again.of("Note the machines that have drifted")["ansible_facts"]["golden_image_drifted"] == []

    host.adapter().create(MachineSpec("dev-1", "multipass", image="plain"), Job.lasting(60))
    other = {"golden_image_images": [PYTHON, {**PLAIN, "commands": ["true"]}], "golden_image_keep": 0}
    changed = run(PLAYBOOK, **other)
    built = results(changed)
    assert (built["python"]["built"], built["plain"]["reason"]) == (
        *(False, f"commands changed since {images['plain']['image']['name']}"),
    )
    (told,) = changed.of("Tell which machines run an older image")["msg"]
    assert told.startswith("machine dev-1 runs plain-")
    assert images["plain"]["image"]["name"] in host.instances()  # dev-1 runs it
    failed = run(PLAYBOOK, "--tags", "golden_image_report", fails=True, **other, golden_image_fail_on_drift=True)
    assert "machine dev-1 runs plain-" in failed.failure


def test_families_are_removed_and_one_in_use_is_not(run: Hypervisor, host: Host) -> None:
    wanted = {"golden_image_images": [PLAIN]}
    run(PLAYBOOK, **wanted)
    adapter = host.adapter()
    adapter.create(MachineSpec("dev-1", "multipass", image="plain"), Job.lasting(60))
    refused = run(PLAYBOOK, fails=True, **wanted, golden_image_state="absent")
    assert 'image "plain": it is in use' in refused.failure
    adapter.delete("dev-1", Job.lasting(60))
    run(PLAYBOOK, **wanted, golden_image_state="absent")
    assert host.instances() == {}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([PLAIN, PLAIN], 'image "plain": expected each name once'),
        ([{**PLAIN, "template": "python"}], 'image "plain": expected template or user_data, found both'),
        ([{"name": "plain"}], 'image "plain": expected a base to build it on'),
        ([{**PYTHON, "template": "pyhton"}], 'cloud-init template "pyhton": not found, did you mean "python"?'),
        ([{**PYTHON, "values": {"timezne": "x"}}], 'did you mean "timezone"?'),
    ],
)
def test_wrong_images_are_one_sentence(run: Hypervisor, host: Host, images: Any, message: str) -> None:
    failed = run(PLAYBOOK, fails=True, golden_image_images=images)
    assert message in failed.failure
    assert host.instances() == {}


def test_every_shipped_template_is_verified(run: Hypervisor, host: Host) -> None:
    known = {path.name.removesuffix(".yml.j2") for path in (REPOSITORY / "templates/cloud-init").glob("*.yml.j2")}
    assert set(VARS["_golden_image_checks"]) == known
    agent = {
        **PYTHON,
        "name": "agent",
        "template": "agent",
        "login": "ada",
        "values": {"runners": ["claude", "codex"], "fleet_package": "autovibe-fleet==0.1.0"},
    }
    hub = {**PYTHON, "name": "hub", "template": "hub"}
    nodejs = {**PYTHON, "name": "nodejs", "template": "nodejs"}
    run(PLAYBOOK, golden_image_images=[agent, hub, nodejs], golden_image_values={"timezone": "Europe/Paris"})
    scripts = {family_of(name): "".join(one["scripts"]) for name, one in host.instances().items()}
    assert "/opt/autovibe/runners/bin/codex --version" in scripts["agent"]
    assert "fleet --version" in scripts["agent"]
    assert "fleet --version" not in scripts["hub"]
    assert "pg_isready" in scripts["hub"]
    assert "yarn --version" in scripts["nodejs"]
    assert all("Europe/Paris" in one["user_data"] for one in host.instances().values())
    (made,) = (one for name, one in host.instances().items() if family_of(name) == "agent")
    assert "name: ada" in made["user_data"].replace('"', "")


@pytest.mark.parametrize(
    "script", [check["run"] for checks in VARS["_golden_image_checks"].values() for check in checks]
)
def test_the_checks_are_shell(script: str) -> None:
    done = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
