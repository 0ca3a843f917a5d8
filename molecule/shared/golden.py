# SPDX-License-Identifier: GPL-3.0-or-later
"""Put the golden image of the tests into a state folder whose fleetd runs, and print its name: golden.py STATE_DIR."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.system.vm import Machines

if __name__ == "__main__":
    print(Machines(Path(sys.argv[1])).golden().name)
