# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend iptables."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    raise AttributeError(name)
