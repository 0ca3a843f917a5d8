# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden images with real disks and a machine that only pretends to run: refusals, failures, crashes, caches."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.requirements import require_success, require_tool

from fleet_core.errors import (
    Conflict,
    FleetError,
    InvalidInput,
    NotFound,
    ProcessFailed,
    StateDamaged,
    TimedOut,
    Unavailable,
)
from fleet_core.images import ImageSpec
from fleet_core.machines import Machine, MachineSpec
from fleet_machines import qemu_base, qemu_base_debian
from fleet_machines.provider import Job, Ran
from fleet_machines.qemu_base import Bases, clear
from fleet_machines.qemu_disks import Disks
from fleet_machines.qemu_images import LAST_WORDS, Disk, QemuImages
from fleet_machines.qemu_images_user_data import with_agent

MIB = 1024**2


def image_tool(*words: object) -> str:
    program = require_tool("qemu-img", "to make disks")
    return subprocess.run([program, *map(str, words)], check=True, capture_output=True, text=True).stdout


class Pretender:
    """A provider whose machines have real disks, and answer scripts as the test says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings: Mapping[str, Any] = {}
        self.disks = Disks(folder)
        self.states: dict[str, str] = {}
        self.made: list[MachineSpec] = []
        self.scripts: list[str] = []
        self.answers: Callable[[str], Ran] = lambda script: Ran(0)
        self.failure: FleetError | None = None
        self.refused = ""

    def create(self, spec: MachineSpec, job: Job, *, role: str = "", backing: Disk | None = None) -> Machine:
        assert role == "build"
        assert backing is not None
        self.made.append(spec)
        self.disks.make(spec.name, -1)
        self.disks.link_base(spec.name, backing.path, "test", -1)
        self.disks.create(spec.name, backing.format, spec.disk or 0, -1, job, fine=True)
        self.states[spec.name] = "running"
        if self.failure:
            raise self.failure
        disk = self.disks.run_folder(spec.name) / "disk.qcow2"
        writer = require_tool("qemu-io", "to write into a disk")
        subprocess.run([writer, "-f", "qcow2", "-c", "write -P 7 1M 64k", str(disk)], check=True, capture_output=True)
        return Machine(spec.name, "qemu")

    def run(self, name: str, script: str, job: Job) -> Ran:
        assert self.states[name] == "running"
        self.scripts.append(script)
        if script == LAST_WORDS:
            self.states[name] = "stopped"
        return self.answers(script)

    def stop(self, name: str, job: Job, *, force: bool = False) -> None:
        self.states[name] = "stopped"

    def delete(self, name: str, job: Job) -> None:
        self.disks.remove(name)
        self.states.pop(name, None)

    def state(self, name: str) -> str:
        return self.states.get(name, "") or ("stopped" if self.disks.of(name).exists() else "")

    def role(self, name: str) -> str:
        return "build" if self.state(name) else ""

    def serial_tail(self, name: str) -> str:
        return "Kernel panic\n not syncing"

    def flatten(self, name: str, target: Path, job: Job, options: Sequence[str] = ()) -> None:
        if self.refused and self.refused in options:
            target.write_bytes(b"half")
            raise ProcessFailed(
                f'machine "{name}": qemu-img convert: it ended with 1: compression type is not supported'
            )
        self.disks.flatten(name, target, -1, job, options)


@pytest.fixture
def host(tmp_path: Path) -> Pretender:
    require_tool("qemu-img", "to make disks")
    return Pretender(tmp_path / "qemu")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A raw disk whose first sector is a boot record and whose second MiB is full of the number 5."""
    path = tmp_path / "base.raw"
    path.write_bytes(bytes(510) + b"\x55\xaa" + bytes(MIB - 512) + b"\5" * MIB)
    return path


def spec_of(base: object, name: str = "python", **fields: Any) -> ImageSpec:
    given: dict[str, Any] = {
        "disk": 8 * MIB,
        "commands": ("true",),
        "checks": {"python": "python3 --version"},
        **fields,
    }
    return ImageSpec(name, "qemu", str(base), **given)


