# SPDX-License-Identifier: GPL-3.0-or-later
"""Manifests: what lies in chosen folders of a machine, by paths, sizes and hashes, never by contents.

A script makes one inside the machine. What it says is a guest's word: parse takes nothing of it on trust, neither its
length, nor its shape, nor the names in it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import posixpath
import re
import shlex
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .errors import InvalidInput, ProcessFailed
from .names import describe
from .quantities import format_size

FILE, FOLDER, LINK, OTHER = KINDS = ("file", "folder", "link", "other")

# The first line of the script; a machine's processes show it, and a fake knows it by that.
MARK = "# autovibe: manifest"

MOST_ENTRIES = 200_000
MOST_FOLDERS = 64
LONGEST_PATH = 4096
LONGEST_TEXT = 16 * 1024**2  # of what the script prints: no guest agent hands over more
_LARGEST = 64 * 1024**2  # unpacked
_HASH = re.compile(r"[0-9a-f]{64}|")


@dataclass(frozen=True)
class Entry:
    """What a path is. size: bytes, of files. sha256: of a file's content, empty of one that could not be read.

    mode: permission bits. target: of a link, as it is written; links are not followed.
    """

    kind: str
    size: int = 0
    sha256: str = ""
    mode: int = 0
    target: str = ""

    def to_list(self) -> list[Any]:
        return [self.kind, self.size, self.sha256, self.mode, self.target]


@dataclass(frozen=True)
class Manifest:
    """folders: what was asked for. missing: those of them that did not exist. entries: by path, folders included.

    In paths and targets, a backslash and all that is no printable character are written as in Python's texts: a name
    with a line break or a terminal's escape in it is one harmless line.
    """

    folders: tuple[str, ...] = ()
    entries: Mapping[str, Entry] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The bytes of all files together."""
        return sum(entry.size for entry in self.entries.values())

    @property
    def files(self) -> int:
        return sum(entry.kind == FILE for entry in self.entries.values())

    @property
    def digest(self) -> str:
        """The hash of all of it: the same folders with the same content have the same."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        return {
            "folders": list(self.folders),
            "missing": list(self.missing),
            "entries": {path: entry.to_list() for path, entry in sorted(self.entries.items())},
        }


@dataclass(frozen=True)
class ManifestDiff:
    """changed: by path, what about it: "content", "mode", "kind" or "target", several with commas."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def to_dict(self) -> dict[str, Any]:
        return {"added": list(self.added), "removed": list(self.removed), "changed": dict(self.changed)}

    def __str__(self) -> str:
        counts = ((self.added, "added"), (self.removed, "removed"), (self.changed, "changed"))
        return ", ".join(f"{len(paths)} {word}" for paths, word in counts if paths) or "no difference"


def check_folders(where: str, folders: object) -> tuple[str, ...]:
    """Return folders as they are named in a manifest: absolute, without "..", none twice. Raises InvalidInput."""
    if isinstance(folders, str) or not isinstance(folders, Sequence):
        raise InvalidInput(f"{where}: expected a list of folders, found {describe(folders)}")
    found: dict[str, None] = {}
    for folder in folders:
        if not isinstance(folder, str) or not folder.startswith("/") or "\0" in folder or len(folder) > LONGEST_PATH:
            raise InvalidInput(f"{where}: expected absolute paths such as /srv/app, found {describe(folder)}")
        if ".." in folder.split("/"):
            raise InvalidInput(f'{where}: expected a path without "..", found {describe(folder)}')
        found["/" + posixpath.normpath(folder).lstrip("/")] = None
    if len(found) > MOST_FOLDERS:
        raise InvalidInput(f"{where}: expected at most {MOST_FOLDERS} folders, found {len(found)}")
    return tuple(sorted(found))


