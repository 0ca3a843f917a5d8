# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What cloud_init does on the managed host: writes seeds, each a folder of three files that only their owner reads."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ._module import Result
from .fleet_core.changes import Change
from .fleet_core.cloud_init import FILES, HEADER
from .fleet_core.errors import Conflict, InvalidInput, Unavailable
from .fleet_core.names import check_name

FILE_MODE = 0o600
FOLDER_MODE = 0o700
_LARGEST = 16 * 1024**2
_SECONDS = 60


@dataclass(frozen=True)
class File:
    """A file of a seed: its path, what it is, what it shall be (None: it shall not be), and its mode if it is there."""

    path: str
    before: str | None
    after: str | None
    mode: int = FILE_MODE

    @property
    def action(self) -> str:
        if self.before == self.after:
            return f"make {self.path} private" if self.after is not None and self.mode != FILE_MODE else ""
        verb = "write" if self.before is None else "remove" if self.after is None else "rewrite"
        return f"{verb} {self.path}"


def _folders(params: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the seeds by their folders."""
    found: dict[str, Mapping[str, Any]] = {}
    for seed in params["seeds"] or ():
        folder = os.path.join(params["dest"], check_name("seed", seed["name"]))
        if folder in found:
            raise InvalidInput(f'seed "{seed["name"]}": there are two of this name')
        found[folder] = seed
    return found


def _files(params: Mapping[str, Any]) -> list[File]:
    found = []
    for folder, seed in _folders(params).items():
        for name in FILES:
            path = os.path.join(folder, name)
            before, mode = _read(path)
            after = None
            if params["state"] == "present":
                after = str(seed.get(name.replace("-", "_")) or "") or None
                if after is None and name != "network-config":
                    raise InvalidInput(f'seed "{seed["name"]}": expected {name}, found nothing')
            found.append(File(path, before, after, mode))
    return found


def _read(path: str) -> tuple[str | None, int]:
    try:
        with open(path, "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode) or about.st_size > _LARGEST:
                raise Conflict(f"{path}: expected a file that cloud_init has written, found something else")
            return file.read().decode("utf-8", "replace"), stat.S_IMODE(about.st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None, FILE_MODE
    except OSError as error:
        raise Conflict(f"{path}: cannot be read: {error.strerror}") from error


def _result(params: Mapping[str, Any], files: list[File]) -> Result:
    actions = tuple(item.action for item in files if item.action)
    shown = [item for item in files if item.action]
    change = Change(
        {item.path: item.before for item in shown if item.before is not None},
        {item.path: item.after for item in shown if item.after is not None},
        actions,
    )
    diff = [
        {
            "before_header": item.path if item.before is not None else "",
            "after_header": item.path if item.after is not None else "",
            "before": item.before or "",
            "after": item.after or "",
        }
        for item in shown
        if item.before != item.after
    ]
    present = params["state"] == "present"
    seeds = [
        {
            "name": seed["name"],
            "path": folder,
            "files": [item.path for item in files if item.after is not None and os.path.dirname(item.path) == folder],
        }
        for folder, seed in _folders(params).items()
        if present
    ]
    return Result(change, {"seeds": seeds}, diff)


def plan(params: Mapping[str, Any]) -> Result:
    """Return what apply would do. Asks `cloud-init schema` as well: it only reads."""
    files = _files(params)
    if params["schema_check"]:
        _check(files)
    return _result(params, files)


def apply(params: Mapping[str, Any]) -> Result:
    """Write what differs, whole files at once, or remove them."""
    files = _files(params)
    if params["schema_check"]:
        _check(files)
    for item in files:
        if not item.action:
            continue
        try:
            if item.after is None:
                os.unlink(item.path)
            elif item.before == item.after:
                os.chmod(item.path, FILE_MODE)
            else:
                _write(item.path, item.after)
        except OSError as error:
            raise Conflict(f"{item.path}: cannot be written: {error.strerror}") from error
    if params["state"] == "absent":
        for folder in _folders(params):
            if os.path.isdir(folder) and not os.listdir(folder):
                os.rmdir(folder)
    return _result(params, files)


def _write(path: str, text: str) -> None:
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=FOLDER_MODE, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=".seed-", dir=folder)  # with the mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _check(files: list[File]) -> None:
    """Ask `cloud-init schema`, where it is installed, about cloud-config that would be written."""
    program = shutil.which("cloud-init")
    if program is None:
        return
    for path, text in _changed_configs(files):
        with tempfile.TemporaryDirectory(prefix="fleet-schema-") as folder:
            copy = os.path.join(folder, "user-data")
            _write(copy, text)
            try:
                done = subprocess.run(  # pylint: disable=ansible-bad-function  # the core has no module
                    [program, "schema", "--config-file", copy],
                    stdin=subprocess.DEVNULL,
                    capture_output=True,
                    text=True,
                    timeout=_SECONDS,
                    check=False,
                    cwd=folder,
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise Unavailable(f"cloud-init schema: cannot be asked about {path}: {error}") from error
            if done.returncode != 0:
                reason = " ".join((done.stdout + " " + done.stderr).replace(copy, path).split())
                raise InvalidInput(f"{path}: cloud-init schema says: {reason[:600]}")


def _changed_configs(files: list[File]) -> Iterator[tuple[str, str]]:
    for item in files:
        if item.after is not None and item.after != item.before and item.after.startswith(HEADER + "\n"):
            yield item.path, item.after