def job(told: list[str] | None = None, seconds: float = 30) -> Job:
    return Job.lasting(seconds, (told if told is not None else []).append)


def left(host: Pretender) -> set[str]:
    """What is there beside locks."""
    return {
        str(path.relative_to(host.folder))
        for path in host.folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


# -- building ---------------------------------------------------------------------------------------------------------


def test_an_image_holds_its_base_and_what_the_machine_wrote(host: Pretender, base: Path, tmp_path: Path) -> None:
    told: list[str] = []
    image = QemuImages(host).build(spec_of(base, cpu=3, memory=512 * MIB, login="fleet"), job(told))
    assert image.name == spec_of(base, login="fleet").image_name
    assert (image.incomplete, image.release) == ("", str(base))
    disk = QemuImages(host).disk_of("python")
    assert (disk.name, disk.size, disk.cpu, disk.memory, disk.login) == (image.name, 8 * MIB, 3, 512 * MIB, "fleet")
    image_tool("convert", "-f", "qcow2", "-O", "raw", disk.path, tmp_path / "raw")
    content = (tmp_path / "raw").read_bytes()
    assert content[510:512] == b"\x55\xaa"
    assert content[MIB : MIB + 65536] == b"\7" * 65536
    assert content[MIB + 65536 : 2 * MIB] == b"\5" * (MIB - 65536)
    assert image.detail["checksum"] == "sha256:" + hashlib.sha256(disk.path.read_bytes()).hexdigest()
    assert left(host) == {f"images/{image.name}/disk.qcow2", f"images/{image.name}/image.json"}
    assert told == [
        f"boot {base}",
        "wait for cloud-init",
        "command 1 of 1",
        "check python",
        "seal it",
        "power it off",
        "compress it",
    ]
    assert host.scripts[-1] == LAST_WORDS


def test_the_same_inputs_boot_nothing(host: Pretender, base: Path) -> None:
    images = QemuImages(host)
    first = images.build(spec_of(base), job())
    base.unlink()
    assert images.build(spec_of(base), job()) == first
    assert len(host.made) == 1


def test_other_inputs_make_another_image_of_the_family(host: Pretender, base: Path) -> None:
    images = QemuImages(host)
    old = images.build(spec_of(base), job())
    new = images.build(spec_of(base, commands=("false",)), job())
    assert {image.name for image in images.all()} == {old.name, new.name}
    assert old.family == new.family == "python"


def test_user_data_stay_as_they_are_beside_the_guest_agent(host: Pretender, base: Path) -> None:
    QemuImages(host).build(spec_of(base, user_data="#cloud-config\nruncmd: [[touch, /x]]\n"), job())
    (made,) = host.made
    assert made.user_data is not None
    assert made.user_data.startswith("Content-Type: multipart/mixed")
    assert (made.image, made.disk) == ("", 8 * MIB)


def test_two_builds_of_one_image_at_once_make_one(host: Pretender, base: Path) -> None:
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(QemuImages(host).build(spec_of(base), job()).created))
        for _number in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert len(set(found)) == len(host.made) == 1


