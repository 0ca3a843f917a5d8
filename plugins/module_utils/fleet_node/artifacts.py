# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that tasks leave: found by globs, packed into a tar and unpacked again, never outside of their folder."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_core.errors import InvalidInput, ProcessFailed, StateDamaged
else:
    try:
        from ..fleet_core.errors import InvalidInput, ProcessFailed, StateDamaged
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import InvalidInput, ProcessFailed, StateDamaged

MOST = 20_000  # files of one run
_CHUNK = 1024 * 1024


def matches(folder: str, pattern: str) -> bool:
    """Return whether anything inside the folder matches a glob."""
    return next(_expand(folder, _parts(pattern)), None) is not None


def _parts(pattern: str) -> list[str]:
    return [part for part in pattern.split("/") if part not in ("", ".")]


def _expand(base: str, parts: list[str]) -> Iterator[str]:
    """Give what matches a glob. Like glob.glob, but ** enters no symbolic link, so that no tree is endless."""
    if not parts:
        yield base
        return
    head, *rest = parts
    if head == "**":
        yield from _expand(base, rest)
        for name in _names(base, "*"):
            path = os.path.join(base, name)
            if os.path.isdir(path) and not os.path.islink(path):
                yield from _expand(path, parts)
        return
    for name in _names(base, head) if glob.has_magic(head) else (head,):
        path = os.path.join(base, name)
        if os.path.isdir(path) if rest else os.path.lexists(path):
            yield from _expand(path, rest)


def _names(folder: str, pattern: str) -> list[str]:
    """Return the names in a folder that match; hidden ones only where the pattern begins with a dot."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    hidden = pattern.startswith(".")
    return sorted(name for name in names if fnmatch.fnmatchcase(name, pattern) and (hidden or name[0] != "."))


def find(root: str, folder: str, patterns: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the files below folder that the globs match, relative to root and sorted, and the globs without a match.

    A folder that matches stands for all files in it. Raises ProcessFailed for a match that leads out of root, which
    only a symbolic link can, and for what is neither a file nor a folder.
    """
    inside = os.path.realpath(root)
    found: set[str] = set()
    unmatched = []
    for pattern in patterns:
        empty = True
        for name in _expand(folder, _parts(pattern)):
            empty = False
            for path in _files(name):
                _check(path, inside)
                if not os.path.isdir(path):  # a link to a folder inside: its files are found there
                    found.add(os.path.relpath(path, root))
                if len(found) > MOST:
                    raise ProcessFailed(f'artifacts: expected at most {MOST} files, found more with "{pattern}"')
        if empty:
            unmatched.append(pattern)
    return sorted(found), unmatched


def _files(path: str) -> Iterator[str]:
    if not os.path.isdir(path) or os.path.islink(path):
        yield path
        return
    for base, folders, names in os.walk(path):
        links = [name for name in folders if os.path.islink(os.path.join(base, name))]
        for name in (*names, *links):
            yield os.path.join(base, name)


def _check(path: str, inside: str) -> None:
    real = os.path.realpath(path)
    if os.path.commonpath([real, inside]) != inside:
        raise ProcessFailed(f'artifact "{path}": leads to {real}, out of the folder {inside}')
    try:
        mode = os.stat(real).st_mode
    except OSError as error:
        raise ProcessFailed(f'artifact "{path}": cannot be read: {error.strerror}') from None
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ProcessFailed(f'artifact "{path}": expected a file, found something else')


def pack(root: str, names: Iterable[str], target: IO[bytes]) -> int:
    """Write the named files to a tar and return how many there were. What is gone by now is left out.

    A symbolic link is written as the file that it leads to; one that leads out of root raises ProcessFailed.
    """
    inside = os.path.realpath(root)
    count = 0
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            path = os.path.join(root, name)
            if not os.path.exists(path) or os.path.isdir(path):
                continue
            _check(path, inside)
            try:
                count += _pack_file(archive, name, os.path.realpath(path))
            except OSError as error:  # tarfile's own for a file that shrinks meanwhile, too
                raise ProcessFailed(f'artifact "{name}": cannot be read: {error.strerror or error}') from None
    return count


def _pack_file(archive: tarfile.TarFile, name: str, real: str) -> int:
    handle = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            return 0
        member = tarfile.TarInfo(name)
        member.size, member.mtime = status.st_size, int(status.st_mtime)
        member.mode = 0o755 if status.st_mode & 0o100 else 0o644
        archive.addfile(member, file)
    return 1


def unpack(source: IO[bytes], target: Path) -> list[str]:
    """Write the files of a tar below target, which is made, and return their names.

    Takes regular files with relative names only, and writes through no symbolic link: InvalidInput names what is
    neither, before it is written. Files that are there already are replaced.
    """
    names: list[str] = []
    target.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(fileobj=source, mode="r|") as archive:
            for member in archive:
                parts = member.name.split("/")
                if not member.isreg() or not all(parts) or ".." in parts or "." in parts or "\0" in member.name:
                    raise InvalidInput(f'artifact "{member.name}": expected a file with a relative path inside')
                if len(names) >= MOST:
                    raise InvalidInput(f"artifacts: expected at most {MOST} files, found more")
                content = archive.extractfile(member)
                if content is not None:
                    _write(target, parts, member.mode, content)
                    names.append(member.name)
    except (tarfile.TarError, EOFError) as error:
        raise InvalidInput(f"artifacts: the archive is damaged: {error}") from error
    except OSError as error:
        raise StateDamaged(f"artifacts: cannot be written to {target}: {error.strerror or error}") from error
    return names


def _write(target: Path, parts: list[str], mode: int, content: IO[bytes]) -> None:
    """Write one file, entering each folder by its descriptor so that no link is followed."""
    with contextlib.ExitStack() as stack:
        here = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, here)
        for part in parts[:-1]:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=here)
            here = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
            stack.callback(os.close, here)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(parts[-1], dir_fd=here)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(parts[-1], flags, 0o755 if mode & 0o100 else 0o644, dir_fd=here)
        with os.fdopen(handle, "wb") as file:
            while data := content.read(_CHUNK):
                file.write(data)
