# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden images: what is removed before one is sealed, how that is verified, which ones are kept, who runs an old one.

The scripts are POSIX shell, run as root inside the machine that the image is made of. They expect nothing but what a
Debian or Ubuntu system has, and end well where a part is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .images import GOLDEN, Image, family_of
from .machines import Machine

# Below every home. What tools keep there without being asked, or to log in somewhere.
_HISTORIES = (
    *(".bash_history", ".zsh_history", ".sh_history", ".ash_history", ".histfile", ".python_history"),
    *(".node_repl_history", ".psql_history", ".mysql_history", ".sqlite_history", ".rediscli_history", ".lesshst"),
    *(".viminfo", ".wget-hsts"),
)
_CREDENTIALS = (
    *(".netrc", ".git-credentials", ".config/git/credentials", ".pypirc", ".pgpass", ".my.cnf"),
    *(".docker/config.json", ".config/containers/auth.json", ".config/gh/hosts.yml", ".aws/credentials", ".aws/sso"),
    *(".config/gcloud", ".azure", ".kube/config", ".vault-token", ".cargo/credentials.toml", ".ansible/tmp"),
    *(".claude.json", ".claude/.credentials.json", ".codex/auth.json", ".gemini/oauth_creds.json", ".qwen"),
    *(".local/share/opencode/auth.json", ".gnupg/private-keys-v1.d", ".password-store"),
)
_AUTHORIZED = (".ssh/authorized_keys", ".ssh/authorized_keys2")

# Every home of an account, one a line. Homes that are part of the system itself hold nothing of the kind.
_HOMES = """homes() { cut -d: -f6 /etc/passwd | sort -u | while read -r home; do
  case $home in /*[!/]*) [ ! -d "$home" ] || printf '%s\\n' "$home" ;; esac
done; }
"""

_FIRST_BOOT = """first_boot() { # NAME CONDITION BEFORE COMMAND: what makes anew, at the next boot, what is removed now
  [ -d /etc/systemd/system ] || return 0
  cat >"/etc/systemd/system/$1.service" <<UNIT
[Unit]
Description=Make anew what the golden image does not hold ($1)
ConditionPathExists=!$2
Before=$3
[Service]
Type=oneshot
ExecStart=$4
[Install]
WantedBy=multi-user.target
UNIT
  mkdir -p /etc/systemd/system/multi-user.target.wants
  ln -sf "../$1.service" "/etc/systemd/system/multi-user.target.wants/$1.service"
}
"""