# Runs in the machine, with its Python, which every machine with cloud-init has. It stays in a folder's file system,
# opens only what is a plain file at that moment, and ends when there is too much of it.
_PROGRAM = """
import base64, hashlib, json, os, signal, stat, sys, zlib
most, seconds, folders = int(sys.argv[1]), int(sys.argv[2]), [os.fsencode(word) for word in sys.argv[3:]]
entries, missing = {}, []
def text(path):
    return path.decode("utf-8", "surrogateescape")
def late(number, frame):
    sys.exit("it took more than %d s" % seconds)
def content(path):
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    with os.fdopen(os.open(path, flags), "rb", 0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return 0, ""
        size, digest = 0, hashlib.sha256()
        while True:
            block = file.read(1 << 20)
            if not block:
                return size, digest.hexdigest()
            size += len(block)
            digest.update(block)
def look(path):
    about = os.lstat(path)
    mode = stat.S_IMODE(about.st_mode)
    if len(entries) >= most:
        sys.exit("more than %d files and folders" % most)
    if stat.S_ISLNK(about.st_mode):
        entries[text(path)] = ["link", 0, "", 0, text(os.readlink(path))]
    elif stat.S_ISREG(about.st_mode):
        try:
            size, digest = content(path)
        except OSError:
            size, digest = about.st_size, ""
        entries[text(path)] = ["file", size, digest, mode, ""]
    elif stat.S_ISDIR(about.st_mode):
        entries[text(path)] = ["folder", 0, "", mode, ""]
        return about.st_dev
    else:
        entries[text(path)] = ["other", 0, "", mode, ""]
signal.signal(signal.SIGALRM, late)
signal.alarm(seconds)
for folder in folders:
    if os.path.islink(folder):
        sys.exit("%a is a link to %a; name that instead" % (text(folder), text(os.path.realpath(folder))))
    try:
        device = look(folder)
    except (FileNotFoundError, NotADirectoryError):
        missing.append(text(folder))
        continue
    waiting = [] if device is None else [folder]
    while waiting:
        parent = waiting.pop()
        try:
            names = os.listdir(parent)
        except OSError:
            continue
        for name in names:
            try:
                path = os.path.join(parent, name)
                if look(path) == device:
                    waiting.append(path)
            except (FileNotFoundError, NotADirectoryError):
                pass
plain = json.dumps([missing, entries], separators=(",", ":")).encode("ascii")
packed = base64.b64encode(zlib.compress(plain, 6)).decode()
print("manifest", len(entries), hashlib.sha256(plain).hexdigest(), packed)
"""


def script(folders: Sequence[str], seconds: float = 300.0, most: int = MOST_ENTRIES) -> str:
    """Return the shell script that makes the manifest of these folders, for Provider.run; it ends after ``seconds``."""
    folders = check_folders("folders", folders)
    if not folders:
        raise InvalidInput("folders: expected at least one folder")
    words = " ".join(map(shlex.quote, (str(most), str(max(1, int(seconds))), *folders)))
    return (
        f"{MARK}\n"
        "command -v python3 >/dev/null 2>&1 || { echo 'there is no python3' >&2; exit 127; }\n"
        f"python3 -I - {words} <<'END_OF_PROGRAM'\n{_PROGRAM}END_OF_PROGRAM\n"
    )


def parse(text: str, folders: Sequence[str]) -> Manifest:
    """Return the manifest that the script printed. Raises ProcessFailed for anything that it cannot have printed."""
    folders = check_folders("folders", folders)
    missing, entries = _unpacked(text)
    if not isinstance(missing, list) or not set(map(str, missing)) <= set(folders) or not isinstance(entries, dict):
        raise _refused("of other folders")
    found = {}
    for path, values in entries.items():
        if not _within(path, folders):
            raise _refused(f"of the path {shown(path)[:80]!r}, which is in none of the folders")
        entry = _entry(path, values)
        found[shown(path)] = replace(entry, target=shown(entry.target))
    if len(found) != len(entries):
        raise _refused("with a path that is there twice")
    return Manifest(folders, found, tuple(missing))


