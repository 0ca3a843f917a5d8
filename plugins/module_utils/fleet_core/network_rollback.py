# SPDX-License-Identifier: GPL-3.0-or-later
"""How a host finds back to the network that it had: a script of sh that needs neither Python nor a connection.

It is run by a timer of systemd, by a unit at boot, or by hand, and it does nothing once the change is confirmed.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .network_interfaces import MARK

BOOT_UNIT = "autovibe-fleet-network-rollback.service"
BOOT_FILE = f"/etc/systemd/system/{BOOT_UNIT}"
BOOT_LINK = f"/etc/systemd/system/multi-user.target.wants/{BOOT_UNIT}"
PENDING, LAST, LOCK, SCRIPT, SAVED = "pending.json", "last.json", "lock", "rollback.sh", "saved"

Command = tuple[str, ...]


def timer_name(ident: str) -> str:
    """Return the unit that ends the time for a change, without its suffix."""
    return f"autovibe-fleet-network-{ident}"


@dataclass(frozen=True)
class SavedFile:
    """A file as it was. saved: its copy in the folder of saved files, empty if there was none. mode: of the copy."""

    path: str
    saved: str = ""
    mode: int = 0o644


@dataclass(frozen=True)
class SavedLink:
    """An interface that a change is about, as it was. master: the bridge it was a port of; vlan_filtering: of a bridge,
    None for what is none."""

    name: str
    existed: bool
    up: bool = True
    master: str = ""
    mtu: int = 0
    vlan_filtering: bool | None = None


@dataclass(frozen=True)
class Before:
    """All that a change may break.

    folder: where the records are; seconds: until the change takes itself back. reload: commands by which the stack
    reads its files again; at_boot: those that are needed before the stack itself starts. addresses: interface and words
    of ip-address(8); strange: addresses, by interface, that come with the change. routes: family and words of
    ip-route(8).
    """

    ident: str
    folder: str
    seconds: float = 60.0
    files: tuple[SavedFile, ...] = ()
    reload: tuple[Command, ...] = ()
    at_boot: tuple[Command, ...] = ()
    links: tuple[SavedLink, ...] = ()
    addresses: tuple[tuple[str, str], ...] = ()
    strange: tuple[tuple[str, str], ...] = ()
    routes: tuple[tuple[int, str], ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)


_HEAD = """\
#!/bin/sh
# {mark}
# Puts the network of this host back as it was before change {ident}, unless that has been confirmed.
# $1: why, one word; "boot" before the network is up. By hand: sh {folder}/{script}
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
LC_ALL=C
export PATH LC_ALL
why=${{1:-asked}}
cd {folder} || exit 1
exec 9>>{lock}
flock -w 300 9 || exit 1
grep -q '"{ident}"' {pending} 2>/dev/null || exit 0

run() {{ timeout 60 "$@" </dev/null 9>&-; }}
put() {{
    mkdir -p "${{2%/*}}"
    cp {saved}/"$1" "$2.rollback" && chmod "$3" "$2.rollback" && mv -f "$2.rollback" "$2"
}}
there() {{ [ -e "/sys/class/net/$1" ]; }}
address() {{
    ip -o address show dev "$1" 2>/dev/null | grep -qF " ${{2%% *}} " && return
    # shellcheck disable=SC2086  # words
    there "$1" && ip address add $2 dev "$1"
}}
route() {{
    # shellcheck disable=SC2086  # words
    [ -n "$(ip "$1" route show $2 2>/dev/null)" ] || ip "$1" route replace $2
}}
"""

_TAIL = """\
rm -f {boot_file} {boot_link}
outcome='"id": "{ident}", "outcome": "rolled back", "seconds": {seconds:g}'
printf '{{%s, "why": "%s", "time": %s}}\\n' "$outcome" "$why" "$(date +%s)" >{last}.new
mv -f {last}.new {last}
rm -rf {pending} {script} {saved}
if [ "$why" != boot ]; then
    run systemctl daemon-reload
    [ "$why" = timeout ] || run systemctl stop --no-block {timer}.timer
