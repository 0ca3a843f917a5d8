# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes beside the rules: resolvers, DHCP servers, the proxy, the watch. fleetd runs them.

The rules do not depend on them: what does not run opens nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.changes import Change, change_from_dict
    from fleet_core.errors import FleetError, Unavailable
    from fleet_core.fences import Fence
else:
    try:
        from ..fleet_core.changes import Change, change_from_dict
        from ..fleet_core.errors import FleetError, Unavailable
        from ..fleet_core.fences import Fence
    except ImportError:  # installed as a top-level package
        from fleet_core.changes import Change, change_from_dict
        from fleet_core.errors import FleetError, Unavailable
        from fleet_core.fences import Fence

from .client import Client

DNS, DHCP, PROXY, WATCH = "egress-dns", "egress-dhcp", "egress-proxy", "egress-watch"
# What becomes of a process when its configuration is another one.
RESTART, HANGUP, NOTHING = "restart", "hangup", "nothing"
_LONGEST_ID = 63
_OURS = re.compile(rf"(?:{DNS}|{DHCP})-.+|{PROXY}|{WATCH}")
_TIMEOUT = 60.0  # seconds
_FOREVER = {"policy": "always", "delay": 0.5, "max_delay": 30, "burst": 0}

Item = dict[str, Any]


def process_id(kind: str, name: str = "") -> str:
    """Return the id of a process. Of a name that is too long for one, the end is a hash."""
    ident = f"{kind}-{name}" if name else kind
    if len(ident) > _LONGEST_ID:
        ident = f"{ident[: _LONGEST_ID - 11]}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"
    return ident


def item(
    ident: str,
    label: str,
    argv: Sequence[str],
    text: str = "",
    python: bool = False,
    env: Mapping[str, str] | None = None,
) -> Item:
    """Return the declaration of a process.

    argv: with fleetd's own Python before it if python. text: its configuration; another one means a restart.
    """
    names = [f"word{number}" for number in range(len(argv))]
    words = [*(["${python}"] if python else []), *(f"${{{name}}}" for name in names)]
    digest = {"FLEET_CONFIGURATION": hashlib.sha256(text.encode()).hexdigest()[:16]} if text else {}
    return {
        "id": ident,
        "label": label,
        # Quoted: a value stays one word whatever is in it.
        "command": " ".join(f'"{word}"' for word in words),
        "vars": {name: _literal(word) for name, word in zip(names, argv)},
        "env": {**{key: _literal(value) for key, value in (env or {}).items()}, **digest},
        "working_dir": "/",
        "restart": dict(_FOREVER),
        "stop_timeout": 5,
    }


def _literal(text: str) -> str:
    return text.replace("%", "%%").replace("${", "$${")


class Services:
    """The processes of a fence, as the fleetd of a state folder knows them."""

    def __init__(self, state_dir: str | os.PathLike[str]) -> None:
        self.state_dir = Path(state_dir)

    def call(self, method: str, /, **params: Any) -> Any:
        """Return what fleetd answers. Raises its error, or Unavailable that says who starts it."""
        with Client(self.state_dir) as client:
            try:
                return client.call(method, **params)
            except Unavailable as error:
                raise Unavailable(
                    f"{error.message} (state_dir: {client.folder}; it runs the resolvers, the proxy and the watch of "
                    "the network policy; the role autovibe.fleet.node installs and starts it)"
                ) from error

    def views(self) -> dict[str, Mapping[str, Any]]:
        """Return our processes by their ids."""
        found = self.call("processes.list")["processes"]
        return {view["id"]: view for view in found if _OURS.fullmatch(view["id"])}

    def plan(self, items: Sequence[Item]) -> Change:
        """Return what bring() would do."""
        kept = {one["id"] for one in items}
        gone = [{"id": ident} for ident in self.views() if ident not in kept]
        changes = []
        if items:
            changes.append(self.call("processes.plan", items=list(items), state="started"))
        if gone:
            changes.append(self.call("processes.plan", items=gone, state="absent"))
        return _joined(change_from_dict(answer["change"]) for answer in changes)

    def bring(self, items: Sequence[Item]) -> Change:
        """Declare and start these processes, restart those whose declaration is another one, remove all others."""
        kept = {one["id"] for one in items}
        gone = [{"id": ident} for ident in self.views() if ident not in kept]
        changes = []
        # First what goes: it may hold a port that another one is to have.
        if gone:
            changes.append(self._apply(gone, "absent"))
        if items:
            changes.append(self._apply(items, "started"))
        return _joined(changes)

    def remove(self) -> Change:
        """Stop and forget all of our processes. Without fleetd there are none."""
        try:
            return self.bring(())
        except Unavailable:
            return Change()

    def hang_up(self, idents: Iterable[str]) -> bool:
        """Send SIGHUP to those that run: dnsmasq forgets what it knows, squid reads its configuration again.

        Returns whether one of them runs.
        """
        return self._signal(idents, signal.SIGHUP)

    def end(self, idents: Iterable[str]) -> bool:
        """End those that run, with their connections; fleetd starts them again. Returns whether one of them runs."""
        return self._signal(idents, signal.SIGTERM)

    def _signal(self, idents: Iterable[str], number: int) -> bool:
        wanted, any_runs = set(idents), False
        with contextlib.suppress(FleetError):
            for ident, view in self.views().items():
                if ident in wanted and int(view.get("pid") or 0) > 1:
                    with contextlib.suppress(OSError):
                        os.kill(int(view["pid"]), number)
                        any_runs = True
        return any_runs

    def await_resolvers(self, fence: Fence, seconds: float = 3.0) -> None:
        """Wait until the resolvers listen that can: on bridges that are there. In vain, it is no error."""
        used = {guest.scope for guest in fence.guests}
        there = {pair[1] for pair in socket.if_nameindex()}
        wanted = {
            scope.resolver_port
            for scope in fence.scopes
            if scope.resolver_port and scope.name in used
            and any(guest.bridge in there for guest in fence.guests_of(scope.name))
        }  # fmt: skip
        end = time.monotonic() + seconds
        while not wanted <= _udp_ports() and time.monotonic() < end:
            time.sleep(0.02)

    def _apply(self, items: Sequence[Item], state: str) -> Change:
        answer = self.call(
            "processes.apply", items=list(items), state=state, wait=True, timeout=_TIMEOUT, again=state == "started"
        )
        return change_from_dict(answer["change"])


def _joined(changes: Iterable[Change]) -> Change:
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    actions: list[str] = []
    for change in changes:
        before.update(change.before)
        after.update(change.after)
        actions.extend(change.actions)
    return Change(before, after, tuple(actions))


def _udp_ports() -> set[int]:
    """Return the ports that sockets of UDP are bound to in this network namespace."""
    found = set()
    for name in ("udp", "udp6"):
        with contextlib.suppress(OSError), open(f"/proc/thread-self/net/{name}", encoding="ascii") as file:
            for line in file:
                words = line.split()
                if len(words) > 2 and words[0].rstrip(":").isdigit():
                    found.add(int(words[1].rpartition(":")[2], 16))
    return found
