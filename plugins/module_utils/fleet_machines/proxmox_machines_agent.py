# SPDX-License-Identifier: GPL-3.0-or-later
"""The guest agent of a machine: what addresses it has, whether cloud-init is done, and scripts run inside it.

Scripts go in as input data, never as arguments. Proxmox takes at most 64 KiB of them at once, and no character above
U+00FF; what it hands back it has read as Latin-1.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .provider import Job, Ran
from .proxmox_api import Session, reply_of
from .proxmox_machines import Guest

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, FleetError, ProcessFailed, TimedOut
    from fleet_core.machines import Network
    from fleet_core.quantities import format_duration
else:
    try:
        from ..fleet_core.errors import Conflict, FleetError, ProcessFailed, TimedOut
        from ..fleet_core.quantities import format_duration
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, FleetError, ProcessFailed, TimedOut
        from fleet_core.quantities import format_duration

PIECE = 40_000  # characters of a script sent at once
LONGEST_PAUSE = 3.0
MOST_ADDRESSES = 8  # what is inside tells them, so no number is to be trusted
# Interfaces that a machine made for what runs in it.
_INSIDE = ("lo", "docker", "br-", "veth", "virbr", "cni", "flannel", "cali", "podman", "tap", "tun", "wg", "lxc", "lxd")
_AWAY = (
    "agent is not running",
    "not running",
    "guest agent configured",
    "guest-ping",
    "got timeout",
    "got no response",
)


class Agent:
    """The guest agents of one session's machines."""

    first_pause = 0.5

    def __init__(self, session: Session) -> None:
        self.session = session

    def addresses(self, guest: Guest, networks: Sequence[Network], job: Job) -> tuple[str, ...] | None:
        """Return the addresses of a machine, those of its first interface first; None when its agent does not answer.

        networks: its interfaces as Proxmox has them, whose hardware addresses tell the order.
        """
        try:
            found = self._ask("GET", guest, "network-get-interfaces", {}, job, "ask for its addresses", wait=15.0)
        except FleetError as error:
            if _away(error):
                return None
            raise
        listed = found.get("result") if isinstance(found, dict) else found
        listed = [interface for interface in listed if isinstance(interface, dict)] if isinstance(listed, list) else []
        order = [network.mac for network in networks]
        rows: list[tuple[int, bool, int, str]] = []
        for place, interface in enumerate(listed):
            mac = str(interface.get("hardware-address") or "").lower()
            known = mac in order
            if not known and str(interface.get("name") or "").startswith(_INSIDE):
                continue
            items = interface.get("ip-addresses")
            for item in items if isinstance(items, list) else ():
                address = _usable(str(item.get("ip-address") or "")) if isinstance(item, dict) else None
                if address is not None:
                    rank = order.index(mac) if known else len(order)
                    rows.append((rank, address.version == 6, place, str(address)))
        return tuple(dict.fromkeys(row[-1] for row in sorted(rows)))[:MOST_ADDRESSES]

    def run(self, guest: Guest, script: str, job: Job) -> Ran:
        """Run a shell script as root and return how it ended."""
        text = script if script.isascii() else base64.b64encode(script.encode("utf-8", "surrogatepass")).decode("ascii")
        decode = "" if script.isascii() else "base64 -d | "
        if len(text) <= PIECE:
            command = ["/bin/sh", "-c", f"{decode}/bin/sh -s"] if decode else ["/bin/sh", "-s"]
            return self._exec(guest, command, text, job)
        path = f"/run/fleet-{secrets.token_hex(8)}"
        for start in range(0, len(text), PIECE):
            piece = text[start : start + PIECE]
            sent = self._exec(guest, ["/bin/sh", "-c", f"umask 077; cat >> {path}"], piece, job)
            if sent.code:
                self._exec(guest, ["/bin/rm", "-f", path], "", job)
                raise ProcessFailed(
                    f"{_what(guest)}: a script cannot be written to {path}: {sent.stderr.strip()[-200:]}"
                )
        # It is gone as soon as it has been opened.
        line = f"exec < {path}; rm -f {path}; {decode}/bin/sh -s"
        return self._exec(guest, ["/bin/sh", "-c", line], "", job)

    def settled(self, guest: Guest, job: Job) -> str:
        """Wait for cloud-init in a machine whose agent answers. Return what failed, or an empty text.

        Without the privilege to run commands it cannot be waited for, which is reported.
        """
        try:
            ran = self.run(guest, "command -v cloud-init >/dev/null || exit 127\ncloud-init status --wait", job)
        except Conflict as error:
            if reply_of(error).status != 403:
                raise
            job.report(f"cloud-init is not waited for: {error.message}")
            return ""
        # 0: done; 2: done, with something that it recovered from; 127: an image without cloud-init.
        if ran.code in (0, 2, 127):
            return ""
        return (ran.stdout.strip() or ran.stderr.strip() or f"it ended with {ran.code}").replace("\n", " / ")[-300:]

    # -- parts --------------------------------------------------------------------------------------------------------

    def _exec(self, guest: Guest, command: Sequence[str], stdin: str, job: Job) -> Ran:
        values: dict[str, Any] = {"command": list(command), "input-data": stdin or None}
        asked = "run a script with its guest agent"
        pid = self._ask("POST", guest, "exec", values, job, asked)["pid"]
        pause = 0.1
        while True:
            # One look after the time is over: what has ended by then has ended.
            found = self._ask("GET", guest, "exec-status", {"pid": pid}, job, asked)
            if found.get("exited"):
                return _ran(found)
            if not job.left():
                raise TimedOut(
                    f"{_what(guest)}: a script did not end within {format_duration(job.limit)}; it goes on inside "
                    f"as process {pid}"
                )
            job.pause(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE)

    def _ask(
        self, method: str, guest: Guest, command: str, values: dict[str, Any], job: Job, asked: str, wait: float = 0.0
    ) -> Any:
        """wait: seconds for an answer that the caller asks for again itself."""
        path = f"{guest.path}/agent/{command}"
        how: dict[str, Any] = {"what": _what(guest), "asked": asked, "job": job}
        try:
            return self.session.request(method, path, values, timeout=wait, repeat=False if wait else None, **how)
        except FleetError as error:
            reply = reply_of(error)
            if reply.status == 403:
                raise type(error)(
                    f"{error.message}; scripts through the guest agent need VM.Monitor on Proxmox VE 8, "
                    "VM.GuestAgent.Unrestricted since 9 (its addresses VM.GuestAgent.Audit)"
                ) from reply
            raise


def _ran(found: dict[str, Any]) -> Ran:
    code = found.get("exitcode")
    if code is None:
        code = 128 + int(found.get("signal") or 0)
    return Ran(int(code), _text(found, "out"), _text(found, "err"))


def _text(found: dict[str, Any], which: str) -> str:
    text = str(found.get(f"{which}-data") or "")
    with contextlib.suppress(UnicodeError):  # it was right already
        text = text.encode("latin-1").decode("utf-8")
    return text + ("\n[the rest was cut off]" if found.get(f"{which}-truncated") else "")


def _away(error: FleetError) -> bool:
    reply = reply_of(error)
    return reply.status in (0, 500, 596, 599) and (reply.status != 500 or any(text in reply.said for text in _AWAY))


def _usable(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if "%" in text:  # what stands behind it may be any text, and means nothing outside
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return None if address.is_loopback or address.is_link_local or address.is_multicast else address


def _what(guest: Guest) -> str:
    return f'machine "{guest.machine_name}"'
