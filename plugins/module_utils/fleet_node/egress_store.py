# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host knows of its fence, in STATE_DIR/egress: what was declared, what is live, what the tools read.

All that belongs together lies in one folder, a generation. The link "applied" names the one that counts; a rename moves
it, so that a kill at any moment leaves the old or the new one, whole. declared.json, live.json, ports.json and boot.sh
stand beside it as links into it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.errors import StateDamaged, TimedOut, Unavailable
else:
    try:
        from ..fleet_core.errors import StateDamaged, TimedOut, Unavailable
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import StateDamaged, TimedOut, Unavailable

from . import paths

FOLDER = "egress"
APPLIED = "applied"
DECLARED, LIVE, PORTS, ADDRESSES, BASIS, BOOT = (
    *("declared.json", "live.json", "ports.json", "addresses.json", "basis.json"),
    "boot.sh",
)
DENIALS, METRICS, UNFINISHED, AGED, LOCK = "denials.jsonl", "metrics.prom", "unfinished.json", "aged", "lock"
_LINKED = (DECLARED, LIVE, PORTS, BOOT)
_OURS = (DECLARED, LIVE, PORTS, ADDRESSES, BASIS, BOOT)
_PATIENCE = 120.0  # seconds that an apply waits for another one
_PAUSE = 0.05


@dataclass(frozen=True)
class Record:
    """A generation. files: what the backend and the services read, by name. basis: at which time, and with which
    upstreams, they were worked out. name: of its folder, empty where nothing is applied.
    """

    name: str = ""
    declared: Mapping[str, Any] | None = None
    live: tuple[Mapping[str, Any], ...] = ()
    ports: Mapping[str, int] = field(default_factory=dict)
    addresses: Mapping[str, Any] = field(default_factory=dict)
    basis: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    boot: str = ""


NOTHING = Record()


