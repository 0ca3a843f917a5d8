# SPDX-License-Identifier: GPL-3.0-or-later
"""The human-readable state: what is written, what is understood, and what is asked."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_core import lifecycle as life
from fleet_core.errors import Conflict, InvalidInput, NotFound, StateDamaged
from fleet_core.process_status import ProcessStatus
from fleet_core.processes import process_spec
from fleet_core.resource_types import resource_type
from fleet_core.resources import Allocation, Claim
from fleet_core.templates import template
from fleet_node import procfs, state_file
from fleet_node.state_file import export_state, import_state, plan_import
from fleet_node.store import Store

PLAN = {
    "instances": {
        "db1": {
            "name": "db1",
            "template": "postgres",
            "command": "postgres -D /tmp/pg -p 3000",
            "pid": 4242,
            "status": "running",
            "resources": {"tcpport": "3000", "datadir": "/tmp/pg"},
            "started": 1700000000,
            "cwd": "/srv",
            "managed": True,
        },
        "old": {"name": "old", "command": "sleep 5", "pid": 0, "status": "stopped", "resources": {}, "started": 0},
    },
    "templates": {
        "postgres": {
            "id": "postgres",
            "label": "PostgreSQL Database",
            "command": "postgres -D ${datadir} -p ${tcpport}",
            "resources": ["tcpport", "datadir"],
            "vars": {"datadir": "/tmp/pgdata"},
        }
    },
    "resources": {
        "tcpport:3000": {"type": "tcpport", "value": "3000", "owner": "db1"},
        "datadir:/tmp/pg": {"type": "datadir", "value": "/tmp/pg", "owner": "db1"},
        "tcpport:3999": {"type": "tcpport", "value": "3999", "owner": "somebody"},
    },
    "counters": {"tcpport": 3001},
    "types": {
        "tcpport": {
            "name": "tcpport",
            "check": "nc -z localhost ${value} && exit 1 || exit 0",
            "counter": True,
            "start": 3000,
            "end": 9999,
        },
        "datadir": {"name": "datadir", "check": "", "counter": False, "start": 0, "end": 0},
        "lockfile": {"name": "lockfile", "check": "test -f ${value} && exit 1 || exit 0", "counter": False},
    },
    "remotes_allowed": {"https://shop.example": True},
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "state")
    yield opened
    opened.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "other")
    yield opened
    opened.close()


def nothing_runs(_pid: int) -> None:
    return None


def postgres_runs(pid: int) -> tuple[tuple[str, ...], int] | None:
    return (("postgres", "-D", "/tmp/pg", "-p", "3000"), 77) if pid == 4242 else None


def test_import_reads_a_file_of_vp(store: Store) -> None:
    import_state(store, PLAN, look=nothing_runs)
    assert store.types()["tcpport"].probe == "tcp"
    assert store.types()["lockfile"].check_means == "free"
    assert store.templates()["postgres"].to_dict() == PLAN["templates"]["postgres"]
    assert store.view().counters == {"tcpport": 3001}
    assert store.setting("remotes_allowed") == {"https://shop.example": True}
    spec, status = store.processes()["db1"]
    assert (spec.command, spec.working_dir) == ("postgres -D /tmp/pg -p 3000", "/srv")
    assert {need.name: need.value for need in spec.resources} == {"tcpport": "3000", "datadir": "/tmp/pg"}
    assert (status.state, status.pid) == (life.STOPPED, 0)


def test_import_adopts_an_instance_whose_pid_has_its_command(store: Store) -> None:
    done = import_state(store, PLAN, look=postgres_runs)
    _spec, status = store.processes()["db1"]
    assert (status.state, status.desired, status.pid, status.pid_start) == (life.RUNNING, "running", 4242, 77)
    assert status.adopted
    assert done.adopted == ("db1",)
    assert {str(claim) for claim in store.claims(["db1"])} == {"tcpport:3000", "datadir:/tmp/pg"}


@pytest.mark.parametrize("seen", [None, (("nginx",), 77), (("postgres", "-D", "/tmp/pg"), 77)])
def test_import_stops_an_instance_whose_pid_is_gone_or_another_s(store: Store, seen: object) -> None:
    done = import_state(store, PLAN, look=lambda _pid: seen)  # type: ignore[arg-type, return-value]
    assert store.processes()["db1"][1].state == life.STOPPED
    assert done.stopped == ("db1",)
    assert store.claims(["db1"]) == []


def test_import_adopts_a_script_by_the_end_of_its_arguments(store: Store) -> None:
    data = {"instances": {"job": {"name": "job", "command": "./job.sh 'a b'", "pid": 9, "status": "running"}}}
    import_state(store, data, look=lambda _pid: (("/bin/sh", "./job.sh", "'a", "b'"), 5))
    spec, status = store.processes()["job"]
    assert status.state == life.RUNNING
    assert spec.command == """./job.sh ''"'"'a' 'b'"'"''"""  # vp splits at spaces, whatever the quotes


def test_import_adopts_a_process_that_really_runs(store: Store) -> None:
    child = subprocess.Popen(["sleep", "30"])
    try:
        data = {"instances": {"job": {"name": "job", "command": "sleep 30", "pid": child.pid, "status": "running"}}}
        import_state(store, data)
        assert store.processes()["job"][1].pid_start == procfs.start_ticks(child.pid)
        assert store.processes()["job"][1].state == life.RUNNING
    finally:
        child.kill()
        child.wait()


def test_import_keeps_claims_of_owners_that_are_no_instance(store: Store) -> None:
    import_state(store, PLAN, look=nothing_runs)
    assert store.claims() == [Claim("tcpport", "3999", "somebody", "tcpport")]


def test_import_twice_changes_nothing_the_second_time(store: Store) -> None:
    assert import_state(store, PLAN, look=postgres_runs).change.changed
    assert plan_import(store, PLAN, look=postgres_runs).change.actions == ()


def test_a_text_that_vp_made_final_stays_final(store: Store) -> None:
    data = {"instances": {"clock": {"name": "clock", "command": "date +%tcpport ${HOME}", "status": "stopped"}}}
    import_state(store, data, look=nothing_runs)
    assert store.processes()["clock"][0].command == "date +%%tcpport '$${HOME}'"


@pytest.mark.parametrize(
    ("check", "means"),
    [
        ("nc -z localhost ${value} && exit 1 || exit 0", "free"),
        ("grep -q ${value} /proc/modules && exit 1 || exit 0", "free"),
        ("nc -z localhost ${value}", "in_use"),
        ("test -f ${value}", "in_use"),
        ("test -S ${value}", "in_use"),
    ],
)
def test_import_tells_what_a_check_means_by_its_form(store: Store, check: str, means: str) -> None:
    import_state(store, {"types": {"own": {"name": "own", "check": check}}})
    assert store.types()["own"].check == check
    assert store.types()["own"].check_means == means


@pytest.mark.parametrize(
    "check",
    [
        "nvidia-smi -L | grep GPU-${value}",
        "! test -f ${value}",
        "test -f ${value} && true",
        "test -e ${value}",
        "nc -z h 1; true",
    ],
)
def test_import_asks_what_any_other_check_means(store: Store, check: str) -> None:
    data = {"types": {"own": {"name": "own", "check": check}, "fine": {"name": "fine", "check": ""}}}
    with pytest.raises(InvalidInput, match=r"resource types own: .*--check-means own=free"):
        plan_import(store, data)
    import_state(store, data, {"own": "in_use"})
    assert store.types()["own"].check_means == "in_use"


@pytest.mark.parametrize("check", ["nc -z localhost ${value} && exit 1 || exit 0", "nc -z localhost ${value}"])
def test_a_default_type_keeps_its_probe_and_takes_the_range(store: Store, check: str) -> None:
    import_state(
        store, {"types": {"tcpport": {"name": "tcpport", "check": check, "counter": True, "start": 4000, "end": 4009}}}
    )
    kind = store.types()["tcpport"]
    assert (kind.probe, kind.check, kind.start, kind.end) == ("tcp", "", 4000, 4009)


def filled(store: Store) -> None:
    """All that a state can hold, in forms that vp does not know."""
    store.put_types(
        [
            resource_type(
                {"name": "gpu", "check": "nvidia-smi -i ${value} # here", "check_means": "free", "timeout": 9}
            ),
            resource_type({"name": "mount", "check": "mountpoint -q ${value}", "check_means": "in_use"}),
            resource_type({"name": "door", "probe": "tcp", "counter": True, "start": 80, "end": 90}),
        ]
    )
    store.put_templates(
        [
            template(
                {"id": "t", "command": "run %door", "vars": {"x": None}, "readiness": "tcp://h:1", "env": {"A": "b"}}
            )
        ]
    )
    spec = process_spec(
        {
            "id": "shop/web",
            "command": "run ${door}",
            "resources": ["door"],
            "restart": "always",
            "limits": {"memory": "1G"},
        }
    )
    status = ProcessStatus(
        life.UNHEALTHY, "running", "native", 11, 22, "token", {"door": ("door", "80")}, 5.5, healthy=False
    )
    store.put_processes([(spec, status), (process_spec({"id": "idle", "command": "true"}), ProcessStatus())])
    store.commit(
        Allocation(claimed=(Claim("door", "80", "shop/web", "door"), Claim("door", "81", "me", "second"))),
        store.types(),
    )
    store.set_counters({"door": 82})
    store.put_environment("shop", "/srv/shop/.runcept.toml", {"project_dir": "/srv/shop", "active": True})
    store.put_setting("remotes_allowed", {"http://a": False})


@pytest.mark.parametrize("check_means", ["free", "in_use"])
def test_export_and_import_keep_every_field(store: Store, other: Store, check_means: str) -> None:
    filled(store)
    data = json.loads(state_file.render(export_state(store, check_means)))
    import_state(other, data, look=lambda pid: (("run", "80"), 22) if pid == 11 else None)
    assert other.types() == store.types()
    assert other.templates() == store.templates()
    assert other.claims() == store.claims()
    assert other.view().counters == store.view().counters
    assert other.environments() == store.environments()
    assert other.setting("remotes_allowed") == {"http://a": False}
    spec, status = other.processes()["shop/web"]
    assert spec == store.processes()["shop/web"][0]
    assert status == store.processes()["shop/web"][1].evolve(state=life.RUNNING, adopted=True)


def test_an_export_where_nothing_runs_any_more_is_imported_as_stopped(store: Store, other: Store) -> None:
    filled(store)
    import_state(other, export_state(store), look=lambda _pid: (("run", "80"), 23))  # the pid is another process by now
    assert other.processes()["shop/web"][1].state == life.STOPPED
    assert [claim.owner for claim in other.claims()] == ["me"]
    assert other.environments()["shop"]["active"] is False


def test_export_of_a_state_into_itself_changes_nothing(store: Store) -> None:
    filled(store)
    assert plan_import(store, export_state(store)).change.actions == ()


@pytest.mark.parametrize("check_means", ["free", "in_use"])
def test_exported_checks_say_what_the_form_says(store: Store, tmp_path: Path, check_means: str) -> None:
    """As vp would run them: exit code 0 of the check of a file that exists."""
    store.put_types([resource_type({"name": "mine", "check": "test -e ${value} # a comment", "check_means": "in_use"})])
    there, not_there = tmp_path, tmp_path / "missing"
    for name in ("mine", "dbfile"):
        check = export_state(store, check_means)["types"][name]["check"]
        target = tmp_path / "file" if name == "dbfile" else there
        (tmp_path / "file").touch()
        in_use = subprocess.run(["sh", "-c", check.replace("${value}", str(target))], check=False).returncode
        free = subprocess.run(["sh", "-c", check.replace("${value}", str(not_there))], check=False).returncode
        assert (in_use == 0, free == 0) == ((False, True) if check_means == "free" else (True, False))


def test_an_edited_export_is_read_as_it_stands(store: Store, other: Store) -> None:
    filled(store)
    data = export_state(store)
    data["types"]["door"]["end"] = 99
    data["types"]["door"]["check_means"] = "free"
    data["instances"]["idle"]["command"] = "sleep 1"
    import_state(other, data, look=nothing_runs)
    assert other.types()["door"].end == 99
    assert other.processes()["idle"][0].command == "sleep 1"


def test_export_has_the_keys_of_vp(store: Store) -> None:
    filled(store)
    data = export_state(store)
    assert set(state_file.SECTIONS) <= set(data)
    assert {"name", "template", "command", "pid", "status", "resources", "started"} <= set(
        data["instances"]["shop/web"]
    )
    assert data["instances"]["shop/web"]["status"] == "running"  # vp knows no "unhealthy"
    assert data["resources"]["door:80"] == {"type": "door", "value": "80", "owner": "shop/web", "name": "door"}
    assert set(data["types"]["door"]) == {"name", "check", "counter", "start", "end", "fleet"}


def test_import_refuses_what_is_declared_or_held_otherwise(store: Store) -> None:
    store.put_processes([(process_spec({"id": "old", "command": "sleep 6"}), ProcessStatus())])
    with pytest.raises(Conflict, match='process "old": exists already with another declaration'):
        plan_import(store, PLAN, look=nothing_runs)
    store.remove_processes(["old"])
    store.commit(Allocation(claimed=(Claim("vncport", "3999", "x", "vncport"),)), store.types())
    with pytest.raises(Conflict, match='resource "tcpport:3999": asked by "somebody", held by "x"'):
        import_state(store, PLAN, look=nothing_runs)
    assert store.processes() == {}  # nothing, or all


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"instances": []}, "state file: instances: expected an object, found list"),
        ({"instances": {"a b": {"command": "x"}}}, "process 'a b': expected NAME"),
        ({"instances": {"a": {"command": ""}}}, 'process "a": expected a command'),
        ({"instances": {"a": {"command": "x", "status": "odd"}}}, 'instance "a": expected status'),
        ({"instances": {"a": {"command": "x", "resources": {"tcport": "1"}}}}, 'did you mean "tcpport"'),
        ({"resources": {"x": {"type": "tcpport"}}}, 'resource "x": expected type, value and owner'),
        ({"counters": {"tcpport": "3"}}, 'counter "tcpport": expected a whole number'),
        ({"templates": {"t": {"comand": "x"}}}, 'unknown key "comand", did you mean "command"'),
        ({"fleet": {"format": 9}}, "expected format 1, found 9"),
    ],
)
def test_import_names_what_is_wrong(store: Store, data: dict[str, object], message: str) -> None:
    with pytest.raises((InvalidInput, NotFound), match=message.replace("[", r"\[")):
        plan_import(store, data)


def test_a_file_is_private_indented_and_whole(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    target.write_text("old")
    target.chmod(0o644)
    state_file.write_file(target, export_state(store))
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert target.read_text().startswith('{\n  "instances": {')
    assert state_file.read_file(target) == export_state(store)
    assert [path.name for path in tmp_path.glob(".out.json*")] == []


def test_files_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"missing\.json: does not exist"):
        state_file.read_file(tmp_path / "missing.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(InvalidInput, match=r"bad\.json: expected JSON"):
        state_file.read_file(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InvalidInput, match="expected an object with instances"):
        state_file.read_file(tmp_path / "list.json")
    with pytest.raises(StateDamaged, match="cannot be written"):
        state_file.write_file(tmp_path / "no" / "x.json", {})
