# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden images of QEMU, built for real: what is in them, what is not, and what is left of a build that fails."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.requirements import require_tool
from tests.system.vm import Machines
from tests.system.vm.machines import BUILD, SECRET, golden_spec

from fleet_core.errors import ProcessFailed
from fleet_core.golden_images import retained
from fleet_core.images import Image, golden_name
from fleet_machines.provider import Job

pytestmark = pytest.mark.timeout(BUILD + 300)
FIRST = 2048 * 512  # where the root's partition begins


class Sealed:
    """The root file system of an image, looked at from outside."""

    def __init__(self, disk: Path) -> None:
        self.disk = disk

    def ask(self, request: str) -> str:
        """Ask debugfs, which never writes."""
        program = require_tool("debugfs", "to look into an image")
        words = [program, "-R", request, f"{self.disk}?offset={FIRST}"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    def text(self, path: str) -> str:
        return self.ask(f"cat {path}")

    def names(self, folder: str) -> set[str]:
        """The names in a folder, empty when there is none."""
        lines = self.ask(f"ls -p {folder}").splitlines()
        return {line.split("/")[5] for line in lines if line.count("/") >= 6} - {".", ".."}


@pytest.fixture(scope="module")
def sealed(golden: Image, vms: Machines, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sealed]:
    raw = tmp_path_factory.mktemp("sealed") / "disk.raw"
    disk = vms.provider.golden.disk_of(golden.name).path
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(disk), str(raw)], check=True)
    yield Sealed(raw)
    raw.unlink()


def test_an_image_is_named_by_its_inputs_and_stands_alone(vms: Machines, golden: Image) -> None:
    assert golden.name == golden_spec().image_name
    assert golden in vms.provider.images()
    assert not golden.incomplete
    disk = vms.provider.golden.disk_of("fleet-test")
    assert (disk.name, disk.cpu, disk.login) == (golden.name, 2, "fleet")
    assert disk.path.stat().st_mode & 0o222 == 0
    told = json.loads(subprocess.check_output(["qemu-img", "info", "-f", "qcow2", "--output=json", str(disk.path)]))
    assert "backing-filename" not in told
    assert told["virtual-size"] == 4 * 1024**3
    assert golden.size < 600 * 1024**2


def test_the_same_inputs_are_not_built_again(vms: Machines, golden: Image) -> None:
    told: list[str] = []
    again = vms.provider.build_image(golden_spec(), Job.lasting(20, told.append))
    assert again == golden
    assert told == []


def test_nothing_but_the_image_is_left_of_a_build(vms: Machines, golden: Image) -> None:
    folder = vms.provider.folder
    assert {path.name for path in (folder / "images").iterdir()} - {".fleet-test.lock"} == {golden.name}
    assert "build-fleet-test" not in vms.provider.records.all()
    assert not (folder / "build-fleet-test").exists()
    assert [process["id"] for process in vms.fleet.call("processes.list")["processes"]] == []


def test_what_the_build_did_is_in_the_image(sealed: Sealed) -> None:
    assert sealed.text("/etc/fleet-command") == "built\n"
    assert "fleet-cloud-init" in sealed.names("/etc")


def test_a_sealed_image_is_nobody(sealed: Sealed) -> None:
    assert sealed.text("/etc/machine-id") == ""
    assert not [name for name in sealed.names("/etc/ssh") if name.startswith("ssh_host_")]
    assert "random-seed" not in sealed.names("/var/lib/systemd")
    assert sealed.names("/var/lib/cloud/instances") == set()
    assert sealed.names("/var/log/journal") == set()
    assert not sealed.names("/root/.ssh") & {"authorized_keys"}
    assert not sealed.names("/root") & {".bash_history", ".netrc"}
    assert sealed.names("/tmp") == set()
    hashes = [line.split(":")[1] for line in sealed.text("/etc/shadow").splitlines()]
    assert hashes
    assert set(hashes) <= {"*", "!", "!!", "!*"}


def test_what_was_deleted_cannot_be_found_between_the_files(sealed: Sealed) -> None:
    """The blocks of removed files are gone as well: whoever gets the image gets all of its bytes."""
    words = ["grep", "-c", "-a", "-F", SECRET, str(sealed.disk)]
    found = subprocess.run(words, capture_output=True, text=True, check=False)
    assert found.stdout.strip() == "0"


def test_the_file_system_of_a_sealed_image_is_clean(sealed: Sealed) -> None:
    state = sealed.ask("stats -h")
    assert re.search(r"Filesystem state:\s+clean\n", state)
    assert "needs_recovery" not in state


def test_a_failing_check_is_reported_and_leaves_nothing(vms: Machines, golden: Image) -> None:
    """On the image as a file of the host: the guest agent is asked for, and is there."""
    disk = vms.provider.golden.disk_of(golden.name).path
    spec = golden_spec("fleet-bad", checks={"editor": "echo 'no editor is installed' >&2; exit 4"}, commands=())
    spec = type(spec)(**{**vars(spec), "base": disk.as_uri()})
    before = sorted(path.name for path in vms.provider.folder.iterdir())
    told: list[str] = []
    with pytest.raises(ProcessFailed) as error:
        vms.provider.build_image(spec, Job.lasting(BUILD, told.append))
    assert error.value.message == 'image "fleet-bad": check "editor": ended with 4: no editor is installed'
    assert "check editor" in told
    assert [image.name for image in vms.provider.images()] == [golden.name]
    assert sorted(path.name for path in vms.provider.folder.iterdir()) == before
    assert "build-fleet-bad" not in vms.provider.records.all()
    assert vms.fleet.call("processes.list")["processes"] == []


def test_old_images_go_and_those_that_machines_need_stay(vms: Machines, golden: Image) -> None:
    folder = vms.provider.folder / "images"
    names = [golden_name("fleet-test", f"sha256:{digit * 16}") for digit in "abc"]
    for number, name in enumerate(names):
        shutil.copytree(folder / golden.name, folder / name)
        record = json.loads((folder / name / "image.json").read_text())
        (folder / name / "image.json").chmod(0o600)
        (folder / name / "image.json").write_text(json.dumps({**record, "created": f"2020-01-0{number + 1}T00:00:00Z"}))
    assert vms.provider.golden.disk_of("fleet-test").name == golden.name
    surplus = retained(vms.provider.images(), 1, {names[0]})
    assert [image.name for image in surplus] == [names[1]]
    for name in names:
        vms.provider.delete_image(name, vms.job())
    assert [image.name for image in vms.provider.images()] == [golden.name]
