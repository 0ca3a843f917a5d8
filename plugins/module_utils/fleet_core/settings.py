# SPDX-License-Identifier: GPL-3.0-or-later
"""A user's global settings: what holds for every environment whose project file does not say otherwise.

Two forms of config.toml are read: our own (flat), and the sections of runcept's ~/.runcept/config.toml.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import InvalidInput
from .names import as_bool, as_int, as_text, as_text_map, check_keys, describe
from .processes import process_spec
from .quantities import parse_duration

KEYS = (
    "inactivity_timeout",
    "auto_shutdown",
    "env_vars",
    "restart",
    "health_interval",
    "health_timeout",
    "start_timeout",
    "stop_timeout",
    "logs",
)

# runcept's sections. What has no meaning here (its database, its MCP port) is known, checked by name and left alone.
_FOREIGN: dict[str, tuple[str, ...]] = {
    "database": ("connection_timeout", "cleanup_interval_hours", "database_path"),
    "process": (
        "default_inactivity_timeout",
        "health_check_interval",
        "health_check_timeout",
        "startup_health_check_timeout",
        "restart_delay",
        "max_restart_attempts",
        "auto_restart_on_crash",
        "inactivity_timeout",
        "cleanup_interval",
        "max_activity_age",
    ),
    "environment": ("inactivity_timeout", "auto_shutdown_enabled", "graceful_shutdown_timeout"),
    "mcp": ("port", "host", "auto_start", "auth_enabled", "auth_token"),
    "logging": ("level", "file_enabled", "file_path", "max_file_size_mb", "max_files"),
}
_FOREIGN_KEYS = (*_FOREIGN, "global_env_vars")


@dataclass(frozen=True)
class Settings:
    """Defaults of environments. Times in seconds.

    inactivity_timeout: 0 means never. health_interval, health_timeout: of health checks that name none; 0 leaves the
    check's own default. process: plain fields (restart, start_timeout, stop_timeout, logs) that processes begin with.
    """

    inactivity_timeout: float = 0.0
    auto_shutdown: bool = True
    env: Mapping[str, str] = field(default_factory=dict)
    health_interval: float = 0.0
    health_timeout: float = 0.0
    process: Mapping[str, Any] = field(default_factory=dict)


def settings(data: object, where: str = "settings") -> Settings:
    """Return validated settings from the parsed global file. Raises InvalidInput that names the key."""
    if not isinstance(data, Mapping):
        raise InvalidInput(f"{where}: expected tables and keys, found {describe(data)}")
    foreign = [key for key in data if key in _FOREIGN_KEYS]
    own = [key for key in data if key in KEYS]
    if foreign and own:
        raise InvalidInput(f'{where}: "{foreign[0]}" and "{own[0]}" belong to two different formats: use one of them')
    return _own(_from_foreign(data, where) if foreign else check_keys(where, data, KEYS), where)


def _own(data: Mapping[str, Any], where: str) -> Settings:
    seconds = {
        key: parse_duration(f"{where}: {key}", data[key] if data.get(key) is not None else 0)
        for key in ("inactivity_timeout", "health_interval", "health_timeout")
    }
    fields = ("restart", "start_timeout", "stop_timeout", "logs")
    given = {key: data[key] for key in fields if data.get(key) is not None}
    try:
        plain = process_spec({"id": "defaults", "command": "true", "env": data.get("env_vars"), **given}).to_dict()
    except InvalidInput as error:
        raise InvalidInput(str(error).replace('process "defaults"', where, 1)) from None
    return Settings(
        inactivity_timeout=seconds["inactivity_timeout"],
        auto_shutdown=as_bool(f"{where}: auto_shutdown", data.get("auto_shutdown", True)),
        env=as_text_map(f"{where}: env_vars", data.get("env_vars")),
        health_interval=seconds["health_interval"],
        health_timeout=seconds["health_timeout"],
        process={key: plain[key] for key in given if key in plain},
    )


def _from_foreign(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return runcept's settings under our keys."""
    check_keys(where, data, _FOREIGN_KEYS)
    sections = {
        name: check_keys(f"{where}: {name}", data[name] if data.get(name) is not None else {}, known)
        for name, known in _FOREIGN.items()
    }
    process, environment, logging = sections["process"], sections["environment"], sections["logging"]
    found: dict[str, Any] = {"env_vars": data.get("global_env_vars")}
    for key, source, name in (
        ("inactivity_timeout", environment, "inactivity_timeout"),
        ("inactivity_timeout", process, "default_inactivity_timeout"),
        ("auto_shutdown", environment, "auto_shutdown_enabled"),
        ("stop_timeout", environment, "graceful_shutdown_timeout"),
        ("start_timeout", process, "startup_health_check_timeout"),
        ("health_interval", process, "health_check_interval"),
        ("health_timeout", process, "health_check_timeout"),
    ):
        if source.get(name) is not None:
            found[key] = source[name]
    restart: dict[str, Any] = {}
    if process.get("auto_restart_on_crash") is not None:
        wanted = as_bool(f"{where}: process: auto_restart_on_crash", process["auto_restart_on_crash"])
        restart["policy"] = "on-failure" if wanted else "never"
    if process.get("restart_delay") is not None:
        restart["delay"] = process["restart_delay"]
    if process.get("max_restart_attempts") is not None:
        restart["burst"] = process["max_restart_attempts"]
    logs: dict[str, Any] = {}
    if logging.get("max_file_size_mb") is not None:
        megabytes = as_int(f"{where}: logging: max_file_size_mb", logging["max_file_size_mb"], 1, 1_000_000)
        logs["max_size"] = megabytes * 1024 * 1024
    if logging.get("max_files") is not None:
        logs["keep"] = logging["max_files"]
    if logging.get("level") is not None:
        as_text(f"{where}: logging: level", logging["level"])
    return {**found, **({"restart": restart} if restart else {}), **({"logs": logs} if logs else {})}
