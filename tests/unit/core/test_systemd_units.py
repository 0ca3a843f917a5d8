# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd is given: unit files, word by word."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core import systemd_units
from fleet_core.errors import InvalidInput
from fleet_core.processes import launch, process_spec


def render(
    version: int = 252, scope: str = "system", user: str = "", after: tuple[str, ...] = (), **fields: Any
) -> str:
    spec = process_spec({"id": "web", "command": "/usr/bin/server --port 80", **fields})
    return systemd_units.unit(
        spec,
        launch(spec, {}),
        program="/usr/bin/server",
        working_dir="/srv/50% off",
        environment="/run/autovibe-fleet/fleet-web.env",
        user=user,
        after=after,
        scope=scope,
        version=version,
    )


SMALL = """\
# Written by fleetd; changes are lost. For settings of your own use /etc/systemd/system/fleet-.service.d/NAME.conf.
[Unit]
Description=fleet process web
Before=fleetd.service
StartLimitIntervalSec=300000ms
StartLimitBurst=11

[Service]
Type=exec
ExecStart=":@/usr/bin/server" "/usr/bin/server" "--port" "80"
WorkingDirectory=/srv/50%% off
EnvironmentFile=/run/autovibe-fleet/fleet-web.env
TimeoutStartSec=60000ms
TimeoutStopSec=10000ms
KillMode=control-group
KillSignal=SIGTERM
Restart=on-failure
RestartForceExitStatus=SIGHUP SIGINT SIGTERM SIGPIPE
RestartSec=500ms
IgnoreSIGPIPE=no
OOMPolicy=continue
StandardInput=null
StandardOutput=journal
StandardError=journal
SyslogIdentifier=web
LogRateLimitIntervalSec=0
Slice=fleet.slice
CapabilityBoundingSet=~CAP_SYS_BOOT CAP_SYS_TIME
"""

LARGE = """\
# Written by fleetd; changes are lost. For settings of your own use ~/.config/systemd/user/fleet-.service.d/NAME.conf.
[Unit]
Description=fleet process shop/web
Before=fleetd.service
After=fleet-shop:db.service fleet-shop:cache.service
StartLimitIntervalSec=60000ms
StartLimitBurst=4

[Service]
Type=exec
ExecStart=":@/usr/bin/server" "/usr/bin/server" "--port" "80"
WorkingDirectory=/srv/50%% off
EnvironmentFile=/run/autovibe-fleet/fleet-web.env
User=www-data
TimeoutStartSec=30000ms
TimeoutStopSec=1ms
KillMode=control-group
KillSignal=SIGINT
Restart=always
RestartSec=500ms
RestartSteps=6
RestartMaxDelaySec=30000ms
IgnoreSIGPIPE=no
OOMPolicy=continue
StandardInput=null
StandardOutput=journal
StandardError=journal
SyslogIdentifier=shop/web
LogRateLimitIntervalSec=0
Slice=fleet.slice
MemoryMax=536870912
CPUQuota=150%
LimitNOFILE=4096
TasksMax=64
Nice=5
"""


def test_a_process_with_nothing_said() -> None:
    assert render() == SMALL


def test_a_process_with_everything_said() -> None:
    text = render(
        version=257,
        scope="user",
        user="www-data",
        after=("shop/db", "shop/cache"),
        id="shop/web",
        restart={"policy": "always", "delay": 1, "max_delay": 30, "burst": 3, "window": 60},
        stop_signal="INT",
        stop_timeout=0,
        start_timeout="5s",
        limits={"memory": "512M", "cpu": "150%", "open_files": 4096, "processes": 64, "nice": 5},
        env={"TOKEN": "hunter2"},
    )
    assert text == LARGE


def test_no_value_of_a_variable_stands_in_a_unit() -> None:
    assert "hunter2" not in render(env={"TOKEN": "hunter2"})


def test_a_process_that_is_never_restarted() -> None:
    lines = render(restart="never").splitlines()
    assert "Restart=no" in lines
    assert not [line for line in lines if line.startswith("RestartSec")]


