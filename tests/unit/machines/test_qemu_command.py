# SPDX-License-Identifier: GPL-3.0-or-later
"""QEMU's command line, networks, processes and records: pure functions, in tables."""

from __future__ import annotations

import itertools
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleet_core.errors import Conflict, InvalidInput, NotFound
from fleet_core.machines import MACHINE_NAME, Network
from fleet_core.names import check_process_id
from fleet_core.processes import launch
from fleet_core.templates import instantiate, template
from fleet_machines import qemu_checkpoints, qemu_networks, qemu_processes, qemu_sources
from fleet_machines.qemu_command import Card, Hardware, command, hardware, ssh_card, tap_name
from fleet_machines.qemu_disks import FIRST_UID, LAST_UID, check_size, free_uid, own_users, round_up
from fleet_machines.qemu_machine import machine_of

REPOSITORY = Path(__file__).resolve().parents[3]
MIB = 1024**2
MAC = "52:54:00:00:00:01"
MADE = Hardware(
    name="web",
    executable="/usr/bin/qemu-system-x86_64",
    type="pc-q35-7.2",
    cpu=2,
    memory=512 * MIB,
    uuid="8a63933a-30a3-4cd8-b10c-a400936eaa51",
    cards=(Card("user", MAC),),
    base="qcow2",
)


def words(made: Hardware = MADE, accel: str = "tcg", **taps: int) -> list[str]:
    return command(made, 3001, 5907, accel, taps)


def values(option: str, line: list[str]) -> list[str]:
    return [after for before, after in itertools.pairwise(line) if before == option]


def test_a_machine_listens_on_the_loopback_and_on_unix_sockets_only() -> None:
    line = words()
    assert values("-vnc", line) == ["127.0.0.1:7,password-secret=vnc"]
    assert values("-netdev", line) == ["user,id=net0,ipv6=off,restrict=off,hostfwd=tcp:127.0.0.1:3001-:22"]
    assert "stdio,id=serial,signal=off" in values("-chardev", line)
    sockets = [value for value in values("-chardev", line) if value.startswith("socket")]
    assert len(sockets) == 2
    assert all(",path=" in value and "host=" not in value and "port=" not in value for value in sockets)


def test_nothing_of_the_host_is_shared_with_a_guest() -> None:
    text = " ".join(words(replace(MADE, cards=(Card("isolated", MAC),))))
    for way in ("virtfs", "9p", "virtiofs", "guestfwd", "smb=", "tftp=", "usb-host", "vfio"):
        assert way not in text
    assert "restrict=on" in text


def test_the_sandbox_denies_new_programs_and_rights() -> None:
    (sandbox,) = values("-sandbox", words())
    assert sandbox == "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    assert "-nodefaults" in words()
    assert "-no-user-config" in words()


@pytest.mark.parametrize(
    ("accel", "expected"), [("kvm", ("kvm", "host")), ("tcg", ("tcg,thread=multi", "max"))], ids=["kvm", "tcg"]
)
def test_the_processor_follows_from_the_acceleration(accel: str, expected: tuple[str, str]) -> None:
    line = words(accel=accel)
    assert (*values("-accel", line), *values("-cpu", line)) == expected


def test_memory_is_rounded_up_to_whole_mebibytes() -> None:
    assert values("-m", words(replace(MADE, memory=512 * MIB + 1))) == ["513M"]


def test_every_file_below_a_disk_is_named_whatever_its_header_says() -> None:
    base, disk, seed = (json.loads(value) for value in values("-blockdev", words()))
    assert base["backing"] is None
    assert base["read-only"]
    assert base["file"]["filename"] == "../base"
    assert disk["backing"] == "base"
    assert disk["file"]["filename"] == "disk.qcow2"
    assert seed["read-only"]


def test_a_raw_base_takes_no_backing_and_a_disk_without_base_has_none() -> None:
    raw, _disk, _seed = (json.loads(value) for value in values("-blockdev", words(replace(MADE, base="raw"))))
    assert "backing" not in raw
    (disk,) = (json.loads(value) for value in values("-blockdev", words(replace(MADE, base="", seed=False))))
    assert disk["backing"] is None


def test_paths_are_relative_so_that_no_state_folder_is_too_deep_for_a_socket() -> None:
    text = " ".join(words())
    assert "path=qmp.sock" in text
    assert "path=agent.sock" in text


def test_the_port_for_ssh_leads_to_the_first_card_with_user_networking() -> None:
    cards = (Card("bridge", MAC, "br0", "tap0"), Card("isolated", MAC), Card("user", MAC))
    line = words(replace(MADE, cards=cards), tap0=9)
    assert values("-netdev", line) == [
        "tap,id=net0,fd=9",
        "user,id=net1,ipv6=off,restrict=on,hostfwd=tcp:127.0.0.1:3001-:22",
        "user,id=net2,ipv6=off,restrict=off",
    ]
    assert ssh_card(cards) == 1
    assert ssh_card(cards[:1]) == -1


def test_hardware_is_read_as_it_was_written() -> None:
    made = replace(MADE, cards=(Card("bridge", MAC, "br0", "tap0"),), uid=7, gid=7)
    assert hardware(json.loads(made.to_json())) == made


