# SPDX-License-Identifier: GPL-3.0-or-later
"""How a machine is made to let its owner in: a script that runs inside, and what its answer says.

The script goes through the provider (a guest agent, or exec), so what comes back can be believed: nobody on the
network had a hand in it. It is how host keys get into known_hosts.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import InvalidInput, ProcessFailed
from .names import check_name
from .ssh_keys import public_key

_END = "END-OF-PUBLIC-KEYS"

# What belongs to the user is read and written as the user: links in a home lead root nowhere.
_SCRIPT = """set -u
login={login}
change={change}
sshd=$(ls /etc/ssh/ssh_host_*_key.pub 2>/dev/null)
if [ -z "$sshd" ] && [ "$change" = 1 ] && command -v ssh-keygen >/dev/null; then
  ssh-keygen -A >/dev/null && echo 'did make host keys'
fi
if ! getent passwd "$login" >/dev/null; then
  echo 'did add the user'
  if [ "$change" = 1 ]; then
    useradd --create-home --shell /bin/bash -- "$login" || exit 3
    mkdir -p /etc/sudoers.d
    rule=/etc/sudoers.d/90-autovibe-"$(printf %s "$login" | tr . _)"
    (umask 0337; rm -f "$rule"; printf '%s ALL=(ALL) NOPASSWD:ALL\\n' "$login" >"$rule")
  fi
fi
if getent passwd "$login" >/dev/null; then
  home=$(getent passwd "$login" | cut -d: -f6)
  runuser -u "$login" -- env HOME="$home" change="$change" sh -c '
    umask 077
    file=$HOME/.ssh/authorized_keys
    while IFS= read -r line; do
      key=$(printf "%s\\n" "$line" | cut -d" " -f1,2)
      grep -qsF -e "$key" "$file" && continue
      echo "did authorize a key"
      [ "$change" = 1 ] || continue
      mkdir -p "$HOME/.ssh" || exit 4
      [ ! -s "$file" ] || [ -z "$(tail -c1 "$file")" ] || echo >>"$file"
      printf "%s\\n" "$line" >>"$file" || exit 4
    done' <<'{end}' || exit 4
{keys}
{end}
elif [ "$change" != 1 ]; then
  echo 'did authorize a key'
fi
for file in /etc/ssh/ssh_host_*_key.pub; do
  [ ! -r "$file" ] || printf 'host %s\\n' "$(cut -d' ' -f1,2 "$file")"
done
echo end
"""


def script(login: str, keys: Iterable[str], *, change: bool = True) -> str:
    """Return the script that lets the owners of these public keys log in, and prints the host's public keys.

    A user that is not there is added, with the right to sudo. change: False only looks.
    """
    check_name("login", login)
    lines = [public_key(f"authorized_keys[{number}]", key) for number, key in enumerate(keys)]
    if not lines:
        raise InvalidInput("authorized_keys: expected at least one public SSH key, found none")
    return _SCRIPT.format(login=shlex.quote(login), change=int(change), keys="\n".join(lines), end=_END)


@dataclass(frozen=True)
class Answer:
    """host_keys: the public keys of the machine, TYPE BASE64. done: what was done, or would be."""

    host_keys: tuple[str, ...]
    done: tuple[str, ...] = ()


def answer(what: str, code: int, stdout: str, stderr: str) -> Answer:
    """Return what the script said. what: the machine, for errors."""
    lines = stdout.splitlines()
    if code != 0 or "end" not in lines:
        reason = " ".join((stderr.strip() or stdout.strip()).split())[-300:] or "nothing"
        raise ProcessFailed(f"{what}: the script that lets people log in ended with {code}, and said: {reason}")
    done = tuple(dict.fromkeys(line[4:] for line in lines if line.startswith("did ")))
    keys = tuple(public_key(f"{what}: host key", line[5:]) for line in lines if line.startswith("host "))
    return Answer(keys, done)
