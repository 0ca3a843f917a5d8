# SPDX-License-Identifier: GPL-3.0-or-later
"""Where machines come from: the provider protocol and its adapters."""

from __future__ import annotations
