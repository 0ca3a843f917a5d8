# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of others that we change: one at a time, in one step, with their mode and owner kept."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fleet_core.errors import InvalidInput, Unavailable


@dataclass
class Content:
    """A file that nobody else who asks so may change now. text: None when there is no file."""

    path: Path
    text: str | None

    def write(self, text: str, mode: int = 0o600) -> None:
        """Put a new text in place of the old. mode: of a new file."""
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=f"{self.path.name}.")
        try:
            with open(descriptor, "wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            if self.text is None:
                os.chmod(name, mode)
            else:
                shutil.copymode(self.path, name)
                status = self.path.stat()
                if os.geteuid() == 0 and status.st_uid != 0:
                    os.chown(name, status.st_uid, status.st_gid)
            os.replace(name, self.path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise


@contextlib.contextmanager
def changing(file: Path, make: bool = False) -> Iterator[Content]:
    """Give the content of a file, symlinks resolved. make: its folder, where it is not there.

    Raises Unavailable when it cannot be read or written, InvalidInput when it is no UTF-8 text.
    """
    path = Path(os.path.realpath(file))
    descriptor = -1
    try:
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            text = path.read_bytes().decode()
        except FileNotFoundError:
            text = None
        yield Content(path, text)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: expected UTF-8 text, found byte {error.object[error.start]:#04x}") from None
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror or error}") from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)
