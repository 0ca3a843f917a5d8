# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes as declared and as launched."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.dependencies import Dependency
from fleet_core.errors import InvalidInput
from fleet_core.health import HealthCheck
from fleet_core.processes import (
    Launch,
    Limits,
    LogPolicy,
    Need,
    ProcessSpec,
    action_of,
    hide,
    hide_secrets,
    launch,
    needs_of,
    process_spec,
    secrets_of,
)
from fleet_core.restarts import RestartPolicy


def spec(**fields: Any) -> ProcessSpec:
    return process_spec({"id": "shop/web", "command": "run", **fields})


def launched(claimed: dict[str, tuple[str, str]] | None = None, **fields: Any) -> Launch:
    return launch(
        spec(**fields), claimed or {}, {"db.tcpport": "5432"}, {"project_dir": "/srv/a b", "python": "/bin/py"}
    )


FULL = {
    "id": "shop/web",
    "command": "serve --port ${tcpport}",
    "template": "web",
    "label": "Web",
    "action": "echo",
    "shell": True,
    "vars": {"a": "1", "must": None},
    "resources": ["tcpport", {"type": "dbfile", "name": "db", "value": "x.db"}],
    "working_dir": "sub",
    "env": {"A": "1"},
    "env_files": [".env"],
    "user": "www",
    "stop_signal": "SIGINT",
    "stop_timeout": 3.0,
    "start_timeout": 4.0,
    "restart": {"policy": "always", "delay": 1.0, "max_delay": 2.0, "jitter": 0.0, "burst": 1, "window": 9.0},
    "readiness": HealthCheck("tcp://127.0.0.1:${tcpport}").to_dict(),
    "health": HealthCheck("http://127.0.0.1:${tcpport}/", interval=1.0).to_dict(),
    "depends_on": [{"process": "shop/db", "condition": "started"}],
    "limits": {"memory": 1024, "cpu": 50, "open_files": 10, "processes": 5, "nice": 1},
    "logs": {"max_size": 4096, "keep": 1},
}


def test_a_spec_reads_back_from_plain_data() -> None:
    found = process_spec(FULL)
    assert found.to_dict() == FULL
    assert process_spec(found.to_dict()) == found
    assert (found.name, found.environment) == ("web", "shop")
    assert process_spec({"id": "web", "command": "x"}).environment == ""


def test_fields_at_their_defaults_are_left_out() -> None:
    assert spec().to_dict() == {"id": "shop/web", "command": "run"}
    assert spec(restart="on-failure", stop_signal="term", env={}, resources=None) == spec()


