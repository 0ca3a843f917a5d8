# SPDX-License-Identifier: GPL-3.0-or-later
"""Whatever is given, the core answers with a value or with a FleetError."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fleet_core.changes import change_from_dict
from fleet_core.dependencies import CONDITIONS, dependencies
from fleet_core.environments import _USED_ENVIRONMENT, _USED_PROCESS, document, environment
from fleet_core.errors import FleetError
from fleet_core.health import HealthCheck, health_check
from fleet_core.processes import FIELDS, ProcessSpec, launch, needs_of, process_spec
from fleet_core.quantities import parse_duration, parse_size
from fleet_core.resource_types import ResourceType, resource_type
from fleet_core.resources import request
from fleet_core.restarts import RestartPolicy, restart_policy
from fleet_core.settings import _FOREIGN, KEYS, settings
from fleet_core.templates import instantiate, template
from fleet_core.toml_writer import to_toml

WORDS = st.sampled_from(
    ["", "x", "a/b", "tcpport", "tcpport:80", "${tcpport}", "${x}", "${", "$${x}", "%tcpport", "%%", "30s", "512M", "0",
     "-1", "1e999", "9" * 400, "always", "SIGTERM", "healthy", "http://x:1/", "tcp://x", "tcp://[", "http://x:99999/",
     "cmd://x ${x}", "true", "./x", "\ud800", "\0", "'", "\\", "web", "web.tcpport", "${web.tcpport}", "50%"]
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 2**63])
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=3)
    | WORDS
)
INNER = ("url", "interval", "retries", "policy", "delay", "jitter", "burst", "type", "name", "value", "process",
         "condition", "memory", "cpu", "max_size", "keep", "x", "web")  # fmt: skip


def _equals_itself(key: object) -> bool:
    return not (isinstance(key, float) and math.isnan(key))


NAMES = st.sampled_from(["web", "db", "a b"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(INNER) | SCALARS.filter(lambda key: not (isinstance(key, float) and math.isnan(key))),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)


def mapping(*keys: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(keys), VALUES, max_size=6)


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call; an error must be ours."""
    try:
        return function(*arguments)
    except FleetError:
        return None


@given(mapping(*FIELDS) | VALUES, st.just({"id": "a", "command": "run"}) | st.just({}))
def test_process_spec(data: Any, base: dict[str, str]) -> None:
    whole = {**base, **data} if isinstance(data, dict) else data
    spec = attempt(process_spec, whole)
    if spec is not None:
        assert process_spec(spec.to_dict()) == spec
        assert isinstance(spec.public(), dict)
        attempt(needs_of, spec, ("tcpport",))
        attempt(launch, spec, {"tcpport": ("tcpport", "3000")}, {"web.tcpport": "3001"}, {"x": "y"})


@given(mapping(*FIELDS) | VALUES, mapping(*FIELDS))
def test_template_and_instantiate(data: Any, given_fields: dict[str, Any]) -> None:
    whole = {"id": "t", "command": "run", **data} if isinstance(data, dict) else data
    found = attempt(template, whole)
    if found is not None:
        assert template(found.to_dict()) == found
        attempt(instantiate, found, {"id": "a", **given_fields})


@given(
    st.fixed_dictionaries(
        {"environment": mapping(*_USED_ENVIRONMENT) | VALUES,
         "processes": st.dictionaries(NAMES, mapping(*_USED_PROCESS) | VALUES, max_size=3)}
    )
    | st.fixed_dictionaries(
        {
            "project": mapping("name", "description", "inactivity_timeout", "working_dir"),
            "process": st.lists(
                mapping("name", "command", "working_dir", "env", "auto_restart", "health_check", "depends_on"),
                max_size=3,
            ),
        }
    )
    | VALUES
)  # fmt: skip
def test_environment(data: Any) -> None:
    found = attempt(environment, data, "/srv/app")
    if found is not None and attempt(to_toml, document(found)) is not None:
        assert environment(document(found), "/srv/app") == found


@given(mapping(*KEYS) | mapping(*_FOREIGN, "global_env_vars") | VALUES)
def test_settings(data: Any) -> None:
    attempt(settings, data)


@given(mapping("name", "check", "check_means", "probe", "counter", "start", "end", "timeout", "description") | VALUES)
def test_resource_type(data: Any) -> None:
    whole = {"name": "kind", **data} if isinstance(data, dict) else data
    found = attempt(resource_type, whole)
    if found is not None:
        assert isinstance(found, ResourceType)
        assert resource_type(found.to_dict()) == found
        attempt(found.validate_value, "x")
        attempt(found.check_command, "x y")


