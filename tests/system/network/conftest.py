# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab of namespaces for the tests of this folder: a module's own, without a fence until the module makes one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.requirements import require_linux, require_root, require_tool
from tests.system.network.lab import Lab


def require_lab() -> None:
    """Skip where no lab can be made; fail there in CI."""
    require_linux("for network namespaces")
    require_root("to make network namespaces")
    for tool in ("ip", "openssl", "sysctl"):
        require_tool(tool, "to make a lab of network namespaces")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A gateway, machines web-1, web-2, db-1 (fleet0) and far-1 (fleet1), and an internet; see lab.py."""
    require_lab()
    with Lab.start() as lab:
        yield lab