def test_without_zstd_the_image_is_compressed_with_zlib(host: Pretender, base: Path) -> None:
    host.refused = "compression_type=zstd"
    image = QemuImages(host).build(spec_of(base), job())
    told = json.loads(image_tool("info", "--output=json", host.folder / "images" / image.name / "disk.qcow2"))
    assert told["format-specific"]["data"]["compression-type"] == "zlib"


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_machine_that_does_not_boot_is_told_with_its_console(host: Pretender, base: Path) -> None:
    host.failure = TimedOut('machine "build-python": it did not come up within 5m')
    with pytest.raises(TimedOut) as error:
        QemuImages(host).build(spec_of(base), job())
    assert error.value.message == (
        'image "python": machine "build-python": it did not come up within 5m; its console said last: '
        "Kernel panic not syncing"
    )
    assert left(host) == set()


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("echo-command", 'image "python": command 1: ended with 3: it broke'),
        ("python3 --version", 'image "python": check "python": ended with 3: it broke'),
        ("no SSH host keys", 'image "python": sealing: ended with 3: it broke'),
    ],
)
def test_a_step_that_fails_leaves_nothing(host: Pretender, base: Path, marker: str, said: str) -> None:
    host.answers = lambda script: Ran(3, "", "much\nit broke\n") if marker in script else Ran(0)
    with pytest.raises(ProcessFailed) as error:
        QemuImages(host).build(spec_of(base, commands=("echo-command",)), job())
    assert error.value.message == said
    assert left(host) == set()
    assert host.states == {}
    assert QemuImages(host).all() == ()


def test_the_first_error_counts_when_cleaning_fails_as_well(
    host: Pretender, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(name: str, job: Job) -> None:
        raise Unavailable("fleetd: it is gone")

    host.answers = lambda script: Ran(3, "", "it broke")
    monkeypatch.setattr(host, "delete", gone)
    with pytest.raises(ProcessFailed, match="it broke"):
        QemuImages(host).build(spec_of(base), job())
    monkeypatch.undo()
    host.answers = lambda script: Ran(0)
    assert not QemuImages(host).build(spec_of(base), job()).incomplete


def test_a_machine_that_does_not_power_off_is_made_to(host: Pretender, base: Path, monkeypatch: Any) -> None:
    def still(script: str) -> Ran:
        host.states["build-python"] = "running"
        return Ran(0)

    host.answers = still
    with monkeypatch.context() as patched:
        patched.setattr("fleet_machines.qemu_images.POWER_OFF", 0.2)
        assert not QemuImages(host).build(spec_of(base), job()).incomplete


def test_what_a_killed_build_leaves_is_seen_and_cleaned_by_the_next(host: Pretender, base: Path) -> None:
    def die(script: str) -> Ran:
        if script.endswith("echo-command\n"):
            os.kill(os.getpid(), signal.SIGKILL)
        return Ran(0)

    child = os.fork()
    if not child:
        host.answers = die
        try:
            QemuImages(host).build(spec_of(base, commands=("echo-command",)), job())
        finally:
            os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    images = QemuImages(host)
    (found,) = images.all()
    assert found.name == spec_of(base, commands=("echo-command",)).image_name
    assert found.incomplete == "its build was interrupted"
    with pytest.raises(NotFound):
        images.disk_of("python")
    with pytest.raises(Conflict, match="it cannot be used: its build was interrupted"):
        images.disk_of(found.name)
    assert host.disks.of("build-python").exists()
    built = images.build(spec_of(base, commands=("echo-command",)), job())
    assert not built.incomplete
    assert left(host) == {f"images/{built.name}/disk.qcow2", f"images/{built.name}/image.json"}


def test_what_a_killed_build_leaves_can_be_deleted(host: Pretender, base: Path) -> None:
    images = QemuImages(host)
    name = spec_of(base).image_name
    work = host.folder / "images" / f".building-{name}"
    work.mkdir(parents=True)
    assert [image.incomplete for image in images.all()] == ["a part of it is missing; delete it, and build it again"]
    images.delete(name, job())
    assert images.all() == ()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"base": 1}'])
def test_a_damaged_record_hides_no_image(host: Pretender, base: Path, content: str) -> None:
    images = QemuImages(host)
    name = images.build(spec_of(base), job()).name
    record = host.folder / "images" / name / "image.json"
    record.chmod(0o600)
    record.write_text(content)
    assert [image.name for image in images.all() if image.incomplete] == [name]
    with pytest.raises(Conflict):
        images.disk_of(name)
    assert not images.build(spec_of(base), job()).incomplete


# -- deleting ---------------------------------------------------------------------------------------------------------


