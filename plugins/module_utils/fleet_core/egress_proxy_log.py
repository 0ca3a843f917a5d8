# SPDX-License-Identifier: GPL-3.0-or-later
"""What guests asked the proxy for and did not get, from the JSON lines that squid and mitmproxy write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

_LONGEST = 253
_SQUID_DENIED = "TCP_DENIED"
_SQUID_CUT = "terminate"  # the greeting had another name


@dataclass(frozen=True)
class ProxyRefusal:
    """source: the address that asked. host: a name or an address, of the greeting where that is what was wrong."""

    source: str
    host: str
    port: int


def refusal(line: str) -> ProxyRefusal | None:
    """Return what a line of proxy.log says was refused, or None for any other line."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict):
        return None
    cut = row.get("tls") == _SQUID_CUT
    if row.get("verdict") not in (_SQUID_DENIED, "denied") and not cut:
        return None
    host = _text(row, "sni") if cut else _text(row, "host")
    return ProxyRefusal(_text(row, "source"), host or _text(row, "host"), _port(row))


def _text(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    return "" if not isinstance(value, str) or value == "-" else value[:_LONGEST].lower()


def _port(row: dict[str, Any]) -> int:
    text = str(row.get("port", ""))
    return int(text) if text.isdecimal() and len(text) <= 5 else 0
