# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend nftables against a kernel that is played: what others do meanwhile, and what nft cannot do."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.unit.core.egress_examples import FENCE

from fleet_core.errors import ProcessFailed, Unavailable
from fleet_node import egress_nftables
from fleet_node.egress_nftables import TRIES, Nftables, knows_bridges

SET = "fleet_n0000aaaa_4"


class Kernel:
    """Answers nft. sets: name -> elements; busy: how many of the next transactions meet somebody else's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, sets: dict[str, list[Any]], busy: int = 0) -> None:
        self.sets, self.busy = sets, busy
        self.loaded: list[str] = []
        self.answer: tuple[int, str, str] | None = None
        monkeypatch.setattr(egress_nftables, "run", self.run)
        monkeypatch.setattr(egress_nftables, "attempt", self.attempt)

    def run(self, _argv: Sequence[str], stdin: str = "") -> str:
        if self.busy:
            self.busy -= 1
            raise ProcessFailed("`nft`: Could not process rule: No such file or directory")
        self.loaded.append(stdin)
        return ""

    def attempt(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        if self.answer:
            return subprocess.CompletedProcess(argv, *self.answer)
        rows = [{"set": {"name": name, "elem": elements}} for name, elements in self.sets.items()]
        return subprocess.CompletedProcess(argv, 0, json.dumps({"nftables": [{"metainfo": {}}, *rows]}), "")


def test_addresses_are_read_with_and_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ending = {"elem": {"val": "11.0.0.2", "timeout": 3600, "expires": 12}}
    Kernel(monkeypatch, {SET: ["11.0.0.1", ending], "fleet_nother_4": ["11.0.0.3"], "special4": ["10.0.0.1"]})
    assert Nftables().learned(FENCE) == {SET: ("11.0.0.1", "11.0.0.2")}


def test_only_what_is_there_is_forgotten_and_only_what_is_not_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, {SET: ["11.0.0.1"]})
    Nftables().forget({SET: ("11.0.0.1", "11.0.0.9"), "fleet_ngone_4": ("11.0.0.1",)})
    Nftables().learn({SET: ("11.0.0.1", "11.0.0.9"), "fleet_ngone_4": ("11.0.0.1",)})
    Nftables().forget({SET: ("11.0.0.7",)})
    assert kernel.loaded == [
        f"delete element inet fleet_egress {SET} {{ 11.0.0.1 }}\n",
        f"add element inet fleet_egress {SET} {{ 11.0.0.9 }}\n",
    ]


def test_what_meets_somebody_elses_change_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, {SET: ["11.0.0.1"]}, busy=TRIES - 1)
    Nftables().forget({SET: ("11.0.0.1",)})
    assert len(kernel.loaded) == 1
    kernel.busy = TRIES
    with pytest.raises(ProcessFailed, match="No such file"):
        Nftables().forget({SET: ("11.0.0.1",)})


def test_old_addresses_get_a_full_hour_and_new_ones_move(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SET.replace("_n", "_o")
    kernel = Kernel(monkeypatch, {SET: ["11.0.0.1"], old: ["11.0.0.1", "11.0.0.2"]})
    Nftables().age(FENCE)
    verbs = [tuple(line.split()[index] for index in (0, 4)) for line in kernel.loaded[0].splitlines()]
    assert verbs == [("add", old), ("delete", old), ("add", old), ("delete", SET)]
    assert "11.0.0.2" not in kernel.loaded[0]


def test_an_nft_without_json_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch, {})
    kernel.answer = (0, "JSON support not compiled-in", "")
    with pytest.raises(Unavailable, match=r"expected JSON, found .*; is nft made with it"):
        Nftables().learned(FENCE)
    kernel.answer = (1, "", "Error: Operation not permitted\n")
    with pytest.raises(ProcessFailed, match="found: Error: Operation not permitted"):
        Nftables().learned(FENCE)
    kernel.answer = (1, "", "Error: No such file or directory\n")
    assert Nftables().learned(FENCE) == {}
    assert not Nftables().loaded(FENCE)


def test_kernels_without_names_of_bridges_do_without(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kernel = Kernel(monkeypatch, {})
    assert knows_bridges(tmp_path / "x")
    kernel.answer = (1, "", "x:10:3-14: Error: Could not process rule: Operation not supported\n")
    assert not knows_bridges(tmp_path / "x")
    kernel.answer = (1, "", "x:10:3-14: Error: syntax error\n")
    with pytest.raises(ProcessFailed, match="syntax error"):
        knows_bridges(tmp_path / "x")
    with pytest.raises(ProcessFailed, match="syntax error"):
        Nftables().check(tmp_path)