def test_tap_names_fit_and_differ_by_machine_card_and_fleet() -> None:
    names = {tap_name("a" * 63, 0), tap_name("a" * 63, 1), tap_name("b", 0), tap_name("b", 0, "/other")}
    assert len(names) == 4
    assert all(len(name) <= 15 for name in names)
    assert tap_name("b", 0) == tap_name("b", 0)


# -- networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "root", "message"),
    [
        (Network("user", address="10.0.0.2/24"), True, "gives addresses itself"),
        (Network("isolated", gateway="10.0.0.1"), True, "gives addresses itself"),
        (Network("a-bridge-with-a-name"), True, "at most 15 characters"),
        (Network("br0"), False, "only root"),
    ],
    ids=["user", "isolated", "long", "root"],
)
def test_networks_that_no_machine_can_have_are_refused(network: Network, root: bool, message: str) -> None:
    with pytest.raises(InvalidInput, match=rf'machine "x": networks\[0\]: .*{message}'):
        qemu_networks.check('machine "x"', [network], root)


def test_given_hardware_addresses_stay_and_others_are_made() -> None:
    given, made = qemu_networks.given_macs([Network("br0", MAC), Network("user")])
    assert given.mac == MAC
    assert made.mac.startswith("52:54:00:")
    assert made.mac != qemu_networks.new_mac()


# -- processes --------------------------------------------------------------------------------------------------------


def test_the_shipped_template_is_the_one_that_modules_bring_along() -> None:
    shipped = json.loads((REPOSITORY / "templates/processes/qemu.json").read_text())
    assert shipped == dict(qemu_processes.TEMPLATE)


def rendered(folder: str, forwarded: bool = True, python: str = "/venv/bin/python") -> tuple[str, ...]:
    item = qemu_processes.item("web", Path(folder), forwarded)
    spec = instantiate(template(qemu_processes.TEMPLATE), item)
    claimed = {"vncport": ("vncport", "5901")}
    if forwarded:
        claimed["sshport"] = ("tcpport", "3000")
    return launch(spec, claimed, None, {"python": python, "state_dir": "/s"}).argv


def test_a_machine_is_a_process_of_the_template_with_its_folder() -> None:
    argv = rendered("/s/machines/qemu/web")
    assert argv[:2] == ("/bin/sh", "-c")
    assert "exec /venv/bin/python -I -m fleet_machines.qemu_launch" in argv[2].replace("'", "")
    assert "/s/machines/qemu/web" in argv[2]


@pytest.mark.parametrize("folder", ["/with space/web", "/with$dollar/${HOME}/web", "/per%cent/web", "/quo'te/web"])
def test_folders_may_have_any_name(folder: str, tmp_path: Path) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\nprintf '%s|' \"$@\"\n")
    (tmp_path / "python").chmod(0o755)
    argv = rendered(folder, python=str(tmp_path / "python"))
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    assert done.stdout == f"-I|-m|fleet_machines.qemu_launch|{folder}|3000|5901|"


def test_a_machine_on_bridges_alone_claims_no_port_for_ssh() -> None:
    item = qemu_processes.item("web", Path("/f"), False)
    assert item["resources"] == ["vncport"]
    assert rendered("/f", forwarded=False)


@pytest.mark.parametrize("name", ["a", "web-1", "x" * 55, "x" * 56, "x" * 63])
def test_every_machine_has_a_process_id(name: str) -> None:
    assert MACHINE_NAME.fullmatch(name)
    assert check_process_id(qemu_processes.process_id(name))


def test_ids_of_long_names_differ() -> None:
    assert qemu_processes.process_id("x" * 62 + "a") != qemu_processes.process_id("x" * 62 + "b")


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("stopped", "stopped"),
        ("starting", "starting"),
        ("running", "running"),
        ("unhealthy", "running"),
        ("backoff", "starting"),
        ("stopping", "stopping"),
        ("error", "stopped"),
        ("other", "unknown"),
    ],
)
def test_states_of_processes_are_those_of_machines(status: str, state: str) -> None:
    assert qemu_processes.state_of({"status": status}) == state


def test_a_machine_without_process_is_stopped() -> None:
    assert qemu_processes.state_of(None) == "stopped"


def test_what_a_guest_prints_cannot_drive_a_terminal() -> None:
    assert qemu_processes.plain("\x1b[31mred\x1b[0m \x1b]0;title\x07end\r\x9b2J") == "red end2J"


# -- records ----------------------------------------------------------------------------------------------------------

RECORD: dict[str, Any] = {
    "image": "debian-0123456789",
    "cpu": 2,
    "memory": 1024**3,
    "disk": 4 * 1024**3,
    "cards": [{"name": "user", "mac": MAC}],
    "tags": ["a"],
    "login": "fleet",
    "checkpoints": {"one": {"made": True, "created": "2026-01-01T00:00:00Z"}, "half": {"made": False}},
}
VIEW = {"status": "running", "resources": {"sshport": "3004", "vncport": "5902"}, "pid": 12, "restarts": 1, "error": ""}


