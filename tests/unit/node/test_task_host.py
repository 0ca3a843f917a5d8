# SPDX-License-Identifier: GPL-3.0-or-later
"""What another machine is told: any request gives an answer or an error in one line, never a traceback."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleet_core.errors import FleetError
from fleet_node import task_host, task_service

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["tasks", "name", "run", "x"]), inner),
    max_leaves=8,
)
REQUESTS = st.dictionaries(st.sampled_from(["list", "workdir", "environ", "resume", "source"]), JSON)


@given(REQUESTS)
def test_any_request_is_read_or_refused(data: dict[str, Any]) -> None:
    try:
        task_service.request_from(data)
    except FleetError as error:
        assert error.code == "invalid_input"  # noqa: PT017


@pytest.mark.parametrize("command", ["start", "plan"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(text=st.text(max_size=20) | JSON.map(json.dumps))
def test_any_line_is_an_error_in_one_line(
    command: str, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert task_host.main([command, str(tmp_path)]) != 0
    told = capsys.readouterr()
    assert told.out == ""
    assert set(json.loads(told.err)["error"]) == {"code", "message"}


@pytest.mark.parametrize(
    "words", [["view", "7"], ["view", "../x"], ["follow", "x"], ["cancel", "9"], ["output", "1", "a"]]
)
def test_a_run_that_is_not_there_is_named(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, *rest = words
    assert task_host.main([command, str(tmp_path), *rest]) in (2, 3)
    assert f"task run {rest[0]}" in json.loads(capsys.readouterr().err)["error"]["message"].replace('"', "")
