# SPDX-License-Identifier: GPL-3.0-or-later
"""Images: what machines are made from."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from .errors import InvalidInput
from .machines import check_machine_name, text_hash

GOLDEN = "golden"
REMOTE = "remote"


@dataclass(frozen=True)
class Image:
    """kind: golden (built here, sealed) or remote (the provider fetches it). aliases: other names that it has.

    inputs: the hash of what a golden image was built from. incomplete: what is missing of one whose build failed.
    """

    name: str
    provider: str
    kind: str = REMOTE
    aliases: tuple[str, ...] = ()
    release: str = ""
    version: str = ""
    inputs: str = ""
    incomplete: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "provider": self.provider,
            "kind": self.kind,
            "aliases": list(self.aliases),
            "release": self.release,
            "version": self.version,
            "inputs": self.inputs,
            "incomplete": self.incomplete,
        }


@dataclass(frozen=True)
class ImageSpec:
    """A golden image to build: base, an image that the provider can boot; user_data, for cloud-init; commands, shell
    texts that run inside as root when cloud-init is done, in this order, and must succeed.

    cpu, memory and disk (bytes) are those of the machine that it is built in, and of clones that name none.
    """

    name: str
    provider: str
    base: str
    cpu: int | None = None
    memory: int | None = None
    disk: int | None = None
    user_data: str | None = field(default=None, repr=False)
    commands: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_machine_name(self.name)
        if not self.base:
            raise InvalidInput(f'image "{self.name}": expected a base image')

    @property
    def inputs(self) -> str:
        """The hash of all that decides what is in the image: the same inputs need no new build."""
        return text_hash(json.dumps([self.provider, self.base, self.disk, self.user_data, self.commands]))
