# SPDX-License-Identifier: GPL-3.0-or-later
"""Which files may become disks. Headers are written here byte by byte, as an attacker would."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from fleet_core.errors import FleetError, InvalidInput, NotFound
from fleet_machines.qemu_base_disks import backing_of, inspect

GIB = 1024**3


def qcow2(
    *,
    version: int = 3,
    backing: str = "",
    size: int = GIB,
    encryption: int = 0,
    incompatible: int = 0,
    extensions: tuple[tuple[int, bytes], ...] = (),
    cluster_bits: int = 16,
) -> bytes:
    name = backing.encode()
    extra = b"".join(
        struct.pack(">II", kind, len(data)) + data + b"\0" * (-len(data) % 8) for kind, data in extensions
    ) + struct.pack(">II", 0, 0)
    offset = 104 + len(extra) if name else 0
    head = struct.pack(
        ">4sIQIIQIIQQIIQ",
        b"QFI\xfb",
        version,
        offset,
        len(name),
        cluster_bits,
        size,
        encryption,
        1,
        0x30000,
        0x10000,
        1,
        0,
        0,
    )
    return head + struct.pack(">QQQII", incompatible, 0, 0, 4, 104) + extra + name


def raw(size: int = 2 * 1024**2) -> bytes:
    return bytes(510) + b"\x55\xaa" + bytes(size - 512)


def made(folder: Path, content: bytes) -> Path:
    path = folder / "disk"
    path.write_bytes(content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(FleetError) as error:
        inspect(path, "base x")
    assert error.value.message.startswith("base x: ")
    return error.value.message


@pytest.mark.parametrize("version", [2, 3])
def test_a_qcow2_disk_that_stands_alone(tmp_path: Path, version: int) -> None:
    found = inspect(made(tmp_path, qcow2(version=version, size=5 * GIB)), "base x")
    assert (found.format, found.size) == ("qcow2", 5 * GIB)


def test_a_raw_disk_with_a_boot_record(tmp_path: Path) -> None:
    found = inspect(made(tmp_path, raw()), "base x")
    assert (found.format, found.size) == ("raw", 2 * 1024**2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (qcow2(backing="/etc/shadow"), 'it has a backing file, "/etc/shadow"; expected a disk that stands alone'),
        (qcow2(version=2, backing="json:{}"), 'it has a backing file, "json:{}"'),
        (qcow2(backing="a\n\x1b[2Jb"), 'it has a backing file, "a??[2Jb"'),
        (qcow2(incompatible=4), "its data are in another file"),
        (qcow2(extensions=((0x44415441, b"/etc/shadow"),)), "its data are in another file"),
        (qcow2(extensions=((0x6803F857, b"x" * 48), (0x44415441, b"json:{}"))), "its data are in another file"),
        (qcow2(incompatible=2), "it is marked as damaged or still in use"),
        (qcow2(incompatible=1 << 20), "it has features that are not known here"),
        (qcow2(encryption=2), "expected a disk that is not encrypted"),
        (qcow2(version=4), "found a damaged header"),
        (qcow2(size=2**63), "found a damaged header"),
        (qcow2(size=0), "found a damaged header"),
        (qcow2(cluster_bits=60), "found a damaged header"),
        (qcow2()[:60], "found only the beginning of one"),
        (qcow2()[:90], "found only the beginning of one"),
        (b"", "found neither"),
        (b"x" * 4096, "found neither"),
        (raw()[:-3], "expected a raw disk of whole sectors"),
        (raw(1024 * 512), "expected a raw disk of whole sectors and at least 1M"),
        (b"KDMV" + bytes(600), "found a VMDK disk"),
        (b"\xfd7zXZ\0" + bytes(600), "found an xz file; unpack it"),
        (b"<!DOCTYPE html>", "found a web page"),
        (b"LUKS\xba\xbe" + raw()[6:], "found an encrypted disk"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refusal(made(tmp_path, content))


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "expected a file, found something else" in refusal(tmp_path / "pipe")
    assert "expected a file, found something else" in refusal(tmp_path)
    assert "expected a file, found something else" in refusal(Path("/dev/null"))
    with pytest.raises(NotFound, match="base x: there is no file"):
        inspect(tmp_path / "none", "base x")


def test_endless_extensions_end(tmp_path: Path) -> None:
    many = tuple((0x1000 + number, b"x" * 8) for number in range(500))
    assert inspect(made(tmp_path, qcow2(extensions=many)), "base x").format == "qcow2"


def test_a_data_file_behind_many_extensions_is_found(tmp_path: Path) -> None:
    many = tuple((0x1000 + number, b"") for number in range(500))
    with pytest.raises(InvalidInput, match="its data are in another file"):
        inspect(made(tmp_path, qcow2(extensions=(*many, (0x44415441, b"x")))), "base x")


def test_the_backing_file_of_an_overlay(tmp_path: Path) -> None:
    assert backing_of(made(tmp_path, qcow2(backing="../base"))) == "../base"
    assert backing_of(made(tmp_path, qcow2())) == ""
    assert backing_of(made(tmp_path, raw())) == ""
    assert backing_of(tmp_path / "none") == ""
