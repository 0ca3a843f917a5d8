# SPDX-License-Identifier: GPL-3.0-or-later
"""The user's global settings, in our form and in runcept's."""

from __future__ import annotations

from typing import Any

import pytest

from fleet_core.errors import InvalidInput
from fleet_core.settings import Settings, settings


def test_nothing_said_is_the_defaults() -> None:
    assert settings({}) == Settings()


def test_our_form() -> None:
    found = settings(
        {
            "inactivity_timeout": "30m",
            "auto_shutdown": False,
            "env_vars": {"EDITOR": "vi", "DEBUG": True},
            "restart": "always",
            "health_interval": "30s",
            "logs": {"max_size": "1M"},
            "start_timeout": 5,
        }
    )
    assert (found.inactivity_timeout, found.auto_shutdown, found.health_interval) == (1800.0, False, 30.0)
    assert found.env == {"EDITOR": "vi", "DEBUG": "true"}
    assert found.process["restart"]["policy"] == "always"
    assert found.process["logs"]["max_size"] == 1024**2
    assert found.process["start_timeout"] == 5.0


def test_the_sections_of_runcept() -> None:
    found = settings(
        {
            "database": {"connection_timeout": 30, "cleanup_interval_hours": 24},
            "process": {
                "default_inactivity_timeout": "2h30m",
                "health_check_interval": 30,
                "health_check_timeout": 1,
                "startup_health_check_timeout": 15,
                "restart_delay": 5,
                "max_restart_attempts": 3,
                "auto_restart_on_crash": True,
                "inactivity_timeout": 1800,
                "cleanup_interval": 60,
                "max_activity_age": 60,
            },
            "environment": {
                "inactivity_timeout": 900,
                "auto_shutdown_enabled": False,
                "graceful_shutdown_timeout": 20,
            },
            "mcp": {"port": 3000, "host": "127.0.0.1", "auto_start": True, "auth_enabled": False},
            "logging": {"level": "info", "file_enabled": True, "max_file_size_mb": 5, "max_files": 2},
            "global_env_vars": {"A": "1"},
        }
    )
    assert (found.inactivity_timeout, found.auto_shutdown) == (9000.0, False)
    assert (found.health_interval, found.health_timeout, found.env) == (30.0, 1.0, {"A": "1"})
    assert found.process["start_timeout"] == 15.0
    assert found.process["stop_timeout"] == 20.0
    assert found.process["restart"] == {
        "policy": "on-failure", "delay": 5.0, "max_delay": 60.0, "jitter": 0.2, "burst": 3, "window": 300.0
    }  # fmt: skip
    assert found.process["logs"] == {"max_size": 5 * 1024**2, "keep": 2}


def test_the_sections_inactivity_timeout_holds_without_the_default_one() -> None:
    assert settings({"environment": {"inactivity_timeout": 900}}).inactivity_timeout == 900.0
    assert settings({"process": {"auto_restart_on_crash": False}}).process["restart"]["policy"] == "never"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "settings: expected tables and keys, found list []"),
        ({"inactivity": 1}, 'settings: unknown key "inactivity", did you mean "inactivity_timeout"?'),
        ({"mcp": {"prt": 1}}, 'settings: mcp: unknown key "prt", did you mean "port"?'),
        ({"mcp": {}, "restart": "no"}, 'settings: "mcp" and "restart" belong to two different formats'),
        ({"process": 3}, "settings: process: expected a mapping, found int 3"),
        ({"process": {"health_check_interval": "often"}}, "settings: health_interval: expected a duration"),
        ({"process": {"auto_restart_on_crash": "perhaps"}}, "settings: process: auto_restart_on_crash: expected true"),
        ({"logging": {"max_file_size_mb": 0}}, "settings: logging: max_file_size_mb: expected a number from 1"),
        ({"restart": "sometimes"}, "settings: restart: expected never, on-failure, always, found"),
        ({"env_vars": {"A=B": "x"}}, "settings: env: 'A=B' is not a name"),
        ({"logs": {"max_size": 1}}, "settings: logs: expected a max_size of at least 4096 bytes, found 1"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(data: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        settings(data)
    assert str(caught.value).startswith(message)
