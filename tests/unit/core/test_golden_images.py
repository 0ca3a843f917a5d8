# SPDX-License-Identifier: GPL-3.0-or-later
"""Which images are kept, who runs an old one, and what a golden image is called."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest

from fleet_core.errors import InvalidInput
from fleet_core.golden_images import SEAL, SEAL_CHECKS, Drift, drift, retained, sealing
from fleet_core.images import GOLDEN, Image, ImageSpec, changed_inputs, family_of, newest
from fleet_core.machines import Machine


def image(family: str, digit: int, **values: str) -> Image:
    """A golden image whose hash and time of making are a digit."""
    created = values.pop("created", f"2026-01-0{digit}T00:00:00Z")
    return Image(f"{family}-{str(digit) * 10}", "paper", kind=GOLDEN, created=created, **values)


OLD, MIDDLE, NEW = image("web", 1), image("web", 2), image("web", 3)
FAILED = image("web", 4, incomplete="command 1 ended with 9", created="2026-01-02T12:00:00Z")
BUILDING = image("web", 5, incomplete="its build was interrupted", created="2026-01-09T00:00:00Z")
REMOTE = Image("24.04", "paper")
ALL = (OLD, NEW, FAILED, BUILDING, MIDDLE, image("db", 6), REMOTE)


@pytest.mark.parametrize(
    ("keep", "used", "gone"),
    [
        (9, set(), [FAILED]),
        (1, set(), [OLD, FAILED]),
        (0, set(), [OLD, MIDDLE, FAILED]),
        (-1, set(), [OLD, MIDDLE, FAILED]),
        (0, {OLD.name}, [MIDDLE, FAILED]),
        (1, {OLD.name, FAILED.name}, []),
    ],
)
def test_old_images_go_but_neither_the_newest_nor_a_used_nor_an_unfinished_one(
    keep: int, used: set[str], gone: list[Image]
) -> None:
    assert retained(ALL, keep, used) == tuple(gone)


def test_nothing_goes_while_no_image_of_the_family_is_whole() -> None:
    assert retained([FAILED, BUILDING], 0, ()) == ()


def test_a_machine_of_an_older_image_has_drifted_also_when_that_image_is_gone() -> None:
    machines = [
        Machine("b", "paper", image=OLD.name),
        Machine("a", "paper", image=NEW.name),
        Machine("gone", "paper", image="web-0000000000"),
        Machine("remote", "paper", image="24.04"),
        Machine("unknown", "paper"),
        Machine("other", "paper", image="cache-1111111111"),
    ]
    found = drift(machines, ALL)
    assert found == (Drift("b", OLD.name, NEW.name), Drift("gone", "web-0000000000", NEW.name))
    assert str(found[0]) == "machine b runs web-1111111111, the newest is web-3333333333"


def test_the_newest_of_a_family_is_a_whole_one() -> None:
    assert newest(ALL, "web") == NEW
    assert newest(ALL, OLD.name) == OLD
    assert newest(ALL, "nosuch") is None


SPEC = ImageSpec("web", "paper", "debian:12", user_data="#cloud-config\n", commands=("true",), checks={"a": "true"})


def test_an_image_is_called_by_its_family_and_the_hash_of_its_inputs() -> None:
    assert family_of(SPEC.image_name) == "web"
    assert replace(SPEC, cpu=4, memory=2**30).image_name == SPEC.image_name  # the machine that it is built in
    assert replace(SPEC, commands=("false",)).image_name != SPEC.image_name


def test_it_is_told_which_inputs_changed() -> None:
    built = Image(SPEC.image_name, "paper", kind=GOLDEN, detail={"parts": SPEC.parts})
    assert changed_inputs(SPEC, built) == ()
    other = replace(SPEC, user_data="#cloud-config\n{}\n", checks={"a": "false"})
    assert changed_inputs(other, built) == ("user_data", "checks")
    assert changed_inputs(other, replace(built, detail={})) == ()  # a provider that does not know


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "web_1"}, "machine name 'web_1'"),
        ({"name": "w" * 53}, "expected the name of a family, at most 52 letters"),
        ({"name": "web-0123456789"}, "without a hash"),
        ({"base": ""}, "expected a base image"),
        ({"checksum": "sha256:12"}, 'checksum: expected "sha256:"'),
        ({"checksum": "md5:" + "0" * 32}, 'checksum: expected "sha256:"'),
    ],
)
def test_wrong_images_are_one_sentence(values: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        replace(SPEC, **values)
    assert message in caught.value.message


@pytest.mark.parametrize("script", [SEAL, sealing(), *SEAL_CHECKS.values()])
def test_the_scripts_are_posix_shell(script: str) -> None:
    checked = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
