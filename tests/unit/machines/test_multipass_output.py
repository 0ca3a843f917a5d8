# SPDX-License-Identifier: GPL-3.0-or-later
"""What multipass prints, from the recorded output of its own tests (two releases) and from its messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.recorded import multipass_files

from fleet_core.errors import (
    Conflict,
    FleetError,
    InvalidInput,
    NotFound,
    ProcessFailed,
    TimedOut,
    Unavailable,
)
from fleet_machines import multipass_output as output

READERS: list[tuple[str, Callable[[Any], Any]]] = [
    ("snapshots_list", output.snapshots),
    ("snapshot_list", output.snapshots),
    ("list_multiple_snapshots", output.snapshots),
    ("list_single_snapshot", output.snapshots),
    ("info", output.described),
    ("list", output.listed),
    ("find", output.images),
    ("networks", output.networks),
    ("version", output.version),
]


def reader_of(path: Path) -> Callable[[Any], Any]:
    name = path.stem
    for word in ("networks", "version", "find", "info"):
        if word in name:
            return dict(READERS)[word]
    return next(reader for word, reader in READERS if word in name)


def recorded(release: str, *words: str) -> Any:
    (path,) = [
        path
        for path in multipass_files()
        if path.parent.name == release and path.stem.replace("json_", "").removesuffix("_reply") in words
    ]
    return output.read_json("x", path.read_text())


@pytest.mark.parametrize("path", multipass_files(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recorded_answer_is_read(path: Path) -> None:
    data = output.read_json(path.stem, path.read_text())
    found = reader_of(path)(data)
    assert bool(found) == ("empty" not in path.stem and "blueprint" not in path.stem and not only_snapshots(data))
    if "info" in path.stem:
        output.snapshots(data)


def only_snapshots(data: Any) -> bool:
    items = data.get("info", {}).values()
    return bool(items) and all(set(item) == {"snapshots"} for item in items)


@pytest.mark.parametrize("release", ["main", "release-1.16"])
def test_instances_are_described_with_what_is_known_of_them(release: str) -> None:
    found = output.described(recorded(release, "multiple_instances_info", "info_multiple_instances"))
    one, other = found["bogus-instance"], found["bombastic"]
    assert (one.state, one.addresses, one.cpu, one.checkpoints) == ("running", ("10.21.124.56",), 4, 1)
    assert one.detail["disks"] == {"sda1": {"used": 1932735284, "total": 6764573492}}
    assert one.detail["memory"] == {"used": 38797312, "total": 1610612736}
    assert one.detail["mounts"] == {"source": "/home/user/source"}
    assert (other.state, other.addresses, other.cpu, other.checkpoints) == ("stopped", (), 0, 3)
    assert ("zone" in one.detail) == (release == "main")


@pytest.mark.parametrize("release", ["main", "release-1.16"])
def test_snapshots_are_read_as_a_tree(release: str) -> None:
    words = ("multiple_mixed_instances_and_snapshots_info", "info_multiple_mixed_instances_and_snapshots")
    found = output.snapshots(recorded(release, *words))
    assert [(one.name, one.parent) for one in found["bogus-instance"]] == [
        ("snapshot1", ""),
        ("snapshot2", "snapshot1"),
    ]
    assert found["messier-87"][0].comment == "Captured by EHT"
    assert found["bombastic"] == ()
    listed = output.snapshots(recorded(release, "multiple_snapshots_list", "list_multiple_snapshots"))
    assert [one.name for one in listed["hale-roller"]] == ["pristine", "rocking", "rolling"]
    (one,) = output.snapshots(recorded(release, "single_snapshot_info", "info_single_snapshot_info"))["bogus-instance"]
    assert one.size == 128 * 1024**2


@pytest.mark.parametrize(
    ("command", "code", "stderr", "kind", "message"),
    [
        ("info", 1, "Unknown option 'foo'.\n", InvalidInput, "multipass info: Unknown option 'foo'"),
        ("launch", 2, "launch failed: instance \"a\" already exists\n", Conflict, 'instance "a" already'),
        (
            "info",
            2,
            'info failed: The following errors occurred:\ninstance "a" does not exist\n',
            NotFound,
            'info: instance "a" does not exist',
        ),
        ("start", 2, "start failed: The following errors occurred:\nInstance 'a' does not exist.\n", NotFound, "start"),
        ("start", 2, "start failed: Instance 'a' is deleted. Use 'recover' to recover it.", Conflict, "is deleted"),
        ("clone", 2, "clone failed: Please stop instance a before you clone it.\n", Conflict, "clone: Please stop"),
        ("snapshot", 2, "snapshot failed: Multipass can only take snapshots of stopped instances.", Conflict, "stop"),
        ("set", 2, "set failed: Cannot update; reason: Instance must be stopped for modification", Conflict, "set:"),
        ("set", 1, "Invalid setting 'local.a.disk=1G': Disk can only be expanded", InvalidInput, "expanded"),
        ("launch", 2, "launch failed: Invalid instance name supplied: -a", InvalidInput, "Invalid instance name"),
        ("launch", 2, "launch failed: The following errors occurred:\ntimed out waiting for initialization to complete",
         TimedOut, "launch: timed out waiting"),
        ("launch", 5, "Timed out waiting for instance launch.\n", TimedOut, "Timed out waiting"),
        ("list", 3, "list failed: cannot connect to the multipass socket\n", Unavailable, "multipassd is unavailable"),
        ("start", 4, "", Unavailable, "asked to try again"),
        ("restore", 2, "", ProcessFailed, "it said nothing"),
        ("launch", 2, "launch failed: \x1b[2K\x1b[0A\n####\nno space left\n####\n", ProcessFailed, "launch: no space"),
        ("exec", 137, "killed", ProcessFailed, "exit code 137"),
    ],
)  # fmt: skip
def test_exit_codes_and_messages_become_errors(
    command: str, code: int, stderr: str, kind: type[FleetError], message: str
) -> None:
    error = output.error_of('machine "a"', command, code, stderr)
    assert error.__class__ is kind
    assert error.message.startswith(f'machine "a": multipass {command}: ')
    assert message in error.message
    assert "\n" not in error.message


@pytest.mark.parametrize(
    ("reader", "text"),
    [
        (output.listed, "{}"),
        (output.listed, '{"list": {}}'),
        (output.listed, '{"list": [{}]}'),
        (output.described, '{"info": []}'),
        (output.described, '{"info": {"a": 1}}'),
        (output.images, "{}"),
        (output.snapshots, "{}"),
        (output.networks, "{}"),
    ],
)
def test_another_shape_is_an_error_and_no_traceback(reader: Callable[[Any], Any], text: str) -> None:
    with pytest.raises(ProcessFailed, match="multipass"):
        reader(output.read_json("x", text))


@given(st.text())
def test_any_text_is_json_or_a_sentence(text: str) -> None:
    with pytest.raises(ProcessFailed, match=r"^multipass list: expected a JSON object"):
        output.read_json("list", text if text != "{}" else "")


@given(st.integers(0, 2**50))
def test_a_printed_size_is_read_to_a_tenth_of_its_unit(size: int) -> None:
    read = output.size_of(output.human(size))
    assert output.human(read) == output.human(size)


@pytest.mark.parametrize(("text", "size"), [("", 0), (None, 0), ("123", 123), (7, 7), ("0.9GiB", int(0.9 * 1024**3))])
def test_sizes_are_numbers_digits_and_texts(text: object, size: int) -> None:
    assert output.size_of(text) == size


def test_an_unknown_state_is_unknown() -> None:
    assert output.state_of("Dreaming") == "unknown"
    assert output.state_of(None) == "unknown"


def test_only_addresses_pass_for_addresses() -> None:
    told = ["10.1.2.3", "-oProxyCommand=x", "{{ 1 }}", "fe80::1%`id`", 5, "10.1.2.3"]
    assert output.listed({"list": [{"name": "a", "state": "Running", "ipv4": told}]})["a"].addresses == ("10.1.2.3",)
