# SPDX-License-Identifier: GPL-3.0-or-later
"""The script that puts a network back: run by a real shell, with stand-ins for the programs that it calls."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.requirements import require_tool

from fleet_core.network_rollback import Before, SavedFile, SavedLink, boot_unit, script

STAND_IN = '#!/bin/sh\necho "$(basename "$0") $*" >>"$CALLS"\n'


class Rollback:
    """A folder with a change that waits."""

    def __init__(self, folder: Path, **values: Any) -> None:
        for tool in ("sh", "flock", "timeout"):
            require_tool(tool, "to run the rollback of a network")
        self.folder = folder / "a folder"
        (self.folder / "saved").mkdir(parents=True)
        (self.folder / "pending.json").write_text('{"id": "0a0b0c0d"}\n')
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("ip", "systemctl", "networkctl", "netplan"):
            (self.bin / name).write_text(STAND_IN)
            (self.bin / name).chmod(0o755)
        text = script(Before("0a0b0c0d", str(self.folder), 60.0, **values))
        assert text.count("\nPATH=") == 1
        text = text.replace("\nPATH=", f"\nPATH={self.bin}:").replace("/etc/systemd/system", str(folder / "units"))
        self.script = self.folder / "rollback.sh"
        self.script.write_text(text)
        self.log = folder / "calls"
        self.log.write_text("")

    def run(self, *why: str) -> list[str]:
        env = {**os.environ, "CALLS": str(self.log)}
        done = subprocess.run(
            ["/bin/sh", str(self.script), *why], env=env, capture_output=True, text=True, check=False, timeout=30
        )
        assert done.returncode == 0, done.stderr
        return self.log.read_text().splitlines()

    def last(self) -> dict[str, Any]:
        return json.loads((self.folder / "last.json").read_text())


def test_files_come_back_with_their_mode_and_new_ones_go(tmp_path: Path) -> None:
    old, new = tmp_path / "etc" / "it's old", tmp_path / "etc" / "new"
    made = Rollback(tmp_path, files=(SavedFile(str(old), "0", 0o600), SavedFile(str(new))))
    (made.folder / "saved" / "0").write_text("as it was\n")
    new.parent.mkdir()
    new.write_text("wrong\n")
    made.run("timeout")
    assert old.read_text() == "as it was\n"
    assert old.stat().st_mode & 0o777 == 0o600
    assert not new.exists()
    assert sorted(path.name for path in made.folder.iterdir()) == ["last.json", "lock"]
    found = made.last()
    assert (found["id"], found["outcome"], found["why"], found["seconds"]) == ("0a0b0c0d", "rolled back", "timeout", 60)


def test_interfaces_and_addresses_come_back_after_the_stack(tmp_path: Path) -> None:
    made = Rollback(
        tmp_path,
        reload=(("networkctl", "reload"),),
        links=(
            SavedLink("vmbr1", True, True, "", 1500, False),
            SavedLink("vmbr9", existed=False),
            SavedLink("lo", True, True, "vmbr1", 1400),
        ),
        addresses=(("lo", "192.0.2.5/24 brd 192.0.2.255"),),
        routes=((4, "default via 192.0.2.1 dev lo"),),
    )
    calls = made.run("timeout")
    assert calls[0] == "networkctl reload"
    assert "ip link add vmbr1 type bridge stp_state 0 forward_delay 0" in calls  # it is not there any more
    assert "ip link set lo master vmbr1" in calls
    assert "ip link set lo mtu 1400" in calls
    assert "ip address add 192.0.2.5/24 brd 192.0.2.255 dev lo" in calls
    assert "ip -4 route replace default via 192.0.2.1 dev lo" in calls
    assert not any("vmbr9" in call for call in calls)  # nothing to delete
    assert calls[-1] == "systemctl daemon-reload"


def test_at_boot_only_files_come_back(tmp_path: Path) -> None:
    made = Rollback(
        tmp_path,
        reload=(("networkctl", "reload"),),
        at_boot=(("netplan", "generate"),),
        links=(SavedLink("lo", True, True, "vmbr1", 1400),),
        addresses=(("lo", "192.0.2.5/24"),),
    )
    assert made.run("boot") == ["netplan generate"]
    assert made.last()["why"] == "boot"


@pytest.mark.parametrize("pending", [None, '{"id": "0a0b0c0e"}'])
def test_a_change_that_is_confirmed_or_another_one_stays(tmp_path: Path, pending: str | None) -> None:
    new = tmp_path / "new"
    new.write_text("right\n")
    made = Rollback(tmp_path, files=(SavedFile(str(new)),), reload=(("networkctl", "reload"),))
    if pending is None:
        (made.folder / "pending.json").unlink()
    else:
        (made.folder / "pending.json").write_text(pending)
    assert made.run("timeout") == []
    assert new.exists()
    assert not (made.folder / "last.json").exists()


def test_a_step_that_fails_stops_no_other(tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.write_text("wrong\n")
    made = Rollback(
        tmp_path,
        files=(SavedFile("/proc/nowhere/at/all", "7"), SavedFile(str(new))),
        reload=(("no-such-program",), ("networkctl", "reload")),
        sysctls={"no/such/key": "1"},
    )
    assert "networkctl reload" in made.run("asked")
    assert not new.exists()
    assert made.last()["outcome"] == "rolled back"


def test_the_script_is_clean_for_shellcheck(tmp_path: Path) -> None:
    require_tool("shellcheck", "to look at the script")
    made = Rollback(
        tmp_path,
        files=(SavedFile("/etc/it's", "0"), SavedFile("/etc/b")),
        reload=(("networkctl", "reload"),),
        links=(SavedLink("vmbr1", True, True, "", 1500, False), SavedLink("vmbr9", existed=False)),
        addresses=(("lo", "192.0.2.5/24"),),
        strange=(("vmbr1", "192.0.2.6/24"),),
        routes=((6, "default via fe80::1 dev lo"),),
        sysctls={"net/ipv4/ip_forward": "0"},
    )
    done = subprocess.run(["shellcheck", made.script], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_the_unit_of_the_boot_comes_before_every_network() -> None:
    unit = boot_unit("/var/lib/autovibe/network")
    before = next(line for line in unit.splitlines() if line.startswith("Before="))
    for name in ("network-pre.target", "networking.service", "systemd-networkd.service", "NetworkManager.service"):
        assert name in before.split("=")[1].split()
    assert "ConditionPathExists=/var/lib/autovibe/network/pending.json" in unit
    assert "ExecStart=/bin/sh /var/lib/autovibe/network/rollback.sh boot" in unit
