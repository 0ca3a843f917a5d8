# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of the managed host, as modules open it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator

from ansible.module_utils.common.warnings import warn

from .fleet_node import paths
from .fleet_node.store import Store


@contextlib.contextmanager
def store_to_write(state_dir: str | None) -> Iterator[Store]:
    """Give the host's store; it is created when there is none."""
    store = Store(state_dir)
    if store.kept_aside:
        warn(f"The state was damaged. It is kept as {store.kept_aside}, and a new one was begun.")
    try:
        yield store
    finally:
        store.close()


@contextlib.contextmanager
def store_to_read(state_dir: str | None) -> Iterator[Store]:
    """Give the host's store; where there is none, an empty one that leaves no trace."""
    if paths.database(paths.state_dir(state_dir)).exists():
        with store_to_write(state_dir) as store:
            yield store
    else:
        with tempfile.TemporaryDirectory(prefix="fleet-") as folder, store_to_write(folder) as store:
            yield store