@pytest.mark.parametrize(
    ("field", "given_value", "value"),
    [
        ("stop_signal", "int", "SIGINT"),
        ("stop_signal", "SIGUSR1", "SIGUSR1"),
        ("stop_timeout", "1m30s", 90.0),
        ("start_timeout", 0, 0.0),
        ("restart", False, RestartPolicy("never")),
        ("restart", "always", RestartPolicy("always")),
        ("shell", "yes", True),
        ("env", {"A": 1, "B": True, "C": 1.5}, {"A": "1", "B": "true", "C": "1.5"}),
        ("vars", {"a": 1, "b": None}, {"a": "1", "b": None}),
        ("resources", ["tcpport:80"], (Need("tcpport", "tcpport", "80"),)),
        ("resources", [{"type": "tcpport", "name": "http", "value": 80}], (Need("tcpport", "http", "80"),)),
        ("resources", ["dbfile:/a:b"], (Need("dbfile", "dbfile", "/a:b"),)),
        ("env_files", ".env", (".env",)),
        ("limits", {"memory": "1G", "cpu": "150%"}, Limits(memory=1024**3, cpu=150)),
        ("logs", {"max_size": "1M"}, LogPolicy(max_size=1024**2)),
        ("logs", {"keep": 0}, LogPolicy(keep=0)),
        ("health", "tcp://a:1", HealthCheck("tcp://a:1")),
        ("depends_on", ["db"], (Dependency("db"),)),
        ("depends_on", {"db": {"condition": "started"}}, (Dependency("db", "started"),)),
        ("command", "  run x  ", "run x"),
        ("user", 1000, "1000"),
    ],
)
def test_a_field_is_read(field: str, given_value: Any, value: Any) -> None:
    assert getattr(spec(**{field: given_value}), field) == value


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": "a b"}, "process 'a b': expected NAME or ENVIRONMENT/NAME"),
        ({"id": "a/b/c"}, "process 'a/b/c': expected NAME or ENVIRONMENT/NAME"),
        ({"id": None}, "process None: expected NAME"),
        ({"command": ""}, "process \"shop/web\": expected a command, found str ''"),
        ({"command": ["run"]}, "process \"shop/web\": expected a command, found list ['run']"),
        ({"command": "a\0"}, 'process "shop/web": the command holds a NUL'),
        ({"comand": "x"}, 'process "shop/web": unknown key "comand", did you mean "command"?'),
        ({"stop_signal": "SIGFOO"}, 'process "shop/web": expected stop_signal SIGTERM, SIGINT'),
        ({"stop_timeout": "soon"}, 'process "shop/web": stop_timeout: expected a duration'),
        ({"stop_timeout": -1}, 'process "shop/web": stop_timeout: expected a duration'),
        ({"shell": "perhaps"}, 'process "shop/web": shell: expected true or false'),
        ({"env": {"A=B": "1"}}, "process \"shop/web\": env: 'A=B' is not a name"),
        ({"env": {"A": "\0"}}, "process \"shop/web\": env: 'A' is not a name"),
        ({"env": ["A"]}, 'process "shop/web": env: expected a mapping'),
        ({"env": {"A": []}}, 'process "shop/web": env.A: expected text, found list []'),
        ({"vars": {"a b": "1"}}, 'process "shop/web": vars: expected names of letters'),
        ({"resources": "tcpport"}, 'process "shop/web": resources: expected a list'),
        ({"resources": ["a", "a"]}, 'process "shop/web": resources: "a" stands twice'),
        ({"resources": [{"type": "a", "nam": "b"}]}, 'process "shop/web": resources: unknown key "nam"'),
        ({"resources": [":80"]}, 'process "shop/web": resources: expected a type'),
        ({"limits": {"memry": 1}}, 'process "shop/web": limits: unknown key "memry", did you mean "memory"?'),
        ({"limits": {"nice": 20}}, 'process "shop/web": limits: nice: expected a number from -20 to 19'),
        ({"logs": {"max_size": 10}}, 'process "shop/web": logs: expected a max_size of at least 4096'),
        ({"restart": "sometimes"}, 'process "shop/web": restart: expected never, on-failure, always'),
        ({"health": "x"}, 'process "shop/web": health: expected http://'),
        ({"depends_on": "db"}, 'process "shop/web": depends_on: expected a list'),
        ({"env_files": 3}, 'process "shop/web": env_files: expected a list of paths'),
    ],
)
def test_a_wrong_field_is_an_error_that_names_it(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        spec(**fields)
    assert str(caught.value).startswith(message)


def test_a_template_lies_below_and_maps_are_merged() -> None:
    base = {"command": "run", "vars": {"a": "1", "b": None}, "env": {"A": "1", "B": "1"},
            "limits": {"cpu": 5, "nice": 1}, "resources": ["tcpport"], "restart": "always"}  # fmt: skip
    found = process_spec(
        {"id": "x", "vars": {"b": "2"}, "env": {"B": "2"}, "limits": {"cpu": 9}, "restart": "never", "label": None},
        base,
    )
    assert found.vars == {"a": "1", "b": "2"}
    assert found.env == {"A": "1", "B": "2"}
    assert (found.limits.cpu, found.limits.nice) == (9, 1)
    assert found.resources == (Need("tcpport", "tcpport"),)
    assert found.restart.policy == "never"
    assert base["vars"] == {"a": "1", "b": None}


def test_secrets_are_hidden_from_people() -> None:
    found = spec(env={"DB_PASSWORD": "x", "API_KEY": "x", "HOME": "y", "TOKEN": ""}, vars={"secret": "x", "open": None})
    public = found.public()
    assert public["env"] == {"DB_PASSWORD": "********", "API_KEY": "********", "HOME": "y", "TOKEN": ""}
    assert public["vars"] == {"secret": "********", "open": None}
    assert found.to_dict()["env"]["DB_PASSWORD"] == "x"
    assert hide_secrets({"auth_host": "scram-sha-256", "AUTHORIZATION": "Bearer x"}) == {
        "auth_host": "scram-sha-256",
        "AUTHORIZATION": "********",
    }
    assert hide_secrets({}) == {}


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({}, []),
        ({"resources": ["tcpport"]}, [Need("tcpport", "tcpport")]),
        ({"command": "run %tcpport %H %%gpu"}, [Need("tcpport", "tcpport")]),
        ({"command": "run %tcpport", "resources": ["tcpport:80"]}, [Need("tcpport", "tcpport", "80")]),
        ({"resources": ["tcpport"], "vars": {"tcpport": "5433"}}, [Need("tcpport", "tcpport", "5433")]),
        ({"command": "%gpu", "vars": {"gpu": "1"}}, [Need("gpu", "gpu", "1")]),
        ({"resources": ["dbfile:${dir}/${name}.db"], "vars": {"dir": "/var/${id}"}},
         [Need("dbfile", "dbfile", "/var/shop/web/web.db")]),
        ({"resources": ["dbfile:x"], "vars": {"later": "${tcpport} ${db.tcpport} ${undefined}"}},
         [Need("dbfile", "dbfile", "x")]),
        ({"resources": ["tcpport"], "vars": {"tcpport": None}}, [Need("tcpport", "tcpport")]),
    ],
)  # fmt: skip
def test_what_a_process_claims(fields: dict[str, Any], needs: list[Need]) -> None:
    assert list(needs_of(spec(**fields), {"tcpport", "gpu"})) == needs


