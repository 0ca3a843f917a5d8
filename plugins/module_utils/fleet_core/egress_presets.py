# SPDX-License-Identifier: GPL-3.0-or-later
"""Presets: names of services that policies open by one word, and what that opens by its nature."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from .egress_entries import Entry, entry


@dataclass(frozen=True)
class Preset:
    """title: what it is for. opens: what a machine can do with it beyond that. entries: as in a policy."""

    name: str
    title: str
    opens: str
    entries: tuple[str, ...]


_ALL = (
    Preset(
        "claude",
        "Claude and Claude Code",
        "Whatever a machine reads can be sent to the model, with any key it has.",
        ("api.anthropic.com", "platform.claude.com", "claude.ai"),
    ),
    Preset(
        "github",
        "GitHub: git over HTTPS and SSH, the API, raw files, releases",
        "Anybody with a token or a key can push to any repository, write issues and gists.",
        ("github.com:22,443", "raw.githubusercontent.com", "objects.githubusercontent.com", "codeload.github.com"),
    ),
    Preset(
        "debian",
        "Packages of Debian",
        "Read only, but what is asked for is seen by the mirrors.",
        ("deb.debian.org:80,443", "security.debian.org:80,443"),
    ),
    Preset("pypi", "Packages of Python", "Anybody with a token can publish.", ("pypi.org", "files.pythonhosted.org")),
)
PRESETS = {preset.name: preset for preset in _ALL}


@cache
def preset_entries(name: str) -> tuple[Entry, ...]:
    """Return what a preset opens."""
    return tuple(entry(f"preset {name}", text) for text in PRESETS[name].entries)


@cache
def known_domains() -> frozenset[str]:
    """Return all domains that presets open."""
    return frozenset(found.value for name in PRESETS for found in preset_entries(name) if found.kind == "domain")
