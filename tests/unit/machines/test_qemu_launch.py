# SPDX-License-Identifier: GPL-3.0-or-later
"""Becoming QEMU, choosing its acceleration, and the seed of cloud-init."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.requirements import REPOSITORY, require_tool

from fleet_core.errors import FleetError, InvalidInput, NotFound, ProcessFailed, StateDamaged, Unavailable
from fleet_core.machines import Network
from fleet_machines import nocloud, qemu_accel, qemu_launch
from fleet_machines.qemu_command import CONFIG, RUN, Hardware

MADE = Hardware("web", "/bin/echo", "q35", 1, 64 * 1024**2, "8a63933a-30a3-4cd8-b10c-a400936eaa51")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / RUN).mkdir()
    (tmp_path / CONFIG).write_text(MADE.to_json())
    return tmp_path


def test_it_becomes_qemu_in_the_machines_folder(folder: Path) -> None:
    for name in ("qmp.sock", "agent.sock"):
        (folder / RUN / name).write_text("stale")
    done = launched(folder)
    assert done.returncode == 0
    assert done.stdout.startswith("-name web -uuid 8a63933a")
    assert list((folder / RUN).iterdir()) == []


def launched(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    import sys

    words = [sys.executable, "-I", "-m", "fleet_machines.qemu_launch", str(folder), "3000", "5900"]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=30, env={**os.environ, **environ})


def test_qemu_gets_no_secrets_of_fleetds_environment(folder: Path) -> None:
    printer = folder / "printer"
    printer.write_text("#!/bin/sh\nenv\n")
    printer.chmod(0o755)
    (folder / CONFIG).write_text(Hardware("web", str(printer), "q35", 1, 2**26, MADE.uuid).to_json())
    done = launched(folder, API_TOKEN="SECRET", FLEET_DEPLOY_KEY="SECRET", FLEET_LAUNCH="mark")
    assert "SECRET" not in done.stdout
    assert "FLEET_LAUNCH=mark" in done.stdout


def test_a_folder_that_is_no_machine_is_told_in_a_sentence(tmp_path: Path) -> None:
    done = launched(tmp_path)
    assert done.returncode == 1
    assert "expected a machine of the provider qemu in that folder" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("mode", [0o666, 0o620])
def test_a_configuration_that_others_can_write_is_refused(folder: Path, mode: int) -> None:
    (folder / CONFIG).chmod(mode)
    with pytest.raises(StateDamaged, match="only its owner can write"):
        qemu_launch.read(folder)


def test_a_run_folder_that_is_a_link_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (folder / RUN).rmdir()
    (folder / RUN).symlink_to(tmp_path_factory.mktemp("elsewhere"))
    assert launched(folder).returncode == 1


def test_damaged_configuration_is_told(folder: Path) -> None:
    (folder / CONFIG).write_text("{")
    with pytest.raises(StateDamaged, match="cannot be read"):
        qemu_launch.read(folder)


def test_a_tap_needs_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(InvalidInput, match='machine "web": network "br0": only root'):
        qemu_launch.open_tap("tap0", "br0", "web")


def test_a_bridge_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(NotFound, match="no such bridge"):
        qemu_launch.open_tap("tap0", "fleet-none", "web")


# -- acceleration -----------------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "qemu"
    path.write_text("#!/bin/sh\nexit 33\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def device(tmp_path: Path) -> str:
    path = tmp_path / "kvm"
    path.write_text("")
    return str(path)


def test_acceleration_needs_a_device_a_processor_and_a_machine_that_ran(
    program: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_accel, "virtualizes", lambda: True)
    asked: list[str] = []
    answers = {"works": True}

    def probe(executable: str, accel: str) -> bool:
        asked.append(executable)
        return answers["works"]

    monkeypatch.setattr(qemu_accel, "probe", probe)
    folder = tmp_path / "state"
    assert qemu_accel.choose("auto", program, folder, device) == "kvm"
    assert qemu_accel.choose("kvm", program, folder, device) == "kvm"
    assert asked == [program]  # the answer is kept
    (folder / qemu_accel.CACHE).unlink()
    answers["works"] = False
    assert qemu_accel.choose("auto", program, folder, device) == "tcg"
    with pytest.raises(Unavailable, match="kvm was asked for, but a machine that was started to try it"):
        qemu_accel.choose("kvm", program, folder, device)
    assert qemu_accel.choose("tcg", program, folder, device) == "tcg"


@pytest.mark.parametrize(("mode", "fits"), [(0o600, False), (0o666, True)])
def test_machines_with_users_of_their_own_must_reach_the_device(
    mode: int, fits: bool, program: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qemu_accel, "virtualizes", lambda: True)
    monkeypatch.setattr(qemu_accel, "probe", lambda executable, accel: True)
    Path(device).chmod(mode)
    expected = "kvm" if fits else "tcg"
    assert qemu_accel.choose("auto", program, tmp_path / "state", device, own_user=True) == expected
    assert qemu_accel.choose("auto", program, tmp_path / "state", device) == "kvm"


def test_another_program_is_tried_anew(program: str, device: str, tmp_path: Path) -> None:
    first = qemu_accel._key(program)
    Path(program).write_text("#!/bin/sh\nexit 1\n")
    assert qemu_accel._key(program) != first


@pytest.mark.parametrize(
    ("wanted", "message"), [("fast", "expected auto, kvm, tcg, found 'fast'"), ("kvm", "cannot be opened")]
)
def test_acceleration_that_cannot_be_is_refused(wanted: str, message: str, program: str, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match=message):
        qemu_accel.choose(wanted, program, tmp_path, str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("flags", "modules", "expected"),
    [("fpu vmx sse", (), True), ("fpu svm", (), True), ("fpu sse", ("kvm_amd",), True), ("fpu", ("kvm",), False)],
)
def test_a_processor_that_virtualizes_says_so(
    flags: str, modules: tuple[str, ...], expected: bool, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor: 0\nflags\t\t: {flags}\n")
    for name in modules:
        (tmp_path / name).mkdir()
    assert qemu_accel.virtualizes(str(tmp_path / "cpuinfo"), str(tmp_path)) is expected


@pytest.mark.parametrize(("code", "expected"), [(33, True), (1, False), (0, False)])
def test_a_probe_works_when_its_guest_says_so(code: int, expected: bool, tmp_path: Path) -> None:
    path = tmp_path / "qemu"
    path.write_text(f"#!/bin/sh\nexit {code}\n")
    path.chmod(0o755)
    assert qemu_accel.probe(str(path), "kvm") is expected


def test_a_probe_that_hangs_is_ended(tmp_path: Path) -> None:
    path = tmp_path / "qemu"
    path.write_text("#!/bin/sh\nexec sleep 60\n")
    path.chmod(0o755)
    assert not qemu_accel.probe(str(path), "kvm", 0.2)


def test_the_probes_guest_runs_for_real() -> None:
    program = require_tool("qemu-system-x86_64", "to run the guest of the probe")
    assert qemu_accel.probe(program, "tcg", 30)


# -- the seed ---------------------------------------------------------------------------------------------------------


def test_networks_are_found_by_their_hardware_address() -> None:
    networks = [
        Network("user", "52:54:00:00:00:01"),
        Network("br0", "52:54:00:00:00:02", "10.0.0.2/24", "10.0.0.1"),
        Network("br1", "52:54:00:00:00:03", "fd00::2/64", "fd00::1"),
    ]
    found = json.loads(nocloud.network_config(networks))
    assert found["version"] == 2
    first, second, third = found["ethernets"].values()
    assert first == {
        "match": {"macaddress": "52:54:00:00:00:01"},
        "set-name": "net0",
        "dhcp4": True,
        "dhcp-identifier": "mac",
    }
    assert second["addresses"] == ["10.0.0.2/24"]
    assert second["routes"] == [{"to": "0.0.0.0/0", "via": "10.0.0.1"}]
    assert third["routes"] == [{"to": "::/0", "via": "fd00::1"}]
    assert nocloud.network_config([]) == ""


def test_a_network_config_fits_cloud_inits_own_schema() -> None:
    schema = REPOSITORY / "plugins/plugin_utils/cloud_init_schemas/schema-network-config-v2.json"
    networks = [
        Network("user", "52:54:00:00:00:01"),
        Network("br0", "52:54:00:00:00:02", "10.0.0.2/24", "10.0.0.1"),
        Network("br1", "52:54:00:00:00:03", "fd00::2/64", "fd00::1"),
    ]
    jsonschema.validate(json.loads(nocloud.network_config(networks)), json.loads(schema.read_text()))


def test_a_seed_holds_its_files_and_is_private(tmp_path: Path) -> None:
    reader = require_tool("xorriso", "to read a seed image")
    path = tmp_path / "seed.iso"
    nocloud.build(path, "#cloud-config\npassword: SECRET\n", nocloud.meta_data("i-1", "web"), "{}", "#!/bin/sh\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["seed.iso"]
    words = [reader, "-osirrox", "on", "-indev", str(path), "-extract", "/", str(tmp_path / "out")]
    subprocess.run(words, check=True, capture_output=True)
    assert (tmp_path / "out/user-data").read_text() == "#cloud-config\npassword: SECRET\n"
    assert json.loads((tmp_path / "out/meta-data").read_text()) == {"instance-id": "i-1", "local-hostname": "web"}
    assert {one.name for one in (tmp_path / "out").iterdir()} == {
        "user-data",
        "meta-data",
        "network-config",
        "vendor-data",
    }
    assert b"CD001" in path.read_bytes()[: 17 * 2048 + 10]
    assert b"cidata" in path.read_bytes()[16 * 2048 : 17 * 2048]


def test_without_a_tool_the_packages_are_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"expected one of xorriso, genisoimage, mkisofs, hdiutil.*install xorriso"):
        nocloud.build(tmp_path / "x", None, "", which=lambda name: None)


def test_a_tool_that_fails_shows_no_secret_and_leaves_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "xorriso"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho no room >&2\nexit 5\n")
    broken.chmod(0o755)
    which: Any = {"xorriso": str(broken)}.get
    with pytest.raises(ProcessFailed, match="ended with 5: no room") as raised:
        nocloud.build(tmp_path / "seed", "SECRET", "meta", which=which)
    assert "SECRET" not in str(raised.value)
    assert [one.name for one in tmp_path.iterdir()] == ["bin"]
