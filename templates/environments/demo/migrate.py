# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the database file and its tables; does no harm when they are there."""

from __future__ import annotations

import board

if __name__ == "__main__":
    connection = board.connect(create=True)
    version = board.migrate(connection)
    connection.close()
    print(f"{board.database_file()}: schema version {version}", flush=True)
