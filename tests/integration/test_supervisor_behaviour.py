# SPDX-License-Identifier: GPL-3.0-or-later
"""What supervised processes do, whichever supervisor has them. Everything is done and seen from outside of fleetd.

Run as it is, this is the native supervisor. tests/system/test_supervisors.py runs the same file on systemd hosts, with
FLEET_TEST_DRIVER=systemd:system and systemd:user.
"""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.integration.fleetd import Fleet, alive, command, python, running, shell, wait_for

from fleet_core.errors import NotFound, ProcessFailed, TimedOut

DRIVER, _colon, SCOPE = os.environ.get("FLEET_TEST_DRIVER", "native").partition(":")
SLEEP = "sleep 1000"
FAST = {"policy": "on-failure", "delay": 0.1, "max_delay": 0.2}
needs_root = pytest.mark.skipif(os.geteuid() != 0 or SCOPE == "user", reason="needs root")


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with (
        tempfile.TemporaryDirectory(prefix="fleet-") as folder,
        running(Path(folder), DRIVER, SCOPE or "auto") as fleet,
    ):
        yield fleet


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may write to."""
    with tempfile.TemporaryDirectory(prefix="fleet-work-") as name:
        path = Path(name).resolve()
        path.chmod(0o777)
        yield path


def report(folder: Path, *, stay: bool = True) -> str:
    """Python code of a process that writes down how it was started."""
    return (
        "import json, os, resource, sys, time\n"
        "facts = {'argv': sys.argv[1:], 'env': dict(os.environ), 'cwd': os.getcwd(), 'uid': os.geteuid(),\n"
        " 'gid': os.getegid(), 'groups': os.getgroups(), 'files': resource.getrlimit(resource.RLIMIT_NOFILE)[0],\n"
        " 'nice': os.nice(0)}\n"
        f"open({str(folder / 'new')!r}, 'w').write(json.dumps(facts))\n"
        f"os.rename({str(folder / 'new')!r}, {str(folder / 'facts')!r})\n"
    ) + ("time.sleep(1000)\n" if stay else "")


def facts(folder: Path) -> dict[str, Any]:
    """What a process wrote down by report()."""
    wait_for("the process reports", (folder / "facts").exists)
    found: dict[str, Any] = json.loads((folder / "facts").read_text())
    return found


def pids_in(file: Path, count: int) -> list[int]:
    """The pids that a shell script wrote into a file, one a line."""
    return wait_for(f"{count} pids", lambda: len(found := [int(line) for line in _lines(file)]) >= count and found)


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


# How a process is executed


def test_a_process_runs_until_it_is_stopped(fleet: Fleet) -> None:
    process = fleet.start("web", SLEEP)
    assert (process["status"], process["driver"], process["desired"]) == ("running", DRIVER, "running")
    assert alive(process["pid"])
    fleet.stop("web")
    assert not alive(process["pid"])
    stopped = fleet.get("web")
    assert (stopped["status"], stopped["desired"], stopped["pid"]) == ("stopped", "stopped", 0)


def test_arguments_arrive_as_they_are(fleet: Fleet, folder: Path) -> None:
    words = [
        "",
        " ",
        "two words",
        "'",
        '"',
        "\\",
        "$HOME",
        "${HOME}",
        "$$",
        "%n",
        "%%",
        "50%",
        ";",
        "#",
        "*",
        "~",
        "&&",
        "a\nb",
    ]
    words += ["\t", "é 日本 🙂", "-x", "--", "@", ":", "\\n", "a\"b'c\\", "\x01"]
    fleet.start("odd", python(report(folder), *words))
    assert facts(folder)["argv"] == words


def test_variables_arrive_as_they_are(fleet: Fleet, folder: Path) -> None:
    values = {
        "QUOTES": 'it\'s "so"',
        "DOLLAR": "$HOME `id` $(id)",
        "BACKSLASH": "C:\\dir\\",
        "SPACES": "  a  b  ",
        "LINES": "one\ntwo\n",
        "HASH": "#1; 50%",
        "EMPTY": "",
        "WORLD": "é 日本 🙂",
        "EQUALS": "a=b=c",
    }
    fleet.start("odd", python(report(folder)), env={name: value.replace("${", "$${") for name, value in values.items()})
    found = facts(folder)["env"]
    assert {name: found[name] for name in values} == values
    assert found["FLEET_PROCESS"] == "odd"
    assert found["FLEET_LAUNCH"]


def test_variables_come_from_files_too(fleet: Fleet, folder: Path) -> None:
    (folder / "one.env").write_text("# comment\nPLAIN=a b\nexport EXPORTED='x y'\nBOTH=file\n\nQUOTED=\"c d\"\n")
    fleet.start("web", python(report(folder)), working_dir=str(folder), env_files=["one.env"], env={"BOTH": "declared"})
    found = facts(folder)["env"]
    assert (found["PLAIN"], found["EXPORTED"], found["QUOTED"], found["BOTH"]) == ("a b", "x y", "c d", "declared")


def test_a_process_works_in_its_folder(fleet: Fleet, folder: Path) -> None:
    place = folder / "50% of $HOME's"
    place.mkdir()
    (place / "run").write_text(f'#!/bin/sh\nexec {sys.executable} -c "$(cat code)" "$@"\n')
    (place / "run").chmod(0o755)
    (place / "code").write_text(report(folder))
    fleet.start("web", "./run one", working_dir=str(place).replace("${", "$${"))
    assert (facts(folder)["cwd"], facts(folder)["argv"]) == (str(place), ["one"])


@needs_root
def test_a_process_runs_as_its_user(fleet: Fleet, folder: Path) -> None:
    nobody = pwd.getpwnam("nobody")
    python = next((path for path in ("/usr/bin/python3", "/usr/local/bin/python3") if os.access(path, os.X_OK)), None)
    if python is None:
        pytest.skip("there is no Python that everybody may run")
    process = fleet.start("web", command(python, "-c", report(folder)), user="nobody", working_dir="/")
    found = facts(folder)
    assert (found["uid"], found["gid"], found["env"]["USER"]) == (nobody.pw_uid, nobody.pw_gid, "nobody")
    assert found["env"]["HOME"] == nobody.pw_dir
    assert set(found["groups"]) <= set(os.getgrouplist("nobody", nobody.pw_gid))
    assert process["user"] == "nobody"


def test_limits_hold(fleet: Fleet, folder: Path) -> None:
    fleet.start("web", python(report(folder)), limits={"open_files": 256, "nice": 5})
    found = facts(folder)
    assert found["files"] == 256
    assert found["nice"] >= 5


@pytest.mark.skipif(DRIVER != "systemd", reason="limits of cgroups are systemd's")
def test_limits_reach_systemd(fleet: Fleet) -> None:
    limits = {"memory": "64M", "cpu": "150%", "processes": 20}
    unit = fleet.start("web", SLEEP, limits=limits)["unit"]
    names = ("MemoryMax", "CPUQuotaPerSecUSec", "TasksMax", "Slice")
    words = ["systemctl", *(["--user"] if SCOPE == "user" else []), "show", f"--property={','.join(names)}", unit]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert sorted(shown) == [
        "CPUQuotaPerSecUSec=1.500000s",
        f"MemoryMax={64 << 20}",
        "Slice=fleet.slice",
        "TasksMax=20",
    ]


def test_a_shell_is_used_only_when_asked_for(fleet: Fleet, folder: Path) -> None:
    fleet.start("one", f"sh -c 'echo $0 > {folder}/one; exec sleep 1000' '$(echo no)'")
    fleet.start("two", f"echo $(echo yes) > {folder}/two; exec sleep 1000", shell=True)
    wait_for("both wrote", lambda: (folder / "one").exists() and (folder / "two").exists())
    assert wait_for("one wrote", (folder / "one").read_text) == "$(echo no)\n"
    assert wait_for("two wrote", (folder / "two").read_text) == "yes\n"


# What cannot be started


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"command": "no-such-program-here"}, 'process "bad": program "no-such-program-here" was not found'),
        ({"command": "./no-such-file", "working_dir": "/"}, 'process "bad": program "./no-such-file" was not found'),
        ({"command": SLEEP, "working_dir": "/no/such"}, 'process "bad": working directory /no/such does not exist'),
        ({"command": SLEEP, "user": "no-such-user"}, 'process "bad": user "no-such-user" does not exist'),
        ({"command": SLEEP, "env_files": ["/no/such.env"]}, 'process "bad": env file /no/such.env'),
    ],
)
def test_a_failed_start_says_why_and_gives_back_its_claims(fleet: Fleet, fields: dict[str, Any], expected: str) -> None:
    with pytest.raises(ProcessFailed) as raised:
        fleet.apply({"id": "bad", "resources": ["tcpport"], **fields})
    assert str(raised.value).startswith(expected)
    assert fleet.get("bad")["status"] == "error"
    wait_for("no claim", lambda: not fleet.claims())


def test_a_file_that_is_no_program(fleet: Fleet, folder: Path) -> None:
    (folder / "data").write_bytes(b"\0\1\2")
    (folder / "data").chmod(0o755)
    with pytest.raises(ProcessFailed, match=r'process "bad": "\./data" could not be started: Exec format error'):
        fleet.start("bad", "./data", working_dir=str(folder))


def test_one_failure_stops_no_other(fleet: Fleet) -> None:
    items = [{"id": f"p{number}", "command": SLEEP} for number in range(8)]
    with pytest.raises(ProcessFailed, match='"bad"'):
        fleet.apply(*items[:4], {"id": "bad", "command": "no-such-program-here"}, *items[4:])
    for item in items:
        fleet.until(str(item["id"]), "running")


# Ends


def test_a_process_that_has_done_its_work(fleet: Fleet) -> None:
    assert fleet.start("job", "true")["status"] in ("running", "stopped")
    done = fleet.until("job", "stopped")
    assert (done["exit_code"], done["completed"], done["error"]) == (0, True, "")
    assert (
        fleet.call("processes.plan", items=[{"id": "job", "command": "true"}], state="started")["change"]["actions"]
        == []
    )


@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("kill -9 $$", -9), ("kill -TERM $$", -15)])
def test_a_process_that_fails_and_is_never_restarted(fleet: Fleet, script: str, code: int) -> None:
    fleet.start("job", shell(f"sleep 0.3; {script}"), restart="never")
    failed = fleet.until("job", "error")
    assert (failed["exit_code"], failed["restarts"], failed["pid"]) == (code, 0, 0)
    assert str(code) in failed["error"] or signal.Signals(-code).name in failed["error"]


@pytest.mark.parametrize("script", ["exit 1", "kill -9 $$", "kill -TERM $$", "kill -HUP $$"])
def test_a_failure_is_followed_by_a_restart(fleet: Fleet, folder: Path, script: str) -> None:
    line = shell(
        f"echo $$ >> {folder}/pids; test -e {folder}/calm && exec sleep 1000; : > {folder}/calm; sleep 0.3; {script}"
    )
    fleet.start("web", line, restart=FAST)
    first, second = pids_in(folder / "pids", 2)
    process = fleet.until("web", "running", pid=second)
    assert not alive(first)
    assert (process["restarts"], process["exit_code"]) == (1, None)


def test_a_good_end_is_followed_by_a_restart_only_when_always(fleet: Fleet, folder: Path) -> None:
    always = {**FAST, "policy": "always"}
    fleet.start("always", shell(f"echo $$ >> {folder}/pids; sleep 0.3"), restart=always, wait=False)
    fleet.start("once", shell("sleep 0.3"), restart=FAST, wait=False)
    pids_in(folder / "pids", 3)
    assert fleet.until("once", "stopped")["restarts"] == 0
    fleet.stop("always")
    count = len(_lines(folder / "pids"))
    time.sleep(0.8)
    assert len(_lines(folder / "pids")) == count


def test_a_process_that_keeps_failing_is_given_up(fleet: Fleet, folder: Path) -> None:
    line = shell(f"echo $$ >> {folder}/pids; sleep 0.1; echo no luck >&2; exit 4")
    fleet.start("web", line, restart={**FAST, "burst": 3, "window": 60}, resources=["tcpport"], wait=False)
    failed = fleet.until("web", "error")
    assert (failed["exit_code"], failed["restarts"]) == (4, 3)
    assert len(_lines(folder / "pids")) == 4
    assert "given up" in failed["error"]
    wait_for("no claim", lambda: not fleet.claims())
    time.sleep(0.6)
    assert len(_lines(folder / "pids")) == 4


def test_whoever_waits_is_told_of_a_process_that_keeps_failing(fleet: Fleet) -> None:
    with pytest.raises(ProcessFailed, match='process "web": ended with exit code 4'):
        fleet.start("web", shell("exit 4"), restart={**FAST, "burst": 5})


def test_the_children_of_an_ended_process_end_too(fleet: Fleet, folder: Path) -> None:
    script = f"sleep 1000 & echo $! >> {folder}/pids; echo $$ >> {folder}/pids; sleep 0.3; exit 3"
    fleet.start("web", shell(script), restart="never")
    child, _leader = pids_in(folder / "pids", 2)
    fleet.until("web", "error", exit_code=3)
    assert not alive(child)


# Stopping


def test_stopping_ends_the_whole_group(fleet: Fleet, folder: Path) -> None:
    inner = f"sleep 1000 & echo $! >> {folder}/pids; wait"
    script = f"sleep 1000 & echo $! >> {folder}/pids; sh -c '{inner}' & echo $! >> {folder}/pids; wait"
    fleet.start("web", shell(script))
    pids = [fleet.get("web")["pid"], *pids_in(folder / "pids", 3)]
    assert all(alive(pid) for pid in pids)
    fleet.stop("web")
    assert not [pid for pid in pids if alive(pid)]


def test_the_stop_signal_is_the_declared_one(fleet: Fleet, folder: Path) -> None:
    script = (
        f"trap 'echo usr1 > {folder}/got; exit 0' USR1; trap 'echo term > {folder}/got; exit 0' TERM; : > {folder}/up; "
    )
    script += "while :; do sleep 0.05; done"
    fleet.start("web", shell(script), stop_signal="USR1", readiness=f"cmd://test -e {folder}/up")
    fleet.stop("web")
    assert (folder / "got").read_text() == "usr1\n"


def test_a_process_has_the_time_it_needs_to_stop(fleet: Fleet, folder: Path) -> None:
    script = f"trap 'sleep 1; echo saved > {folder}/got; exit 0' TERM; : > {folder}/up; while :; do sleep 0.05; done"
    fleet.start("web", shell(script), readiness=f"cmd://test -e {folder}/up", stop_timeout=10)
    begun = time.monotonic()
    fleet.stop("web")
    assert (folder / "got").read_text() == "saved\n"
    assert 0.9 < time.monotonic() - begun < 8


def test_a_process_that_does_not_stop_is_killed(fleet: Fleet, folder: Path) -> None:
    script = f"trap '' TERM; echo $$ >> {folder}/pids; while :; do sleep 0.05; done"
    process = fleet.start("web", shell(script), stop_timeout=0.5, readiness=f"cmd://test -e {folder}/pids")
    begun = time.monotonic()
    fleet.stop("web")
    assert 0.4 < time.monotonic() - begun < 8
    assert not alive(process["pid"])
    assert fleet.get("web")["status"] == "stopped"


def test_what_is_stopped_between_two_restarts_stays_stopped(fleet: Fleet, folder: Path) -> None:
    line = shell(f"echo $$ >> {folder}/pids; exit 1")
    fleet.start("web", line, restart={"delay": 2, "max_delay": 2}, wait=False)
    fleet.until("web", "backoff")
    pids_in(folder / "pids", 1)
    time.sleep(0.3)
    fleet.until("web", "backoff")
    fleet.stop("web")
    count = len(_lines(folder / "pids"))
    time.sleep(3)
    assert len(_lines(folder / "pids")) == count
    assert fleet.get("web")["status"] == "stopped"


def test_stopping_twice_is_no_error(fleet: Fleet) -> None:
    fleet.start("web", SLEEP)
    fleet.stop("web")
    fleet.stop("web")
    assert fleet.call("processes.plan", items=[{"id": "web"}], state="stopped")["change"]["actions"] == []


def test_a_deleted_process_is_not_known(fleet: Fleet) -> None:
    pid = fleet.start("web", SLEEP)["pid"]
    fleet.call("processes.delete", ids=["web"])
    assert not alive(pid)
    with pytest.raises(NotFound, match='process "web": not declared'):
        fleet.get("web")


def test_kill_all_stops_all(fleet: Fleet) -> None:
    pids = [process["pid"] for process in fleet.apply(*({"id": f"p{n}", "command": SLEEP} for n in range(12)))]
    assert sorted(fleet.call("processes.kill_all")["stopped"]) == sorted(f"p{n}" for n in range(12))
    assert not [pid for pid in pids if alive(pid)]


# Restarts on request, changes


def test_a_restart_keeps_the_claimed_values(fleet: Fleet) -> None:
    first = fleet.start("web", SLEEP, resources=["tcpport", {"type": "tcpport", "name": "admin"}])
    assert len(set(first["resources"].values())) == 2
    (second,) = fleet.call("processes.restart", ids=["web"])["processes"]
    assert second["resources"] == first["resources"]
    assert second["pid"] != first["pid"]
    assert not alive(first["pid"])
    assert second["restarts"] == 0


def test_a_crash_keeps_the_claimed_values(fleet: Fleet) -> None:
    first = fleet.start("web", SLEEP, resources=["tcpport"], restart=FAST)
    os.kill(first["pid"], signal.SIGKILL)
    wait_for("another pid", lambda: fleet.get("web")["pid"] not in (0, first["pid"]))
    second = fleet.until("web", "running", restarts=1)
    assert second["resources"] == first["resources"]


def test_stopping_releases_the_claims(fleet: Fleet) -> None:
    port = fleet.start("web", SLEEP, resources=["tcpport"])["resources"]["tcpport"]
    assert fleet.claims() == {("tcpport", port, "web")}
    fleet.stop("web")
    assert fleet.claims() == set()


def test_the_same_declaration_changes_nothing_and_another_one_restarts(fleet: Fleet, folder: Path) -> None:
    item = {"id": "web", "command": python(report(folder)), "env": {"MODE": "one"}}
    (first,) = fleet.apply(item)
    (same,) = fleet.apply(item)
    assert same["pid"] == first["pid"]
    assert facts(folder)["env"]["MODE"] == "one"
    (folder / "facts").unlink()
    (other,) = fleet.apply({**item, "env": {"MODE": "two"}})
    assert other["pid"] != first["pid"]
    assert not alive(first["pid"])
    assert facts(folder)["env"]["MODE"] == "two"


# Readiness, health, dependencies


def test_a_start_waits_until_the_process_is_ready(fleet: Fleet, folder: Path) -> None:
    begun = time.monotonic()
    process = fleet.start(
        "web", shell(f"sleep 0.7; : > {folder}/up; exec sleep 1000"), readiness=f"cmd://test -e {folder}/up"
    )
    assert time.monotonic() - begun >= 0.6
    assert (process["status"], process["healthy"]) == ("running", True)


def test_readiness_by_tcp_and_http(fleet: Fleet) -> None:
    server = f"{sys.executable} -m http.server --bind 127.0.0.1 %tcpport"
    web, other = fleet.apply(
        {"id": "web", "command": server, "readiness": "http://127.0.0.1:${tcpport}/"},
        {"id": "other", "command": server, "readiness": "tcp://127.0.0.1:${tcpport}"},
    )
    assert (web["status"], other["status"]) == ("running", "running")
    assert web["resources"]["tcpport"] != other["resources"]["tcpport"]


def test_a_process_that_never_becomes_ready(fleet: Fleet) -> None:
    with pytest.raises(ProcessFailed, match=r'process "web": not ready within 0\.5 s'):
        fleet.start("web", SLEEP, readiness="cmd://false", start_timeout=0.5, restart="never")
    fleet.until("web", "error")


def test_a_sick_process_is_restarted(fleet: Fleet, folder: Path) -> None:
    (folder / "well").touch()
    health = {"url": f"cmd://test -e {folder}/well", "interval": 0.1, "retries": 2}
    first = fleet.start(
        "web", shell(f": > {folder}/well; exec sleep 1000"), health=health, restart=FAST, resources=["tcpport"]
    )
    (folder / "well").unlink()
    wait_for("another pid", lambda: fleet.get("web")["pid"] not in (0, first["pid"]))
    second = fleet.until("web", "running", healthy=True)
    assert second["restarts"] >= 1
    assert second["resources"] == first["resources"]
    assert not alive(first["pid"])


def test_a_sick_process_may_only_be_reported(fleet: Fleet, folder: Path) -> None:
    (folder / "well").touch()
    health = {"url": f"cmd://test -e {folder}/well", "interval": 0.1, "retries": 2, "action": "none"}
    first = fleet.start("web", SLEEP, health=health)
    (folder / "well").unlink()
    assert fleet.until("web", "unhealthy")["pid"] == first["pid"]
    (folder / "well").touch()
    assert fleet.until("web", "running", healthy=True)["pid"] == first["pid"]


def test_dependencies_come_first(fleet: Fleet, folder: Path) -> None:
    def noted(name: str, rest: str) -> str:
        return shell(f"echo {name} >> {folder}/order; {rest}")

    fleet.apply(
        {
            "id": "web",
            "command": noted("web", "exec sleep 1000"),
            "depends_on": {
                "db": {"condition": "healthy"},
                "setup": {"condition": "completed"},
                "log": {"condition": "started"},
            },
        },
        {
            "id": "setup",
            "command": noted("setup", "sleep 0.3; echo done >> " + str(folder / "order")),
            "depends_on": ["db"],
        },
        {
            "id": "db",
            "command": noted("db", f"sleep 0.3; : > {folder}/db; echo ready >> {folder}/order; exec sleep 1000"),
            "health": f"cmd://test -e {folder}/db",
        },
        {"id": "log", "command": noted("log", "exec sleep 1000")},
    )
    order = [line for line in _lines(folder / "order") if line != "log"]
    assert order == ["db", "ready", "setup", "done", "web"]
    assert "log" in _lines(folder / "order")


def test_dependents_stop_first(fleet: Fleet, folder: Path) -> None:
    def noting(name: str) -> str:
        end = f"sleep 0.2; echo {name} >> {folder}/order; exit 0"
        return shell(f"trap '{end}' TERM; : > {folder}/{name}; while :; do sleep 0.05; done")

    fleet.apply(
        *(
            {"id": name, "command": noting(name), "readiness": f"cmd://test -e {folder}/{name}", "depends_on": needs}
            for name, needs in (("web", ["app"]), ("app", ["db"]), ("db", []))
        )
    )
    fleet.stop("db", "web", "app")
    assert _lines(folder / "order") == ["web", "app", "db"]


def test_a_failed_dependency_is_named(fleet: Fleet) -> None:
    with pytest.raises(ProcessFailed, match='"setup"'):
        fleet.apply(
            {"id": "web", "command": SLEEP, "depends_on": {"setup": {"condition": "completed"}}},
            {"id": "setup", "command": shell("exit 3"), "restart": "never"},
        )
    assert 'waited for "setup" to be completed' in fleet.until("web", "error")["error"]


def test_waiting_has_an_end(fleet: Fleet) -> None:
    with pytest.raises(TimedOut, match='process "web"'):
        fleet.apply({"id": "web", "command": SLEEP, "readiness": "cmd://false"}, timeout=0.5)
    assert fleet.get("web")["status"] == "starting"


# Logs


def test_what_is_printed_can_be_read(fleet: Fleet) -> None:
    fleet.start("web", shell("echo one; echo '  é \t{\"two\"}' >&2; printf 'no newline'; sleep 0.3"), restart="never")
    fleet.until("web", "stopped")
    wait_for("three lines", lambda: len(fleet.printed("web")) >= 3)
    assert sorted(fleet.printed("web")) == ['  é \t{"two"}', "no newline", "one"]
    (first,) = [record for record in fleet.logs("web") if record["message"] == "one"]
    assert (first["level"], first["process_name"]) == ("Stdout", "web")
    assert first["process_id"]


def test_the_end_of_a_log(fleet: Fleet) -> None:
    fleet.start("web", shell("for n in 1 2 3 4 5 6 7 8 9; do echo $n; done; exec sleep 1000"))
    wait_for("nine lines", lambda: len(fleet.printed("web")) == 9)
    every = list(fleet.logs("web"))  # with what is said of the process, in whatever order that came
    assert list(fleet.logs("web", lines=3)) == every[-3:]


def test_a_log_since_a_moment(fleet: Fleet, folder: Path) -> None:
    fleet.start("web", shell(f"echo early; until test -e {folder}/go; do sleep 0.05; done; echo late; exec sleep 1000"))
    wait_for("the first line", lambda: fleet.printed("web"))
    time.sleep(1.2)
    (folder / "go").touch()
    wait_for("the second line", lambda: len(fleet.printed("web")) == 2)
    assert fleet.printed("web", since="1s") == ["late"]
    assert fleet.printed("web", since="1h") == ["early", "late"]


def test_a_log_is_followed(fleet: Fleet, folder: Path) -> None:
    fleet.start("web", shell(f"echo early; until test -e {folder}/go; do sleep 0.05; done; echo late; exec sleep 1000"))
    wait_for("the first line", lambda: fleet.printed("web"))
    seen: list[str] = []
    records = fleet.logs("web", follow=True, stop=lambda: "late" in seen)
    reader = threading.Thread(target=lambda: seen.extend(record["message"] for record in records))
    reader.daemon = True
    reader.start()
    wait_for("what was there", lambda: "early" in seen)
    (folder / "go").touch()
    reader.join(10)
    assert not reader.is_alive()
    assert [line for line in seen if line in ("early", "late")] == ["early", "late"]


def test_no_line_is_lost_when_fleetd_is_killed(fleet: Fleet) -> None:
    code = (
        "import time\nfor n in range(4000):\n print(n, flush=True)\n if n % 20 == 0: time.sleep(0.01)\ntime.sleep(1000)"
    )
    fleet.start("web", python(code))
    for _round in range(3):
        time.sleep(0.3)
        fleet.again(signal.SIGKILL)
    wait_for("all lines", lambda: len(fleet.printed("web")) >= 4000)
    assert fleet.printed("web") == [str(number) for number in range(4000)]


# fleetd comes and goes


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_outlive_fleetd(fleet: Fleet, number: int) -> None:
    items = [{"id": f"p{n}", "command": SLEEP, "resources": ["tcpport"], "restart": FAST} for n in range(5)]
    before = {process["id"]: process for process in fleet.apply(*items)}
    fleet.end(number)
    assert all(alive(process["pid"]) for process in before.values())
    fleet.up()
    for ident, process in before.items():
        found = fleet.get(ident)
        assert (found["status"], found["pid"], found["resources"]) == ("running", process["pid"], process["resources"])
    os.kill(before["p0"]["pid"], signal.SIGKILL)
    wait_for("p0 is restarted", lambda: fleet.get("p0")["pid"] not in (0, before["p0"]["pid"]))
    fleet.stop("p1")
    assert not alive(before["p1"]["pid"])


def test_what_ended_while_no_fleetd_ran_is_taken_care_of(fleet: Fleet) -> None:
    (again,) = fleet.apply({"id": "again", "command": SLEEP, "restart": FAST, "resources": ["tcpport"]})
    (never,) = fleet.apply({"id": "never", "command": SLEEP, "restart": "never", "resources": ["tcpport"]})
    fleet.end(signal.SIGKILL)
    for process in (again, never):
        os.kill(process["pid"], signal.SIGKILL)
    wait_for("both are gone", lambda: not alive(again["pid"]) and not alive(never["pid"]))
    fleet.up()
    fleet.until("never", "error")
    wait_for("it runs again", lambda: fleet.get("again")["pid"] not in (0, again["pid"]))
    found = fleet.until("again", "running")
    assert alive(found["pid"])
    assert found["resources"] == again["resources"]
    assert {owner for _type, _value, owner in fleet.claims()} == {"again"}


def test_a_start_that_fleetd_did_not_survive_is_completed(fleet: Fleet, folder: Path) -> None:
    line = shell(f"echo $$ >> {folder}/pids; sleep 1; : > {folder}/up; exec sleep 1000")
    fleet.start("web", line, readiness=f"cmd://test -e {folder}/up", wait=False)
    pids_in(folder / "pids", 1)
    fleet.again(signal.SIGKILL)
    found = fleet.until("web", "running")
    assert [found["pid"]] == pids_in(folder / "pids", 1)


def test_a_stop_that_fleetd_did_not_survive_is_completed(fleet: Fleet, folder: Path) -> None:
    script = f"trap 'sleep 1; exit 0' TERM; : > {folder}/up; while :; do sleep 0.05; done"
    pid = fleet.start("web", shell(script), readiness=f"cmd://test -e {folder}/up", resources=["tcpport"])["pid"]
    stopping = threading.Thread(target=_ignoring_errors, args=(Fleet.stop, _another(fleet), "web"))
    stopping.start()
    fleet.until("web", "stopping")
    fleet.again(signal.SIGKILL)
    stopping.join(20)
    fleet.until("web", "stopped")
    assert not alive(pid)
    assert fleet.claims() == set()


def _another(fleet: Fleet) -> Fleet:
    """Another client of the same fleetd."""
    other = Fleet(fleet.folder)
    other.daemon = fleet.daemon
    return other


def _ignoring_errors(function: Any, *arguments: Any) -> None:
    try:
        function(*arguments)
    except Exception as error:
        print(f"as expected: {error}")


def test_a_running_process_is_adopted(fleet: Fleet, folder: Path) -> None:
    code = "import socket, time\ns = socket.create_server(('127.0.0.1', 0))\n"
    code += f"open({str(folder / 'port')!r}, 'w').write(str(s.getsockname()[1]))\ntime.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as child:
        try:
            port = wait_for("the port", lambda: (folder / "port").exists() and (folder / "port").read_text())
            adopted = fleet.call("processes.adopt", id="old", port=int(port))["process"]
            assert (adopted["pid"], adopted["status"], adopted["adopted"]) == (child.pid, "running", True)
            assert fleet.claims() == {("tcpport", port, "old")}
            fleet.again(signal.SIGKILL)
            assert (fleet.get("old")["pid"], fleet.get("old")["status"]) == (child.pid, "running")
            with ThreadPoolExecutor(1) as pool:
                ended = pool.submit(child.wait, 10)
                fleet.stop("old")
                assert ended.result() == -signal.SIGTERM
            assert fleet.get("old")["status"] == "stopped"
            assert fleet.claims() == set()
        finally:
            child.kill()


def test_the_end_of_an_adopted_process_is_noticed(fleet: Fleet) -> None:
    with subprocess.Popen(SLEEP.split(), start_new_session=True) as child:
        fleet.call("processes.adopt", id="old", pid=child.pid)
        child.kill()
    assert fleet.until("old", "error")["exit_code"] is None


def test_a_second_fleetd_is_refused(fleet: Fleet) -> None:
    other = Fleet(fleet.folder, DRIVER, SCOPE or "auto")
    with pytest.raises(AssertionError, match="a fleetd runs there already"):
        other.up()
    assert fleet.call("daemon.status")["pid"] == fleet.daemon.pid  # type: ignore[union-attr]


def test_fleetd_rests_when_nothing_happens(fleet: Fleet) -> None:
    fleet.apply(*({"id": f"p{n}", "command": SLEEP} for n in range(20)))
    assert fleet.daemon is not None
    time.sleep(1.5)

    def ticks() -> int:
        fields = Path(f"/proc/{fleet.daemon.pid}/stat").read_text().rpartition(")")[2].split()  # type: ignore[union-attr]
        return int(fields[11]) + int(fields[12])

    before = ticks()
    time.sleep(2)
    assert ticks() - before <= 4  # of 200


# Many at once


def test_fifty_processes_start_and_stop_together(fleet: Fleet) -> None:
    items = [{"id": f"many/p{n}", "command": SLEEP, "resources": ["tcpport"]} for n in range(50)]
    found = fleet.apply(*items)
    assert {process["status"] for process in found} == {"running"}
    assert len({process["resources"]["tcpport"] for process in found}) == 50
    fleet.stop(*(str(item["id"]) for item in items))
    assert not [process["pid"] for process in found if alive(process["pid"])]
    assert fleet.claims() == set()


def test_commands_with_an_odd_program_name(fleet: Fleet, folder: Path) -> None:
    program = folder / 'a "b" $c %d \\e'
    program.write_text(f"#!{sys.executable}\n{report(folder)}")
    program.chmod(0o755)
    fleet.start("odd", command(str(program), "x y"))
    assert facts(folder)["argv"] == ["x y"]


@needs_root
@pytest.mark.skipif(DRIVER == "systemd", reason="it is journald's socket, which cannot be opened: systemd.exec(5)")
def test_another_user_may_open_its_standard_output_by_name(fleet: Fleet, folder: Path) -> None:
    fleet.start("web", shell("echo by name > /dev/stdout; exec sleep 600"), user="nobody", working_dir="/")
    wait_for("its line", lambda: "by name" in [record["message"] for record in fleet.logs("web")])