@given(mapping("type", "value", "name", "preferred") | VALUES)
def test_request(data: Any) -> None:
    attempt(request, data, "owner")


@pytest.mark.parametrize(
    ("function", "keys", "kind"),
    [
        (health_check, ("url", "interval", "timeout", "retries", "start_period", "action"), HealthCheck),
        (restart_policy, ("policy", "delay", "max_delay", "jitter", "burst", "window"), RestartPolicy),
    ],
)
@given(data=st.data())
def test_checks_and_policies(function: Any, keys: tuple[str, ...], kind: type, data: st.DataObject) -> None:
    found = attempt(function, "x", data.draw(mapping(*keys) | VALUES))
    if found is not None:
        assert isinstance(found, kind)
        assert function("x", found.to_dict()) == found


@given(VALUES)
def test_dependencies(data: Any) -> None:
    for item in attempt(dependencies, "x", data) or ():
        assert item.condition in CONDITIONS


@given(VALUES)
@example("9" * 400)
@example("9" * 400 + "g")
@example(10**400)
@example(float("nan"))
def test_quantities(data: Any) -> None:
    seconds = attempt(parse_duration, "x", data)
    assert seconds is None or 0 <= seconds < float("inf")
    size = attempt(parse_size, "x", data)
    assert size is None or size >= 0


@given(st.dictionaries(st.sampled_from(["before", "after", "actions"]), st.none() | st.just({}), max_size=3))
def test_change(data: Any) -> None:
    assert isinstance(change_from_dict(data).changed, bool)


def test_a_spec_is_plain_data_for_json_and_sqlite() -> None:
    import json

    spec = process_spec({"id": "a", "command": "x"})
    assert isinstance(spec, ProcessSpec)
    assert json.loads(json.dumps(spec.to_dict())) == {"id": "a", "command": "x"}


FULL_PROCESS = {
    "command": "run ${tcpport} ${word} %gpu",
    "shell": True,
    "vars": {"word": "x ${id}"},
    "resources": ["tcpport", {"type": "dbfile", "name": "db", "value": "./x.db"}],
    "working_dir": "sub",
    "env_files": [".env"],
    "stop_timeout": "3s",
    "restart": {"policy": "always", "delay": 1, "max_delay": 2, "jitter": 0, "burst": 1, "window": 9},
    "readiness": "tcp://127.0.0.1:${tcpport}",
    "health": {"url": "cmd://test ${word}", "interval": 1, "retries": 2, "start_period": "1s"},
    "depends_on": [{"process": "db", "condition": "started"}],
    "limits": {"memory": "1G", "cpu": "50%", "nice": 1},
    "logs": {"max_size": "1M", "keep": 1},
}
FULL_PROJECT: dict[str, Any] = {
    "environment": {"name": "x", "inactivity_timeout": "1m", "working_dir": "w", "env_vars": {"A": "${web.tcpport}"}},
    "processes": {
        "web": {**FULL_PROCESS, "env_vars": {"B": "${tcpport}"}},
        "db": {"command": "db ${web.db}", "auto_restart": False, "health_check_url": "tcp://a:1", "name": "The db"},
    },
}


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values inside plain data."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(place for key, value in inner for place in places(value, (*path, key)))]


def replaced(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of plain data with one value replaced."""
    if not path:
        return value
    items = dict(data) if isinstance(data, dict) else dict(enumerate(data))
    items[path[0]] = replaced(items[path[0]], path[1:], value)
    return items if isinstance(data, dict) else list(items.values())


@given(st.sampled_from(places(FULL_PROJECT)[1:]), VALUES)
@example(("environment", "name"), "x")
def test_a_project_with_one_odd_value(path: tuple[Any, ...], value: Any) -> None:
    found = attempt(environment, replaced(FULL_PROJECT, path, value), "/srv/a%%b${c}")
    for spec in found.processes if found is not None else ():
        attempt(needs_of, spec, ("tcpport", "gpu"))
        claimed = {need.name: (need.type, need.value or "3000") for need in spec.resources}
        attempt(launch, spec, claimed, {"web.tcpport": "3000", "web.db": "/x.db"}, {"project_dir": "/srv"})


def test_the_project_is_valid_without_an_odd_value() -> None:
    assert len(environment(FULL_PROJECT, "/srv/app").processes) == 2
