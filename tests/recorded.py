# SPDX-License-Identifier: GPL-3.0-or-later
"""Recorded output of other programs. It lies beside the checkout, in shared/data, and is no part of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
_PLACES = (Path(os.environ.get("SHARED_DATA", "")), REPOSITORY.parent / "shared" / "data")
_SKIPPED = pytest.mark.skip(reason="the recorded output of Multipass is not beside this checkout (../shared/data)")


def folder(name: str) -> Path | None:
    """Return a folder of recorded output, or None when it is not here."""
    return next((place / name for place in _PLACES if str(place) != "." and (place / name).is_dir()), None)


def multipass_files() -> list[Any]:
    """Return all recorded answers of the multipass command line; one that is skipped when there are none."""
    found = folder("multipass-json")
    return sorted(found.rglob("*.json")) if found else [pytest.param(Path("none.json"), marks=_SKIPPED)]
