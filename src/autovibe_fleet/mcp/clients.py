# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the known clients of MCP keep their servers, and what an entry looks like to each.

From their documentation: code.claude.com/docs/en/mcp, developers.openai.com/codex/mcp, opencode.ai/docs/mcp-servers,
geminicli.com/docs/tools/mcp-server, qwenlm.github.io/qwen-code-docs, cursor.com/docs/context/mcp,
code.visualstudio.com/docs/copilot/reference/mcp-configuration, docs.windsurf.com/windsurf/cascade/mcp,
docs.github.com/en/copilot/how-tos/copilot-cli, zed.dev/docs/ai/mcp,
modelcontextprotocol.io/docs/develop/connect-local-servers.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_core.errors import NotFound
from fleet_core.names import nearest

Entry = dict[str, Any]


@dataclass(frozen=True)
class Program:
    """How a client starts the server."""

    command: str
    args: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True)
class Client:
    """A client. user, project: its settings files, of which the first that exists counts; project is relative.

    key: the path to its table of servers. shape: an entry of it. detects: programs and folders that show that it is
    there.
    """

    name: str
    title: str
    user: Callable[[Path], tuple[Path, ...]]
    project: tuple[str, ...]
    key: tuple[str, ...]
    shape: Callable[[Program], Entry]
    programs: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    env_key: str = "env"

    def file(self, project: Path | None, home: Path) -> Path:
        """Return the settings file, of a project or of the user. Raises NotFound for a client without project files."""
        if project is not None and not self.project:
            raise NotFound(f"{self.title}: has no settings of its own in a project; use --user")
        files = self.user(home) if project is None else tuple(project / name for name in self.project)
        return next((file for file in files if file.exists()), files[0])

    def present(self, home: Path) -> bool:
        """Tell whether the client is used here."""
        return (
            any(shutil.which(name) for name in self.programs)
            or any((home / name).is_dir() for name in self.folders)
            or any(file.exists() for file in self.user(home))
        )


def _plain(program: Program) -> Entry:
    return _with_env({"command": program.command, "args": list(program.args)}, program)


def _stdio(program: Program) -> Entry:
    return {"type": "stdio", **_plain(program)}


def _copilot(program: Program) -> Entry:
    return {"type": "local", **_plain(program), "tools": ["*"]}


def _codex(program: Program) -> Entry:
    # Its limit for a tool is a minute; bringing up an environment may take longer.
    return {**_plain(program), "tool_timeout_sec": 600}


def _opencode(program: Program) -> Entry:
    entry: Entry = {"type": "local", "command": [program.command, *program.args], "enabled": True}
    return {**entry, "environment": dict(program.env)} if program.env else entry


def _with_env(entry: Entry, program: Program) -> Entry:
    return {**entry, "env": dict(program.env)} if program.env else entry


def _at(*names: str, variable: str = "", inside: str = "") -> Callable[[Path], tuple[Path, ...]]:
    """Return what gives files of the home folder; a variable of the environment may name another folder for them."""

    def files(home: Path) -> tuple[Path, ...]:
        given = os.environ.get(variable) if variable else None
        if given:
            return tuple(Path(given) / Path(name).relative_to(inside) for name in names)
        return tuple(home / name for name in names)

    return files


def _application(linux: str, mac: str) -> Callable[[Path], tuple[Path, ...]]:
    def files(home: Path) -> tuple[Path, ...]:
        if sys.platform == "darwin":
            return (home / "Library" / "Application Support" / mac,)
        return (Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / linux,)

    return files


_SERVERS = ("mcpServers",)
CLIENTS = (
    Client(
        "claude",
        "Claude Code",
        _at(".claude.json", variable="CLAUDE_CONFIG_DIR"),
        (".mcp.json",),
        _SERVERS,
        _stdio,
        ("claude",),
        (".claude",),
    ),
    Client(
        "codex",
        "Codex",
        _at(".codex/config.toml", variable="CODEX_HOME", inside=".codex"),
        (".codex/config.toml",),
        ("mcp_servers",),
        _codex,
        ("codex",),
        (".codex",),
    ),
    Client(
        "opencode",
        "opencode",
        _at(
            ".config/opencode/opencode.json",
            ".config/opencode/opencode.jsonc",
            variable="XDG_CONFIG_HOME",
            inside=".config",
        ),
        ("opencode.json", "opencode.jsonc"),
        ("mcp",),
        _opencode,
        ("opencode",),
        (".config/opencode",),
        env_key="environment",
    ),
    Client(
        "gemini",
        "Gemini CLI",
        _at(".gemini/settings.json"),
        (".gemini/settings.json",),
        _SERVERS,
        _plain,
        ("gemini",),
        (".gemini",),
    ),
    Client(
        "qwen",
        "Qwen Code",
        _at(".qwen/settings.json"),
        (".qwen/settings.json",),
        _SERVERS,
        _plain,
        ("qwen",),
        (".qwen",),
    ),
    Client(
        "cursor",
        "Cursor",
        _at(".cursor/mcp.json"),
        (".cursor/mcp.json",),
        _SERVERS,
        _stdio,
        ("cursor", "cursor-agent"),
        (".cursor",),
    ),
    Client(
        "vscode",
        "Visual Studio Code",
        _application("Code/User/mcp.json", "Code/User/mcp.json"),
        (".vscode/mcp.json",),
        ("servers",),
        _stdio,
        ("code",),
    ),
    Client(
        "windsurf",
        "Windsurf",
        _at(".codeium/windsurf/mcp_config.json"),
        (),
        _SERVERS,
        _plain,
        ("windsurf",),
        (".codeium/windsurf",),
    ),
    Client(
        "copilot",
        "GitHub Copilot CLI",
        _at(".copilot/mcp-config.json", variable="COPILOT_HOME", inside=".copilot"),
        (),
        _SERVERS,
        _copilot,
        ("copilot",),
        (".copilot",),
    ),
    Client(
        "claude-desktop",
        "Claude Desktop",
        _application("Claude/claude_desktop_config.json", "Claude/claude_desktop_config.json"),
        (),
        _SERVERS,
        _plain,
    ),
    Client(
        "zed",
        "Zed",
        _application("zed/settings.json", "../../.config/zed/settings.json"),
        (".zed/settings.json",),
        ("context_servers",),
        _plain,
        ("zed", "zeditor"),
    ),
)
NAMES = tuple(client.name for client in CLIENTS)


def client(name: str) -> Client:
    """Return a client by its name. Raises NotFound."""
    for found in CLIENTS:
        if found.name == name:
            return found
    raise NotFound(f'client "{name}": not known{nearest(name, NAMES) or "; known: " + ", ".join(NAMES)}')
