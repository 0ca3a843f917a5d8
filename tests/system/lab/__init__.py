# SPDX-License-Identifier: GPL-3.0-or-later
"""Real systemd hosts in containers, for tests; see README.md."""

from .images import LabError
from .lab import Host, Lab, why_not

__all__ = ["Host", "Lab", "LabError", "why_not"]
