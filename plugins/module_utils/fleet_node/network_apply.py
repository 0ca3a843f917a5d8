# SPDX-License-Identifier: GPL-3.0-or-later
"""The bridges of this host: what would change, and the change itself, which takes itself back if it fails."""

from __future__ import annotations

import difflib
import glob
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core import network_interfaces, network_sysctls
    from fleet_core.errors import Conflict, FleetError, InvalidInput, ProcessFailed, Unavailable
    from fleet_core.network_interfaces import MARK, HostBridge, NetworkFile
    from fleet_core.network_rollback import Before, SavedFile, SavedLink
    from fleet_core.network_sysctls import Forwarding
else:
    try:
        from ..fleet_core import network_interfaces, network_sysctls
        from ..fleet_core.errors import Conflict, FleetError, InvalidInput, ProcessFailed, Unavailable
        from ..fleet_core.network_interfaces import MARK, HostBridge, NetworkFile
        from ..fleet_core.network_rollback import Before, SavedFile, SavedLink
        from ..fleet_core.network_sysctls import Forwarding
    except ImportError:  # installed as a top-level package
        from fleet_core import network_interfaces, network_sysctls
        from fleet_core.errors import Conflict, FleetError, InvalidInput, ProcessFailed, Unavailable
        from fleet_core.network_interfaces import MARK, HostBridge, NetworkFile
        from fleet_core.network_rollback import Before, SavedFile, SavedLink
        from fleet_core.network_sysctls import Forwarding

from . import network_links, network_obstacles, network_stacks
from .network_changes import Changes, Pending, connection, new_ident, write
from .network_links import Link

RECORD = "current.json"
UP_WITHIN = 20.0  # seconds: DHCP and duplicate address detection have been seen to take five
SHORTEST = 10.0  # of rollbacks: to apply takes some seconds, and so does a new connection


@dataclass(frozen=True)
class Planned:
    """A change of this host's network. before, after: the texts of files, by path; gone: bridges that were."""

    stack: network_stacks.Stack
    wanted: tuple[HostBridge, ...]
    was: tuple[HostBridge, ...]
    files: Mapping[str, NetworkFile]
    before: Mapping[str, str]
    problems: tuple[str, ...]
    sysctls: Mapping[str, tuple[str, str]]
    values: Mapping[str, str]
    actions: tuple[str, ...]

    @property
    def after(self) -> dict[str, str]:
        return {path: file.text for path, file in self.files.items()}

    @property
    def changed_files(self) -> list[str]:
        after = self.after
        return [path for path in sorted({*self.before, *after}) if self.before.get(path) != after.get(path)]

    @property
    def restless(self) -> tuple[HostBridge, ...]:
        """The bridges that the stack must do something about."""
        was = {one.name: one for one in self.was}
        changed = {path for path in self.changed_files if path != network_sysctls.SYSCTL_FILE}
        text = " ".join([*self.problems, *changed]) + " "
        return tuple(one for one in self.wanted if was.get(one.name) != one or re.search(rf"\b{one.name}\b", text))

    def diff(self) -> list[dict[str, str]]:
        """Return what Ansible shows: one part for each file."""
        after = self.after
        return [
            {
                "before": self.before.get(path, ""),
                "after": after.get(path, ""),
                "before_header": path,
                "after_header": path,
            }
            for path in self.changed_files
        ]

    def unified(self) -> str:
        """Return the same as text."""
        lines: list[str] = []
        for part in self.diff():
            names = (part["before_header"], part["after_header"])
            lines += difflib.unified_diff(part["before"].splitlines(), part["after"].splitlines(), *names, lineterm="")
        return "\n".join(lines)


