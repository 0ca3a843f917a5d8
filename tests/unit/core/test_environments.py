# SPDX-License-Identifier: GPL-3.0-or-later
"""Project files in both dialects."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from fleet_core.dependencies import Dependency
from fleet_core.environments import Environment, document, environment
from fleet_core.errors import InvalidInput, NotFound
from fleet_core.processes import Need, launch, needs_of
from fleet_core.restarts import RestartPolicy
from fleet_core.settings import Settings, settings
from fleet_core.templates import template
from fleet_core.toml_writer import to_toml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PLANNED = """
[project]
name = "my-web-app"
description = "Development environment for web application"
inactivity_timeout = "30m"
working_dir = "."

[[process]]
name = "web-server"
command = "python manage.py runserver"
working_dir = "."
env = { DEBUG = "true", PORT = "8000" }
auto_restart = true
health_check = "http://localhost:8000/health"
health_check_interval = "30s"
depends_on = ["database"]

[[process]]
name = "database"
command = "postgres -D /usr/local/var/postgres"
auto_restart = false
health_check = "tcp://localhost:5432"
"""

USED = """
[environment]
name = "my-web-app"
description = "Development environment for web application"
inactivity_timeout = "30m"

[processes.web-server]
name = "web-server"
command = "python manage.py runserver"
working_dir = "."
auto_restart = true
health_check_url = "http://localhost:8000/health"
health_check_interval = 30
depends_on = ["database"]

[processes.web-server.env_vars]
DEBUG = "true"
PORT = "8000"

