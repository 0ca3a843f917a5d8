# SPDX-License-Identifier: GPL-3.0-or-later
"""Images: what machines are made from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import InvalidInput
from .machines import check_machine_name, text_hash

GOLDEN = "golden"
REMOTE = "remote"

# What a golden image is called: its family, and the first digits of the hash of its inputs.
LONGEST_FAMILY = 63 - 11
CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
HASHED = re.compile(r"(?P<family>[A-Za-z][A-Za-z0-9-]*?)-(?P<hash>[0-9a-f]{10})")


def family_of(name: str) -> str:
    """Return the family of a golden image's name, or the name itself."""
    found = HASHED.fullmatch(name)
    return found["family"] if found else name


def golden_name(family: str, inputs: str) -> str:
    """Return the name of the image of a family that was built from these inputs, a hash as ImageSpec.inputs."""
    return f"{family}-{inputs.partition(':')[2][:10]}"


def same_image(wanted: str, found: str) -> bool:
    """Tell whether a machine made from ``found`` is as wanted. One of an older image of the family has drifted, which
    is reported but is no difference."""
    return wanted == found or wanted == family_of(found)


@dataclass(frozen=True)
class Image:
    """kind: golden (built here, sealed) or remote (the provider fetches it). aliases: other names that it has.

    inputs: the hash of what a golden image was built from. incomplete: what is missing of one whose build failed.
    created: ISO 8601, empty when not known. size: bytes, 0 when not known. detail: what only this provider knows; of a
    golden image also "parts", the hashes of ImageSpec.parts, by which is told what changed.
    """

    name: str
    provider: str
    kind: str = REMOTE
    aliases: tuple[str, ...] = ()
    release: str = ""
    version: str = ""
    inputs: str = ""
    incomplete: str = ""
    created: str = ""
    size: int = 0
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        return family_of(self.name) if self.kind == GOLDEN else self.name

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
            "family": self.family,
            "created": self.created,
            "size": self.size,
            "detail": dict(self.detail),
        }


def newest(images: Iterable[Image], name: str) -> Image | None:
    """Return the image of this name, or the newest whole golden one of the family of this name."""
    images = tuple(images)
    for image in images:
        if image.name == name or name in image.aliases:
            return image
    family = [image for image in images if image.kind == GOLDEN and image.family == name and not image.incomplete]
    return max(family, key=lambda image: (image.created, image.name), default=None)


@dataclass(frozen=True)
class ImageSpec:
    """A golden image to build: base, an image that the provider can boot; user_data, for cloud-init; commands, shell
    texts that run inside as root when cloud-init is done, in this order, and must succeed.

    cpu, memory and disk (bytes) are those of the machine that it is built in, and of clones that name none.
    checksum: of a base that is downloaded, "sha256:…". checks: shell texts by what they verify; each must end with 0,
    inside the machine, before it is sealed. login: the account that machines made from it have. build: any text, to
    build another image of the same inputs, such as one with newer packages.
    """

    name: str
    provider: str
    base: str
    cpu: int | None = None
    memory: int | None = None
    disk: int | None = None
    user_data: str | None = field(default=None, repr=False)
    commands: tuple[str, ...] = ()
    checksum: str = ""
    checks: Mapping[str, str] = field(default_factory=dict)
    login: str = ""
    build: str = ""

    def __post_init__(self) -> None:
        check_machine_name(self.name)
        if len(self.name) > LONGEST_FAMILY or HASHED.fullmatch(self.name):
            raise InvalidInput(
                f'image "{self.name}": expected the name of a family, at most {LONGEST_FAMILY} letters without a hash '
                "at its end"
            )
        if not self.base:
            raise InvalidInput(f'image "{self.name}": expected a base image')
        if self.checksum and not CHECKSUM.fullmatch(self.checksum):
            raise InvalidInput(
                f'image "{self.name}": checksum: expected "sha256:" or "sha512:" and digits, found {self.checksum!r}'
            )

    @property
    def image_name(self) -> str:
        """What the image is called that these inputs make: the family, which is ``name``, and the hash."""
        return golden_name(self.name, self.inputs)

    @property
    def parts(self) -> dict[str, str]:
        """The hash of each input by its name, to tell which of them changed."""
        named = ("provider", "base", "checksum", "disk", "user_data", "commands", "checks", "login")
        plain = {name: getattr(self, name) for name in named}
        return {
            name: text_hash(json.dumps(dict(value) if isinstance(value, Mapping) else value))
            for name, value in plain.items()
        }

    @property
    def inputs(self) -> str:
        """The hash of all that decides what is in the image: the same inputs need no new build."""
        parts = (self.provider, self.base, self.checksum, self.disk, self.user_data, self.commands)
        build = [self.build] if self.build else []
        return text_hash(json.dumps([*parts, dict(self.checks), self.login, *build]))


def changed_inputs(spec: ImageSpec, image: Image) -> tuple[str, ...]:
    """Return the names of the inputs in which a golden image differs from what is wanted, none when it is not known."""
    known = image.detail.get("parts")
    if not isinstance(known, Mapping):
        return ()
    return tuple(name for name, value in spec.parts.items() if known.get(name) != value)
