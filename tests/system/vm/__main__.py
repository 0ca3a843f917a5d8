# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the base image of the machines of tests: python -m tests.system.vm (from the repository's root)."""

from __future__ import annotations

import sys

from fleet_core.errors import FleetError

from .machines import ensure_base, why_not


def main() -> int:
    reason = why_not()
    if reason:
        print(f"vm: not built: {reason}", file=sys.stderr)
        return 0
    try:
        print(ensure_base())
    except FleetError as error:
        print(f"vm: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
