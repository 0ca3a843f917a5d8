# SPDX-License-Identifier: GPL-3.0-or-later
"""The network stacks of hosts: which one is in use, which files are its, what stands in the way, and how it is told."""

from __future__ import annotations

import glob
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Protocol

if TYPE_CHECKING:
    from fleet_core import network_ifupdown, network_netplan, network_networkd, network_networkmanager
    from fleet_core.errors import Conflict, ProcessFailed, Unavailable
    from fleet_core.network_interfaces import HostBridge, NetworkFile
else:
    try:
        from ..fleet_core import network_ifupdown, network_netplan, network_networkd, network_networkmanager
        from ..fleet_core.errors import Conflict, ProcessFailed, Unavailable
        from ..fleet_core.network_interfaces import HostBridge, NetworkFile
    except ImportError:  # installed as a top-level package
        from fleet_core import network_ifupdown, network_netplan, network_networkd, network_networkmanager
        from fleet_core.errors import Conflict, ProcessFailed, Unavailable
        from fleet_core.network_interfaces import HostBridge, NetworkFile

from .egress_commands import SBIN, attempt, run

NAMES = ("ifupdown2", "netplan", "networkd", "networkmanager")
# Of commands that only tell a daemon something, and of those that do the work themselves.
QUICK, SLOW = 20.0, 90.0