def test_no_burst_means_no_limit() -> None:
    lines = render(restart={"policy": "always", "burst": 0}).splitlines()
    assert "StartLimitIntervalSec=0" in lines
    assert not [line for line in lines if line.startswith("StartLimitBurst")]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("", '""'),
        ("plain", '"plain"'),
        ("two words", '"two words"'),
        (";", '";"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("it's", '"it\'s"'),
        ("C:\\dir\\", '"C:\\\\dir\\\\"'),
        ("date +%H", '"date +%%H"'),
        ("$HOME ${HOME}", '"$HOME ${HOME}"'),
        ("a\nb\tc\rd", '"a\\nb\\tc\\rd"'),
        ("\x01\x7f", '"\\x01\\x7f"'),
        ("né 日本", '"né 日本"'),
    ],
)
def test_words_of_a_command(word: str, expected: str) -> None:
    assert systemd_units.quote_word(word) == expected


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_a_command_stays_on_its_line(words: list[str]) -> None:
    line = systemd_units.exec_start('process "x"', "/bin/x", ["x", *words])
    assert len(line.splitlines()) == 1 or not set("\n\r") & set(line)
    assert line.count('"') - line.count('\\"') >= 2 * (len(words) + 2) - line.count('\\\\"')


def test_a_program_with_an_odd_path_is_run_by_a_shell() -> None:
    line = systemd_units.exec_start("x", '/opt/a "b"/run', ["run", "-x"])
    assert line == '":@/bin/sh" "sh" "-c" "exec \\"$0\\" \\"$@\\"" "/opt/a \\"b\\"/run" "-x"'


def test_a_command_that_is_not_text_is_refused() -> None:
    with pytest.raises(InvalidInput, match='process "x": under systemd a command is UTF-8'):
        systemd_units.exec_start('process "x"', "/bin/x", ["x", "caf\udce9"])


@pytest.mark.parametrize("path", ["relative", "/a\nUser=root", "/ends in space ", "/ends\\"])
def test_a_path_that_would_not_arrive_is_refused(path: str) -> None:
    spec = process_spec({"id": "web", "command": "x"})
    with pytest.raises(InvalidInput, match=r'process "web": working_dir: systemd takes no such path'):
        systemd_units.unit(spec, launch(spec, {}), program="/x", working_dir=path, environment="/e")


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True),
        st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    )
)
def test_an_environment_file_is_read_back_by_a_shell(variables: dict[str, str]) -> None:
    """systemd's rules are those of a shell for values in double quotes."""
    text = systemd_units.environment_file("x", variables)
    words = [word.partition("=") for word in shlex.split(text.replace("\\$", "$").replace("\\`", "`"))]
    assert {name: value for name, _equals, value in words} == variables


def test_odd_values_of_an_environment_file() -> None:
    text = systemd_units.environment_file("x", {"A": 'q"b\\s$d`t#h', "B": " two\nlines\t", "C": ""})
    assert text == 'A="q\\"b\\\\s\\$d\\`t#h"\nB=" two\nlines\t"\nC=""\n'


@pytest.mark.parametrize(("name", "value"), [("A-B", "x"), ("1A", "x"), ("A", "\x1b[0m"), ("A", "\r"), ("A", "\udce9")])
def test_a_variable_that_systemd_would_drop_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=f'process "x": env {name}: under systemd'):
        systemd_units.environment_file('process "x"', {name: value})
    assert systemd_units.passable({name: value, "PATH": "/bin"}) == {"PATH": "/bin"}


@pytest.mark.parametrize("ident", ["web", "shop/web", "a.b-c_d", "shop/a-b"])
def test_a_unit_name_can_be_turned_back(ident: str) -> None:
    name = systemd_units.unit_name(ident)
    assert systemd_units.process_id(name) == ident
    assert "/" not in name
    assert systemd_units.process_id(systemd_units.unit_name(ident, "fleet-_1a2b3c-"), "fleet-_1a2b3c-") == ident


@pytest.mark.parametrize("name", ["ssh.service", "fleet-web.target", "fleetd.service", ""])
def test_units_of_others_are_nobodys(name: str) -> None:
    assert systemd_units.process_id(name) == ""


def test_the_keeper_orders_and_starts_nothing() -> None:
    text = systemd_units.keeper(["fleet-b.service", "fleet-a.service"])
    assert text.splitlines()[1:] == [
        "[Unit]",
        "Description=Results of ended fleet processes",
        "After=fleet-a.service fleet-b.service",
    ]


def test_show_is_read_unit_by_unit() -> None:
    output = "Id=a.service\nActiveState=active\nJob=\n\nId=b.service\nResult=exit=code\n"
    assert systemd_units.parse_show(output) == [
        {"Id": "a.service", "ActiveState": "active", "Job": ""},
        {"Id": "b.service", "Result": "exit=code"},
    ]
