# SPDX-License-Identifier: GPL-3.0-or-later
"""The provider qemu with a real fleetd, a real QEMU and real disks; the guest is a boot sector that halts."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.fleetd import Fleet, alive, running, wait_for
from tests.requirements import require_linux, require_root, require_tool

from fleet_core.errors import Conflict, FleetError, InvalidInput, NotFound, TimedOut, Unavailable
from fleet_core.images import ImageSpec
from fleet_core.machine_plans import plan
from fleet_core.machines import MachineSpec, Network, machine_spec
from fleet_machines import batches, providers, qemu, qemu_create
from fleet_machines.provider import Job, Surroundings
from fleet_machines.qemu import Qemu
from fleet_machines.qemu_guest import Guest

MIB = 1024**2
HALT = b"\xfa\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa"  # cli; hlt, again and again
NOTHING_INSIDE = {"accel": "tcg"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    require_linux("to run QEMU as it is run here")
    for tool in ("qemu-system-x86_64", "qemu-img", "xorriso"):
        require_tool(tool, "to run machines")
    folder = tmp_path_factory.mktemp("state")
    folder.chmod(0o700)
    with running(folder) as found:
        yield found


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("image") / "halt.raw"
    path.write_bytes(HALT)
    os.truncate(path, 4 * MIB)
    return str(path)


@pytest.fixture
def provider(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Iterator[Qemu]:
    """The provider; its machines count as ready when QEMU runs, for nothing is inside."""
    monkeypatch.setattr(Guest, "wait", lambda self, job, host, port, first: {})
    found = providers.provider("qemu", str(fleet.folder), NOTHING_INSIDE)
    assert isinstance(found, Qemu)
    yield found
    for name in found.records.all():
        found.delete(name, job())
    assert left(found, fleet) == ([], [], [])


def job(seconds: float = 60.0) -> Job:
    return Job.lasting(seconds)


def left(provider: Qemu, fleet: Fleet) -> tuple[list[str], list[Any], list[str]]:
    """What there is of machines: files, claims, processes."""
    folders = [path for path in provider.records.folder.rglob("*") if not path.name.startswith(".")]
    logs = list((fleet.folder / "logs").glob("machine-*"))
    processes = [one["id"] for one in fleet.call("processes.list")["processes"]]
    return [str(path) for path in (*folders, *logs)], sorted(fleet.claims()), processes


def spec(name: str = "web", image: str = "", **fields: Any) -> MachineSpec:
    return machine_spec({"name": name, "image": image, "memory": "64M", **fields}, "qemu")


def written(provider: Qemu, name: str, pattern: int) -> None:
    """Let something write to the disk of a running machine."""
    with provider.guest(name).monitor() as monitor:
        line = f'qemu-io -d /machine/peripheral/root/virtio-backend "write -P {pattern} 1M 64k"'
        said = monitor.call("human-monitor-command", command_line=line)
        assert said == ""  # what it says of a success goes to standard output


def holds(provider: Qemu, name: str, pattern: int) -> bool:
    words = ["read", "-P", str(pattern), "1M", "64k"]
    record = provider.records.get(name)
    identity = {} if record["uid"] < 0 else {"user": record["uid"], "group": record["uid"]}
    done = subprocess.run(
        ["qemu-io", "-U", "-r", "-f", "qcow2", "-c", " ".join(words), "disk.qcow2"],
        cwd=provider.disks.run_folder(name), capture_output=True, text=True, check=False, **identity,
    )  # fmt: skip
    assert "read 65536/65536" in done.stdout, done
    return "Pattern verification failed" not in done.stdout


def test_a_machine_lives_and_leaves_nothing(provider: Qemu, fleet: Fleet, image: str) -> None:
    made = provider.create(
        spec(image=image, tags=["a"], project="shop", login="fleet", user_data="#cloud-config\n"), job()
    )
    assert (made.state, made.addresses, made.tags, made.project) == ("running", ("127.0.0.1",), ("a",), "shop")
    process = fleet.get("machine-web")
    assert process["template"] == "qemu"
    assert {(kind, owner) for kind, _value, owner in fleet.claims()} == {
        ("tcpport", "machine-web"), ("vncport", "machine-web"),
    }  # fmt: skip
    assert provider.describe()["web"] == made
    with pytest.raises(Conflict, match="there is one already, running"):
        provider.create(spec(image=image), job())
    provider.stop("web", job(), force=True)
    assert provider.describe()["web"].state == "stopped"
    assert not alive(process["pid"])
    assert provider.start("web", job()).port == made.port  # its ports are kept for it
    provider.delete("web", job())
    assert provider.describe() == {}
    provider.delete("web", job())
    assert left(provider, fleet) == ([], [], [])


def test_files_and_sockets_are_private_and_qemu_owns_little(provider: Qemu, image: str) -> None:
    provider.create(spec(image=image), job())
    folder = provider.disks.of("web")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (*folder.iterdir(), *(folder / "run").iterdir())}
    assert modes["qmp.sock"] & 0o077 == 0
    assert modes["agent.sock"] & 0o077 == 0
    assert modes["disk.qcow2"] & 0o077 == 0
    assert modes["machine.json"] == 0o600
    assert modes["seed.iso"] in (0o440, 0o600)
    assert modes["vnc.secret"] in (0o440, 0o600)
    pid = provider.describe()["web"].detail["pid"]
    status = Path(f"/proc/{pid}/status").read_text()
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status
    uid = provider.records.get("web")["uid"]
    if uid >= 0:
        assert f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}" in status
        assert "CapEff:\t0000000000000000" in status
        owned = {path.name for path in (*folder.iterdir(), *(folder / "run").iterdir()) if path.stat().st_uid == uid}
        assert owned == {"run", "qmp.sock", "agent.sock", "disk.qcow2"}


def test_only_the_loopback_is_listened_on_and_the_screen_wants_a_password(provider: Qemu, image: str) -> None:
    machine = provider.create(spec(image=image), job())
    pid = machine.detail["pid"]
    listening = [line.split()[1] for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines() if " 0A " in line]
    host, _colon, port = machine.detail["vnc"].partition(":")
    for number in (machine.port, int(port)):
        assert f"0100007F:{number:04X}" in listening
    with socket.create_connection((host, int(port)), 5) as connection:
        assert connection.recv(12) == b"RFB 003.008\n"
        connection.sendall(b"RFB 003.008\n")
        assert connection.recv(2) == b"\x01\x02"  # one security type: VNC authentication (RFC 6143, 7.1.2)


def test_live_and_offline_checkpoints_form_a_tree_and_are_restored(provider: Qemu, image: str) -> None:
    provider.create(spec(image=image), job())
    written(provider, "web", 0x11)
    first = provider.checkpoint("web", "first", job(), comment="before")
    assert first.live
    assert first.size > 0
    written(provider, "web", 0x22)
    pid = provider.describe()["web"].detail["pid"]
    provider.restore("web", "first", job())
    machine = provider.describe()["web"]
    assert (machine.state, machine.detail["pid"], machine.detail["checkpoint"]) == ("running", pid, "first")
    provider.stop("web", job(), force=True)
    assert holds(provider, "web", 0x11)
    second = provider.checkpoint("web", "second", job())
    assert (second.live, second.parent) == (False, "first")
    provider.start("web", job())
    written(provider, "web", 0x33)
    provider.restore("web", "second", job())
    assert provider.describe()["web"].state == "running"  # as it was
    provider.stop("web", job(), force=True)
    assert holds(provider, "web", 0x11)
    provider.restore("web", "first", job())
    assert provider.describe()["web"].state == "running"  # its memory was saved running
    third = provider.checkpoint("web", "third", job())
    assert third.parent == "first"
    assert [one.name for one in provider.checkpoints()["web"]] == ["first", "second", "third"]
    with pytest.raises(Conflict, match="one of that name already"):
        provider.checkpoint("web", "first", job())
    provider.delete_checkpoint("web", "first", job())
    assert {one.name: one.parent for one in provider.checkpoints()["web"]} == {"second": "", "third": ""}
    with pytest.raises(NotFound, match='checkpoint "first" of machine "web": not there'):
        provider.restore("web", "first", job())
    info = subprocess.check_output(["qemu-img", "snapshot", "-U", "-l", str(provider.disks.disk("web"))], text=True)
    assert "first" not in info
    assert "third" in info


def test_a_memory_that_does_not_fit_any_more_boots_from_its_disk(provider: Qemu, image: str) -> None:
    provider.create(spec(image=image), job())
    written(provider, "web", 0x11)
    provider.checkpoint("web", "live", job())
    written(provider, "web", 0x22)
    provider.stop("web", job(), force=True)
    wanted = spec(memory="96M")
    provider.change(
        wanted, plan(wanted, provider.describe()["web"], "stopped", provider.capabilities).differences, job()
    )
    told: list[str] = []
    provider.restore("web", "live", Job.lasting(60, told.append))
    assert "its memory changed since: only its disk is restored, and it boots" in told
    assert provider.describe()["web"].state == "running"
    provider.stop("web", job(), force=True)
    assert holds(provider, "web", 0x11)


def test_a_checkpoint_that_was_interrupted_is_cleared_away(provider: Qemu, image: str) -> None:
    provider.create(spec(image=image), job())
    provider.checkpoint("web", "whole", job())
    record = provider.records.get("web")
    record["checkpoints"]["half"] = {"made": False, "created": "", "live": True}
    provider.records.put("web", record)
    with provider.guest("web").monitor() as monitor:
        monitor.job("snapshot-save", 30, tag="half", vmstate="disk", devices=["disk"])
    assert [one.name for one in provider.checkpoints()["web"]] == ["whole"]
    provider.checkpoint("web", "half", job())
    assert [one.name for one in provider.checkpoints()["web"]] == ["whole", "half"]
    info = subprocess.check_output(["qemu-img", "snapshot", "-U", "-l", str(provider.disks.disk("web"))], text=True)
    assert info.count("half") == 1


def test_a_fork_has_the_disk_of_the_checkpoint_and_an_identity_of_its_own(provider: Qemu, image: str) -> None:
    provider.create(spec(image=image, login="fleet", tags=["a"]), job())
    written(provider, "web", 0x11)
    provider.checkpoint("web", "good", job())
    written(provider, "web", 0x22)
    fork = provider.create(spec("fork", "instance:web.good", disk="16M"), job())  # while the other one runs
    assert (fork.image, fork.login, fork.disk, fork.tags) == ("instance:web.good", "fleet", 16 * MIB, ())
    one, two = provider.records.get("web"), provider.records.get("fork")
    assert one["uuid"] != two["uuid"]
    assert one["cards"][0]["mac"] != two["cards"][0]["mac"]
    with pytest.raises(Conflict, match='the machine "web" to copy runs'):
        provider.create(spec("other", "instance:web"), job())
    assert "other" not in provider.records.all()
    provider.stop("fork", job(), force=True)
    assert holds(provider, "fork", 0x11)
    provider.delete("web", job())  # the copy needs nothing of it
    assert provider.start("fork", job()).state == "running"
    provider.stop("fork", job(), force=True)
    again = provider.create(spec("again", "instance:fork"), job())
    assert again.disk == 16 * MIB
    provider.stop("again", job(), force=True)
    assert holds(provider, "again", 0x11)


def test_a_machine_outlives_the_file_that_it_was_made_from(provider: Qemu, image: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy.raw"
    shutil.copy(image, copy)
    provider.create(spec(image=f"file://{copy}"), job())
    provider.stop("web", job(), force=True)
    copy.unlink()
    assert provider.start("web", job()).state == "running"


def test_a_machine_keeps_the_file_that_a_link_led_to(provider: Qemu, image: str, tmp_path: Path) -> None:
    shutil.copy(image, tmp_path / "v1.raw")
    (tmp_path / "latest.raw").symlink_to("v1.raw")
    provider.create(spec(image=str(tmp_path / "latest.raw")), job())
    assert provider.disks.base("web").is_file()
    assert not provider.disks.base("web").is_symlink()


def test_a_folder_that_is_no_machine_s_is_left_alone(provider: Qemu, fleet: Fleet, image: str, tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "precious").touch()
    other = Qemu(Surroundings(str(fleet.folder), {**NOTHING_INSIDE, "folder": str(tmp_path)}))
    with pytest.raises(Conflict, match="is there already, and is no machine's"):
        other.create(spec(image=image), job())
    other.delete("web", job())
    assert (tmp_path / "web" / "precious").exists()


def test_a_machine_stays_in_the_folder_that_it_was_made_in(
    provider: Qemu, fleet: Fleet, image: str, tmp_path: Path
) -> None:
    folder = tmp_path / "machines"
    Qemu(Surroundings(str(fleet.folder), {**NOTHING_INSIDE, "folder": str(folder)})).create(spec(image=image), job())
    provider.stop("web", job(), force=True)
    assert provider.start("web", job()).detail["folder"] == str(folder / "web")
    provider.delete("web", job())
    assert not (folder / "web").exists()


def test_a_build_touches_no_machine_of_that_name(provider: Qemu, image: str) -> None:
    provider.create(spec("build-tools", image), job())
    with pytest.raises(Conflict, match='machine "build-tools": there is one already'):
        provider.build_image(ImageSpec("tools", "qemu", image), job())
    assert provider.state("build-tools") == "running"
    shutil.rmtree(provider.golden.folder)  # where the images would be


def test_changes_are_made_in_place(provider: Qemu, image: str) -> None:
    provider.create(spec(image=image), job())
    changed = machine_spec({"name": "web", "disk": "16M", "tags": ["b"], "login": "root", "project": "shop"}, "qemu")
    plans = plan(changed, provider.describe()["web"], "present", provider.capabilities)
    assert [step.verb for step in plans.steps] == ["change"]
    batches.check(batches.run([plans], provider, timeout=60))
    machine = provider.describe()["web"]
    assert (machine.disk, machine.tags, machine.login, machine.project) == (16 * MIB, ("b",), "root", "shop")
    with provider.guest("web").monitor() as monitor:
        (disk,) = [one for one in monitor.call("query-block") if (one.get("inserted") or {}).get("node-name") == "disk"]
        assert disk["inserted"]["image"]["virtual-size"] == 16 * MIB
    bigger = machine_spec({"name": "web", "cpu": 2, "memory": "128M"}, "qemu")
    with pytest.raises(Conflict, match="set reboot: true"):
        plan(bigger, machine, "present", provider.capabilities)
    plans = plan(bigger, machine, "restarted", provider.capabilities)
    batches.check(batches.run([plans], provider, timeout=60, force=True))
    with provider.guest("web").monitor() as monitor:
        assert len(monitor.call("query-cpus-fast")) == 2
        assert monitor.call("query-memory-size-summary")["base-memory"] == 128 * MIB
    assert provider.disks.size("web") == 16 * MIB


def test_a_crash_is_told_and_the_machine_comes_back(provider: Qemu, fleet: Fleet, image: str) -> None:
    pid = provider.create(spec(image=image), job()).detail["pid"]
    os.kill(pid, signal.SIGKILL)
    fleet.until("machine-web", "running", restarts=1)
    machine = provider.describe()["web"]
    assert machine.detail["restarts"] == 1
    assert machine.detail["pid"] != pid
    with provider.guest("web").monitor() as monitor:  # no stale socket is in the way
        assert monitor.running()


def test_a_guest_that_powers_itself_off_stays_off(provider: Qemu, fleet: Fleet, image: str) -> None:
    provider.create(spec(image=image), job())
    with provider.guest("web").monitor() as monitor:
        monitor.call("quit")
    fleet.until("machine-web", "stopped")
    fleet.again()
    machine = provider.describe()["web"]
    assert (machine.state, machine.addresses) == ("stopped", ())
    assert provider.start("web", job()).state == "running"


def test_machines_outlive_fleetd_and_come_back_after_a_boot(provider: Qemu, fleet: Fleet, image: str) -> None:
    pid = provider.create(spec(image=image), job()).detail["pid"]
    fleet.end(signal.SIGKILL)
    with pytest.raises(Unavailable, match=r"fleet daemon start.*with the provider qemu they are its processes"):
        provider.describe()
    fleet.up()
    assert provider.describe()["web"].detail["pid"] == pid
    fleet.end(signal.SIGKILL)  # the host goes down with everything on it
    os.kill(pid, signal.SIGKILL)
    wait_for("QEMU has ended", lambda: not alive(pid))
    fleet.up()
    fleet.until("machine-web", "running")
    assert provider.describe()["web"].detail["pid"] != pid


def test_describing_costs_one_request_and_writes_nothing(
    provider: Qemu, fleet: Fleet, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.create(spec(image=image), job())
    record = provider.records.get("web")
    for number in range(20):
        provider.records.put(f"m{number}", {**record, "uid": -1})
    before = sorted((path, path.stat().st_mtime_ns) for path in provider.folder.rglob("*"))
    asked: list[str] = []
    call = provider.processes.call

    def counted(method: str, /, **params: Any) -> Any:
        asked.append(method)
        return call(method, **params)

    monkeypatch.setattr(provider.processes, "call", counted)
    assert len(provider.describe()) == 21
    assert asked == ["processes.list"]
    assert sorted((path, path.stat().st_mtime_ns) for path in provider.folder.rglob("*")) == before
    for number in range(20):
        provider.records.remove(f"m{number}")


def test_without_machines_no_fleetd_is_asked(tmp_path: Path) -> None:
    found = providers.provider("qemu", str(tmp_path / "none"), {})
    assert found.describe() == {}
    assert found.checkpoints() == {}
    assert not (tmp_path / "none").exists()
    with pytest.raises(Unavailable, match="fleetd is not running"):
        found.create(spec(image="/x"), job())
    assert not (tmp_path / "none").exists()


def test_a_machine_that_is_not_ready_in_time_is_incomplete_and_finished_later(
    provider: Qemu, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Guest, "wait", TRUE_WAIT)
        with pytest.raises(TimedOut, match='machine "web": it was not ready'):
            provider.create(spec(image=image), job(4))
    machine = provider.describe()["web"]
    assert machine.state == "running"
    assert "it was not ready" in machine.incomplete
    with pytest.raises(Conflict, match="it is incomplete"):
        provider.checkpoint("web", "x", job())
    again = provider.create(spec(image=image), job())
    assert again.incomplete == ""
    assert again.detail["pid"] == machine.detail["pid"]  # finished, not made anew


TRUE_WAIT = Guest.wait


@pytest.mark.parametrize("stage", ["_make_disk", "_make_seed"])
def test_a_create_that_was_killed_is_made_anew(
    stage: str, provider: Qemu, fleet: Fleet, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(qemu_create.Maker, stage, killed)
        patch.setattr(qemu.Qemu, "remove", lambda *_arguments: None)  # SIGKILL lets nobody tidy up
        with pytest.raises(Killed):
            provider.create(spec(image=image), job())
    assert provider.describe()["web"].incomplete == "its creation was interrupted"
    assert provider.create(spec(image=image), job()).incomplete == ""


def test_a_create_that_fails_before_it_boots_leaves_nothing(provider: Qemu, fleet: Fleet, image: str) -> None:
    with pytest.raises(InvalidInput, match='machine "web": disk: its image needs at least 4M, found 2M'):
        provider.create(MachineSpec("web", "qemu", image, disk=2 * MIB), job())
    assert left(provider, fleet) == ([], [], [])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"networks": [{"name": "user", "address": "10.0.0.2/24"}]}, "gives addresses itself"),
        ({"name": "images"}, "kept for a folder"),
        ({"memory": 32 * MIB}, "at least 64M"),
        ({"image": "none"}, "no golden image of that name"),
        ({"image": "/nowhere"}, "there is no file"),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_sentence(
    fields: dict[str, Any], message: str, provider: Qemu, fleet: Fleet, image: str
) -> None:
    with pytest.raises(FleetError, match=f"machine .*{message}"):
        provider.create(spec(**{"image": image, **fields}), job())
    assert left(provider, fleet) == ([], [], [])


def test_qemus_own_words_reach_the_user(provider: Qemu, image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_create, "machine_type", lambda program: "pc-q35-0.0")
    with pytest.raises(FleetError, match=r'machine "web": .*it said: .*unsupported machine type'):
        provider.create(spec(image=image), job(20))


def test_many_machines_are_made_at_once(provider: Qemu, fleet: Fleet, image: str) -> None:
    made: dict[str, Any] = {}

    def make(name: str) -> None:
        made[name] = provider.create(spec(name, image), job())

    threads = [threading.Thread(target=make, args=(f"m{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({machine.port for machine in made.values()}) == 4
    uids = [record["uid"] for record in provider.records.all().values()]
    assert len(set(uids)) == (4 if uids[0] >= 0 else 1)


def test_a_tap_is_on_its_bridge_and_goes_with_the_machine(
    tmp_path_factory: pytest.TempPathFactory, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a network namespace of the test's own, in which its fleetd runs."""
    require_root("to make a network namespace")
    ip = require_tool("ip", "to make a network namespace")
    monkeypatch.setattr(Guest, "wait", lambda self, job, host, port, first: {})
    space = f"fleet-{os.getpid()}"
    folder = tmp_path_factory.mktemp("taps")
    folder.chmod(0o700)

    def inside(*words: str) -> str:
        return subprocess.check_output([ip, "-n", space, *words], text=True)

    subprocess.run([ip, "netns", "add", space], check=True)
    fleet = Fleet(folder)
    try:
        inside("link", "set", "lo", "up")
        inside("link", "add", "br0", "type", "bridge")
        inside("link", "set", "br0", "up")
        fleet.up(prefix=(ip, "netns", "exec", space))
        provider: Any = providers.provider("qemu", str(folder), NOTHING_INSIDE)
        networks = (Network("br0", address="10.9.0.2/24"), Network("isolated"))
        made = provider.create(MachineSpec("web", "qemu", image, memory=64 * MIB, networks=networks), job())
        assert made.addresses == ("127.0.0.1", "10.9.0.2")
        (tap,) = json.loads(inside("-j", "link", "show", "master", "br0"))
        assert tap["ifname"].startswith("fleet")
        pid = made.detail["pid"]
        os.kill(pid, signal.SIGKILL)  # a crash: it comes back, with a new tap of the same name
        fleet.until("machine-web", "running", restarts=1)
        assert [one["ifname"] for one in json.loads(inside("-j", "link", "show", "master", "br0"))] == [tap["ifname"]]
        provider.stop("web", job(), force=True)
        assert json.loads(inside("-j", "link", "show", "master", "br0")) == []
        provider.delete("web", job())
        bad = MachineSpec("bad", "qemu", image, memory=64 * MIB, networks=(Network("br9"),))
        with pytest.raises(FleetError, match='network "br9": there is no such bridge'):
            provider.create(bad, job())
        assert "no such bridge" in provider.describe()["bad"].incomplete
        provider.delete("bad", job())
        assert left(provider, fleet) == ([], [], [])
    finally:
        assert fleet.down() == []
        subprocess.run([ip, "netns", "del", space], check=True)
