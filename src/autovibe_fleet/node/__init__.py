# SPDX-License-Identifier: GPL-3.0-or-later
"""fleetd: the daemon of one host. Standard library and fleet_* packages only."""

from __future__ import annotations
