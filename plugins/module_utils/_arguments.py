# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that modules share. Their documentation is in plugins/doc_fragments/; tests compare the two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STATE_DIR: dict[str, Any] = {"state_dir": {"type": "path"}}

WAIT: dict[str, Any] = {"wait": {"type": "bool", "default": True}, "timeout": {"type": "str", "default": "5m"}}

_CHECK: dict[str, Any] = {
    "url": {"type": "str", "required": True},
    "interval": {"type": "str"},
    "timeout": {"type": "str"},
    "retries": {"type": "int"},
    "start_period": {"type": "str"},
    "action": {"type": "str", "choices": ["restart", "none"]},
}

_DEPENDENCY: dict[str, Any] = {
    "process": {"type": "str", "required": True},
    "condition": {"type": "str", "choices": ["started", "healthy", "completed"]},
}

# The fields that a process and a template have in common. No defaults: what is not given comes from the template.
PROCESS_FIELDS: dict[str, Any] = {
    "label": {"type": "str"},
    "command": {"type": "str"},
    "shell": {"type": "bool"},
    "vars": {"type": "dict", "no_log": True},
    "resources": {"type": "list", "elements": "raw"},
    "working_dir": {"type": "str"},
    "env": {"type": "dict", "no_log": True},
    "env_files": {"type": "list", "elements": "str"},
    "user": {"type": "str"},
    "action": {"type": "str"},
    "stop_signal": {"type": "str"},
    "stop_timeout": {"type": "str"},
    "start_timeout": {"type": "str"},
    "restart": {
        "type": "dict",
        "options": {
            "policy": {"type": "str", "choices": ["never", "on-failure", "always"]},
            "delay": {"type": "str"},
            "max_delay": {"type": "str"},
            "jitter": {"type": "float"},
            "burst": {"type": "int"},
            "window": {"type": "str"},
        },
    },
    "readiness": {"type": "dict", "options": _CHECK},
    "health": {"type": "dict", "options": _CHECK},
    "limits": {
        "type": "dict",
        "options": {
            "memory": {"type": "str"},
            "cpu": {"type": "str"},
            "open_files": {"type": "int"},
            "processes": {"type": "int"},
            "nice": {"type": "int"},
        },
    },
    "logs": {"type": "dict", "options": {"max_size": {"type": "str"}, "keep": {"type": "int"}}},
}

PROCESSES: dict[str, Any] = {
    "processes": {
        "type": "list",
        "elements": "dict",
        "options": {
            "id": {"type": "str", "required": True, "aliases": ["name"]},
            "template": {"type": "str"},
            **PROCESS_FIELDS,
            "depends_on": {"type": "list", "elements": "dict", "options": _DEPENDENCY},
        },
    }
}

TEMPLATES: dict[str, Any] = {
    "templates": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": {"id": {"type": "str", "required": True, "aliases": ["name"]}, **PROCESS_FIELDS},
    }
}

AGENTS: dict[str, Any] = {
    "agents": {
        "type": "list",
        "elements": "dict",
        "options": {
            "name": {"type": "str", "required": True},
            "runner": {
                "type": "str",
                "required": True,
                "choices": ["claude", "codex", "opencode", "aider", "gemini", "qwen", "command"],
            },
            "description": {"type": "str"},
            "model": {"type": "str"},
            "command": {"type": "str"},
            "options": {
                "type": "dict",
                "options": {
                    "executable": {"type": "str"},
                    "permission_mode": {"type": "str"},
                    "system_prompt": {"type": "str"},
                    "arguments": {"type": "list", "elements": "str"},
                    "config": {"type": "dict"},
                },
            },
            "session": {"type": "str", "choices": ["fresh", "resume"]},
            "methods": {"type": "dict"},
            "pipeline": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "label": {"type": "str"},
                    "call": {"type": "str"},
                    "map": {"type": "str"},
                    "loop": {"type": "str"},
                    "arguments": {"type": "list", "elements": "str"},
                    "over": {"type": "str"},
                    "items": {"type": "list", "elements": "str"},
                    "times": {"type": "int"},
                },
            },
            "limits": {
                "type": "dict",
                "options": {
                    "iterations": {"type": "int"},
                    "duration": {"type": "str"},
                    "cost": {"type": "float"},
                    "tokens": {"type": "int", "no_log": False},
                    "turns": {"type": "int"},
                    "iteration_timeout": {"type": "str"},
                },
            },
            "backoff": {
                "type": "dict",
                "options": {"delay": {"type": "str"}, "max_delay": {"type": "str"}, "jitter": {"type": "float"}},
            },
            "circuit_breaker": {
                "type": "dict",
                "options": {"failures": {"type": "int"}, "pause": {"type": "str"}, "trips": {"type": "int"}},
            },
            "completion": {"type": "dict", "options": {"phrase": {"type": "str"}}},
            "verification": {"type": "dict", "options": {"command": {"type": "str"}, "timeout": {"type": "str"}}},
            "watchdog": {
                "type": "dict",
                "options": {
                    "commits": {"type": "int"},
                    "repeats": {"type": "int"},
                    "silence": {"type": "str"},
                    "action": {"type": "str", "choices": ["report", "stop"]},
                },
            },
            "workspace": {
                "type": "dict",
                "options": {
                    "kind": {"type": "str", "choices": ["folder", "worktree", "clone"]},
                    "path": {"type": "str"},
                    "repository": {"type": "str"},
                    "base": {"type": "str"},
                    "branch": {"type": "str"},
                },
            },
            "env": {"type": "dict", "no_log": True},
            "env_files": {"type": "list", "elements": "str"},
            "schedule": {"type": "dict", "options": {"cron": {"type": "str"}, "every": {"type": "str"}}},
            "legacy_form": {"type": "str"},
        },
    }
}

# Where machines come from. Settings differ from provider to provider: each checks its own.
PROVIDER: dict[str, Any] = {
    "provider": {"type": "str", "required": True},
    # It may hold the secret of a token: see _secrets.show_settings.
    "provider_settings": {"type": "dict", "default": {}, "no_log": True},
}

MACHINES: dict[str, Any] = {
    "machines": {
        "type": "list",
        "elements": "dict",
        "options": {
            "name": {"type": "str", "required": True},
            "image": {"type": "str"},
            "cpu": {"type": "int"},
            "memory": {"type": "str"},
            "disk": {"type": "str"},
            "networks": {
                "type": "list",
                "elements": "dict",
                "options": {
                    "name": {"type": "str", "required": True},
                    "mac": {"type": "str"},
                    "address": {"type": "str"},
                    "gateway": {"type": "str"},
                },
            },
            "user_data": {"type": "str", "no_log": True},
            "tags": {"type": "list", "elements": "str"},
            "project": {"type": "str"},
            "login": {"type": "str"},
        },
    }
}

# Mappings of a user's own names, in which a null says something: a variable that must be given.
_FREE = ("vars", "env")
_ALIASES = {"name": "id"}


def given(item: Mapping[str, Any], aliases: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the options of an item that were given, without the aliases and nulls that argument parsing leaves."""
    aliases = _ALIASES if aliases is None else aliases
    found: dict[str, Any] = {}
    for key, value in item.items():
        if value is None or key in aliases:
            continue
        if key not in _FREE and isinstance(value, Mapping):
            value = given(value, {})
        elif isinstance(value, (list, tuple)):
            value = [given(part, {}) if isinstance(part, Mapping) else part for part in value]
        found[key] = value
    return found
