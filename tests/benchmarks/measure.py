# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmarks share: facts of processes, waiting, competitors, and the lines they print."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

# An end by SIGTERM tidies up too.
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "autovibe-fleet" / "benchmarks"
# Competitors are looked for where tests/benchmarks/install puts them, then on PATH.
SEARCH = os.pathsep.join([f"{CACHE}/python/bin", f"{CACHE}/node/node_modules/.bin", os.environ.get("PATH", os.defpath)])

# FLEET_BENCHMARK_QUICK=1, as in CI: the same sides and sizes, fewer rounds and shorter windows.
QUICK = os.environ.get("FLEET_BENCHMARK_QUICK", "") not in ("", "0")


def program(name: str) -> str | None:
    """Return the path of a competitor's program, or None."""
    return shutil.which(name, path=SEARCH)


def own(name: str) -> str:
    """Return the path of a program of the environment that runs this benchmark."""
    return os.path.join(os.path.dirname(sys.executable), name)


def children(pid: int) -> list[int]:
    """Return the child processes of a process, of all its threads."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
        for thread in threads:
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                found += map(int, file.read().split())
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


def running(argv: Sequence[str]) -> list[int]:
    """Return every process of this computer with exactly this command line."""
    wanted = "".join(f"{word}\0" for word in argv).encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if Path(f"/proc/{name}/cmdline").read_bytes() == wanted:
                    found.append(int(name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return found


def argv0(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def memory(pid: int) -> dict[str, float]:
    """Return RSS, PSS and private memory of a process, in MiB."""
    found = {"rss": 0.0, "pss": 0.0, "private": 0.0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        name, _colon, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            found[name.lower()] = int(rest.split()[0]) / 1024
        elif name in ("Private_Clean", "Private_Dirty"):
            found["private"] += int(rest.split()[0]) / 1024
    return found


def cpu(pid: int) -> float:
    """Return the seconds of processor time that a process has used: to the nanosecond where there is schedstat."""
    used = 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            used += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text(encoding="ascii").split()[0])
    except FileNotFoundError:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used / 1e9


def wait_for(true: Callable[[], bool], seconds: float, what: str, pause: float = 0.02) -> None:
    """Wait until something is true. Raises TimeoutError."""
    limit = time.monotonic() + seconds
    while not true():
        if time.monotonic() > limit:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(pause)


def kill(pids: Iterable[int]) -> None:
    """End processes with SIGKILL; one that has ended is passed over."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def run(
    argv: Sequence[str], environ: dict[str, str] | None = None, seconds: float = 300, folder: Path | None = None
) -> str:
    """Run a command and return what it printed. Raises RuntimeError with its output when it fails."""
    done = subprocess.run(
        argv,
        check=False,
        cwd=folder,
        env={**os.environ, **(environ or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    if done.returncode:
        raise RuntimeError(f"{argv[0]}: exit code {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def load() -> str:
    """Say how busy the machine is: other work changes times, and ratios less."""
    return f"{os.cpu_count()} processors, load {' '.join(f'{value:.1f}' for value in os.getloadavg())}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return lines of aligned columns."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    )