def test_a_running_machine_is_reached_by_its_forwarded_port() -> None:
    machine = machine_of("web", RECORD, VIEW)
    assert (machine.state, machine.addresses, machine.port) == ("running", ("127.0.0.1",), 3004)
    assert machine.checkpoints == 1
    assert machine.detail["vnc"] == "127.0.0.1:5902"
    json.dumps(machine.to_dict())


def test_a_stopped_machine_has_no_address() -> None:
    machine = machine_of("web", RECORD, {**VIEW, "status": "stopped"})
    assert (machine.addresses, machine.port) == ((), 22)


def test_a_machine_on_a_bridge_is_reached_there() -> None:
    record = {**RECORD, "cards": [{"name": "br0", "mac": MAC}], "addresses": ["10.1.2.3"]}
    machine = machine_of("web", record, {**VIEW, "resources": {"vncport": "5902"}})
    assert (machine.addresses, machine.port) == (("10.1.2.3",), 22)


def test_the_cards_of_a_machine_are_told_with_their_interfaces_on_the_host() -> None:
    record = {**RECORD, "cards": [{"name": "br0", "mac": MAC, "address": "10.1.2.3/24"}, {"name": "user", "mac": MAC}]}
    assert machine_of("web", record, None, "/state").detail["interfaces"] == [
        {"network": "br0", "mac": MAC, "address": "10.1.2.3", "port": tap_name("web", 0, "/state")},
        {"network": "user", "mac": MAC, "address": "", "port": ""},
    ]


def test_a_crash_is_told() -> None:
    machine = machine_of("web", RECORD, {**VIEW, "status": "error", "error": 'process "x": killed by SIGSEGV'})
    assert machine.state == "stopped"
    assert "SIGSEGV" in machine.detail["error"]


def test_a_checkpoint_that_is_not_wholly_made_is_not_shown() -> None:
    assert [one.name for one in qemu_checkpoints.of("web", RECORD)] == ["one"]


# -- sources ----------------------------------------------------------------------------------------------------------


def no_disk(name: str) -> Any:
    raise NotFound(f'image "{name}": there is no golden image of that name')


@pytest.mark.parametrize(
    ("image", "kind", "message"),
    [
        ("", InvalidInput, "expected an image"),
        ("instance:", InvalidInput, "expected instance:NAME"),
        ("instance:web.", InvalidInput, "expected instance:NAME"),
        ("instance:gone", NotFound, "does not exist"),
        ("instance:web.gone", NotFound, 'no checkpoint "gone"'),
        ("instance:web.half", NotFound, 'no checkpoint "half"'),
        ("instance:bad", Conflict, "incomplete: broken"),
        ("/nowhere/disk.qcow2", NotFound, "no file"),
        ("golden", NotFound, "no golden image"),
    ],
)
def test_sources_that_cannot_be_used_are_refused(image: str, kind: type[Exception], message: str) -> None:
    records = {"web": RECORD, "bad": {"incomplete": "broken"}}
    with pytest.raises(kind, match=f'^machine "new": .*{message}'):
        qemu_sources.source_of('machine "new"', image, records, no_disk)


def test_a_checkpoint_of_a_machine_is_a_source_with_its_defaults() -> None:
    source = qemu_sources.source_of("x", "instance:web.one", {"web": {**RECORD, "base": "qcow2"}}, no_disk)
    assert (source.machine, source.checkpoint, source.format) == ("web", "one", "qcow2")
    assert source.defaults is not None
    assert source.defaults["cpu"] == 2


# -- disks ------------------------------------------------------------------------------------------------------------


def test_user_ids_are_given_once() -> None:
    assert free_uid([]) == FIRST_UID
    assert free_uid([FIRST_UID, -1, None, FIRST_UID + 2]) == FIRST_UID + 1
    with pytest.raises(Conflict, match="are taken"):
        free_uid(range(FIRST_UID, LAST_UID + 1))


def test_the_machines_of_two_fleets_are_different_users() -> None:
    one, other = free_uid([], "/var/lib/autovibe"), free_uid([], "/srv/other")
    assert one != other == free_uid([], "/srv/other")
    assert free_uid([one], "/var/lib/autovibe") == one + 1
    assert FIRST_UID <= free_uid(set(range(FIRST_UID, LAST_UID)) - {FIRST_UID}, "/srv/other") <= LAST_UID


@pytest.mark.parametrize(
    ("text", "expected"), [("0 0 4294967295\n", True), ("0 1000 1\n1 100000 65536\n", False), ("", False)]
)
def test_machines_have_own_users_where_the_kernel_has_them(
    text: str, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    (tmp_path / "map").write_text(text)
    assert own_users(str(tmp_path / "map")) is expected


def test_a_disk_is_at_least_as_large_as_its_image() -> None:
    assert check_size("m", None, 5) == 5
    assert check_size("m", 1024**3, 5) == 1024**3
    with pytest.raises(InvalidInput, match="needs at least 2G, found 1G"):
        check_size("m", 1024**3, 2 * 1024**3)
    assert round_up(513) == 1024
