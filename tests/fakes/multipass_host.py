# SPDX-License-Identifier: GPL-3.0-or-later
"""A host with Multipass, which is the fake command line beside this file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from fleet_machines.multipass import Multipass
from fleet_machines.provider import Surroundings

FAKE = Path(__file__).resolve().parent / "multipass"


class Host:
    """The folder of the fake, and adapters that use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "multipass"
        self.state_dir = folder / "state"
        self.executable = folder / "bin" / "multipass"
        self.folder.mkdir()
        self.executable.parent.mkdir()
        # This very Python, without a shim before it or site-packages: a call costs a third.
        self.executable.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {FAKE} "$@"\n')
        self.executable.chmod(0o755)

    @property
    def environ(self) -> dict[str, str]:
        """What a program needs to find the fake under its usual name."""
        return {
            "FAKE_MULTIPASS": str(self.folder),
            "PATH": f"{self.executable.parent}{os.pathsep}{os.environ['PATH']}",
        }

    def adapter(self, platform: str = "linux") -> Multipass:
        surroundings = Surroundings(str(self.state_dir), {"executable": str(self.executable)})
        return Multipass(surroundings, platform)

    def settings(self, **values: Any) -> None:
        (self.folder / "settings.json").write_text(json.dumps(values))

    def faults(self, *faults: dict[str, Any]) -> None:
        (self.folder / "faults.json").write_text(json.dumps(faults))

    def calls(self, *commands: str) -> list[list[str]]:
        """What was called, those of these commands only, and forget it."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [call for line in lines if (call := json.loads(line)) and (not commands or call[0] in commands)]

    def instances(self) -> dict[str, Any]:
        path = self.folder / "state.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return found

    def edit(self, name: str, **values: Any) -> None:
        found = self.instances()
        found[name].update(values)
        (self.folder / "state.json").write_text(json.dumps(found))

    def guest(self, name: str) -> Path:
        """The folder that an instance has as /guest."""
        folder = self.folder / "disks" / name / "guest"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def left(self) -> list[str]:
        """The files in the state folder."""
        return sorted(path.name for path in self.state_dir.rglob("*") if path.is_file())
