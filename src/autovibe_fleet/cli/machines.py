# SPDX-License-Identifier: GPL-3.0-or-later
"""The group `fleet machines`. Each of these modules adds its commands to it, in this order."""

from __future__ import annotations

from .machine_lists import app  # isort: skip
from . import machine_power, machine_checkpoints, machine_shell  # isort: skip

__all__ = ["app", "machine_checkpoints", "machine_power", "machine_shell"]