class EgressStore:
    """The folder STATE_DIR/egress. state_dir: as paths.state_dir takes it."""

    def __init__(self, state_dir: str | os.PathLike[str] | None = None) -> None:
        self.state_dir = paths.state_dir(state_dir)
        self.folder = self.state_dir / FOLDER
        self.applied = self.folder / APPLIED

    # Reading

    def read(self) -> Record:
        """Return what is applied, or NOTHING. Raises Unavailable for another user's, StateDamaged for half of one."""
        for _attempt in range(5):
            name = self._current()
            if not name:
                return NOTHING
            try:
                return self._generation(name)
            except FileNotFoundError as error:  # replaced while it was read
                missing = error.filename
        raise StateDamaged(
            f"{self.applied}: expected a whole generation, found none of {missing}; remove the link and apply the "
            "policy again, which forgets live changes"
        )

    def _current(self) -> str:
        try:
            return os.path.basename(os.readlink(self.applied))
        except FileNotFoundError:
            return ""
        except PermissionError:
            raise Unavailable(f"{self.folder}: only root can read what is enforced here; run as root") from None
        except OSError as error:
            raise StateDamaged(f"{self.applied}: expected a link to a generation: {error.strerror}") from error

    def _generation(self, name: str) -> Record:
        folder = self.folder / name
        found = {path.name: _text(path) for path in sorted(folder.iterdir()) if path.is_file()}
        for needed in (DECLARED, LIVE, PORTS, BASIS):
            if needed not in found:
                raise FileNotFoundError(2, os.strerror(2), str(folder / needed))
        return Record(
            name=name,
            declared=_object(folder / DECLARED, found[DECLARED]),
            live=_listed(folder / LIVE, found[LIVE], "live"),
            ports=_object(folder / PORTS, found[PORTS]),
            addresses=_object(folder / ADDRESSES, found.get(ADDRESSES, "{}")),
            basis=_object(folder / BASIS, found[BASIS]),
            files={key: text for key, text in found.items() if key not in _OURS},
            boot=found.get(BOOT, ""),
        )

    def unfinished(self) -> dict[str, Any]:
        """Return what an apply that was killed had still to do, empty when there was none."""
        try:
            return _object(self.folder / UNFINISHED, _text(self.folder / UNFINISHED))
        except (FileNotFoundError, StateDamaged):
            return {}

    # Writing, with the lock held

    def prepare(self, record: Record) -> Path:
        """Write a generation beside the one that counts, and return its folder."""
        self.make()
        folder = self.folder / f"{APPLIED}-{secrets.token_hex(6)}"
        folder.mkdir(mode=0o700)
        written = {
            DECLARED: _json(record.declared),
            LIVE: _json({"live": list(record.live)}),
            PORTS: _json(record.ports),
            ADDRESSES: _json(record.addresses),
            BASIS: _json(record.basis),
            BOOT: record.boot,
            **record.files,
        }
        try:
            for name, text in written.items():
                _write(folder / name, text, 0o700 if name == BOOT else 0o600)
            _sync(folder)
        except OSError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise StateDamaged(f"{folder}: cannot be written: {error.strerror}") from error
        return folder

    def commit(self, name: str) -> None:
        """Let a generation be the one that counts."""
        _link(self.applied, name)
        for each in _LINKED:
            if not (self.folder / each).is_symlink():
                _link(self.folder / each, f"{APPLIED}/{each}")
        _sync(self.folder)

    def uncommit(self, name: str) -> None:
        """Go back to an earlier generation; an empty name means none."""
        if name:
            self.commit(name)
        else:
            with contextlib.suppress(FileNotFoundError):
                self.applied.unlink()

    def begin(self, left: Mapping[str, Any]) -> None:
        """Note what has to be done after the rules are loaded, for the case that nobody lives to do it."""
        self.put(UNFINISHED, _json(left))

    def finish(self) -> None:
        """All is done: forget the note, and the generations that no longer count."""
        with contextlib.suppress(FileNotFoundError):
            (self.folder / UNFINISHED).unlink()
        self.clean()

    def clean(self) -> None:
        """Remove generations that do not count, which killed applies leave too."""
        current = self._current()
        for path in self.folder.glob(f"{APPLIED}-*"):
            if path.name != current and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(".*.new"):
            with contextlib.suppress(OSError):
                path.unlink()

    def put(self, name: str, text: str, mode: int = 0o600) -> None:
        """Write a file beside the generations, whole or not at all."""
        self.make()
        path, new = self.folder / name, self.folder / f".{name}.{secrets.token_hex(4)}.new"
        try:
            _write(new, text, mode)
            os.replace(new, path)
        except OSError as error:
            raise StateDamaged(f"{path}: cannot be written: {error.strerror}") from error

    def make(self) -> None:
        """Make the folder, which only its owner can enter."""
        paths.make_private(self.state_dir)
        paths.make_private(self.folder)

    def remove(self) -> None:
        """Remove the folder with all that is in it. First what counts: half a generation would be an error."""
        self.uncommit("")
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self, seconds: float = _PATIENCE) -> Iterator[None]:
        """Hold the lock of all that changes the fence. Raises TimedOut when another apply does not end in time."""
        self.make()
        path = self.folder / LOCK
        deadline = time.monotonic() + seconds
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                if self._taken(descriptor, path, deadline):
                    yield
                    return
            finally:
                os.close(descriptor)
            self.make()

    def _taken(self, descriptor: int, path: Path, deadline: float) -> bool:
        """Take the lock; False when the file was removed meanwhile, and another one is to be locked."""
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimedOut(f"{path}: expected the apply that holds it to end in time, found it held") from None
                time.sleep(_PAUSE)
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(path))
        except FileNotFoundError:
            return False


def _text(path: Path) -> str:
    if not stat.S_ISREG(path.stat().st_mode):
        raise StateDamaged(f"{path}: expected a file")
    return path.read_text(encoding="utf-8")


def _object(path: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise StateDamaged(f"{path}: expected JSON: {error}") from None
    if not isinstance(found, dict):
        raise StateDamaged(f"{path}: expected an object")
    return found


def _listed(path: Path, text: str, key: str) -> tuple[dict[str, Any], ...]:
    """Return a list of objects that stands in an object; without it, nobody knows what was in there."""
    found = _object(path, text).get(key)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise StateDamaged(f'{path}: expected a list "{key}" of objects')
    return tuple(found)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def _write(path: Path, text: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _link(path: Path, target: str) -> None:
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    os.symlink(target, new)
    os.replace(new, path)