def test_a_machine_keeps_the_file_of_an_image_that_is_deleted(host: Pretender, base: Path) -> None:
    images = QemuImages(host)
    image = images.build(spec_of(base), job())
    host.disks.make("one", -1)
    host.disks.link_base("one", images.disk_of("python").path, "test", -1)
    images.delete(image.name, job())
    assert images.all() == ()
    assert left(host) == {"one/base"}
    content = (host.folder / "one" / "base").read_bytes()
    assert image.detail["checksum"] == "sha256:" + hashlib.sha256(content).hexdigest()


def test_deleting_what_is_not_there_is_told(host: Pretender) -> None:
    with pytest.raises(NotFound, match='image "none": there is no golden image of that name'):
        QemuImages(host).delete("none", job())


def test_a_name_never_leaves_the_folder(host: Pretender, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    with pytest.raises(NotFound):
        QemuImages(host).delete("../precious", job())
    with pytest.raises(NotFound):
        QemuImages(host).disk_of("../precious")
    assert (tmp_path / "precious").is_dir()


# -- bases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("/nowhere/disk.qcow2", "there is no file /nowhere/disk.qcow2"),
        ("disk.qcow2", "expected debian:12 or debian:13, https://..., or the path of a qcow2 or raw disk"),
        ("../disk.qcow2", "expected debian:12 or debian:13"),
        ("file://elsewhere/disk.qcow2", "expected debian:12 or debian:13"),
        ("ftp://mirror.test/disk.qcow2", "expected debian:12 or debian:13"),
        ("debian:99", "expected one of debian:12, debian:13"),
        ("https://mirror.test/disk.qcow2", "expected the checksum of the file"),
        ("/etc/passwd", "found neither"),
        ("/dev/zero", "expected a file, found something else"),
    ],
)
def test_a_base_that_is_none_is_refused_before_anything_is_made(host: Pretender, reference: str, said: str) -> None:
    with pytest.raises(FleetError) as error:
        QemuImages(host).build(spec_of(reference), job())
    assert said in error.value.message
    assert host.made == []
    assert left(host) == set()


def test_a_base_with_a_backing_file_is_refused(host: Pretender, base: Path, tmp_path: Path) -> None:
    """Whoever gives such a file would read any file of this host from inside the machine."""
    overlay = tmp_path / "overlay.qcow2"
    image_tool("create", "-f", "qcow2", "-b", base, "-F", "raw", overlay)
    with pytest.raises(InvalidInput, match=r"it has a backing file, .*base\.raw"):
        QemuImages(host).build(spec_of(overlay), job())


def test_a_base_with_its_data_elsewhere_is_refused(host: Pretender, tmp_path: Path) -> None:
    image_tool("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", tmp_path / "head.qcow2", "4M")
    with pytest.raises(InvalidInput, match="its data are in another file"):
        QemuImages(host).build(spec_of(tmp_path / "head.qcow2"), job())


def test_a_disk_smaller_than_the_base_is_refused(host: Pretender, base: Path) -> None:
    with pytest.raises(InvalidInput, match="disk: expected at least the 2M of its base, found 1M"):
        QemuImages(host).build(spec_of(base, disk=MIB), job())
    assert left(host) == set()


def test_the_checksum_of_a_file_is_verified(host: Pretender, base: Path) -> None:
    right = "sha256:" + hashlib.sha256(base.read_bytes()).hexdigest()
    with pytest.raises(InvalidInput, match=f"expected sha256:{'0' * 64}, found {right}"):
        QemuImages(host).build(spec_of(base, checksum=f"sha256:{'0' * 64}"), job())
    assert not QemuImages(host).build(spec_of(base.as_uri(), checksum=right), job()).incomplete


@pytest.fixture
def web(base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(base.parent))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_words: None)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_base_is_downloaded_once_for_all_images(host: Pretender, base: Path, web: str) -> None:
    checksum = "sha256:" + hashlib.sha256(base.read_bytes()).hexdigest()
    reference = f"{web}/{base.name}"
    images = QemuImages(host)
    images.build(spec_of(reference, checksum=checksum), job())
    base.unlink()
    other = images.build(spec_of(reference, "other", checksum=checksum), job())
    assert not other.incomplete


