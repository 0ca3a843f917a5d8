# SPDX-License-Identifier: GPL-3.0-or-later
"""Asking the host whether values of resources are available: probes in this process, shell checks with a limit each."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from fleet_core.errors import Unavailable
    from fleet_core.resource_types import ResourceType
else:
    try:
        from ..fleet_core.errors import Unavailable
        from ..fleet_core.resource_types import ResourceType
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Unavailable
        from fleet_core.resource_types import ResourceType

from . import procfs

CONCURRENCY = 8
Pair = tuple[str, str]
Checker = Callable[[Iterable[Pair], Mapping[str, ResourceType]], dict[Pair, bool]]


def check_values(pairs: Iterable[Pair], types: Mapping[str, ResourceType]) -> dict[Pair, bool]:
    """Return for each (type, value) whether it is available on this host now.

    Raises Unavailable when a shell check cannot give an answer: not found, not executable, or over its timeout.
    """
    pairs = list(pairs)
    result: dict[Pair, bool] = {}
    ports: set[int] | None = None
    shell: list[Pair] = []
    for pair in pairs:
        kind, value = types[pair[0]], pair[1]
        if kind.probe == "tcp":
            if ports is None:
                ports = procfs.listening_ports()
            result[pair] = int(value) not in ports
        elif kind.probe == "path":
            result[pair] = not os.path.lexists(os.path.expanduser(value))
        elif kind.check:
            shell.append(pair)
        else:
            result[pair] = True
    if len(shell) == 1:
        result[shell[0]] = run_check(types[shell[0][0]], shell[0][1])
    elif shell:
        with ThreadPoolExecutor(max_workers=CONCURRENCY) as pool:
            answers = pool.map(lambda pair: run_check(types[pair[0]], pair[1]), shell)
            result.update(zip(shell, answers))
    return result


def run_check(kind: ResourceType, value: str) -> bool:
    """Run one shell check and return whether the value is available, as check_means says."""
    where = f'resource "{kind.name}:{value}": check'
    try:
        # fleetd runs checks too, where there is no AnsibleModule.
        child = subprocess.Popen(  # pylint: disable=ansible-bad-function
            ["/bin/sh", "-c", kind.check_command(value)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise Unavailable(f"{where}: cannot run: {error.strerror}") from error
    try:
        _output, errors = child.communicate(timeout=kind.timeout)
    except subprocess.TimeoutExpired:
        _kill_group(child)
        raise Unavailable(f"{where}: expected an answer within {kind.timeout:g} s, found none") from None
    if child.returncode in (126, 127):
        lines = errors.decode(errors="replace").strip().splitlines()
        raise Unavailable(f"{where}: cannot run: {lines[-1] if lines else 'command not found'}")
    return (child.returncode == 0) == (kind.check_means == "free")


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
