# SPDX-License-Identifier: GPL-3.0-or-later
"""The fake speaks as the real command line was recorded, and refuses what that refuses."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.multipass_host import Host
from tests.recorded import multipass_files


def call(host: Host, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
    done = subprocess.run(
        [str(host.executable), *arguments],
        input=stdin, capture_output=True, text=True, check=False, env={**os.environ, **host.environ},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr.strip()


def shape(value: Any) -> Any:
    """The types of a JSON value; of objects whose keys are names, those of all entries together."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value and not isinstance(value[0], (int, float)) else []
    return type(value).__name__


def merged(one: Any, other: Any) -> Any:
    """Two shapes as one: an empty list or object says nothing of what would be in it."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: merged(one.get(key), other.get(key)) for key in {**one, **other}}
    return one or other


def entries(data: Any, key: str, nested: bool = False) -> Any:
    """The shape of all entries below a key, whatever their names."""
    found: Any = {}
    items = data[key].values() if isinstance(data[key], dict) else data[key]
    for item in items:
        for entry in item.get("snapshots", item).values() if nested else [item]:
            plain = {name: part for name, part in entry.items() if name not in ("snapshots", "mounts")}
            found = merged(found, shape(plain))
    return found


CASES: list[tuple[tuple[str, ...], str, str, bool]] = [
    (("list",), "multiple_instances_list|list_multiple", "list", False),
    (("info",), "multiple_instances_info|info_multiple_instances", "info", False),
    (("info", "--snapshots"), "multiple_snapshots_info|info_multiple_snapshots_info", "info", True),
    (("list", "--snapshots"), "multiple_snapshots_list|list_multiple_snapshots", "info", True),
    (("find",), "find_multiple", "images", False),
    (("networks",), "multiple_lines_networks|networks_multiple_lines", "list", False),
]


@pytest.mark.parametrize("release", ["1.16", "main"])
@pytest.mark.parametrize(("command", "names", "key", "nested"), CASES, ids=lambda value: str(value)[:24])
def test_answers_have_the_recorded_shape(
    host: Host, command: tuple[str, ...], names: str, key: str, nested: bool, release: str
) -> None:
    files = [path for path in multipass_files() if isinstance(path, Path)]
    if not files:
        pytest.skip("the recorded output of Multipass is not beside this checkout (../shared/data)")
    (recorded,) = [
        json.loads(path.read_text())
        for path in files
        if path.parent.name.endswith(release)
        and path.stem.replace("json_", "").removesuffix("_reply") in names.split("|")
    ]
    host.settings(release=release)
    for name in ("a", "b"):
        assert call(host, "launch", "--name", name)[0] == 0
    call(host, "stop", "b")
    assert call(host, "snapshot", "b", "--name", "one")[:2] == (0, "Snapshot taken: b.one\n")
    call(host, "snapshot", "b")
    code, text, _stderr = call(host, *command, "--format", "json")
    answer = json.loads(text)
    assert code == 0
    assert set(answer) == set(recorded)
    assert entries(answer, key, nested) == entries(recorded, key, nested)


REFUSED: list[tuple[tuple[str, ...], int, str]] = [
    (("lanuch",), 1, "Unknown command"),
    (("info", "--frmt", "json"), 1, "Unknown option 'frmt'."),
    (("list", "--format"), 1, "Missing value"),
    (("list", "--format", "xml"), 1, "Invalid format type given."),
    (("launch", "22.04", "24.04"), 1, "Too many arguments supplied"),
    (("launch", "--timeout", "0"), 1, "--timeout value has to be a positive integer"),
    (("launch", "--cloud-init", "/nowhere"), 1, "No such file: /nowhere"),
    (("launch", "--network", "name=br0,speed=1"), 1, "Bad network field: speed"),
    (("launch", "--name", "up"), 2, 'launch failed: instance "up" already exists'),
    (("launch", "--name", "-x"), 2, "Invalid instance name supplied: -x"),
    (("launch", "--memory", "64M"), 2, "Invalid memory size value supplied: 64M."),
    (("launch", "--disk", "ten"), 2, "Invalid disk size value supplied: ten."),
    (("info", "nosuch"), 2, 'instance "nosuch" does not exist'),
    (("start", "nosuch"), 2, "Instance 'nosuch' does not exist."),
    (("stop",), 1, "Name argument or --all is required"),
    (("snapshot", "up"), 2, "Multipass can only take snapshots of stopped instances."),
    (("snapshot", "down", "--name", "no.dots"), 2, "Invalid snapshot name"),
    (("snapshot", "down", "--name", "one"), 2, "Snapshot already exists"),
    (("restore", "down.one"), 2, ""),
    (("restore", "--destructive", "down"), 1, "Need the name of a snapshot to restore from."),
    (("restore", "--destructive", "down.two"), 2, "No such snapshot"),
    (("restore", "--destructive", "up.one"), 2, "only restore snapshots of stopped instances"),
    (("clone", "up", "--name", "x"), 2, "Please stop instance up before you clone it."),
    (("clone", "down", "--name", "up"), 2, "up already exists"),
    (("delete", "down.one"), 1, "Please use the `--purge` flag"),
    (("delete", "nosuch"), 2, 'instance "nosuch" does not exist'),
    (("set", "local.up.cpus=2"), 2, "Instance must be stopped for modification"),
    (("set", "local.down.disk=1G"), 1, "Disk can only be expanded"),
    (("set", "local.down.colour=red"), 1, "Unrecognized settings key"),
    (("get", "local.nosuch.cpus"), 2, "No such instance"),
    (("exec", "down", "--", "true"), 2, 'instance "down" is not running'),
]


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A host with an instance that runs, and a stopped one that has a snapshot."""
    host = Host(tmp_path_factory.mktemp("host"))
    for name in ("up", "down"):
        assert call(host, "launch", "--name", name) == (0, f"Launched: {name}\n", "")
    assert call(host, "stop", "down")[0] == 0
    assert call(host, "snapshot", "down", "--name", "one")[0] == 0
    return host


@pytest.mark.parametrize(("arguments", "code", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_the_real_one_refuses_is_refused(used: Host, arguments: tuple[str, ...], code: int, message: str) -> None:
    before = used.instances()
    found, _stdout, stderr = call(used, *arguments)
    assert (found, message in stderr) == (code, True), stderr
    assert {name: one for name, one in used.instances().items() if name != "down"} == {
        name: one for name, one in before.items() if name != "down"
    }


def test_a_clone_says_so_and_has_no_snapshots(host: Host) -> None:
    call(host, "launch", "--name", "a")
    call(host, "stop", "a")
    call(host, "snapshot", "a")
    assert call(host, "clone", "a", "--name", "b") == (0, "Cloned from a to b.\n", "")
    assert host.instances()["b"]["snapshots"] == {}