# -- bases from packages ----------------------------------------------------------------------------------------------


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pretend to build from packages; return what was built."""
    found: list[str] = []

    def build(base: qemu_base_debian.DebianBase, work: Path, job: Job, held: Sequence[int] = ()) -> Path:
        found.append(base.name)
        image_tool("create", "-q", "-f", "qcow2", work / "disk.qcow2", "4M")
        return work / "disk.qcow2"

    def debian_base(reference: str, job: Job, mirror: str = "") -> qemu_base_debian.DebianBase:
        return qemu_base_debian.DebianBase(reference, "bookworm", "amd64", (mirror,), ())

    monkeypatch.setattr(qemu_base_debian, "build", build)
    monkeypatch.setattr(qemu_base_debian, "debian_base", debian_base)
    return found


def test_a_base_from_packages_is_built_once(tmp_path: Path, built: list[str]) -> None:
    cache = tmp_path / "cache"
    first = Bases(cache).debian("debian:12", job())
    assert Bases(cache).debian("debian:12", job()) == first
    assert first.path.stat().st_mode & 0o222 == 0
    assert len(built) == 1
    assert {path.name for path in cache.iterdir() if not path.name.endswith(".lock")} == {first.path.name}


def test_other_inputs_make_another_base(tmp_path: Path, built: list[str]) -> None:
    one = Bases(tmp_path / "cache", "http://one.test/debian").debian("debian:12", job())
    two = Bases(tmp_path / "cache", "http://two.test/debian").debian("debian:12", job())
    assert one.path != two.path


def test_an_old_base_is_built_anew(tmp_path: Path, built: list[str]) -> None:
    found = Bases(tmp_path / "cache").debian("debian:12", job())
    old = time.time() - qemu_base.LONGEST_USE - 1
    os.utime(found.path, (old, old))
    Bases(tmp_path / "cache").debian("debian:12", job())
    assert len(built) == 2


def test_an_image_that_is_built_again_gets_the_packages_of_today(tmp_path: Path, built: list[str]) -> None:
    found = Bases(tmp_path / "cache").debian("debian:12", job())
    old = time.time() - 2 * qemu_base.A_DAY
    os.utime(found.path, (old, old))
    Bases(tmp_path / "cache").resolve(spec_of("debian:12"), job())
    assert len(built) == 1
    Bases(tmp_path / "cache").resolve(spec_of("debian:12", build="again"), job())
    assert len(built) == 2


def test_many_at_once_build_one_base(tmp_path: Path, built: list[str]) -> None:
    threads = [
        threading.Thread(target=lambda: Bases(tmp_path / "cache").debian("debian:12", job())) for _number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


def test_what_a_killed_base_build_left_is_removed(tmp_path: Path, built: list[str]) -> None:
    cache = tmp_path / "cache"
    name = qemu_base_debian.debian_base("debian:12", job()).name
    (cache / f".{name}.work" / "rootfs" / "etc").mkdir(parents=True)
    Bases(cache).debian("debian:12", job())
    assert not (cache / f".{name}.work").exists()


def test_a_folder_with_something_mounted_is_never_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    (work / "rootfs" / "dev").mkdir(parents=True)
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"22 1 0:21 / {work}/rootfs/dev rw shared:7 - devtmpfs udev rw\n")
    monkeypatch.setattr(qemu_base, "MOUNTS", str(mounts))
    with pytest.raises(StateDamaged, match="something is mounted below it"):
        clear(work)
    assert (work / "rootfs" / "dev").is_dir()


def test_only_the_mirrors_of_this_host_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "indextargets": "http://a.test/debian/ bookworm main Debian\n"
        "http://a.test/debian/ bookworm-updates main Debian\n"
        "http://b.test/x/ stable main Other\nhttp://a.test/debian/ bookworm contrib Debian\n",
        "dump": 'Acquire::http::Proxy "http://me:secret@proxy.test";\nAPT::Other "x";\n',
    }
    monkeypatch.setattr(qemu_base_debian, "_apt", lambda command, what, job: said[command[1]].splitlines())
    monkeypatch.setattr(qemu_base_debian, "_own_suite", lambda: "bookworm")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    found = qemu_base_debian.debian_base("debian:13", job())
    signed = f"deb [signed-by={qemu_base_debian.KEYRING}]"
    assert found.sources == (
        f"{signed} http://a.test/debian/ trixie main",
        f"{signed} http://a.test/debian/ trixie-updates main",
    )
    assert found.options == ('Acquire::http::Proxy "http://me:secret@proxy.test"',)
    assert "secret" not in found.name


def test_a_host_without_lists_of_packages_has_sources_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {
        "update": "'http://a.test/debian/dists/bookworm/InRelease' a.test_debian_InRelease 0 \n"
        "'http://a.test/debian-security/dists/bookworm-security/InRelease' a.test_InRelease 0 \n"
        "'http://b.test/docker/dists/bookworm/InRelease' b.test_InRelease 0 \n",
    }
    monkeypatch.setattr(qemu_base_debian, "_apt", lambda command, what, job: said.get(command[1], "").splitlines())
    monkeypatch.setattr(qemu_base_debian, "_own_suite", lambda: "bookworm")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    found = qemu_base_debian.debian_base("debian:13", job())
    assert [line.partition("] ")[2] for line in found.sources] == [
        "http://a.test/debian-security/ trixie-security main",
        "http://a.test/debian/ trixie main",
    ]


def test_a_mirror_with_a_password_is_refused() -> None:
    with pytest.raises(InvalidInput) as error:
        qemu_base_debian.debian_base("debian:12", job(), "http://me:secret@mirror.test/debian")
    assert "secret" not in error.value.message


_MERGE = """
import os, sys, tempfile
from cloudinit import helpers, user_data
from cloudinit.handlers.cloud_config import CloudConfigPartHandler
folder = tempfile.mkdtemp()
paths = helpers.Paths({"cloud_dir": folder, "run_dir": folder})
handler = CloudConfigPartHandler(paths)
handler.cloud_fn = os.path.join(folder, "merged")
def take(*words):
    handler.handle_part(None, *words)
