# SPDX-License-Identifier: GPL-3.0-or-later
"""The host keys of machines in a file of the fleet, as OpenSSH reads it (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT).

A machine stands there under its name, in one line; ssh is told the name by HostKeyAlias. So neither a new address nor
a new port makes another machine of it, and a machine that is gone is one line less.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .errors import InvalidInput
from .ssh_keys import public_key

# The kinds of host keys, the best first.
KINDS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")


def best(where: str, keys: Iterable[str]) -> str:
    """Return the best of a machine's public host keys, without its comment."""
    found = [" ".join(public_key(where, key).split()[:2]) for key in keys]
    usable = [key for key in found if key.split()[0] in KINDS]
    if not usable:
        raise InvalidInput(f"{where}: expected a host key of one of {', '.join(KINDS)}, found none")
    return min(usable, key=lambda key: KINDS.index(key.split()[0]))


def known(text: str) -> dict[str, str]:
    """Return the keys of a file by the names of their machines. Lines of other forms are left out."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 3 and not words[0].startswith(("#", "|", "@", "[")) and "," not in words[0]:
            found.setdefault(words[0], " ".join(words[1:3]))
    return found


def updated(text: str, wanted: Mapping[str, str], gone: Iterable[str] = ()) -> str:
    """Return the file with these machines' keys, one line each, and without those that are gone.

    Other lines stay as they are, machines that stay keep their place.
    """
    gone, left = set(gone), dict(wanted)
    lines = []
    for line in text.splitlines():
        name = line.split()[0] if line.split() else ""
        if name in gone or (name in wanted and name not in left):
            continue
        if name in left:
            line = f"{name} {left.pop(name)}"
        lines.append(line)
    lines += [f"{name} {key}" for name, key in left.items()]
    return "".join(f"{line}\n" for line in lines)


def ssh_options(name: str, path: str, proxy: Iterable[str] = ()) -> tuple[str, ...]:
    """Return the words that make ssh take a machine's key from this file, and no other.

    proxy: the words of the command that leads to the machine (ProxyCommand), none when it is reached directly.
    """
    quoted = path.replace("%", "%%").replace('"', '\\"')
    options = [
        "StrictHostKeyChecking=yes",
        f"HostKeyAlias={name}",
        f'UserKnownHostsFile="{quoted}"',
        "GlobalKnownHostsFile=/dev/null",
        "CheckHostIP=no",
        "UpdateHostKeys=no",
    ]
    words = list(proxy)
    if words:
        options.append(f"ProxyCommand={' '.join(words)}")
    return tuple(word for option in options for word in ("-o", option))
