# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the real ansible-inventory and ansible on a configuration of the plugin machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[3]


@dataclass
class Inventory:
    """One configuration file in a folder. environ: what is set besides; home: of Ansible."""

    folder: Path
    environ: dict[str, str] = field(default_factory=dict)
    name: str = "machines.yml"

    @property
    def path(self) -> Path:
        return self.folder / self.name

    def write(self, providers: Any, **options: Any) -> None:
        """Write the configuration."""
        data = {"plugin": "autovibe.fleet.machines", "providers": providers, **options}
        self.path.write_text(yaml.safe_dump(data, sort_keys=False))

    def run(self, program: str, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a program of Ansible on it."""
        settings = {
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.folder / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_DEPRECATION_WARNINGS": "0",
        }
        command = str(Path(sys.executable).with_name(program))
        return subprocess.run(
            [command, "-i", str(self.path), *words],
            capture_output=True,
            text=True,
            env={**os.environ, **settings, **self.environ, **environ},
            cwd=self.folder,
            timeout=120,
            check=False,
        )

    def listed(self, *words: str, **environ: str) -> Listed:
        """Return what ansible-inventory --list tells. It must succeed."""
        done = self.run("ansible-inventory", "--list", *words, **environ)
        assert done.returncode == 0, done.stderr
        return Listed(json.loads(done.stdout, object_hook=_untagged), done.stderr, done.stdout)

    def refused(self, *words: str, **environ: str) -> str:
        """Return what ansible-inventory says when it must fail."""
        done = self.run("ansible-inventory", "--list", *words, **environ)
        assert done.returncode != 0, done.stdout
        assert "Traceback" not in done.stderr
        return " ".join(done.stderr.split())


@dataclass(frozen=True)
class Listed:
    """An inventory. told: the warnings; text: as it was written, with the marks of what must not be templated."""

    data: Mapping[str, Any]
    told: str = ""
    text: str = ""

    @property
    def hosts(self) -> dict[str, Any]:
        """The variables of all hosts."""
        found: dict[str, Any] = self.data["_meta"]["hostvars"]
        return found

    @property
    def groups(self) -> dict[str, list[str]]:
        """The hosts of each group."""
        groups = {name: sorted(group.get("hosts", ())) for name, group in self.data.items() if name != "_meta"}
        return {name: hosts for name, hosts in groups.items() if name not in ("all", "ungrouped")}


def _untagged(found: dict[str, Any]) -> Any:
    """What Ansible marks as untrusted, without the mark."""
    return found.get("__ansible_unsafe", found)