def test_a_need_of_an_undefined_value_is_an_error() -> None:
    with pytest.raises(InvalidInput, match=r'process "shop/web": resource "dbfile": undefined variable "dri"'):
        needs_of(spec(resources=["dbfile:${dri}"], vars={"dir": "/x"}), ())


PORT = {"tcpport": ("tcpport", "3000")}


@pytest.mark.parametrize(
    ("command", "claimed", "argv"),
    [
        ("run ${tcpport}", PORT, ("run", "3000")),
        ("run %tcpport", PORT, ("run", "3000")),
        ("run %tcpport ${http}", {"http": ("tcpport", "80"), **PORT}, ("run", "3000", "80")),
        ("run %tcpport", {"http": ("tcpport", "80")}, ("run", "80")),
        ("run ${id} ${name} ${environment}", {}, ("run", "shop/web", "web", "shop")),
        ("run ${project_dir}", {}, ("run", "/srv/a b")),
        ("run --to ${db.tcpport}", {}, ("run", "--to", "5432")),
        ("run ${flags}", {}, ("run", "-x", "3000 b")),
        ("run ${file}", {"file": ("dbfile", "/a b")}, ("run", "/a b")),
    ],
)
def test_a_command_is_launched_with_its_values(
    command: str, claimed: dict[str, tuple[str, str]], argv: tuple[str, ...]
) -> None:
    assert launched(claimed, command=command, vars={"flags": "-x '3000 b'"}).argv == argv


def test_everything_that_may_hold_variables_is_replaced() -> None:
    found = launched(
        {"tcpport": ("tcpport", "3000"), "where": ("workdir", "/work")},
        env={"PORT": "${tcpport}", "URL": "http://${host}:${tcpport}/%%"},
        vars={"host": "h-${name}"},
        working_dir="${where}/x",
        env_files=["${project_dir}/.env"],
        user="${name}",
        readiness="tcp://${host}:${tcpport}",
        health="cmd://test -f ${project_dir}/x",
    )
    assert found.env == {"PORT": "3000", "URL": "http://h-web:3000/%"}
    assert (found.working_dir, found.env_files, found.user) == ("/work/x", ("/srv/a b/.env",), "web")
    assert found.readiness is not None
    assert found.readiness.url == "tcp://h-web:3000"
    assert found.health is not None
    assert found.health.url == "cmd://test -f '/srv/a b'/x"


def test_a_claimed_workdir_is_the_working_directory() -> None:
    claimed = {"workdir": ("workdir", "/work")}
    assert launched(claimed).working_dir == "/work"
    assert launched(claimed, working_dir="/other").working_dir == "/other"
    assert launched().working_dir == ""


def test_a_shell_gets_values_as_data() -> None:
    found = launched(command="echo ${v} | cat", shell=True, vars={"v": "$(reboot); 'x'"})
    assert found.argv == ("/bin/sh", "-c", "echo '$(reboot); '\\''x'\\''' | cat")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"command": "run ${prot}", "vars": {"port": "1"}}, 'command: undefined variable "prot", did you mean "port"?'),
        ({"vars": {"a": None}}, 'variable "a" must be given'),
        ({"vars": {"a": "${b}", "b": "${a}"}}, "the variables refer to each other in a cycle: a -> b -> a"),
        ({"env": {"A": "${x}"}}, 'env A: undefined variable "x"'),
        ({"working_dir": "${x}"}, 'working_dir: undefined variable "x"'),
        ({"command": "run 'x"}, "command: a ' quote is not closed"),
        ({"health": "tcp://a:${x}"}, 'health: undefined variable "x"'),
        ({"health": "tcp://a:${p}", "vars": {"p": "x"}}, 'health: "tcp://a:x":'),
        ({"command": "run ${a}", "vars": {"a": "x\0"}}, "command: expected Unicode text without NUL"),
        ({"command": "run '${a}'", "vars": {"a": "\ud800"}}, "command: expected Unicode text without NUL"),
        ({"env": {"A": "${a}"}, "vars": {"a": "\0"}}, "env A: expected Unicode text without NUL"),
    ],
)
def test_what_cannot_be_launched_is_an_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        launched(**fields)
    assert str(caught.value).startswith(f'process "shop/web": {message}')


