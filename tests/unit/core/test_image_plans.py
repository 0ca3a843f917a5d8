# SPDX-License-Identifier: GPL-3.0-or-later
"""From what is wanted of a golden image and what there is to what is built, and what goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fleet_core.errors import Conflict, InvalidInput
from fleet_core.image_plans import image_spec, plan_absent, plan_present
from fleet_core.images import GOLDEN, Image, ImageSpec
from fleet_core.machines import Machine

SPEC = ImageSpec("web", "paper", "debian:12", commands=("true",))
NOW = "2026-06-01T00:00:00.000000Z"


def built(spec: ImageSpec, day: int, **values: Any) -> Image:
    detail = values.pop("detail", {"parts": spec.parts})
    created = f"2026-01-{day:02d}T00:00:00Z"
    return Image(spec.image_name, "paper", kind=GOLDEN, inputs=spec.inputs, created=created, detail=detail, **values)


OTHER = replace(SPEC, commands=("false",))
OLDER = replace(SPEC, commands=("older",))


@pytest.mark.parametrize(
    ("images", "rebuild", "reason"),
    [
        ([], False, "there is none of this family"),
        ([built(SPEC, 1, incomplete="x")], False, "its build was not finished"),
        ([built(SPEC, 1)], False, ""),
        ([built(SPEC, 1)], True, "rebuild was asked for"),
        ([built(OTHER, 1)], False, f"commands changed since {OTHER.image_name}"),
        ([built(SPEC, 1), built(OTHER, 2)], False, f"commands changed since {OTHER.image_name}"),
        ([built(replace(SPEC, build="x"), 1)], False, ""),
        ([built(SPEC, 1, detail={})], False, ""),
        ([built(OTHER, 1, detail={})], False, f"inputs changed since {OTHER.image_name}"),
        ([replace(built(SPEC, 1), kind="remote")], False, "there is none of this family"),
    ],
)
def test_an_image_is_built_for_a_reason(images: list[Image], rebuild: bool, reason: str) -> None:
    plan = plan_present(SPEC, images, [], NOW, rebuild=rebuild)
    assert plan.reason == reason
    assert plan.change.changed == bool(reason) == (plan.spec is not None)


def test_what_is_built_again_gets_a_name_of_its_own() -> None:
    there = built(SPEC, 1)
    again = plan_present(SPEC, [there], [], NOW, rebuild=True).spec
    back = plan_present(SPEC, [there, built(OTHER, 2)], [], NOW).spec
    assert again is not None
    assert back is not None
    assert again.image_name == back.image_name != there.name
    fresh = plan_present(SPEC, [], [], NOW).spec
    assert fresh == SPEC


def test_older_images_go_but_none_that_is_used() -> None:
    images = [built(OLDER, 1), built(OTHER, 2), built(SPEC, 3)]
    machines = [Machine("a", "paper", image=OLDER.image_name)]
    assert [image.name for image in plan_present(SPEC, images, [], NOW, keep=1).gone] == [OLDER.image_name]
    assert [image.name for image in plan_present(SPEC, images, machines, NOW, keep=0).gone] == [OTHER.image_name]
    assert plan_present(SPEC, images, machines, NOW).gone == ()
    later = plan_present(replace(SPEC, base="debian:13"), images, machines, NOW, keep=1)
    assert [image.name for image in later.gone] == [OTHER.image_name]  # what is there now will be an older one
    assert later.change.actions[1:] == (f"delete image {OTHER.image_name}",)
    assert set(later.change.after) == {SPEC.image_name, replace(SPEC, base="debian:13").image_name}
    for wrong in (-1, 1001):
        with pytest.raises(InvalidInput, match="keep: expected a number from 0 to 1000"):
            plan_present(SPEC, images, machines, NOW, keep=wrong)


def test_an_image_or_its_family_is_deleted_unless_it_is_used() -> None:
    images = [built(OTHER, 2), built(SPEC, 3), Image("web", "paper")]
    machines = [Machine("b", "paper", image=SPEC.image_name), Machine("a", "paper", image=SPEC.image_name)]
    assert len(plan_absent("web", images, []).gone) == 2
    assert [image.name for image in plan_absent(OTHER.image_name, images, machines).gone] == [OTHER.image_name]
    with pytest.raises(Conflict, match=f"{SPEC.image_name} runs in a, b; delete these machines first"):
        plan_absent("web", images, machines)
    assert len(plan_absent("web", images, machines, force=True).gone) == 2
    assert not plan_absent("nosuch", images, machines).change.changed


def test_an_image_is_read() -> None:
    data = {
        "name": "web",
        "provider": "paper",
        "base": " debian:12 ",
        "disk": "10G",
        "checks": [{"name": "sh", "run": "true"}],
        "checksum": "SHA256:" + "A" * 64,
    }
    spec = image_spec(data)
    assert (spec.base, spec.disk, spec.checks) == ("debian:12", 10 * 1024**3, {"sh": "true"})
    assert spec.checksum == "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base": ""}, "expected a base image"),
        ({"memory": "1M"}, "memory: expected at least"),
        ({"checks": [{"nme": "x"}]}, 'checks[0]: unknown key "nme"'),
        ({"checks": [{"name": "a\nb", "run": "true"}]}, "checks[0].name: expected a text of its own"),
        ({"login": "a b"}, "login"),
    ],
)
def test_wrong_images_are_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        image_spec({"name": "web", "provider": "paper", "base": "debian:12", **values})
    assert message in caught.value.message