class HostNetwork:
    """The bridges of this host that this module has made. state_dir: as paths.state_dir takes it."""

    def __init__(self, state_dir: str | os.PathLike[str] | None = None) -> None:
        if os.geteuid() != 0:
            raise Unavailable(f"network: expected to run as root (become: true), found user {os.geteuid()}")
        self.changes = Changes(state_dir)
        self.record = self.changes.folder / RECORD

    def plan(
        self, bridges: Sequence[HostBridge], forwarding: Forwarding, stack: str = "auto", force: bool = False
    ) -> Planned:
        """Return what would change. Raises Conflict where files or interfaces of others stand in the way."""
        chosen = network_stacks.stack(stack)
        found = network_links.links()
        was = self._was()
        wanted = tuple(bridges)
        before = self._own_files()
        if not force:
            network_obstacles.refuse(wanted, was, " ".join(before.values()), found)
        if any(one.vlan_aware for one in wanted) and not network_links.knows_vlans():
            name = next(one.name for one in wanted if one.vlan_aware)
            raise Unavailable(
                f"bridge {name}: expected a kernel whose bridges know VLANs (CONFIG_BRIDGE_VLAN_FILTERING), found one "
                f"that refuses them"
            )
        forwarding = self._with_listeners(forwarding, before)
        files = {one.path: one for one in chosen.files(wanted)}
        files.update({one.path: one for one in network_sysctls.files(wanted, forwarding)})
        self._refuse_others(files)
        values = network_sysctls.settings(wanted, forwarding)
        problems = tuple(network_links.problems(wanted, found))
        sysctls = network_sysctls.differences(values, network_links.read_sysctls(values))
        planned = Planned(chosen, wanted, was, files, before, problems, sysctls, values, ())
        return Planned(chosen, wanted, was, files, before, problems, sysctls, values, self._actions(planned, found))

    def apply(self, planned: Planned, seconds: float) -> Pending | None:
        """Make a change real, and return what now waits for its confirmation, None if nothing does.

        seconds: until the change takes itself back; 0 keeps it once it works. Raises ProcessFailed, after everything is
        as it was before, if it does not.
        """
        if not planned.actions:
            return None
        if 0 < seconds < SHORTEST:
            raise InvalidInput(f"rollback_after: expected {SHORTEST:.0f}s or more, or 0 for none, found {seconds:g}s")
        before = self._before(planned, seconds or 3 * UP_WITHIN)
        pending = self.changes.arm(before, before.seconds, connection())
        try:
            self._write(planned)
            self._bring_up(planned)
        except (FleetError, OSError) as error:
            self.changes.roll_back("failed")
            raise ProcessFailed(f"{error}; the network is as it was before") from error
        if not seconds:
            self.changes.keep(pending.ident)
            return None
        self.changes.check_waiting(pending.ident)
        return pending

    def running(self, bridges: Iterable[HostBridge]) -> list[dict[str, Any]]:
        """Return how bridges run."""
        found = network_links.links()
        result = []
        for one in bridges:
            link = found.get(one.name)
            ports = sorted(other.name for other in found.values() if other.master == one.name)
            result.append(
                {
                    "name": one.name,
                    "up": link is not None and link.up,
                    "addresses": sorted(link.cidrs()) if link else [],
                    "ports": ports,
                    "vlan_aware": bool(link and link.vlan_filtering),
                    "mtu": link.mtu if link else 0,
                }
            )
        return result

    def _was(self) -> tuple[HostBridge, ...]:
        try:
            data = json.loads(self.record.read_text(encoding="utf-8"))
            return network_interfaces.bridges(data["bridges"])
        except (OSError, ValueError, KeyError, TypeError, InvalidInput):
            return ()  # nothing was made here, or by a version that wrote something else

    @staticmethod
    def _own_files() -> dict[str, str]:
        paths = [*network_stacks.patterns(), network_sysctls.SYSCTL_FILE, network_sysctls.MODULES_FILE]
        texts = {path: _text(path) for pattern in paths for path in sorted(glob.glob(pattern))}
        return {path: text for path, text in texts.items() if MARK in text}

    @staticmethod
    def _refuse_others(files: Iterable[str]) -> None:
        for path in files:
            text = _text(path)
            if text and MARK not in text:
                raise Conflict(f"file {path}: expected one that this module has written, found another; move it away")

    @staticmethod
    def _with_listeners(forwarding: Forwarding, before: Mapping[str, str]) -> Forwarding:
        """Let interfaces go on listening to routers: those with a route from one, and those that did so already."""
        if not forwarding.ipv6:
            return forwarding
        earlier = re.findall(r"(?m)^net/ipv6/conf/(\S+)/accept_ra = 2$", before.get(network_sysctls.SYSCTL_FILE, ""))
        names = tuple(sorted({*network_links.listeners(), *earlier}))
        return Forwarding(forwarding.ipv4, forwarding.ipv6, forwarding.br_netfilter, names)

    @staticmethod
    def _actions(planned: Planned, found: Mapping[str, Link]) -> tuple[str, ...]:
        after = planned.after
        actions = [f"{'write' if path in after else 'remove'} {path}" for path in planned.changed_files]
        kept = {one.name for one in planned.wanted}
        actions += [f"delete bridge {one.name}" for one in planned.was if one.name not in kept and one.name in found]
        actions += [f"bring up bridge {name}" for name in kept if name not in found]
        actions += [
            f"set right: {text}" for text in planned.problems if not text.endswith("is not there") or not actions
        ]
        actions += [f"set {key} to {new} (it is {old})" for key, (old, new) in planned.sysctls.items()]
        return tuple(actions)

    def _before(self, planned: Planned, seconds: float) -> Before:
        found = network_links.links()
        paths = [*planned.changed_files, str(self.record)]
        files = []
        for number, path in enumerate(paths):
            there = Path(path).exists()
            mode = Path(path).stat().st_mode & 0o777 if there else 0o644
            files.append(SavedFile(path, str(number) if there else "", mode))
        ports = sorted({port for one in (*planned.wanted, *planned.was) for port in one.ports})
        names = sorted({one.name for one in (*planned.wanted, *planned.was)})
        idle = [unit for unit in planned.stack.services if not network_stacks.service_is("active", unit)]
        # A bridge that is deleted and comes back has the kernel's own idea of these.
        kept = network_links.read_sysctls(network_sysctls.settings(planned.was, Forwarding()))
        undo = planned.stack.undo(planned.was, [port for port in ports if port in found])
        # Who did not run before the change does not run after it is gone.
        sockets = [
            unit.replace(".service", ".socket") for unit in idle if "networkd" in unit
        ]  # it would wake it up again
        stops = tuple(("systemctl", "disable", "--now", "--quiet", unit) for unit in (*sockets, *idle))
        return Before(
            ident=new_ident(),
            folder=str(self.changes.folder),
            seconds=seconds,
            files=tuple(files),
            reload=(*stops, *planned.stack.at_boot) if idle else undo,
            at_boot=(*planned.stack.at_boot, *(("systemctl", "--no-reload", "disable", unit) for unit in idle)),
            links=tuple(_saved_link(name, found.get(name)) for name in (*names, *ports)),
            addresses=_saved_addresses(found),
            strange=_strange(planned.wanted, found),
            routes=tuple(
                (family, network_links.route_words(item)) for family in (4, 6) for item in network_links.routes(family)
            ),
            sysctls={**kept, **{key: old for key, (old, _new) in planned.sysctls.items()}},
        )

    def _write(self, planned: Planned) -> None:
        for path in planned.changed_files:
            if path in planned.files:
                write(Path(path), planned.files[path].text, planned.files[path].mode)
            else:
                Path(path).unlink()
        data = {"stack": planned.stack.name, "bridges": [network_interfaces.to_dict(one) for one in planned.wanted]}
        write(self.record, json.dumps(data, indent=2) + "\n", 0o600)

    def _bring_up(self, planned: Planned) -> None:
        """Apply what is written, and wait until it is so. Raises FleetError if it does not become so."""
        wrong = network_links.set_sysctls(planned.values)
        planned.stack.apply(planned.restless)
        network_links.let_go(planned.was, planned.wanted, network_links.links())
        end = time.monotonic() + UP_WITHIN
        while True:
            found = network_links.links()
            lacking = network_links.problems(planned.wanted, found)
            if not lacking:
                break
            if time.monotonic() > end:
                raise ProcessFailed("; ".join(lacking))
            network_links.settle(planned.wanted, found)
            time.sleep(0.2)
        # Those of the bridges exist only now; and stacks have ideas of their own about some.
        wrong = network_links.set_sysctls(planned.values) or wrong
        left = network_sysctls.differences(planned.values, network_links.read_sysctls(planned.values))
        wrong += [f"{key}: expected {new}, found {old}" for key, (old, new) in left.items()]
        if wrong:
            raise ProcessFailed("; ".join(wrong))


def _saved_link(name: str, link: Link | None) -> SavedLink:
    if link is None:
        return SavedLink(name, existed=False)
    return SavedLink(name, True, link.up, link.master, link.mtu, link.vlan_filtering)


def _saved_addresses(found: Mapping[str, Link]) -> tuple[tuple[str, str], ...]:
    return tuple(
        (link.name, network_links.address_words(item))
        for link in found.values()
        for item in link.addresses
        if item.get("scope") in ("global", "link") and not item.get("temporary") and link.name != "lo"
    )


def _strange(wanted: Iterable[HostBridge], found: Mapping[str, Link]) -> tuple[tuple[str, str], ...]:
    """Return the addresses that bridges get which they do not have now. A bridge that is new goes as a whole."""
    return tuple(
        (one.name, address)
        for one in wanted
        if one.name in found
        for address in one.addresses
        if address not in found[one.name].cidrs(all_scopes=True)
    )


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except (FileNotFoundError, NotADirectoryError):
        return ""
