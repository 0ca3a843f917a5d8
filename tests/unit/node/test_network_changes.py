# SPDX-License-Identifier: GPL-3.0-or-later
"""The record of changes of a network: armed, confirmed, rolled back, too late, and by the wrong connection."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fleet_core import network_rollback
from fleet_core.errors import Conflict, NotFound, StateDamaged, TimedOut, Unavailable
from fleet_core.network_rollback import Before, SavedFile
from fleet_node import network_changes
from fleet_node.network_changes import Changes

OLD = "192.0.2.9 40000 192.0.2.1 22"
NEW = "192.0.2.9 40001 192.0.2.1 22"


class Systemd:
    """What systemd was told. active: units that run."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.active: set[str] = set()
        self.fails = ""

    def run(self, argv: list[str], *_rest: Any, **_more: Any) -> str:
        if self.fails and self.fails in argv[0]:
            raise Unavailable(f"{argv[0]}: cannot")
        self.calls.append(list(argv))
        if argv[0] == "systemd-run":
            unit = next(word for word in argv if word.startswith("--unit="))
            self.active.add(f"{unit[7:]}.timer")
        return ""

    def attempt(self, argv: list[str], *_rest: Any, **_more: Any) -> Any:
        self.calls.append(list(argv))
        if argv[:2] == ["systemctl", "stop"]:
            self.active.discard(argv[2])
        states = ["activating" if unit in self.active else "inactive" for unit in argv if "." in unit]
        return SimpleNamespace(returncode=0, stdout="\n\n".join(states), stderr="")


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    found = Systemd()
    units = tmp_path / "units"
    monkeypatch.setattr(network_rollback, "BOOT_FILE", str(units / "rollback.service"))
    monkeypatch.setattr(network_rollback, "BOOT_LINK", str(units / "wants" / "rollback.service"))
    monkeypatch.setattr(network_changes, "SYSTEMD", tmp_path)
    monkeypatch.setattr(network_changes, "run", found.run)
    monkeypatch.setattr(network_changes, "attempt", found.attempt)
    return found


@pytest.fixture
def changes(tmp_path: Path, systemd: Systemd) -> Changes:
    return Changes(tmp_path / "state")


def before(changes: Changes, *files: SavedFile) -> Before:
    return Before("0a0b0c0d", str(changes.folder), 60.0, files)


def test_a_change_is_armed_before_anything_is_changed(changes: Changes, systemd: Systemd, tmp_path: Path) -> None:
    file = tmp_path / "interfaces"
    file.write_text("as it was\n")
    pending = changes.arm(before(changes, SavedFile(str(file), "0", 0o640)), 60.0, OLD)
    assert changes.pending() == pending
    assert (changes.folder / "saved" / "0").read_text() == "as it was\n"
    assert Path(network_rollback.BOOT_LINK).is_symlink()
    timer = systemd.calls[-1]
    assert timer[0] == "systemd-run"
    assert "--on-active=60s" in timer
    assert timer[-3:] == ["/bin/sh", str(changes.folder / "rollback.sh"), "timeout"]
    assert changes.folder.stat().st_mode & 0o777 == 0o700


def test_a_confirmation_by_a_new_connection_keeps_it(changes: Changes, systemd: Systemd) -> None:
    changes.arm(before(changes), 60.0, OLD)
    assert changes.confirm("0a0b0c0d", NEW) is True
    assert changes.pending() is None
    assert changes.last()["outcome"] == "confirmed"
    assert not Path(network_rollback.BOOT_FILE).exists()
    assert not Path(network_rollback.BOOT_LINK).is_symlink()
    assert systemd.active == set()
    assert sorted(path.name for path in changes.folder.iterdir()) == ["last.json", "lock"]
    assert changes.confirm("0a0b0c0d", NEW) is False  # once more is no error
    assert changes.confirm("", NEW) is False


def test_the_connection_by_which_it_was_made_proves_nothing(changes: Changes) -> None:
    changes.arm(before(changes), 60.0, OLD)
    with pytest.raises(Conflict, match="expected its confirmation over a new connection"):
        changes.confirm("0a0b0c0d", OLD)
    assert changes.pending() is not None


def test_without_ssh_there_is_no_connection_to_compare(changes: Changes) -> None:
    changes.arm(before(changes), 60.0, "")
    assert changes.confirm("", "") is True


def test_only_one_change_waits(changes: Changes) -> None:
    changes.arm(before(changes), 60.0, OLD)
    with pytest.raises(Conflict, match="change 0a0b0c0d: waits for its confirmation until "):
        changes.arm(before(changes), 60.0, OLD)
    with pytest.raises(Conflict, match="waits for its confirmation"):
        changes.refuse_pending()
    with pytest.raises(Conflict, match="change ffffffff: expected the one that waits, which is 0a0b0c0d"):
        changes.confirm("ffffffff", NEW)