def test_bytes_of_another_encoding_pass_through() -> None:
    assert launched(command="run '${a}'", vars={"a": "\udce9"}).argv == ("run", "\udce9")


NAMES = st.text("abcXYZ0189_", min_size=1, max_size=8).filter(lambda name: not name[0].isdigit())
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
SPECS = st.fixed_dictionaries(
    {"id": st.just("e/p"), "command": TEXTS.filter(str.strip)},
    optional={
        "label": TEXTS,
        "shell": st.booleans(),
        "vars": st.dictionaries(NAMES, TEXTS | st.none(), max_size=3),
        "resources": st.lists(NAMES, unique=True, max_size=3),
        "env": st.dictionaries(NAMES, TEXTS, max_size=3),
        "stop_timeout": st.floats(0, 1e6),
        "restart": st.sampled_from(["never", "on-failure", "always"]),
        "health": st.builds(lambda port, every: {"url": f"tcp://h:{port}", "interval": every}, st.integers(1, 65535),
                            st.floats(0.1, 1e4)),
        "limits": st.dictionaries(st.sampled_from(["memory", "cpu", "open_files"]), st.integers(0, 10**5), max_size=3),
        "depends_on": st.lists(NAMES, max_size=3),
    },
)  # fmt: skip


@given(SPECS)
def test_any_valid_spec_reads_back(data: dict[str, Any]) -> None:
    found = process_spec(data)
    assert process_spec(found.to_dict()) == found
    assert process_spec({"id": "e/p"}, {**found.to_dict(), "id": "e/p"}) == found


def test_a_value_that_is_no_number_never_stands_for_a_counter_in_shell_text() -> None:
    declared = process_spec({"id": "p", "command": "echo %dbfile %tcpport", "shell": True})
    made = launch(declared, {"dbfile": ("dbfile", "/x; touch pwned"), "tcpport": ("tcpport", "3000")})
    assert made.argv[-1] == "echo %dbfile 3000"


def test_secrets_are_the_final_values_under_telling_names() -> None:
    declared = process_spec(
        {
            "id": "p",
            "command": "run --url=${url}",
            "vars": {"db_password": "hunter's", "url": "db://u:${db_password}@h", "pin_token": "1"},
            "env": {"API_TOKEN": "t-${db_password}", "MODE": "fast"},
        }
    )
    secrets = secrets_of(declared, {})
    assert {"hunter's", "t-hunter's"} <= set(secrets)
    assert not {"1", "fast"} & set(secrets)
    assert hide(launch(declared, {}).argv[1], secrets) == "--url=db://u:********@h"


def test_passwords_in_urls_are_hidden_whatever_the_name() -> None:
    declared = process_spec(
        {"id": "p", "command": "x", "env": {"DSN": "postgres://u:pw@h/d"}, "health": "http://a:b@h/"}
    )
    shown = declared.public()
    assert shown["env"] == {"DSN": "postgres://u:********@h/d"}
    assert shown["health"]["url"] == "http://a:********@h/"
    assert hide("tcp://127.0.0.1:80 postgres://u:${pw}@h", ()) == "tcp://127.0.0.1:80 postgres://u:${pw}@h"


def test_a_long_word_is_looked_through_in_no_time() -> None:
    """What agents print may be a word of a megabyte; a pattern that begins anew at each letter would take for ever."""
    begun = time.monotonic()
    assert hide("x" * 200_000 + "://u:pw@h", ()) == "x" * 200_000 + "://u:********@h"
    assert time.monotonic() - begun < 5.0


def test_an_action_knows_variables_that_refer_to_each_other() -> None:
    declared = process_spec(
        {"id": "p", "command": "x", "action": "open ${url}", "vars": {"url": "http://h:${tcpport}/"}}
    )
    assert action_of(declared, {"tcpport": ("tcpport", "3000")}) == "open 'http://h:3000/'"
