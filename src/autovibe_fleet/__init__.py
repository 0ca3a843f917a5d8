# SPDX-License-Identifier: GPL-3.0-or-later
"""The application: the fleet command, the fleetd daemon and what they serve."""

from __future__ import annotations

__version__ = "0.1.0"
