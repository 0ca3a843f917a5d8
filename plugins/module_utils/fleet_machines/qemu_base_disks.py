# SPDX-License-Identifier: GPL-3.0-or-later
"""What a disk file is, read from its first bytes by ourselves.

A disk image from elsewhere is input of an attacker. A qcow2 file can name a backing file or an external data file, and
whatever opens it then reads (or writes) any file of this host; a raw disk whose guest has written a qcow2 header does
the same as soon as something guesses its format. So nothing is opened by QEMU before it was looked at here, and its
format is always told. Layout: https://gitlab.com/qemu-project/qemu/-/blob/master/docs/interop/qcow2.rst
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from fleet_core.errors import InvalidInput, NotFound
else:
    try:
        from ..fleet_core.errors import InvalidInput, NotFound
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import InvalidInput, NotFound

QCOW2 = "qcow2"
RAW = "raw"
SMALLEST = 1024**2
LARGEST = 16 * 1024**4  # bytes a guest sees; more is a damaged header or a joke
SECTOR = 512

_MAGIC = b"QFI\xfb"
_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_VERSION_3 = struct.Struct(">QQQII")
_DATA_FILE = 0x44415441  # header extension: the name of an external data file
_DIRTY, _CORRUPT, _EXTERNAL = 1, 2, 4  # incompatible features
_KNOWN_FEATURES = 0b11111

# What else people have lying about, by its first bytes.
_OTHERS = (
    (b"KDMV", "a VMDK disk"),
    (b"# Disk DescriptorFile", "a VMDK disk"),
    (b"vhdxfile", "a VHDX disk"),
    (b"conectix", "a VHD disk"),
    (b"<<< ", "a VDI disk"),
    (b"QED\0", "a QED disk"),
    (b"LUKS\xba\xbe", "an encrypted disk"),
    (b"\x1f\x8b", "a gzip file; unpack it"),
    (b"\xfd7zXZ", "an xz file; unpack it"),
    (b"\x28\xb5\x2f\xfd", "a zstd file; unpack it"),
    (b"BZh", "a bzip2 file; unpack it"),
    (b"PK\x03\x04", "a zip file; unpack it"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
)


@dataclass(frozen=True)
class DiskFile:
    """A file that is safe to be a machine's disk. size: bytes as the guest sees them."""

    path: Path
    format: str
    size: int


def inspect(path: Path, what: str) -> DiskFile:
    """Return what a disk file is: qcow2, or raw with a boot record.

    what: begins the sentences of errors. Raises NotFound, and InvalidInput for anything that is no disk, or that would
    make QEMU open another file.
    """
    with _open(path, what) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(SECTOR)
        if head.startswith(_MAGIC):
            virtual = _check_qcow2(file, what)
            return DiskFile(path, QCOW2, virtual)
    for magic, name in _OTHERS:
        if head.startswith(magic):
            raise InvalidInput(f"{what}: expected a qcow2 or raw disk, found {name}")
    if head[510:512] != b"\x55\xaa":
        raise InvalidInput(f"{what}: expected a qcow2 disk, or a raw one with a boot record, found neither")
    if size < SMALLEST or size % SECTOR:
        raise InvalidInput(f"{what}: expected a raw disk of whole sectors and at least 1M, found {size} bytes")
    return DiskFile(path, RAW, size)


def backing_of(path: Path) -> str:
    """Return the backing file that a qcow2 file names, empty when it names none or is no such file."""
    try:
        with _open(path, str(path)) as file:
            head = file.read(_HEADER.size)
            if len(head) < _HEADER.size or not head.startswith(_MAGIC):
                return ""
            return _backing_name(file, head)
    except (NotFound, InvalidInput):
        return ""


def _backing_name(file: BinaryIO, head: bytes) -> str:
    offset, length = _HEADER.unpack(head)[2:4]
    if not offset or length > 1023:
        return ""
    file.seek(offset)
    return file.read(length).decode("utf-8", "surrogateescape")


def _open(path: Path, what: str) -> BinaryIO:
    try:
        # Not blocking: a pipe of that name would wait for ever. The kind is asked of what is open, not of the name.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"{what}: there is no file {path}") from None
    except OSError as error:
        raise InvalidInput(f"{what}: {path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise InvalidInput(f"{what}: expected a file, found something else at {path}")
    return os.fdopen(handle, "rb")


def _check_qcow2(file: BinaryIO, what: str) -> int:
    """Return the virtual size of a qcow2 file that stands alone, else raise InvalidInput."""
    file.seek(0)
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size:
        raise InvalidInput(f"{what}: expected a qcow2 disk, found only the beginning of one")
    fields = _HEADER.unpack(head)
    version, backing, cluster_bits, size, encryption = fields[1], fields[2], fields[4], fields[5], fields[6]
    if version not in (2, 3) or not 9 <= cluster_bits <= 21 or not SMALLEST <= size <= LARGEST:
        raise InvalidInput(f"{what}: expected a qcow2 disk of version 2 or 3, found a damaged header")
    if backing:
        raise InvalidInput(
            f'{what}: it has a backing file, "{_shown(_backing_name(file, head))}"; expected a disk that stands '
            "alone (qemu-img convert makes one)"
        )
    if encryption:
        raise InvalidInput(f"{what}: expected a disk that is not encrypted")
    if version == 3:
        _check_features(file, 1 << cluster_bits, what)
    return int(size)


def _check_features(file: BinaryIO, cluster: int, what: str) -> None:
    head = file.read(_VERSION_3.size)
    if len(head) < _VERSION_3.size:
        raise InvalidInput(f"{what}: expected a qcow2 disk, found only the beginning of one")
    incompatible, length = _VERSION_3.unpack(head)[0], _VERSION_3.unpack(head)[4]
    if incompatible & _EXTERNAL or _DATA_FILE in _extensions(file, length, cluster):
        raise InvalidInput(f"{what}: its data are in another file; expected a disk that stands alone")
    if incompatible & (_DIRTY | _CORRUPT):
        raise InvalidInput(f"{what}: it is marked as damaged or still in use; qemu-img check -r all repairs a copy")
    if incompatible & ~_KNOWN_FEATURES:
        raise InvalidInput(f"{what}: it has features that are not known here ({incompatible:#x})")


def _extensions(file: BinaryIO, start: int, cluster: int) -> set[int]:
    """Return the kinds of the header's extensions, which lie in the first cluster."""
    found: set[int] = set()
    file.seek(start)
    while file.tell() < cluster:
        head = file.read(8)
        kind, length = struct.unpack(">II", head) if len(head) == 8 else (0, 0)
        if not kind:
            break
        found.add(kind)
        file.seek((length + 7) // 8 * 8, os.SEEK_CUR)
    return found


def _shown(text: str) -> str:
    """Return a file name from an untrusted header, fit for a message."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]
