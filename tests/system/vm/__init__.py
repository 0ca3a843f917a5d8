# SPDX-License-Identifier: GPL-3.0-or-later
"""Real machines for tests: QEMU, from Debian's packages, under a fleetd of the tests' own; see README.md."""

from .machines import BOOT, Machines, Said, why_not

__all__ = ["BOOT", "Machines", "Said", "why_not"]
