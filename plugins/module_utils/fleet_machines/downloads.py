# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloads of large files: verified before anybody sees them, resumed where they broke off, cached by their content.

A file is known by its checksum, so it does not matter which mirror or proxy it came from, nor whether over https.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .provider import Job

if TYPE_CHECKING:
    from fleet_core.errors import FleetError, InvalidInput, NotFound, TimedOut, Unavailable
    from fleet_core.quantities import format_size
else:
    try:
        from ..fleet_core.errors import FleetError, InvalidInput, NotFound, TimedOut, Unavailable
        from ..fleet_core.quantities import format_size
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import FleetError, InvalidInput, NotFound, TimedOut, Unavailable
        from fleet_core.quantities import format_size

CHECKSUM = re.compile(r"(sha256):([0-9a-f]{64})|(sha512):([0-9a-f]{128})")
CHUNK = 1024 * 1024
STALLED = 30.0  # seconds without a byte: the connection is given up
ATTEMPTS = 5  # in a row that brought nothing
LARGEST_REPORT_GAP = 10.0
_SPARE = 256 * 1024**2  # bytes to leave free on the disk
_LATER = (408, 425, 429, 500, 502, 503, 504)


class _Broken(Exception):
    """The connection did not bring the whole file; another attempt may."""


class _Stale(Exception):
    """What is there of the file does not fit what the server has: begin again."""


@dataclass(frozen=True)
class Checksum:
    algorithm: str
    digits: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digits}"


def parse_checksum(what: str, text: str) -> Checksum:
    """Return a checksum from "sha256:…" or "sha512:…". Raises InvalidInput."""
    found = CHECKSUM.fullmatch(text.strip().lower())
    if not found:
        given = f"found {text!r}" if text else "found none"
        raise InvalidInput(
            f'{what}: expected the checksum of the file, "sha256:" and 64 or "sha512:" and 128 digits as its publisher '
            f"lists them, {given}"
        )
    return Checksum(found[1] or found[3], found[2] or found[4])


def check_url(what: str, url: str) -> str:
    """Return an address that can be downloaded from. Raises InvalidInput, also for a password in it."""
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or any(letter.isspace() or not letter.isprintable() for letter in url):
        raise InvalidInput(f"{what}: expected an address that begins with https://, found {_shown(url)!r}")
    if parts.username is not None or parts.password is not None:
        raise InvalidInput(f"{what}: expected an address without a user and password in it")
    return url


def cached(url: str, checksum: str, folder: Path, job: Job, what: str, *, stalled: float = STALLED) -> Path:
    """Return the path of a file with this checksum in the folder, downloaded from the address if it is not there.

    The caller holds a lock on the folder. what: begins the sentences of errors. stalled: seconds without a byte after
    which a connection is given up. Raises InvalidInput, NotFound, Unavailable and TimedOut; a part that was downloaded
    stays, and the next call goes on with it.
    """
    wanted = parse_checksum(what, checksum)
    check_url(what, url)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{wanted.algorithm}-{wanted.digits}"
    if path.is_file():
        if _hash_of(path, wanted, job, what) == wanted.digits:
            return path
        job.report("the file in the cache is damaged: download it again")
        path.unlink()
    part = folder / f"{path.name}.part"
    resumed = part.exists() and part.stat().st_size > 0
    while True:
        _Transfer(url, part, job, what, stalled).run()
        job.report("verify its checksum")
        found = _hash_of(part, wanted, job, what)
        if found == wanted.digits:
            break
        part.unlink()
        if not resumed:
            raise InvalidInput(f"{what}: {_shown(url)}: expected {wanted}, found {wanted.algorithm}:{found}")
        resumed = False  # what an earlier call had left may have been of another file
        job.report("the resumed file does not have its checksum: download all of it")
    part.chmod(0o444)
    os.replace(part, path)
    return path


def verify(path: Path, checksum: str, job: Job, what: str) -> None:
    """Raise InvalidInput if a file does not have its checksum."""
    wanted = parse_checksum(what, checksum)
    try:
        found = _hash_of(path, wanted, job, what)
    except FileNotFoundError:
        raise NotFound(f"{what}: there is no file {path}") from None
    except OSError as error:
        raise InvalidInput(f"{what}: {path} cannot be read: {error.strerror}") from error
    if found != wanted.digits:
        raise InvalidInput(f"{what}: expected {wanted}, found {wanted.algorithm}:{found}")


