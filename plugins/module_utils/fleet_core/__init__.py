# SPDX-License-Identifier: GPL-3.0-or-later
"""The domain of the fleet: values and pure functions, no input, output, clock, randomness or environment."""

from __future__ import annotations