[processes.database]
name = "database"
command = "postgres -D /usr/local/var/postgres"
auto_restart = false
health_check_url = "tcp://localhost:5432"
"""

CYCLE = """
[environment]
name = "x"
[processes]
a = { command = "c", depends_on = ["b"] }
b = { command = "c", depends_on = ["c"] }
c = { command = "c", depends_on = ["a"] }
"""


def read(text: str, folder: str = "/srv/app", **rest: Any) -> Environment:
    return environment(tomllib.loads(text), folder, **rest)


def used(process: str, head: str = 'name = "shop"', **rest: Any) -> Environment:
    """An environment "shop" with one process "web" of the given lines."""
    return read(f'[environment]\n{head}\n[processes.web]\ncommand = "run"\n{process}', **rest)


def test_both_dialects_say_the_same() -> None:
    assert read(PLANNED) == read(USED)


def test_a_project_file_becomes_an_environment() -> None:
    found = read(PLANNED)
    assert (found.name, found.project_dir, found.inactivity_timeout) == ("my-web-app", "/srv/app", 1800.0)
    assert found.idle_limit == 1800.0
    web, database = found.processes
    assert web.id == "my-web-app/web-server"
    assert web.env == {"DEBUG": "true", "PORT": "8000"}
    assert web.restart.policy == "on-failure"
    assert database.restart.policy == "never"
    assert web.health is not None
    assert (web.health.url, web.health.interval) == ("http://localhost:8000/health", 30.0)
    assert web.depends_on == (Dependency("my-web-app/database", "healthy"),)
    assert found.order() == ["my-web-app/database", "my-web-app/web-server"]


def test_the_order_of_the_file_is_kept() -> None:
    text = "[environment]\nname='x'\n" + "".join(f"[processes.p{n}]\ncommand='c'\n" for n in (3, 1, 2))
    assert [spec.name for spec in read(text).processes] == ["p3", "p1", "p2"]


def test_our_further_keys_are_the_fields_of_a_process() -> None:
    (spec,) = used(
        """
        label = "Shop"
        shell = true
        resources = ["tcpport", { type = "dbfile", name = "db", value = "./shop.db" }]
        vars = { color = "red" }
        readiness = "tcp://127.0.0.1:${tcpport}"
        health = { url = "http://127.0.0.1:${tcpport}/", interval = "2s", retries = 5, action = "none" }
        restart = { policy = "always", delay = "1s" }
        stop_signal = "INT"
        stop_timeout = "1m"
        start_timeout = 5
        limits = { memory = "512M", cpu = 50 }
        logs = { max_size = "1M", keep = 2 }
        env_files = [".env"]
        user = "www-data"
        action = "echo hello"
        """
    ).processes
    assert spec.label == "Shop"
    assert spec.shell is True
    assert spec.resources == (Need("tcpport", "tcpport"), Need("dbfile", "db", "/srv/app/shop.db"))
    assert spec.vars == {"color": "red"}
    assert spec.readiness is not None
    assert spec.readiness.url == "tcp://127.0.0.1:${tcpport}"
    assert spec.health is not None
    assert (spec.health.interval, spec.health.retries, spec.health.action) == (2.0, 5, "none")
    assert (spec.restart.policy, spec.restart.delay) == ("always", 1.0)
    assert (spec.stop_signal, spec.stop_timeout, spec.start_timeout) == ("SIGINT", 60.0, 5.0)
    assert (spec.limits.memory, spec.limits.cpu) == (512 * 1024**2, 50)
    assert (spec.logs.max_size, spec.logs.keep) == (1024**2, 2)
    assert (spec.env_files, spec.user, spec.action) == (("${project_dir}/.env",), "www-data", "echo hello")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "project file: expected [environment] and [processes.NAME], found nothing"),
        ("[enviroment]\nname='x'", 'project file: unknown key "enviroment", did you mean "environment"?'),
        (
            "[project]\nname='x'\n[processes.a]\ncommand='c'",
            "project file: [project] and [processes] belong to two different dialects: use [project] with",
        ),
        ("[project]\nnam='x'", '[project]: unknown key "nam", did you mean "name"?'),
        (
            "[environment]\nauto_shutdwn=true",
            '[environment]: unknown key "auto_shutdwn", did you mean "auto_shutdown"?',
        ),
        (
            "[environment]\nname='x'\n[processes.a]\ncommand='c'\nhealth_chek_url='x'",
            '[processes.a]: unknown key "health_chek_url", did you mean "health_check_url"?',
        ),
        (
            "[environment]\nname='x'\n[processes.a]\ncommand='c'\nenv={A='1'}",
            '[processes.a]: unknown key "env", did you mean "env_vars"?',
        ),
        (
            "[project]\nname='x'\n[[process]]\nname='a'\ncommand='c'\nresources=['tcpport']",
            '[[process]] "a": "resources" needs the dialect of [environment] and [processes.NAME]',
        ),
        ("[project]\nname='x'\n[[process]]\ncommand='c'", "process name None: expected a letter or digit"),
        (
            "[project]\nname='x'\n[[process]]\nname='a'\ncommand='c'\n[[process]]\nname='a'",
            '[[process]] "a": stands twice',
        ),
        ("[project]\nname='x'\n[process]\nname='a'", "project file: expected [[process]] tables, found dict"),
        ("processes=1\n[environment]\nname='x'", "project file: expected [processes.NAME] tables, found int 1"),
        ("environment=''", "[environment]: expected a mapping, found str ''"),
        ("environment=1", "[environment]: expected a mapping, found int 1"),
        ("[environment]\nname='a b'", "environment name 'a b': expected a letter or digit"),
        ("[environment]\nname=''", "environment name '': expected a letter or digit"),
        ("[environment]\nname='x'\n[processes.'a b']\ncommand='c'", "process name 'a b': expected a letter or digit"),
        ("[environment]\nname='x'\n[processes.a]\nlabel='c'", 'process "x/a": expected a command, found nothing'),
        (
            "[environment]\nname='x'\ninactivity_timeout='soon'",
            'environment "x": inactivity_timeout: expected a duration',
        ),
        ("[environment]\nname='x'\nauto_shutdown='maybe'", 'environment "x": auto_shutdown: expected true or false'),
        ("[environment]\nname='x'\nenv_vars=[1]", 'environment "x": env_vars: expected a mapping'),
        (
            "[environment]\nname='x'\n[processes.web]\ncommand='c'\ndepends_on=['databse']\n[processes.database]\ncommand='c'",
            'process "x/web": depends on "x/databse", which does not exist, did you mean "x/database"?',
        ),
        (
            CYCLE,
            "processes depend on each other in a cycle: x/a -> x/b -> x/c -> x/a",
        ),
        (
            "[environment]\nname='x'\n[processes.a]\ncommand='c'\nauto_restart=true\nrestart='always'",
            'process "x/a": expected "restart" or "auto_restart", found both',
        ),
        (
            "[environment]\nname='x'\n[processes.a]\ncommand='c'\nhealth_check_url='tcp://x:1'\nhealth='tcp://x:1'",
            'process "x/a": expected "health" or "health_check_url", found both',
        ),
        (
            "[environment]\nname='x'\n[processes.a]\ncommand='c'\nhealth_check_interval=3\nhealth={url='tcp://x:1',interval=3}",
            'process "x/a": expected "interval" in health or "health_check_interval", found both',
        ),
        (
            "[environment]\nname='x'\n[processes.a]\ncommand='c'\nhealth_check_interval='never'",
            'process "x/a": health_check_interval: expected a duration',
        ),
        (
            "[environment]\nname='x'\n[processes.a]\ncommand='c'\nhealth_check_url='ftp://x'",
            'process "x/a": health: expected http://, https://, tcp://HOST:PORT or cmd://COMMAND, found "ftp://x"',
        ),
        (
            "[environment]\nname='x'\n[processes.a]\ncommand='c ${b.tcpport}'\n[processes.bb]\ncommand='c'",
            'process "x/a": "${b.tcpport}": there is no process "b", did you mean "bb"?',
        ),
        (
            "[environment]\nname='x'\n[processes.a]\ncommand='${b.port}'\n[processes.b]\ncommand='c'\nresources=['gpu']",
            'process "x/a": "${b.port}": process "b" claims no resource "port"',
        ),
        (
            "[environment]\nname='x'\n[processes.a]\ncommand='c'\ndepends_on=[{process='b',condition='healty'}]",
            'process "x/a": depends_on: "b": expected condition started, healthy, completed, found "healty"',
        ),
    ],
)
def test_a_wrong_project_file_is_an_error_that_names_the_key(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(("folder", "name"), [("/srv/app", "app"), ("/srv/app/", "app")])
def test_the_name_is_the_folders_when_the_file_gives_none(folder: str, name: str) -> None:
    assert read("[environment]\n", folder).name == name


def test_a_folder_whose_name_does_not_fit_asks_for_one() -> None:
    with pytest.raises(InvalidInput, match="environment name 'my app'"):
        read("[environment]\n", "/srv/my app")


def test_a_name_inside_a_table_is_its_label() -> None:
    (spec,) = used('name = "Web server"').processes
    assert (spec.id, spec.label) == ("shop/web", "Web server")
    assert used('name = "web"').processes[0].label == ""
    assert used('name = "Web server"\nlabel = "Mine"').processes[0].label == "Mine"


@pytest.mark.parametrize(
    ("base", "own", "resources", "folder"),
    [
        ("", "", "[]", ""),
        (".", "", "[]", ""),
        ("", ".", "[]", "."),
        ("web", "", "[]", "web"),
        ("web", "client", "[]", "web/client"),
        ("web", "../api", "[]", "api"),
        ("web", "/opt", "[]", "/opt"),
        ("/opt", "web", "[]", "/opt/web"),
        ("web", "~/x", "[]", "~/x"),
        ("web", "${data}", "[]", "${data}"),
        ("web", "", "['workdir:/tmp/w']", ""),
        ("web", "client", "['workdir:/tmp/w']", "web/client"),
    ],
)
def test_a_working_dir_is_joined_to_the_environments(base: str, own: str, resources: str, folder: str) -> None:
    head = f'name = "shop"\nworking_dir = "{base}"'
    (spec,) = used(f'working_dir = "{own}"\nresources = {resources}\nvars = {{ data = "d" }}', head).processes
    assert spec.working_dir == folder


def test_the_last_of_settings_environment_template_and_process_wins() -> None:
    postgres = template({"id": "pg", "command": "postgres", "env": {"C": "template", "D": "template"}})
    found = read(
        """
        [environment]
        name = "x"
        env_vars = { B = "environment", C = "environment", D = "environment" }
        [processes.db]
        template = "pg"
        env_vars = { D = "process" }
        """,
        settings=Settings(env={"A": "global", "B": "global", "C": "global", "D": "global"}),
        templates={"pg": postgres},
    )
    assert found.processes[0].env == {"A": "global", "B": "environment", "C": "template", "D": "process"}
    assert found.env == {"A": "global", "B": "environment", "C": "environment", "D": "environment"}


def test_a_template_gives_what_the_process_does_not_say() -> None:
    postgres = template(
        {"id": "pg", "command": "postgres -p ${tcpport}", "resources": ["tcpport"], "stop_signal": "SIGINT",
         "vars": {"size": "1", "data": None}, "health": {"url": "tcp://127.0.0.1:${tcpport}", "interval": "3s"}}
    )  # fmt: skip
    text = "[environment]\nname='x'\n[processes.db]\ntemplate='pg'\nhealth_check_interval=7\nvars={data='d'}"
    (spec,) = read(text, templates={"pg": postgres}).processes
    assert (spec.template, spec.command, spec.stop_signal) == ("pg", "postgres -p ${tcpport}", "SIGINT")
    assert spec.vars == {"size": "1", "data": "d"}
    assert spec.health is not None
    assert spec.health.interval == 7.0


def test_an_unknown_template_is_not_found() -> None:
    with pytest.raises(
        NotFound, match=r'process "shop/web": template "postgre": not defined, did you mean "postgres"\?'
    ):
        read(
            "[environment]\nname='shop'\n[processes.web]\ntemplate='postgre'",
            templates={"postgres": template({"id": "postgres", "command": "x"})},
        )


def test_global_settings_hold_where_the_project_is_silent() -> None:
    defaults = settings(
        {"inactivity_timeout": "1h", "restart": "always", "health_interval": 7, "health_timeout": 2, "stop_timeout": 3}
    )
    (spec,) = used('health_check_url = "tcp://a:1"', settings=defaults).processes
    assert spec.health is not None
    assert (spec.health.interval, spec.health.timeout) == (7.0, 2.0)
    assert (spec.restart.policy, spec.stop_timeout) == ("always", 3.0)
    found = used('health = { url = "tcp://a:1", interval = 1 }\nrestart = "never"\nstop_timeout = 1', settings=defaults)
    (spec,) = found.processes
    assert spec.health is not None
    assert (spec.health.interval, spec.restart.policy, spec.stop_timeout) == (1.0, "never", 1.0)
    assert found.inactivity_timeout == 3600.0
    assert used("", 'name = "shop"\ninactivity_timeout = 0', settings=defaults).inactivity_timeout == 0.0


def test_auto_restart_keeps_the_rest_of_the_global_policy() -> None:
    defaults = settings({"restart": {"policy": "always", "delay": 5}})
    (spec,) = used("auto_restart = true", settings=defaults).processes
    assert spec.restart == RestartPolicy(policy="on-failure", delay=5.0)


def test_auto_shutdown_off_means_no_inactivity_limit() -> None:
    found = used("", 'name = "shop"\ninactivity_timeout = "5m"\nauto_shutdown = false')
    assert (found.inactivity_timeout, found.idle_limit) == (300.0, 0.0)


@pytest.mark.parametrize(
    ("folder", "value", "path"),
    [
        ("/srv/app", "./data", "/srv/app/data"),
        ("/srv/app", "../data", "/srv/data"),
        ("/srv/app", "${project_dir}/data", "/srv/app/data"),
        ("/srv/app", "/data", "/data"),
        ("/srv/app", "data", "data"),
        ("/srv/a%%p", "./data", "/srv/a%%p/data"),
        ("/srv/a${x}", "./data", "/srv/a${x}/data"),
        ("/srv/a${x}", "${project_dir}/data", "/srv/a${x}/data"),
    ],
)
def test_a_claimed_path_is_anchored_in_the_project(folder: str, value: str, path: str) -> None:
    found = used(f'resources = [{{ type = "datadir", value = "{value}" }}]', folder=folder)
    (need,) = needs_of(found.processes[0], ())
    assert need.value == path


@pytest.mark.parametrize(
    ("file", "path"),
    [
        (".env", "/srv/app/.env"),
        ("../.env", "/srv/app/../.env"),
        ("/etc/x", "/etc/x"),
        ("~/x", "~/x"),
        ("${project_dir}/x", "/srv/app/x"),
    ],
)
def test_an_env_file_lies_in_the_project_whatever_the_working_dir(file: str, path: str) -> None:
    (spec,) = used(f'working_dir = "web"\nenv_files = ["{file}"]').processes
    assert launch(spec, {}, extra={"project_dir": "/srv/app"}).env_files == (path,)


def test_a_reference_to_another_process_is_replaced_by_its_resource() -> None:
    found = read(
        """
        [environment]
        name = "x"
        [processes.web]
        command = "web ${tcpport}"
        resources = ["tcpport"]
        [processes.proxy]
        command = "proxy %vncport --to ${web.tcpport}"
        [processes.viewer]
        command = "view ${proxy.vncport}"
        """
    )
    job = launch(found.processes[2], {}, {"proxy.vncport": "5901"})
    assert job.argv == ("view", "5901")


@pytest.mark.parametrize("text", [PLANNED, USED])
def test_what_is_written_reads_back_as_the_same_environment(text: str) -> None:
    found = read(text)
    assert read(to_toml(document(found))) == found


def test_everything_a_process_can_have_survives_writing() -> None:
    found = used(
        """
        label = 'The "web" \\ server'
        shell = true
        resources = ["tcpport", { type = "dbfile", name = "db", value = "./shop.db" }]
        vars = { color = "red", "odd-name" = "${color}" }
        readiness = "tcp://127.0.0.1:${tcpport}"
        health = { url = "cmd://test -f x && true", interval = "90s", start_period = "0.25s" }
        restart = { policy = "always", delay = "3661s" }
        stop_signal = "INT"
        stop_timeout = 3661.5
        limits = { memory = "512M", nice = -5 }
        logs = { keep = 0 }
        env_files = [".env", "/etc/default/shop"]
        env_vars = { B = "two", C = "line\\none" }
        depends_on = [{ process = "db", condition = "completed" }, "cache"]
        [processes.db]
        command = "true"
        restart = "never"
        [processes.cache]
        command = "true"
        """,
        'name = "shop"\nenv_vars = { A = "1", B = "one" }\nauto_shutdown = false\ninactivity_timeout = "61m"',
    )
    text = to_toml(document(found), ["A comment", "of two\nlines"])
    assert read(text) == found
    assert text.startswith("# A comment\n# of two\n# lines\n\n[environment]\n")
    assert 'inactivity_timeout = "1h1m"' in text
    assert "stop_timeout = 3661.5" in text
    assert 'depends_on = [{ process = "db", condition = "completed" }, "cache"]' in text


def test_a_template_is_written_out() -> None:
    postgres = template({"id": "pg", "command": "postgres", "vars": {"data": None}})
    found = read("[environment]\nname='x'\n[processes.db]\ntemplate='pg'", templates={"pg": postgres})
    assert document(found)["processes"]["db"] == {"command": "postgres", "vars": {}}


def test_an_environment_may_be_empty() -> None:
    found = read('[environment]\nname = "x"')
    assert (found.processes, found.order()) == ((), [])
    assert read(to_toml(document(found))) == found