SEAL = f"""set -u
export LC_ALL=C
{_HOMES}{_FIRST_BOOT}
# Services that would write at shutdown what is removed here.
for unit in systemd-random-seed.service unattended-upgrades.service apt-daily.timer apt-daily-upgrade.timer; do
  systemctl stop "$unit" >/dev/null 2>&1
done
journalctl --relinquish-var >/dev/null 2>&1

# cloud-init: the next boot is a first boot.
if command -v cloud-init >/dev/null 2>&1; then
  cloud-init clean --logs --seed >/dev/null 2>&1 || cloud-init clean --logs >/dev/null 2>&1
else
  first_boot autovibe-host-keys /etc/ssh/ssh_host_ed25519_key "ssh.service sshd.service" \\
    "/usr/bin/ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key"
fi
rm -rf /var/lib/cloud/instance /var/lib/cloud/instances /var/lib/cloud/data /var/lib/cloud/sem /var/lib/cloud/seed
rm -f /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init* /etc/systemd/network/10-cloud-init-*
rm -f /etc/udev/rules.d/70-persistent-net.rules /opt/autovibe/setup/mirrors

# Identity.
[ ! -e /etc/machine-id ] || : >/etc/machine-id
rm -f /var/lib/dbus/machine-id /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
rm -f /var/lib/systemd/random-seed /var/lib/urandom/random-seed /var/lib/systemd/credential.secret
rm -rf /var/lib/dhcp/* /var/lib/dhclient/* /var/lib/dhcpcd/* /var/lib/NetworkManager/*
if [ -x /usr/sbin/make-ssl-cert ] && [ -e /etc/ssl/private/ssl-cert-snakeoil.key ]; then
  rm -f /etc/ssl/private/ssl-cert-snakeoil.key /etc/ssl/certs/ssl-cert-snakeoil.pem
  first_boot autovibe-snakeoil /etc/ssl/private/ssl-cert-snakeoil.key network.target \\
    "/usr/sbin/make-ssl-cert generate-default-snakeoil --force-overwrite"
fi

# Accounts: nobody's key, nobody's password, nobody's traces.
rm -rf /etc/ssh/authorized_keys /etc/ssh/authorized_keys.d
homes | while read -r home; do
  rm -f "$home"/.ssh/authorized_keys* "$home"/.ssh/known_hosts* "$home"/.ssh/id_*
  (cd "$home" && rm -rf {" ".join((*_HISTORIES, *_CREDENTIALS))} .npm/_cacache .npm/_logs)
  [ ! -f "$home/.npmrc" ] || sed -i '/_auth\\|_password/d' "$home/.npmrc" # it may name a mirror, which stays
  case $home in /root | /home/*) rm -rf "$home/.cache" ;; esac
done
[ ! -e /etc/shadow ] || sed -i -E '/^[^:]*:(\\*|!|!!|!\\*):/!s/^([^:]*):[^:]*/\\1:*/' /etc/shadow
rm -f /etc/shadow- /etc/gshadow- /etc/passwd- /etc/group- /etc/subuid- /etc/subgid-

# Packages, logs, leftovers.
apt-get clean >/dev/null 2>&1
rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/crash/* /var/lib/systemd/coredump/* /var/mail/* /var/log/journal/*
find /var/log -xdev -type f \\( -name '*.gz' -o -name '*.xz' -o -name '*.[0-9]' -o -name '*.old' \\) -exec rm -f {{}} +
find /var/log -xdev -type f -exec sh -c 'for file; do : >"$file"; done' sh {{}} + 2>/dev/null
find /tmp /var/tmp -xdev -mindepth 1 -delete 2>/dev/null
fstrim --all >/dev/null 2>&1
sync
exit 0
"""


def _none_of(names: Iterable[str]) -> str:
    """Return a check that none of these is in a home."""
    return f"""{_HOMES}found=$(homes | while read -r home; do
  for name in {" ".join(names)}; do [ ! -e "$home/$name" ] || printf '%s\\n' "$home/$name"; done
done)
[ -z "$found" ] || {{ printf 'found %s\\n' "$found"; exit 1; }}
"""


def _nothing(command: str) -> str:
    """Return a check that a command, which lists what should not be there, prints nothing."""
    return f'found=$({command})\n[ -z "$found" ] || {{ printf "found %s\\n" "$found"; exit 1; }}\n'


