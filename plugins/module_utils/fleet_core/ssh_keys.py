# SPDX-License-Identifier: GPL-3.0-or-later
"""Public SSH keys in the form of authorized_keys (RFC 4253 section 6.6, RFC 8709, OpenSSH's PROTOCOL.u2f)."""

from __future__ import annotations

import base64

from .errors import InvalidInput
from .names import describe, nearest

KEY_TYPES = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)
_SHORTEST = 32  # bytes behind the type: an ed25519 key


def public_key(where: str, value: object) -> str:
    """Return a public key, TYPE BASE64 [COMMENT], with single blanks. Raises InvalidInput that never shows the key."""
    if not isinstance(value, str):
        raise InvalidInput(f"{where}: expected a public SSH key, found {describe(value)}")
    if "PRIVATE KEY" in value:
        raise InvalidInput(
            f"{where}: found a private key; expected the public one, which is the file that ends in .pub"
        )
    if "\n" in value.strip() or not value.strip().isprintable():
        raise InvalidInput(f"{where}: expected a public SSH key on one line")
    kind, _blank, rest = value.strip().partition(" ")
    data, _blank, comment = rest.strip().partition(" ")
    if kind == "ssh-dss":
        raise InvalidInput(f"{where}: DSA keys are no longer accepted by OpenSSH; make one with ssh-keygen -t ed25519")
    if kind not in KEY_TYPES:
        shown = kind if len(kind) <= 30 else kind[:27] + "..."
        hint = nearest(kind, KEY_TYPES) or f"; expected one of {', '.join(KEY_TYPES)}"
        raise InvalidInput(f'{where}: expected TYPE BASE64 COMMENT, found the type "{shown}"{hint}')
    try:
        blob = base64.b64decode(data, validate=True)
    except ValueError:
        blob = b""
    name = kind.encode()
    if not blob.startswith(len(name).to_bytes(4, "big") + name) or len(blob) < 4 + len(name) + _SHORTEST:
        raise InvalidInput(f"{where}: the {kind} key is not complete: expected the whole line of the .pub file")
    return " ".join((kind, data, *comment.split()))