fi
exit 0
"""


def script(before: Before) -> str:
    """Return the script. Each step is tried whatever became of the one before it."""
    names = {
        "mark": MARK,
        "ident": before.ident,
        "seconds": before.seconds,
        "folder": shlex.quote(before.folder),
        "script": SCRIPT,
        "lock": LOCK,
        "pending": PENDING,
        "saved": SAVED,
        "last": LAST,
        "timer": timer_name(before.ident),
        "boot_file": BOOT_FILE,
        "boot_link": BOOT_LINK,
    }
    return "\n".join(
        [
            _HEAD.format(**names),
            *_files(before.files),
            "",
            'if [ "$why" = boot ]; then',
            *_indented(_commands(before.at_boot) or [":"]),
            "else",
            *_indented(_while_it_runs(before) or [":"]),
            "fi",
            "",
            _TAIL.format(**names),
        ]
    )


def boot_unit(folder: str) -> str:
    """Return the unit that rolls back, before the network is up, what was not confirmed before a reboot."""
    return f"""\
# {MARK}
[Unit]
Description=Roll back a change of the network that was not confirmed before the reboot
DefaultDependencies=no
ConditionPathExists={folder}/{PENDING}
RequiresMountsFor={folder}
After=local-fs.target systemd-remount-fs.service
Before=network-pre.target networking.service systemd-networkd.service NetworkManager.service shutdown.target
Wants=network-pre.target
Conflicts=shutdown.target

[Service]
Type=oneshot
ExecStart=/bin/sh {folder}/{SCRIPT} boot

[Install]
WantedBy=multi-user.target
"""


def _while_it_runs(before: Before) -> list[str]:
    return [*_commands(before.reload), *_links(before), *_sysctls(before.sysctls), *_reachable(before)]


def _files(files: Sequence[SavedFile]) -> list[str]:
    return [
        f"put {one.saved} {shlex.quote(one.path)} {one.mode:04o}" if one.saved else f"rm -f {shlex.quote(one.path)}"
        for one in files
    ]


def _commands(commands: Sequence[Command]) -> list[str]:
    return [f"run {shlex.join(command)}" for command in commands]


def _links(before: Before) -> list[str]:
    lines = []
    for one in before.links:
        name = shlex.quote(one.name)
        if not one.existed:
            lines.append(f"there {name} && ip link delete {name}")
            continue
        if one.vlan_filtering is not None:  # a bridge
            value = int(one.vlan_filtering)
            lines.append(f"there {name} || ip link add {name} type bridge stp_state 0 forward_delay 0")
            lines.append(f"ip link set {name} type bridge stp_state 0 forward_delay 0")
            lines.append(f"ip link set {name} type bridge vlan_filtering {value} 2>/dev/null")
    # Ports after all bridges, so that each finds its own again.
    for one in before.links:
        if not one.existed:
            continue
        name, master = shlex.quote(one.name), f"master {shlex.quote(one.master)}" if one.master else "nomaster"
        lines.append(f"ip link set {name} {master}")
        lines += [f"ip link set {name} mtu {one.mtu}"] if one.mtu else []
        lines.append(f"ip link set {name} {'up' if one.up else 'down'}")
    return lines


def _sysctls(values: Mapping[str, str]) -> list[str]:
    return [f"echo {shlex.quote(value)} >{shlex.quote('/proc/sys/' + key)}" for key, value in values.items()]


def _reachable(before: Before) -> list[str]:
    """Return what gives back addresses and routes, again and again, while the stack may still take them away."""
    lines = [
        f"there {shlex.quote(name)} && ip address delete {shlex.quote(text)} dev {shlex.quote(name)} 2>/dev/null"
        for name, text in before.strange
    ]
    kept = [f"address {shlex.quote(name)} {shlex.quote(words)}" for name, words in before.addresses]
    kept += [f"route -{family} {shlex.quote(words)}" for family, words in before.routes]
    if kept:
        lines += ["for pass in 1 2 3 4; do", *_indented(kept), '    [ "$pass" = 4 ] || sleep 1', "done"]
    return lines


def _indented(lines: Sequence[str]) -> list[str]:
    return [f"    {line}" for line in lines]