def from_dict(data: object) -> Manifest:
    """Return the manifest that to_dict wrote. Raises InvalidInput for anything else."""
    try:
        if not isinstance(data, Mapping):
            raise ProcessFailed("no mapping")
        folders = check_folders("manifest", data["folders"])
        entries = {str(path): _entry(path, values) for path, values in data["entries"].items()}
        return Manifest(folders, entries, tuple(map(str, data["missing"])))
    except (ProcessFailed, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(f"manifest: expected one that was saved, found {describe(error)}") from error


def compare(before: Manifest, after: Manifest) -> ManifestDiff:
    """Return what differs in the folders that both manifests are of. Raises InvalidInput when there are none."""
    folders = _common(before.folders, after.folders)
    if not folders:
        raise InvalidInput(
            f"manifests: expected two of the same folders, found {', '.join(before.folders) or 'none'} and "
            f"{', '.join(after.folders) or 'none'}"
        )
    old, new = _only(before, folders), _only(after, folders)
    changed = {}
    for path in sorted(old.keys() & new.keys()):
        what = _difference(old[path], new[path])
        if what:
            changed[path] = what
    return ManifestDiff(tuple(sorted(new.keys() - old.keys())), tuple(sorted(old.keys() - new.keys())), changed)


def verify(expected: Manifest, found: Manifest) -> ManifestDiff:
    """Return in what a manifest differs from the one that was saved: nothing, when all is as it was."""
    if expected.folders != found.folders:
        raise InvalidInput(f"manifest: expected one of {', '.join(expected.folders)}")
    return compare(expected, found)


def lines(manifest: Manifest, only: Iterable[str] | None = None) -> Iterator[str]:
    """Yield one line a path, for people and for differences: its mode, size, the first digits of its hash, its name."""
    for path in sorted(manifest.entries if only is None else set(only) & manifest.entries.keys()):
        entry = manifest.entries[path]
        size = format_size(entry.size) if entry.kind == FILE else entry.kind
        arrow = f" -> {entry.target}" if entry.kind == LINK else ""
        yield f"{entry.mode:04o} {size:>10} {entry.sha256[:12] or '-':12} {path}{arrow}"


def shown(path: str) -> str:
    """Return a path on one harmless line; two paths never look the same."""
    return "".join(
        letter if letter.isprintable() and letter != "\\" else letter.encode("unicode_escape").decode()
        for letter in path
    )


def _unpacked(text: str) -> tuple[Any, Any]:
    words = text.strip().rpartition("\n")[2].split(" ")
    if len(text) > LONGEST_TEXT:
        raise _refused(f"of more than {format_size(LONGEST_TEXT)}; choose smaller folders")
    if len(words) != 4 or words[0] != "manifest":
        raise _refused(f"that is none: {shown(text.strip()[-80:])!r}")
    try:
        reader = zlib.decompressobj()
        plain = reader.decompress(base64.b64decode(words[3], validate=True), _LARGEST)
    except (ValueError, zlib.error):
        raise _refused("that was cut off, or is damaged") from None
    if reader.unconsumed_tail:
        raise _refused(f"of more than {format_size(_LARGEST)}; choose smaller folders")
    if not reader.eof or hashlib.sha256(plain).hexdigest() != words[2]:
        raise _refused("that was cut off, or is damaged")
    try:
        missing, entries = json.loads(plain)
    except (ValueError, TypeError, RecursionError):
        raise _refused("of another form") from None
    if not isinstance(entries, dict) or len(entries) > MOST_ENTRIES:
        raise _refused(f"of more than {MOST_ENTRIES} files and folders; choose smaller folders")
    return missing, entries


def _entry(path: object, values: object) -> Entry:
    if (
        isinstance(values, list)
        and [type(value) for value in values] == [str, int, str, int, str]
        and values[0] in KINDS
        and 0 <= values[1] < 2**63
        and _HASH.fullmatch(values[2])
        and 0 <= values[3] <= 0o7777
        and len(values[4]) <= LONGEST_PATH
    ):
        return Entry(*values)
    raise _refused(f"with something else for {shown(str(path))[:80]!r}")


def _within(path: object, folders: Iterable[str]) -> bool:
    """Tell whether a path is in one of the folders, and is not so written that it leaves it."""
    if not isinstance(path, str) or not path.startswith("/") or len(path) > LONGEST_PATH or "\0" in path:
        return False
    if path != "/" and any(part in ("", ".", "..") for part in path[1:].split("/")):
        return False
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)


def _common(one: Iterable[str], other: Iterable[str]) -> tuple[str, ...]:
    """Return the folders that both cover: of two of which one is in the other, the inner one."""
    other = tuple(other)
    found = {inner for outer in one for inner in other if _within(inner, (outer,))}
    return tuple(sorted(found | {inner for inner in one for outer in other if _within(inner, (outer,))}))


def _only(manifest: Manifest, folders: Iterable[str]) -> dict[str, Entry]:
    wanted = tuple(shown(folder) for folder in folders)
    return {path: entry for path, entry in manifest.entries.items() if _within(path, wanted)}


def _difference(old: Entry, new: Entry) -> str:
    if old.kind != new.kind:
        return "kind"
    content = (old.size, old.sha256) != (new.size, new.sha256)
    parts = ((content, "content"), (old.mode != new.mode, "mode"), (old.target != new.target, "target"))
    return ",".join(word for differs, word in parts if differs)


def _refused(found: str) -> ProcessFailed:
    return ProcessFailed(f"manifest: expected what the script in the machine prints, found one {found}")
