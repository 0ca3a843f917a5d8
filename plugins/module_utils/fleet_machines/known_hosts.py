# SPDX-License-Identifier: GPL-3.0-or-later
"""What a controller needs to reach machines: the fleet's key pair and known_hosts, in STATE_DIR/machines."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_core.errors import StateDamaged, Unavailable
    from fleet_core.known_hosts import known, updated
    from fleet_core.ssh_keys import public_key
    from fleet_node import paths
else:
    try:
        from ..fleet_core.errors import StateDamaged, Unavailable
        from ..fleet_core.known_hosts import known, updated
        from ..fleet_core.ssh_keys import public_key
        from ..fleet_node import paths
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import StateDamaged, Unavailable
        from fleet_core.known_hosts import known, updated
        from fleet_core.ssh_keys import public_key
        from fleet_node import paths

_SECONDS = 30


class Keys:
    """The key pair and known_hosts of one state folder. Reading makes no folder."""

    def __init__(self, state_dir: str | os.PathLike[str] | None = None) -> None:
        self._state = paths.state_dir(state_dir)
        self.folder = self._state / "machines"
        self.known_hosts = self.folder / "known_hosts"
        self.private_key = self.folder / "id_ed25519"

    def public_key(self) -> str:
        """Return the fleet's public key, empty when there is none."""
        text = _read(self.private_key.with_suffix(".pub"))
        if not text or not self.private_key.exists():
            return ""
        return public_key(str(self.private_key.with_suffix(".pub")), text)

    def known(self) -> dict[str, str]:
        """Return the host keys by the names of machines."""
        return known(_read(self.known_hosts))

    def make_key(self) -> str:
        """Return the fleet's public key; the pair is made if it is not there, with the mode 0600."""
        with self._locked():
            found = self.public_key()
            if found:
                return found
            program = shutil.which("ssh-keygen")
            if program is None:
                raise Unavailable("ssh-keygen: it is not installed on this host; expected it to make the fleet's key")
            with tempfile.TemporaryDirectory(dir=self.folder, prefix=".key.") as scratch:
                made = Path(scratch) / self.private_key.name
                try:
                    done = subprocess.run(  # pylint: disable=ansible-bad-function  # no module in fleet_machines
                        [program, "-q", "-t", "ed25519", "-N", "", "-C", "autovibe-fleet", "-f", str(made)],
                        stdin=subprocess.DEVNULL,
                        capture_output=True,
                        text=True,
                        timeout=_SECONDS,
                        check=False,
                    )
                except (OSError, subprocess.TimeoutExpired) as error:
                    raise Unavailable(f"ssh-keygen: it cannot be run: {error}") from error
                if done.returncode != 0:
                    raise StateDamaged(f"{self.private_key}: ssh-keygen says: {done.stderr.strip()[-300:]}")
                # The private one last: a pair is whole or not there.
                os.replace(made.with_suffix(".pub"), self.private_key.with_suffix(".pub"))
                os.replace(made, self.private_key)
            return self.public_key()

    def update(self, wanted: Mapping[str, str], gone: Iterable[str] = ()) -> None:
        """Write the host keys of machines and forget others; after a crash there is the old file or the new one."""
        with self._locked():
            text = updated(_read(self.known_hosts), wanted, gone)
            if not text:
                with contextlib.suppress(FileNotFoundError):
                    self.known_hosts.unlink()
                return
            handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=".known_hosts.")  # with the mode 0600
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.known_hosts)
            except OSError as error:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
                raise StateDamaged(f"{self.known_hosts}: cannot be written: {error.strerror}") from error

    def remove_key(self) -> None:
        """Remove the key pair."""
        for path in (self.private_key, self.private_key.with_suffix(".pub")):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of the files against other processes; it is held for milliseconds."""
        paths.make_private(self._state)
        paths.make_private(self.folder)
        handle = os.open(self.folder, os.O_RDONLY)  # a lock on the folder leaves no file behind
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise StateDamaged(f"{path}: cannot be read: {error}") from error
