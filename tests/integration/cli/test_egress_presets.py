# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet egress presets needs no policy, no root and no fleetd."""

from __future__ import annotations

from fleet_core.egress_presets import PRESETS

from .conftest import Fleet


def test_presets_are_listed_and_told(host: Fleet) -> None:
    found = host.json("egress", "presets")["presets"]
    assert [one["name"] for one in found] == list(PRESETS)
    assert host.ok("egress", "presets").out.splitlines()[0].split() == ["preset", "uploads", "for"]
    told = host.ok("egress", "presets", "github").out
    assert "github.com:22,443" in told
    assert "takes uploads: yes" in told
    assert PRESETS["github"].opens in told


def test_an_unknown_preset_gives_the_nearest(host: Fleet) -> None:
    done = host("egress", "presets", "githb")
    assert done.code == 3
    assert 'preset "githb": not known, did you mean "github"?' in done.err
