# SPDX-License-Identifier: GPL-3.0-or-later
"""From what is wanted of a golden image and what there is to what is built, and what goes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .changes import Change
from .errors import Conflict, InvalidInput
from .golden_images import retained
from .images import GOLDEN, Image, ImageSpec, changed_inputs, newest
from .machines import MOST_CPUS, SMALLEST_DISK, SMALLEST_MEMORY, Machine
from .names import as_int, as_text, check_keys, check_name, describe
from .quantities import parse_size

MOST_KEPT = 1000


@dataclass(frozen=True)
class ImagePlan:
    """spec: what is built, None for nothing. reason: why. changed: the inputs by which it differs from ``current``.

    current: the newest image of the family. gone: images to delete, afterwards.
    """

    family: str
    spec: ImageSpec | None = None
    current: Image | None = None
    reason: str = ""
    changed: tuple[str, ...] = ()
    gone: tuple[Image, ...] = ()

    @property
    def change(self) -> Change:
        """Both sides hold the images by name, with the hashes of their inputs."""
        before = {image.name: _shown(image.detail.get("parts")) for image in (self.current, *self.gone) if image}
        after = {name: parts for name, parts in before.items() if name not in {image.name for image in self.gone}}
        actions = []
        if self.spec is not None:
            after[self.spec.image_name] = _shown(self.spec.parts)
            actions.append(f"build image {self.spec.image_name}: {self.reason}")
        actions += [f"delete image {image.name}" for image in self.gone]
        return Change(before, after, tuple(actions)) if actions else Change()


def image_spec(data: Mapping[str, Any]) -> ImageSpec:
    """Return the image that a mapping describes: the fields of ImageSpec, checks as a list of {name, run}."""
    name = as_text("image: name", data.get("name", ""))
    where = f'image "{name}"'
    checks: dict[str, str] = {}
    for number, item in enumerate(data.get("checks") or ()):
        check = check_keys(f"{where}: checks[{number}]", item, ("name", "run"))
        title = as_text(f"{where}: checks[{number}].name", check.get("name", "")).strip()
        if not title or not title.isprintable() or title in checks:
            raise InvalidInput(f"{where}: checks[{number}].name: expected a text of its own, found {describe(title)}")
        checks[title] = as_text(f"{where}: checks[{number}].run", check.get("run", ""))
        if not checks[title].strip():
            raise InvalidInput(f'{where}: check "{title}": expected a shell text to run, found nothing')
    cpu, memory, disk = data.get("cpu"), data.get("memory"), data.get("disk")
    return ImageSpec(
        name=name,
        provider=check_name("provider", data.get("provider")),
        base=as_text(f"{where}: base", data.get("base") or "").strip(),
        cpu=None if cpu is None else as_int(f"{where}: cpu", cpu, 1, MOST_CPUS),
        memory=None if memory is None else _size(f"{where}: memory", memory, SMALLEST_MEMORY),
        disk=None if disk is None else _size(f"{where}: disk", disk, SMALLEST_DISK),
        user_data=data.get("user_data") or None,
        commands=tuple(as_text(f"{where}: commands", command) for command in data.get("commands") or ()),
        checksum=as_text(f"{where}: checksum", data.get("checksum") or "").strip().lower(),
        checks=checks,
        login=check_name(f"{where}: login", data["login"]) if data.get("login") else "",
    )


def plan_present(
    spec: ImageSpec,
    images: Iterable[Image],
    machines: Iterable[Machine],
    now: str,
    *,
    keep: int | None = None,
    rebuild: bool = False,
) -> ImagePlan:
    """Return what is to be done so that the newest image of the family has these inputs.

    now: makes another name for what is built again of the same inputs. keep: how many older images stay; None: all.
    """
    images = tuple(images)
    if keep is not None and not 0 <= keep <= MOST_KEPT:
        raise InvalidInput(f'image "{spec.name}": keep: expected a number from 0 to {MOST_KEPT}, found {keep}')
    current = newest([image for image in images if image.kind == GOLDEN and image.name != spec.name], spec.name)
    changed = () if current is None else changed_inputs(spec, current)
    reason = _reason(spec, current, changed, rebuild, images)
    if reason and any(image.name == spec.image_name and not image.incomplete for image in images):
        spec = replace(spec, build=now)  # that name is taken by an image of the same inputs, which is older
    gone: tuple[Image, ...] = ()
    if keep is not None:
        # What is built now will be the newest; then the present one is one of the older.
        later = Image(spec.image_name, spec.provider, kind=GOLDEN, created="9999")
        family = [image for image in images if image.family == spec.name and image.name != later.name]
        used = {machine.image for machine in machines}
        gone = retained([*family, later], keep, used) if reason else retained(_of(images, spec.name), keep, used)
    return ImagePlan(spec.name, spec if reason else None, current, reason, changed, gone)


def plan_absent(name: str, images: Iterable[Image], machines: Iterable[Machine], force: bool = False) -> ImagePlan:
    """Return what is to be done so that an image, or all those of a family, are gone.

    Raises Conflict when machines were made from one, unless force is set.
    """
    gone = tuple(image for image in images if image.kind == GOLDEN and name in (image.name, image.family))
    users: dict[str, list[str]] = {}
    for machine in machines:
        users.setdefault(machine.image, []).append(machine.name)
    used = [image.name for image in gone if image.name in users]
    if used and not force:
        who = "; ".join(f"{image} runs in {', '.join(sorted(users[image])[:5])}" for image in used)
        raise Conflict(f'image "{name}": it is in use: {who}; delete these machines first, or set force: true')
    return ImagePlan(name, gone=gone)


def _reason(
    spec: ImageSpec, current: Image | None, changed: tuple[str, ...], rebuild: bool, images: tuple[Image, ...]
) -> str:
    if current is None:
        unfinished = any(image.kind == GOLDEN and image.name == spec.image_name for image in images)
        return "its build was not finished" if unfinished else "there is none of this family"
    if changed:
        return f"{' and '.join(changed)} changed since {current.name}"
    if not isinstance(current.detail.get("parts"), Mapping) and current.name != spec.image_name:
        return f"inputs changed since {current.name}"
    return "rebuild was asked for" if rebuild else ""


def _of(images: Iterable[Image], family: str) -> list[Image]:
    return [image for image in images if image.kind == GOLDEN and image.family == family]


def _shown(parts: object) -> dict[str, str]:
    return {str(name): str(value) for name, value in parts.items()} if isinstance(parts, Mapping) else {}


def _size(where: str, value: object, least: int) -> int:
    size = parse_size(where, value)
    if size < least:
        raise InvalidInput(f"{where}: expected at least {least} bytes, found {describe(value)}")
    return size