class _Transfer:
    """One file on its way into a .part file, over as many connections as it takes."""

    def __init__(self, url: str, part: Path, job: Job, what: str, stalled: float) -> None:
        self._url, self._part, self._job, self._what, self._stalled = url, part, job, what, stalled
        self._opener = urllib.request.build_opener()
        self._told = 0.0
        self._version = ""  # the server's ETag or date: parts of two versions do not fit together

    def run(self) -> None:
        attempt, pause = 0, 1.0
        while True:
            before = self._size()
            try:
                self._go_on(before)
                return
            except _Stale:
                self._part.unlink()
                self._job.report("what was there does not fit: begin again")
                attempt += 1
                problem: Exception = FleetError("the server's file changed in between")
            except _Broken as error:
                problem = error
                gained = self._size() > before
                attempt, pause = (1, 1.0) if gained else (attempt + 1, min(pause * 2, 30.0))
            where = f"{self._what}: {_shown(self._url)}"
            if attempt >= ATTEMPTS:
                raise Unavailable(f"{where}: given up after {ATTEMPTS} attempts: {problem}")
            if self._job.left() <= pause:
                raise TimedOut(f"{where}: not downloaded within the time; what is there of it is kept: {problem}")
            self._job.report(f"{problem}; try again in {pause:.0f} s")
            self._job.pause(pause)

    def _size(self) -> int:
        try:
            return self._part.stat().st_size
        except FileNotFoundError:
            return 0

    def _go_on(self, begin: int) -> None:
        """Fetch from byte ``begin`` to the end."""
        headers = {"User-Agent": "autovibe-fleet", "Accept-Encoding": "identity"}
        if begin:
            headers["Range"] = f"bytes={begin}-"
            if self._version:
                headers["If-Range"] = self._version
        request = urllib.request.Request(self._url, headers=headers)
        try:
            with self._opener.open(request, timeout=max(0.1, min(self._stalled, self._job.left()))) as answer:
                self._receive(answer, begin)
        except urllib.error.HTTPError as error:
            error.close()
            if not (error.code == 416 and _whole(error, begin)):
                raise self._refusal(error, begin) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if "CERTIFICATE_VERIFY_FAILED" in str(reason):
                raise Unavailable(f"{self._what}: {_shown(self._url)}: {reason}") from error
            raise _Broken(str(reason) or type(error).__name__) from error

    def _refusal(self, error: urllib.error.HTTPError, begin: int) -> Exception:
        said = f"the server answered {error.code} {error.reason}"
        if error.code == 416 and begin:
            return _Stale(said)
        if error.code in _LATER:
            return _Broken(said)
        kind = NotFound if error.code in (404, 410) else Unavailable
        return kind(f"{self._what}: {_shown(self._url)}: {said}")

    def _receive(self, answer: Any, begin: int) -> None:
        if answer.status == 206 and not _continues(answer, begin):
            raise _Stale
        begin = begin if answer.status == 206 else 0
        etag = answer.headers.get("ETag") or ""
        self._version = etag if etag and not etag.startswith("W/") else ""
        length = answer.headers.get("Content-Length") or ""
        total = begin + int(length) if length.isdigit() else 0
        self._check_space(total - begin)
        self._copy(answer, begin, total)

    def _copy(self, answer: Any, begin: int, total: int) -> None:
        done = begin
        try:
            file = self._part.open("ab" if begin else "wb")
        except OSError as error:
            raise Unavailable(f"{self._what}: {self._part} cannot be written: {error.strerror}") from error
        with file:
            while True:
                if not self._job.left():
                    raise TimedOut(
                        f"{self._what}: {_shown(self._url)}: not downloaded within the time; the next call goes on at "
                        f"{format_size(done) if done else 0}"
                    )
                chunk = answer.read1(CHUNK)
                if not chunk:
                    break
                try:
                    file.write(chunk)
                except OSError as error:
                    raise Unavailable(f"{self._what}: {self._part} cannot be written: {error.strerror}") from error
                done += len(chunk)
                self._tell(done, total)
            file.flush()
            os.fsync(file.fileno())
        if total and done < total:
            raise _Broken(f"the connection ended after {done} of {total} bytes")

    def _check_space(self, size: int) -> None:
        free = shutil.disk_usage(self._part.parent).free
        if size > free - _SPARE:
            raise Unavailable(
                f"{self._what}: {self._part.parent}: expected room for {size // CHUNK + 1}M, "
                f"found {free // CHUNK}M free"
            )

    def _tell(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._told >= LARGEST_REPORT_GAP:
            share = f"{done * 100 // total} % of {total // CHUNK}M" if total else f"{done // CHUNK}M"
            self._job.report(f"download: {share}")
            self._told = now
            self._check_space(0)  # a server need not say how much comes, or tell the truth


def _continues(answer: Any, begin: int) -> bool:
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range") or "")
    return found is not None and int(found[1]) == begin


def _whole(error: urllib.error.HTTPError, begin: int) -> bool:
    """Tell whether a server refused a range because the file has no more bytes than are there."""
    found = re.match(r"bytes \*/(\d+)", error.headers.get("Content-Range") or "")
    return found is not None and int(found[1]) == begin


def _hash_of(path: Path, wanted: Checksum, job: Job, what: str) -> str:
    digest = hashlib.new(wanted.algorithm)
    with path.open("rb") as file:
        while True:
            chunk = file.read(4 * CHUNK)
            if not chunk:
                return digest.hexdigest()
            digest.update(chunk)
            job.check(f"{what}: its checksum was not verified")


def _shown(url: str) -> str:
    """Return an address without what may be secret in it: its query, and a user with a password."""
    return re.sub(r"//[^/]*@", "//...@", url.partition("?")[0])
