# SPDX-License-Identifier: GPL-3.0-or-later
"""User data that Proxmox VE can hold itself, as ciuser, cipassword, sshkeys and ciupgrade: then no seed is needed.

Only the plainest cloud-config is read, without a YAML parser, which a managed host need not have: keys with one value
or a list of values. Anything else, and anything in doubt, goes into a seed, where it stays as it was written.
"""

from __future__ import annotations

import json
import re
from typing import Any

from .proxmox_config import ssh_keys

HEADER = "#cloud-config"
_KEY = re.compile(r"([a-z_]+):(?:[ ]+(.*))?")
_ITEM = re.compile(r"[ ]*-[ ]+(.+)")
# What a plain value may not begin with, or hold, without meaning something else in YAML.
_SPECIAL = re.compile(r"^[\[\]{}>|*&!%#`@,?'\"-]|: |:$| #")
_WORDS = {"true": True, "false": False}
_LASTING = {"expire": False}  # what Proxmox says of a password: it need not be changed at the first login
_FLOW = re.compile(r"\{\s*expire:\s*(?:false|False)\s*\}")
_NULL = ("null", "~", "")


def native(user_data: str, name: str) -> dict[str, Any] | None:
    """Return the keys of the configuration that say the same as user data, or None when there are none.

    name: of the machine; a hostname that is the same is what Proxmox sets anyhow.
    """
    found = _plain(user_data)
    if found is None:
        return None
    # Proxmox upgrades all packages at the first boot unless it is told not to; cloud-init does not.
    keys: dict[str, Any] = {"ciupgrade": bool(found.pop("package_upgrade", False))}
    for key, value in found.items():
        if key == "user" and isinstance(value, str):
            keys["ciuser"] = value
        elif key == "password" and isinstance(value, str) and found.get("chpasswd") == _LASTING:
            keys["cipassword"] = value
        elif key == "ssh_authorized_keys" and isinstance(value, list) and all(isinstance(one, str) for one in value):
            keys["sshkeys"] = ssh_keys(value)
        elif not (key == "chpasswd" and value == _LASTING) and (key, value) != ("hostname", name):
            return None
    return keys if "sshkeys" in keys or "cipassword" in keys else None


def _plain(text: str) -> dict[str, Any] | None:
    """Return a cloud-config of one level, or None for any other text."""
    lines = text.splitlines()
    if not lines or lines[0].rstrip() != HEADER:
        return None
    rest = "\n".join(lines[1:]).strip()
    if rest.startswith("{"):
        try:
            found = json.loads(rest)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None
    found, open_key = {}, ""
    for line in lines[1:]:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        item, key = _ITEM.fullmatch(line.rstrip()), _KEY.fullmatch(line.rstrip())
        if item and open_key and isinstance(found[open_key], list):
            value = _scalar(item[1])
            if value is None:
                return None
            found[open_key].append(value)
        elif key and key[1] not in found:
            open_key = key[1] if not (key[2] or "").strip() else ""
            value = [] if open_key else _scalar(key[2].strip())
            if value is None:
                return None
            found[key[1]] = value
        else:
            return None
    return None if [] in found.values() else found


def _scalar(text: str) -> Any:
    """Return a truth value or a text that no reading of YAML would take for another; None in doubt."""
    quoted = re.fullmatch(r"\"([^\"\\]*)\"|'([^']*)'", text)
    if quoted:
        return quoted[1] if quoted[1] is not None else quoted[2]
    if text in _WORDS:
        return _WORDS[text]
    if _FLOW.fullmatch(text):
        return _LASTING
    # A number, a date or a word such as "yes" would be no text in YAML.
    if text in _NULL or _SPECIAL.search(text) or not re.match(r"[A-Za-z/$]", text):
        return None
    return None if text.lower() in ("true", "false", "yes", "no", "on", "off", "y", "n", "null") else text