@pytest.mark.parametrize(
    ("why", "words"),
    [
        ("timeout", "since no confirmation came within 1m"),
        ("boot", "since the host was booted before a confirmation came"),
        ("asked", "since somebody asked for it"),
    ],
)
def test_a_confirmation_that_comes_late_says_so(changes: Changes, why: str, words: str) -> None:
    changes.arm(before(changes), 60.0, OLD)
    changes.folder.joinpath("last.json").write_text(
        f'{{"id": "0a0b0c0d", "outcome": "rolled back", "seconds": 60, "why": "{why}", "time": 1769846460}}'
    )
    changes.folder.joinpath("pending.json").unlink()
    for ident in ("0a0b0c0d", ""):
        with pytest.raises(TimedOut) as caught:
            changes.confirm(ident, NEW)
        assert caught.value.message == f"change 0a0b0c0d: was rolled back at 2026-01-31T08:01:00Z, {words}"
    with pytest.raises(NotFound, match="change ffffffff: expected one that waits"):
        changes.confirm("ffffffff", NEW)
    with pytest.raises(TimedOut):
        changes.check_waiting("0a0b0c0d")


def test_nothing_waits_where_systemd_cannot_keep_the_time(changes: Changes, systemd: Systemd) -> None:
    systemd.fails = "systemd-run"
    with pytest.raises(Unavailable):
        changes.arm(before(changes), 60.0, OLD)
    assert changes.pending() is None
    assert not Path(network_rollback.BOOT_FILE).exists()


def test_a_host_without_systemd_is_told_so(changes: Changes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(network_changes, "SYSTEMD", tmp_path / "nowhere")
    with pytest.raises(Unavailable, match="systemd: expected it to keep the time of a rollback"):
        changes.arm(before(changes), 60.0, OLD)
    assert not changes.folder.exists()


def test_a_change_whose_time_nobody_keeps_is_rolled_back_by_the_next(
    changes: Changes, systemd: Systemd, tmp_path: Path
) -> None:
    new = tmp_path / "new"
    changes.arm(before(changes, SavedFile(str(new))), 60.0, OLD)
    new.write_text("half\n")
    systemd.active.clear()
    changes.refuse_pending()
    script = (changes.folder / "rollback.sh").read_text()
    (changes.folder / "rollback.sh").write_text(script.replace("run systemctl", ": systemctl"))
    changes.clear()
    assert not new.exists()
    assert changes.pending() is None
    assert changes.roll_back("asked") is False


@pytest.mark.parametrize("end", [lambda one: one.confirm("", NEW), lambda one: one.keep("0a0b0c0d")])
def test_a_change_that_begins_while_another_is_confirmed_can_be_rolled_back(
    changes: Changes, systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Any
) -> None:
    file = tmp_path / "interfaces"
    file.write_text("as it was\n")
    changes.arm(before(changes), 60.0, OLD)
    second = Before("11111111", str(changes.folder), 60.0, (SavedFile(str(file), "0"),))
    thread = threading.Thread(target=lambda: Changes(changes.folder.parent).arm(second, 60.0, NEW))

    def attempt(argv: list[str], *_rest: Any) -> Any:
        if argv[:2] == ["systemctl", "stop"] and not thread.is_alive() and thread.ident is None:
            thread.start()
            thread.join(0.3)
        return systemd.attempt(argv)

    monkeypatch.setattr(network_changes, "attempt", attempt)
    end(changes)
    thread.join(10)
    pending = changes.pending()
    assert pending is not None
    assert pending.ident == "11111111"
    assert '"11111111"' in (changes.folder / "rollback.sh").read_text()
    assert (changes.folder / "saved" / "0").read_text() == "as it was\n"
    assert Path(network_rollback.BOOT_LINK).exists()


def test_a_rollback_that_does_not_finish_is_an_error(changes: Changes) -> None:
    changes.arm(before(changes), 60.0, OLD)
    (changes.folder / "rollback.sh").write_text("echo no space >&2; exit 1\n")
    with pytest.raises(StateDamaged, match="the rollback did not finish: no space"):
        changes.roll_back("asked")


def test_a_damaged_record_is_an_error_that_names_the_file(changes: Changes) -> None:
    changes.arm(before(changes), 60.0, OLD)
    (changes.folder / "pending.json").write_text("{")
    with pytest.raises(StateDamaged, match=r"pending\.json: cannot be read"):
        changes.pending()


def test_a_write_leaves_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "etc" / "file"
    network_changes.write(file, "one\n", 0o600)
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("one\n", 0o600)

    def fail(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        network_changes.write(file, "two\n", 0o600)
    assert file.read_text() == "one\n"
    assert list(file.parent.iterdir()) == [file]


def test_the_connection_is_found_behind_programs_that_hide_it() -> None:
    root = Path(__file__).resolve().parents[3] / "plugins" / "module_utils"
    ask = f"import sys; sys.path.insert(0, {str(root)!r}); from fleet_node.network_changes import connection"
    ask += "; print(connection())"
    hide = ["sh", "-c", 'env -u SSH_CONNECTION python3 -c "$0"; true', ask]
    done = subprocess.run(
        hide, env={**os.environ, "SSH_CONNECTION": OLD}, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stdout.strip() == OLD, done.stderr
