# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the application's wheel from the collection in which this file is, once for the same sources.

Usage: build_wheel.py COLLECTION. Prints JSON: path of the wheel, digest of its sources, changed (whether it was built).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

KEPT = 10  # wheels of other sources that stay in the cache

FILES = ("pyproject.toml", "README.md", "LICENSE")
FOLDERS = (
    "src/autovibe_fleet",
    "plugins/module_utils/fleet_core",
    "plugins/module_utils/fleet_node",
    "plugins/module_utils/fleet_machines",
)


def main() -> None:
    root = Path(sys.argv[1]).resolve()
    sources = find_sources(root)
    digest = digest_of(root, sources)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autovibe-fleet" / "wheels"
    wheels = list((cache / digest).glob("*.whl"))
    if not wheels:
        build(root, sources, cache / digest)
        older = sorted(cache.glob("?" * 64), key=lambda folder: folder.stat().st_mtime, reverse=True)
        for folder in older[KEPT:]:
            shutil.rmtree(folder, ignore_errors=True)
    wheel = next((cache / digest).glob("*.whl"))
    print(json.dumps({"path": str(wheel), "digest": digest, "changed": not wheels}))


def find_sources(root: Path) -> list[str]:
    """All that the wheel is made of, as sorted paths below the collection."""
    found = [name for name in FILES if (root / name).is_file()]
    for folder in FOLDERS:
        for path in (root / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                found.append(str(path.relative_to(root)))
    return sorted(found)


def digest_of(root: Path, sources: list[str]) -> str:
    total = hashlib.sha256()
    for name in sources:
        content = hashlib.sha256((root / name).read_bytes()).hexdigest()
        total.update(f"{name}\0{content}\n".encode())
    return total.hexdigest()


def build(root: Path, sources: list[str], target: Path) -> None:
    """Build in a copy, because an installed collection may be read-only, and move the result into place at once."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        copy, result = Path(scratch, "source"), Path(scratch, "result")
        for name in sources:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, copy / name)
        options = ["--no-deps", "--disable-pip-version-check", "--no-input", "--wheel-dir", str(result)]
        if importlib.util.find_spec("hatchling"):
            options.append("--no-build-isolation")
        command = [sys.executable, "-m", "pip", "wheel", *options, str(copy)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"pip could not build the wheel:\n{done.stdout}{done.stderr}")
        try:
            result.rename(target)
        except OSError:
            if not target.is_dir():  # else another run was faster
                raise


if __name__ == "__main__":
    main()
