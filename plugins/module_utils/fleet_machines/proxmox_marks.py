# SPDX-License-Identifier: GPL-3.0-or-later
"""The marks of golden images in Proxmox: tags, because the one request that lists all machines shows those only.

Proxmox keeps tags in lower case unless it is told otherwise, so all of them are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.images import GOLDEN, REMOTE, Image
else:
    try:
        from ..fleet_core.images import GOLDEN, REMOTE, Image
    except ImportError:  # installed as a top-level package
        from fleet_core.images import GOLDEN, REMOTE, Image

PROVIDER = "proxmox"
IMAGE = "fleet-image"
# On it from its first moment until it is a template, checked and sealed.
INCOMPLETE = "fleet-incomplete"

_INPUTS = "fleet-inputs-"
_CREATED = "fleet-created-"
_LOGIN = "fleet-login-"


@dataclass(frozen=True)
class Mark:
    """inputs: as ImageSpec.inputs. created: ISO 8601. login: the account of machines made from the image."""

    inputs: str = ""
    created: str = ""
    login: str = ""
    incomplete: bool = False

    def tags(self) -> tuple[str, ...]:
        found = [IMAGE]
        if self.inputs:
            found.append(_INPUTS + self.inputs.rpartition(":")[2])
        if self.created:
            found.append(_CREATED + re.sub("[^0-9t]", "", self.created.lower()))
        if self.login and self.login == self.login.lower():
            found.append(_LOGIN + self.login)
        return (*found, INCOMPLETE) if self.incomplete else tuple(found)


def tags_of(text: object) -> tuple[str, ...]:
    """Return the tags of a guest, which Proxmox takes with three separators."""
    return tuple(tag for tag in re.split(r"[;, ]+", str(text or "")) if tag)


def mark_of(tags: Iterable[str]) -> Mark | None:
    """Return the mark of a golden image, or None for any other guest."""
    tags = tuple(tag.lower() for tag in tags)
    if IMAGE not in tags:
        return None
    values = {
        prefix: next((tag[len(prefix) :] for tag in tags if tag.startswith(prefix)), "")
        for prefix in (_INPUTS, _CREATED, _LOGIN)
    }
    inputs = f"sha256:{values[_INPUTS]}" if values[_INPUTS] else ""
    return Mark(inputs, _iso(values[_CREATED]), values[_LOGIN], INCOMPLETE in tags)


def is_image(guest: Mapping[str, Any]) -> bool:
    """Tell whether a guest of /cluster/resources is no machine: a template, or a golden image in the making."""
    return bool(guest.get("template")) or mark_of(tags_of(guest.get("tags"))) is not None


def image_of(guest: Mapping[str, Any]) -> Image:
    """Return the image that a guest of /cluster/resources is: a golden one, or any other template."""
    mark = mark_of(tags_of(guest.get("tags")))
    detail = {key: guest[key] for key in ("node", "vmid", "pool") if guest.get(key) is not None}
    if mark is not None and mark.login:
        detail["login"] = mark.login
    return Image(
        str(guest.get("name") or f"VM-{guest.get('vmid')}"),
        PROVIDER,
        kind=GOLDEN if mark else REMOTE,
        aliases=(str(guest.get("vmid")),),
        inputs=mark.inputs if mark else "",
        incomplete=_missing(guest, mark),
        created=mark.created if mark else "",
        size=int(guest.get("maxdisk") or 0),
        detail=detail,
    )


def _missing(guest: Mapping[str, Any], mark: Mark | None) -> str:
    if mark is None:
        return ""
    if not guest.get("template"):
        return "its build was interrupted, or is going on"
    return "it is a template, but was not verified" if mark.incomplete else ""


def _iso(text: str) -> str:
    found = re.fullmatch(r"(\d{4})(\d{2})(\d{2})t(\d{2})(\d{2})(\d{2})", text)
    return "{}-{}-{}T{}:{}:{}Z".format(*found.groups()) if found else ""