take("__begin__", None, None, None, None)
for part in user_data.UserDataProcessor(paths).process(sys.stdin.read()).walk():
    if not part.is_multipart():
        text = part.get_payload(decode=True).decode()
        take(part.get_content_type(), part.get_filename(), text, "always", dict(part))
take("__end__", None, None, None, None)
print(open(handler.cloud_fn).read())
"""


def test_cloud_init_itself_adds_the_agent_to_what_was_given() -> None:
    python = "/usr/bin/python3"
    require_success([python, "-c", "import cloudinit"], "to merge user data as a machine does")
    given = with_agent("#cloud-config\npackages: [git]\nruncmd:\n  - [touch, /a]\n")
    done = subprocess.run([python, "-c", _MERGE], input=given, capture_output=True, text=True, check=True)
    merged = yaml.safe_load(done.stdout)
    assert merged["packages"] == ["git"]
    assert merged["runcmd"][0] == ["touch", "/a"]
    assert "qemu-guest-agent" in merged["runcmd"][1]
    assert len(merged["runcmd"]) == 2


def test_the_settings_of_a_base_are_valid_for_cloud_init(tmp_path: Path) -> None:
    """It would say at each boot that they are not, and newer ones call the machine degraded."""
    path = tmp_path / "settings.yml"
    path.write_text("#cloud-config\n" + qemu_base_debian.CLOUD_CONFIG)
    require_success(["cloud-init", "schema", "--config-file", str(path)], "to validate its settings")
