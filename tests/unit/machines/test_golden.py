# SPDX-License-Identifier: GPL-3.0-or-later
"""What makes a machine that has booted into a golden image."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fleet_core.errors import ProcessFailed, TimedOut
from fleet_core.golden_images import sealing
from fleet_core.images import ImageSpec
from fleet_machines.golden import CLOUD_INIT, ENVIRONMENT, prepare, said
from fleet_machines.provider import Job, Ran

SPEC = ImageSpec("web", "paper", "debian:12", commands=("apt-get update", "true"), checks={"python": "python3 -V"})
STEPS = [
    CLOUD_INIT,
    f"{ENVIRONMENT}set -e\napt-get update\n",
    f"{ENVIRONMENT}set -e\ntrue\n",
    f"{ENVIRONMENT}python3 -V\n",
    sealing(),
]


def prepared(answers: dict[str, Ran], spec: ImageSpec = SPEC, seconds: float = 60) -> tuple[list[str], list[str]]:
    """The scripts that were run, and what was reported."""
    ran: list[str] = []
    told: list[str] = []

    def run(script: str) -> Ran:
        ran.append(script)
        return answers.get(script, Ran(0))

    try:
        prepare(spec, run, Job.lasting(seconds, told.append))
    finally:
        prepared.scripts = ran  # type: ignore[attr-defined]
    return ran, told


def test_an_image_is_made_in_order_and_each_step_is_told() -> None:
    ran, told = prepared({CLOUD_INIT: Ran(0, "cloud-init recovered from errors\n")})
    assert ran == STEPS
    assert told == [
        *("wait for cloud-init", "cloud-init recovered from errors", "command 1 of 2", "command 2 of 2"),
        *("check python", "seal it"),
    ]


@pytest.mark.parametrize(
    ("step", "answer", "message"),
    [
        (0, Ran(1, "", "autovibe: 20-uv.sh failed"), "cloud-init ended with 1: autovibe: 20-uv.sh failed"),
        (1, Ran(100, "", "warning\nE: no network\n"), "command 1: ended with 100: E: no network"),
        (2, Ran(1), "command 2: ended with 1: it said nothing"),
        (3, Ran(127, "python3: not found\n"), 'check "python": ended with 127: python3: not found'),
        (4, Ran(1, "no private keys: found /srv/a"), "sealing: ended with 1: no private keys: found /srv/a"),
    ],
)
def test_what_fails_ends_the_build_and_is_named(step: int, answer: Ran, message: str) -> None:
    with pytest.raises(ProcessFailed) as caught:
        prepared({STEPS[step]: answer})
    assert caught.value.message == f'image "web": {message}'
    assert prepared.scripts == STEPS[: step + 1]  # type: ignore[attr-defined]


def test_a_guest_cannot_flood_or_paint_a_message() -> None:
    assert said(Ran(1, stderr="x" * 10_000)) == "x" * 297 + "..."
    assert said(Ran(1, stderr="\x1b[2Jgone\x07\u202e\n")) == "[2Jgone"


def test_no_time_is_an_error_of_its_own() -> None:
    with pytest.raises(TimedOut, match='image "web": it did not get to cloud-init'):
        prepared({}, replace(SPEC, commands=()), 0)
