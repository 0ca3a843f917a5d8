# SPDX-License-Identifier: GPL-3.0-or-later
"""One host's engine: the store, check commands, supervisors, logs, and the client of fleetd."""

from __future__ import annotations
