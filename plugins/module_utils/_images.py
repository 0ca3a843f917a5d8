# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Between the options of image and image_info, and the providers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ._arguments import given
from ._machines import provider_of
from ._module import Result
from .fleet_core.errors import FleetError
from .fleet_core.golden_images import drift
from .fleet_core.image_plans import ImagePlan, image_spec, plan_absent, plan_present
from .fleet_core.images import GOLDEN, Image, newest
from .fleet_core.moments import precise
from .fleet_core.quantities import parse_duration
from .fleet_machines.provider import Job, Provider
from .fleet_machines.records import Records
from .fleet_node import paths


def plan(params: Mapping[str, Any]) -> Result:
    """Return what would be done."""
    provider = provider_of(params)
    planned = _plan(params, provider)
    return Result(planned.change, _values(planned, planned.current))


def apply(params: Mapping[str, Any]) -> Result:
    """Build what is to be built, then delete what is to go."""
    provider = provider_of(params)
    planned = _plan(params, provider)
    events: list[str] = []
    began = time.monotonic()
    limit = parse_duration("timeout", params["timeout"])
    job = Job.lasting(limit, lambda text: events.append(f"{time.monotonic() - began:.1f}s {text}"))
    done: list[str] = []
    image = planned.current
    try:
        if planned.spec is not None:
            job.report(f"build {planned.spec.image_name}: {planned.reason}")
            image = provider.build_image(planned.spec, job)
            _parts(params, provider).put(image.name, {"parts": planned.spec.parts})
            done.append(planned.change.actions[0])
        for old in planned.gone:
            job.report(f"delete {old.name}")
            provider.delete_image(old.name, job)
            _parts(params, provider).remove(old.name)
            done.append(f"delete image {old.name}")
    except FleetError as error:
        values = {"changed": bool(done), "actions": done, "progress": events, "reason": planned.reason}
        error.values = values
        raise
    return Result(planned.change, {**_values(planned, image), "progress": events})


def read(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what image_info returns."""
    provider = provider_of(params)
    images = _images(params, provider)
    wanted = set(params["names"] or ())
    shown = [image for image in images if not wanted or wanted & {image.name, image.family, *image.aliases}]
    if params["kind"]:
        shown = [image for image in shown if image.kind == params["kind"]]
    known = {name for image in shown for name in (image.name, image.family, *image.aliases)}
    families = sorted({image.family for image in shown if image.kind == GOLDEN})
    top = {family: found.name for family in families if (found := newest(_golden(images), family))}
    values: dict[str, Any] = {
        "images": [image.to_dict() for image in shown],
        "newest": top,
        "missing": sorted(wanted - known),
    }
    if params["drift"]:
        found = [one for one in drift(provider.describe().values(), images) if not wanted or one.newest in top.values()]
        values["drift"] = [one.to_dict() for one in found]
        values["drift_report"] = [str(one) for one in found]
    if params["facts"]:
        values["ansible_facts"] = {"fleet_images": {image["name"]: image for image in values["images"]}}
    return values


def _plan(params: Mapping[str, Any], provider: Provider) -> ImagePlan:
    if params["state"] == "absent":
        return plan_absent(params["name"], _images(params, provider), provider.describe().values(), params["force"])
    spec = image_spec(given(params, {}))
    images, machines = _images(params, provider), provider.describe().values() if params["keep"] is not None else ()
    return plan_present(spec, images, machines, precise(time.time()), keep=params["keep"], rebuild=params["rebuild"])


def _values(planned: ImagePlan, image: Image | None) -> dict[str, Any]:
    return {
        "image": {} if image is None else image.to_dict(),
        "built": planned.spec is not None,
        "reason": planned.reason,
        "changed_inputs": list(planned.changed),
        "pruned": [old.name for old in planned.gone],
    }


def _images(params: Mapping[str, Any], provider: Provider) -> tuple[Image, ...]:
    """Return the images, with the hashes of their inputs also where the provider has no place for them."""
    found, parts = provider.images(), _parts(params, provider)
    if all(image.kind != GOLDEN or "parts" in image.detail for image in found):
        return found
    noted = {name: record["parts"] for name, record in parts.all().items() if "parts" in record}
    return tuple(
        replace(image, detail={"parts": noted[image.name], **image.detail})
        if image.kind == GOLDEN and image.name in noted
        else image
        for image in found
    )


def _parts(params: Mapping[str, Any], provider: Provider) -> Records:
    folder = paths.state_dir(params["state_dir"])
    return Records(str(folder), f"{provider.name}/images")


def _golden(images: tuple[Image, ...]) -> list[Image]:
    return [image for image in images if image.kind == GOLDEN]