# By what they verify. Each ends with 0 when an image is sealed, and otherwise says what it found.
SEAL_CHECKS: Mapping[str, str] = {
    "empty machine-id": (
        "[ ! -s /etc/machine-id ] || { echo 'found one in /etc/machine-id'; exit 1; }\n"
        "[ ! -s /var/lib/dbus/machine-id ] || { echo 'found one in /var/lib/dbus/machine-id'; exit 1; }\n"
    ),
    "no SSH host keys": _nothing("ls -d /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub 2>/dev/null"),
    "no authorized keys": _none_of(_AUTHORIZED) + _nothing("ls -d /etc/ssh/authorized_keys* 2>/dev/null"),
    "no private keys": _nothing(
        # Libraries bring keys for their own tests.
        "find /root /home /etc /srv /var/lib -xdev \\( -name node_modules -o -name site-packages -o -name test "
        "-o -name tests -o -path /var/lib/dpkg \\) -prune -o "
        "-type f -size -256k -exec grep -lsE -e '-----BEGIN ([A-Z0-9]+ )*PRIVATE KEY' {} + 2>/dev/null | head -n 5"
    ),
    "no password hashes": _nothing(
        "awk -F: '$2 !~ /^(\\*|!|!!|!\\*)$/ { print \"one of \" $1 }' /etc/shadow 2>/dev/null; "
        "ls -d /etc/shadow- 2>/dev/null"
    ),
    "no shell histories": _none_of(_HISTORIES),
    "no credentials": (
        _none_of(_CREDENTIALS) + _nothing("grep -ls -e _auth -e _password /root/.npmrc /home/*/.npmrc 2>/dev/null")
    ),
    "no user data": _nothing(
        "find /var/lib/cloud -type f \\( -name 'user-data*' -o -name 'vendor-data*' -o -name 'cloud-config*' "
        "-o -name 'obj.pkl' \\) 2>/dev/null; find /var/log -type f -size +0 -name 'cloud-init*' 2>/dev/null"
    ),
    "no random seed": _nothing("ls -d /var/lib/systemd/random-seed /var/lib/urandom/random-seed 2>/dev/null"),
}


def sealing() -> str:
    """Return one script that seals and then runs the checks; it ends with 1 if one fails, and says which on stdout.

    One script, for what speaks to the machine over SSH cannot come back once the keys are gone.
    """
    parts = [f"(\n{SEAL})\n", "failed=0\n"]
    for name, script in SEAL_CHECKS.items():
        parts.append(
            f"text=$(\n{script}) || {{ failed=1; printf '%s: %s\\n' '{name}' "
            '"$(printf %s "$text" | tr "\\n" " " | cut -c 1-400)"; }\n'
        )
    return "".join((*parts, "exit $failed\n"))


@dataclass(frozen=True)
class Drift:
    """A machine that was made from an image of a family that has a newer one by now."""

    machine: str
    image: str
    newest: str

    def to_dict(self) -> dict[str, Any]:
        return {"machine": self.machine, "image": self.image, "newest": self.newest}

    def __str__(self) -> str:
        return f"machine {self.machine} runs {self.image}, the newest is {self.newest}"


def _newest(images: Iterable[Image]) -> dict[str, Image]:
    """Return the newest whole golden image of each family."""
    found: dict[str, Image] = {}
    for image in images:
        if image.kind == GOLDEN and not image.incomplete:
            other = found.get(image.family)
            if other is None or (image.created, image.name) > (other.created, other.name):
                found[image.family] = image
    return found


def drift(machines: Iterable[Machine], images: Iterable[Image]) -> tuple[Drift, ...]:
    """Return the machines that run an older image of their family, by name. What is not a golden image cannot drift."""
    newest = _newest(images)
    found = []
    for machine in sorted(machines, key=lambda one: one.name):
        family = family_of(machine.image)
        if family != machine.image and family in newest and newest[family].name != machine.image:
            found.append(Drift(machine.name, machine.image, newest[family].name))
    return tuple(found)


def retained(images: Iterable[Image], keep: int, used: Collection[str]) -> tuple[Image, ...]:
    """Return the golden images to delete, oldest first: all but the newest of each family, ``keep`` older ones, and
    those that are in use.

    used: the names of the images that machines were made from. What a failed build left goes when a newer image of its
    family is whole; the newest image of a family never goes.
    """
    images = [image for image in images if image.kind == GOLDEN]
    surplus: list[Image] = []
    for family, newest in _newest(images).items():
        older = [image for image in images if image.family == family and image.name != newest.name]
        older.sort(key=lambda image: (image.created, image.name), reverse=True)
        whole = [image for image in older if not image.incomplete]
        failed = [image for image in older if image.incomplete and image.created and image.created < newest.created]
        surplus += [image for image in (*whole[max(keep, 0) :], *failed) if image.name not in used]
    return tuple(sorted(surplus, key=lambda image: (image.created, image.name)))
