# SPDX-License-Identifier: GPL-3.0-or-later
"""What differs between the distributions that machines are made of, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .errors import InvalidInput
from .names import nearest


@dataclass(frozen=True)
class Distribution:
    """A release of a distribution.

    name: such as ubuntu-24.04. python: version of its python3. node: major version of its nodejs package.
    user: of its cloud images. container_packages: what rootless Podman needs beside podman, uidmap and a user bus.
    """

    name: str
    family: str
    version: str
    codename: str
    python: str
    node: int
    user: str
    container_packages: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "container_packages": list(self.container_packages)}


_SLIRP = ("slirp4netns", "fuse-overlayfs")
_ROWS = (
    Distribution("ubuntu-22.04", "ubuntu", "22.04", "jammy", "3.10", 12, "ubuntu", _SLIRP),
    Distribution("ubuntu-24.04", "ubuntu", "24.04", "noble", "3.12", 18, "ubuntu", ("passt", *_SLIRP)),
    Distribution("debian-12", "debian", "12", "bookworm", "3.11", 18, "debian", _SLIRP),
    Distribution("debian-13", "debian", "13", "trixie", "3.13", 20, "debian", ("passt", *_SLIRP)),
)
DISTRIBUTIONS = {row.name: row for row in _ROWS}


def distribution(where: str, name: object) -> Distribution:
    """Return a distribution by its name, or by its code name. Raises InvalidInput with the nearest one."""
    word = str(name).strip().lower()
    for row in _ROWS:
        if word in (row.name, row.codename):
            return row
    hint = nearest(word, DISTRIBUTIONS) or f"; expected one of {', '.join(DISTRIBUTIONS)}"
    raise InvalidInput(f'{where}: unknown distribution "{name}"{hint}')
