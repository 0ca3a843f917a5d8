# SPDX-License-Identifier: GPL-3.0-or-later
"""Running the tools that fences are made with: nft, iptables-restore, ipset, conntrack."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleet_core.errors import ProcessFailed, TimedOut, Unavailable
else:
    try:
        from ..fleet_core.errors import ProcessFailed, TimedOut, Unavailable
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import ProcessFailed, TimedOut, Unavailable

SBIN = "/usr/local/sbin:/usr/sbin:/sbin"  # missing from the PATH of users and of some services
SECONDS = 60.0  # a ruleset of 100,000 elements loads in less than ten
PACKAGES = {
    "arptables": "arptables",
    "bridge": "iproute2",
    "conntrack": "conntrack",
    "dnsmasq": "dnsmasq-base",
    "ebtables": "ebtables",
    "ebtables-restore": "ebtables",
    "ebtables-save": "ebtables",
    "ip": "iproute2",
    "ip6tables-restore": "iptables",
    "ip6tables-save": "iptables",
    "ipset": "ipset",
    "iptables-restore": "iptables",
    "iptables-save": "iptables",
    "nft": "nftables",
    "squid": "squid-openssl",
}


def find(tool: str) -> str:
    """Return the path of a tool on PATH or in the sbin folders; raise Unavailable that names its package."""
    path = shutil.which(tool) or shutil.which(tool, path=SBIN)
    if path is None:
        raise Unavailable(f'tool "{tool}": expected it on this host, found none; install the package {package(tool)}')
    return path


def package(tool: str) -> str:
    """Return the name of the Debian package that a tool comes in."""
    return PACKAGES.get(tool, tool)


def run(argv: Sequence[str], stdin: str = "", seconds: float = SECONDS) -> str:
    """Run a tool without a shell, in the language of its manual, and return what it printed.

    Raises Unavailable where it is missing, ProcessFailed with its own words where it fails, TimedOut after `seconds`.
    """
    done = attempt(argv, stdin, seconds)
    if done.returncode != 0:
        words = " ".join((done.stderr.strip() or done.stdout.strip() or "it said nothing").split())
        raise ProcessFailed(f"{shown(argv)}: expected success, found exit code {done.returncode}: {words[:2000]}")
    return done.stdout


def attempt(argv: Sequence[str], stdin: str = "", seconds: float = SECONDS) -> subprocess.CompletedProcess[str]:
    """Run a tool as run() does and return how it ended, whatever its exit code is."""
    command = [find(argv[0]), *argv[1:]]
    try:
        # The engine runs in fleetd and in the command line too, where there is no AnsibleModule.
        return subprocess.run(  # pylint: disable=ansible-bad-function
            command,
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=seconds,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired:
        raise TimedOut(f"{shown(argv)}: expected an end within {seconds:g} seconds, found none") from None
    except OSError as error:
        raise Unavailable(f"{shown(argv)}: expected it to start, found {error}") from error


def shown(argv: Sequence[str]) -> str:
    """Return a command as an error message shows it: short, since elements may be thousands."""
    text = " ".join(argv)
    return f"`{text if len(text) <= 200 else text[:197] + '...'}`"