class Stack(Protocol):
    """One program that brings up interfaces. Only root can use it."""

    name: str
    patterns: tuple[str, ...]  # of its files that are ours
    services: tuple[str, ...]  # that must run, and that apply() starts
    at_boot: tuple[tuple[str, ...], ...]  # commands after a change of its files before it starts itself

    def files(self, bridges: Sequence[HostBridge]) -> tuple[NetworkFile, ...]:
        """Return the files of bridges. Raises Conflict, in a sentence, where files of others stand in their way."""

    def apply(self, bridges: Sequence[HostBridge]) -> None:
        """Check the files that are written and make them real, bridges: those that are new or other than before."""

    def undo(self, bridges: Sequence[HostBridge], ports: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """Return the commands that make real again the files that are there now, once they are put back.

        bridges: those of these files; ports: interfaces that a change is about to take.
        """


def exists(tool: str) -> bool:
    """Return whether a program is on the host."""
    return bool(shutil.which(tool) or shutil.which(tool, path=SBIN))


def service_is(state: str, unit: str) -> bool:
    """Return whether systemd says that a unit is "active" or "enabled"."""
    return attempt(["systemctl", f"is-{state}", "--quiet", unit], seconds=QUICK).returncode == 0


class Ifupdown2:
    """ifupdown2, of Proxmox VE."""

    name = "ifupdown2"
    patterns: tuple[str, ...] = (network_ifupdown.FILE,)
    services: tuple[str, ...] = ()
    at_boot: tuple[tuple[str, ...], ...] = ()
    busy = 89  # what it ends with while another one runs
    interfaces = Path("/etc/network/interfaces")
    settings = Path("/etc/network/ifupdown2/ifupdown2.conf")

    def files(self, bridges: Sequence[HostBridge]) -> tuple[NetworkFile, ...]:
        sources = _sources(self.interfaces)
        if bridges and not any(path == network_ifupdown.FILE for path, _lines in sources) and not self._reads_ours():
            raise Conflict(
                f'{self.interfaces}: expected the line "source /etc/network/interfaces.d/*", found none; add it'
            )
        defined = _stanzas([item for item in sources if item[0] != network_ifupdown.FILE])
        for one in bridges:
            if one.name in defined:
                raise _elsewhere(f"bridge {one.name}", defined[one.name][0])
            for port in one.ports:
                if defined.get(port, ("", False))[1]:
                    raise Conflict(f"port {port}: has an address by {defined[port][0]}; take that away there first")
        aware = [one.name for one in bridges if one.vlan_aware]
        if len(aware) > 1 and not re.search(r"(?m)^multiple_vlan_aware_bridge_support=1", _read(self.settings)):
            raise Conflict(
                f"bridge {aware[1]}: expected multiple_vlan_aware_bridge_support=1 in {self.settings} for a second "
                f"bridge that knows VLANs beside {aware[0]}, found another value"
            )
        return network_ifupdown.files(bridges, tuple(defined))

    def apply(self, bridges: Sequence[HostBridge]) -> None:
        Path("/run/network").mkdir(exist_ok=True)  # where its lock is; made by networking.service
        for command in (["ifreload", "--syntax-check", "--all"], ["ifreload", "--all"]):
            done = attempt(command, seconds=SLOW)
            for _second in range(15):
                if done.returncode != self.busy:
                    break
                time.sleep(1)
                done = attempt(command, seconds=SLOW)
            # It ends with 1 after mere warnings, and with 0 after errors of single interfaces.
            wrong = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("error:")]
            if wrong:
                raise ProcessFailed(f"{' '.join(command)}: {'; '.join(wrong)[:1000]}")

    def undo(self, bridges: Sequence[HostBridge], ports: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        return (("ifreload", "--all"),)

    def _reads_ours(self) -> bool:
        """Return whether a file of our name would be read, though it is not there yet."""
        folder = str(Path(network_ifupdown.FILE).parent)
        words = (line.split() for line in _read(self.interfaces).splitlines())
        return any(
            (line[0] == "source" and line[1].rstrip("*") == f"{folder}/" and line[1].endswith("*"))
            or (line[0] == "source-directory" and line[1].rstrip("/") == folder)
            for line in words
            if len(line) == 2
        )


class Networkd:
    """systemd-networkd."""

    name = "networkd"
    patterns: tuple[str, ...] = (f"{network_networkd.FOLDER}/{network_networkd.PREFIX}*",)
    services: tuple[str, ...] = ("systemd-networkd.service",)
    at_boot: tuple[tuple[str, ...], ...] = ()

    def files(self, bridges: Sequence[HostBridge]) -> tuple[NetworkFile, ...]:
        names = [one.name for one in bridges]
        classic = _stanzas(_sources(Path("/etc/network/interfaces")))
        for interface in [name for one in bridges for name in (one.name, *one.ports)]:
            if interface in classic:
                raise _elsewhere(f"interface {interface}", classic[interface][0])
        for folder in ("/etc", "/run", "/usr/lib"):
            for path in sorted(glob.glob(f"{folder}/systemd/network/*.netdev")):
                name = re.search(r"(?m)^Name=(.*)$", _read(Path(path)))
                if name and name[1].strip() in names and not Path(path).name.startswith(network_networkd.PREFIX):
                    raise _elsewhere(f"bridge {name[1].strip()}", path)
        return network_networkd.files(bridges)

    def apply(self, bridges: Sequence[HostBridge]) -> None:
        start(self.services)
        run(["networkctl", "reload"], seconds=QUICK)

    def undo(self, bridges: Sequence[HostBridge], ports: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        return (("networkctl", "reload"),)


class Netplan:
    """netplan, with systemd-networkd behind it."""

    name = "netplan"
    patterns: tuple[str, ...] = (
        network_netplan.FILE,
        f"{network_networkd.FOLDER}/10-netplan-*.d/{network_netplan.DROP_IN}",
    )
    services: tuple[str, ...] = ("systemd-networkd.service",)
    at_boot: tuple[tuple[str, ...], ...] = (("netplan", "generate"),)

    def files(self, bridges: Sequence[HostBridge]) -> tuple[NetworkFile, ...]:
        others = [path for path in _yaml_files() if path != network_netplan.FILE]
        if not bridges or not others:
            return network_netplan.files(bridges)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch, "etc/netplan")
            folder.mkdir(parents=True)
            for path in others:
                shutil.copy(path, folder / Path(path).name)
            defined = self._look(bridges, scratch, others)
        return network_netplan.files(bridges, defined)

    def _look(self, bridges: Sequence[HostBridge], root: str, others: Sequence[str]) -> list[str]:
        """Return the ports that others define as something else than Ethernet. Raises Conflict."""
        defined = []
        where = " and ".join(others)
        for one in bridges:
            if _netplan(root, f"bridges.{_key(one.name)}"):
                raise _elsewhere(f"bridge {one.name}", where)
            for port in one.ports:
                if _netplan(root, f"ethernets.{_key(port)}.addresses"):
                    raise Conflict(f"port {port}: has an address by {where}; take that away there first")
                if _netplan(root, f"bonds.{_key(port)}") or _netplan(root, f"vlans.{_key(port)}"):
                    defined.append(port)
        return defined

    def apply(self, bridges: Sequence[HostBridge]) -> None:
        run(["netplan", "generate"], seconds=SLOW)
        start(self.services)
        run(["networkctl", "reload"], seconds=QUICK)

    def undo(self, bridges: Sequence[HostBridge], ports: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        return (("netplan", "generate"), ("networkctl", "reload"))


class NetworkManager:
    """NetworkManager."""

    name = "networkmanager"
    patterns: tuple[str, ...] = (f"{network_networkmanager.FOLDER}/{network_networkmanager.PREFIX}*.nmconnection",)
    services: tuple[str, ...] = ("NetworkManager.service",)
    at_boot: tuple[tuple[str, ...], ...] = ()

    def files(self, bridges: Sequence[HostBridge]) -> tuple[NetworkFile, ...]:
        names = [one.name for one in bridges]
        for folder in (network_networkmanager.FOLDER, "/run/NetworkManager/system-connections"):
            for path in sorted(glob.glob(f"{folder}/*.nmconnection")):
                text = _read(Path(path))
                found = re.search(r"(?m)^interface-name=(.*)$", text)
                ours = Path(path).name.startswith(network_networkmanager.PREFIX)
                if found and found[1].strip() in names and "type=bridge" in text and not ours:
                    raise _elsewhere(f"bridge {found[1].strip()}", path)
        return network_networkmanager.files(bridges)

    def apply(self, bridges: Sequence[HostBridge]) -> None:
        start(self.services)
        for _half_second in range(30):  # a NetworkManager that has just started does not know its own objects yet
            if attempt(["nmcli", "connection", "reload"], seconds=QUICK).returncode == 0:
                break
            time.sleep(0.5)
        run(["nmcli", "connection", "reload"], seconds=QUICK)
        for one in bridges:
            # To activate a connection anew would make another bridge, and guests' interfaces would lose theirs.
            there = Path(f"/sys/class/net/{one.name}").exists()
            if not there or attempt(["nmcli", "device", "reapply", one.name], seconds=QUICK).returncode != 0:
                self._up(network_networkmanager.connection_id(one.name))
            for port in one.ports:
                self._up(network_networkmanager.connection_id(one.name, port))

    def undo(self, bridges: Sequence[HostBridge], ports: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        before: list[tuple[str, ...]] = []
        after: list[tuple[str, ...]] = []
        for port in ports:
            done = attempt(["nmcli", "-g", "GENERAL.STATE,GENERAL.CON-UUID", "device", "show", port], seconds=QUICK)
            state, _newline, uuid = done.stdout.strip().partition("\n")
            if "externally" in state or not uuid:
                # Whoever gave it its address does so again; NetworkManager would ask for another one.
                before.append(("nmcli", "device", "set", port, "autoconnect", "no"))
            else:
                after.append(("nmcli", "--wait", "15", "connection", "up", "uuid", uuid))
        for one in bridges:
            uuid = network_networkmanager.connection_uuid(network_networkmanager.connection_id(one.name))
            again = f"nmcli device reapply {one.name} || nmcli --wait 10 connection up uuid {uuid}"
            after.append(("sh", "-c", again))
        return (*before, ("nmcli", "connection", "reload"), *after)

    @staticmethod
    def _up(ident: str) -> None:
        uuid = network_networkmanager.connection_uuid(ident)
        run(["nmcli", "--wait", "10", "connection", "up", "uuid", uuid], seconds=QUICK)


_STACKS: Mapping[str, Callable[[], Stack]] = {
    "ifupdown2": Ifupdown2,
    "netplan": Netplan,
    "networkd": Networkd,
    "networkmanager": NetworkManager,
}
_TOOLS = {"ifupdown2": "ifreload", "netplan": "netplan", "networkd": "networkctl", "networkmanager": "nmcli"}
_PACKAGES = {
    "ifupdown2": "ifupdown2",
    "netplan": "netplan.io",
    "networkd": "systemd-networkd",
    "networkmanager": "network-manager",
}


def stack(name: str) -> Stack:
    """Return a stack by its name; "auto" is the one in use. Raises Unavailable where its program is not there."""
    chosen = detect() if name == "auto" else name
    if not exists(_TOOLS[chosen]):
        raise Unavailable(
            f'stack "{chosen}": expected the program {_TOOLS[chosen]} on this host, found none; '
            f"install the package {_PACKAGES[chosen]}"
        )
    return _STACKS[chosen]()


def detect() -> str:
    """Return the name of the stack that brings up this host's interfaces.

    A host that uses none of them, such as one with classic ifupdown, gets its bridges from systemd-networkd, which
    leaves alone all interfaces that no file names.
    """
    if exists("ifreload") and (service_is("enabled", "networking.service") or Path("/etc/pve").is_dir()):
        return "ifupdown2"
    if exists("netplan") and _yaml_files():
        return "networkmanager" if _netplan("/", "renderer").strip('"') == "NetworkManager" else "netplan"
    if exists("nmcli") and service_is("active", "NetworkManager.service"):
        return "networkmanager"
    return "networkd"


def patterns() -> tuple[str, ...]:
    """Return where files of ours may be, whatever the stack is."""
    return tuple(pattern for kind in _STACKS.values() for pattern in kind().patterns)


def start(services: Sequence[str]) -> None:
    """Start services now and at boot, those that do not run."""
    for unit in services:
        if not service_is("active", unit) or not service_is("enabled", unit):
            run(["systemctl", "enable", "--now", "--quiet", unit], seconds=SLOW)


def _elsewhere(what: str, path: str) -> Conflict:
    return Conflict(f"{what}: is configured in {path} already, which is not this module's; take it away there, or here")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _yaml_files() -> list[str]:
    return [path for folder in ("/lib", "/etc", "/run") for path in sorted(glob.glob(f"{folder}/netplan/*.yaml"))]


def _netplan(root: str, key: str) -> str:
    """Return what netplan has under a key, empty for nothing."""
    done = attempt(["netplan", "get", "--root-dir", root, key], seconds=QUICK)
    return "" if done.returncode != 0 or done.stdout.strip() == "null" else done.stdout.strip()


def _key(name: str) -> str:
    return name.replace(".", r"\.")


def _sources(path: Path, depth: int = 0) -> list[tuple[str, list[str]]]:
    """Return an interfaces file and those that it names, each with its lines (interfaces(5))."""
    lines = _read(path).splitlines()
    found = [(str(path), lines)]
    for line in lines if depth < 5 else ():
        words = line.split()
        if len(words) == 2 and words[0] in ("source", "source-directory"):
            pattern = words[1] if words[0] == "source" else f"{words[1].rstrip('/')}/*"
            for other in sorted(glob.glob(str(path.parent / pattern))):
                found += _sources(Path(other), depth + 1)
    return found


def _stanzas(sources: Sequence[tuple[str, list[str]]]) -> dict[str, tuple[str, bool]]:
    """Return the interfaces that files define: the file, and whether they get an address there."""
    found: dict[str, tuple[str, bool]] = {}
    name = ""
    for path, lines in sources:
        for line in lines:
            words = line.split()
            if words[:1] == ["iface"] and len(words) > 1:
                name = words[1]
                asks = words[3:4] in (["dhcp"], ["auto"])
                found[name] = (path, found.get(name, (path, False))[1] or asks)
            elif name and words[:1] == ["address"]:
                found[name] = (found[name][0], True)
            elif words[:1] in (["auto"], ["source"]) or (words and words[0].startswith("allow-")):
                name = ""
    return found
