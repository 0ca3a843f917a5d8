# SPDX-License-Identifier: GPL-3.0-or-later
"""Looking at this host, and at what it pretends to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet_core.errors import InvalidInput
from fleet_machines import hosts


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("ID=debian\n", "debian"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "debian"),
        ("ID=fedora\n", "redhat"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "redhat"),
        ("ID=arch\n", "archlinux"),
        ('ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\n', "suse"),
        ("ID=plan9\n", ""),
        ("", ""),
    ],
)
def test_families_have_the_names_that_ansible_gives_them(
    monkeypatch: pytest.MonkeyPatch, text: str, family: str
) -> None:
    monkeypatch.setattr(hosts, "_text", lambda path: text)
    assert hosts._family("Linux") == family
    assert hosts._family("Darwin") == "darwin"


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u15)", "7.2.22"),
        ("OpenSSH_9.2p1 Debian-2+deb12u7, OpenSSL 3.0.17", "9.2"),
        ("multipass   1.16.0+mac\nmultipassd  1.16.0+mac", "1.16.0"),
        ("nothing to be seen", ""),
    ],
)
def test_a_program_tells_its_version(tmp_path: Path, said: str, version: str) -> None:
    program = tmp_path / "tool"
    program.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{said}\nEND\n")
    program.chmod(0o755)
    assert hosts._version("tool", str(program)) == version


def test_no_program_is_not_a_program_without_a_version(tmp_path: Path) -> None:
    assert hosts._version("tool", str(tmp_path / "tool")) is None
    broken = tmp_path / "broken"
    broken.write_text("no program")
    broken.chmod(0o755)
    assert hosts._version("tool", str(broken)) == ""


def test_a_folder_that_is_not_there_yet_is_measured_where_it_will_be(tmp_path: Path) -> None:
    assert hosts._existing(tmp_path / "state" / "machines") == tmp_path


def test_this_host_has_memory_disk_and_a_family() -> None:
    found = hosts.look(["qemu"], None, {}, ask=False)
    assert found.memory >= found.available > 0
    assert found.disk > 0
    assert Path(found.folder).is_dir()


def test_another_program_may_stand_in_for_multipass(tmp_path: Path) -> None:
    program = tmp_path / "other"
    program.write_text("#!/bin/sh\necho multipass 1.16.1\n")
    program.chmod(0o755)
    found = hosts.look(["multipass"], str(tmp_path), {"multipass": {"executable": str(program)}}, ask=False)
    assert found.programs["multipass"] == "1.16.1"


def test_a_provider_says_why_it_does_not_answer(tmp_path: Path) -> None:
    settings = {"multipass": {"executable": str(tmp_path / "nowhere")}}
    found = hosts.look(["multipass"], str(tmp_path), settings)
    assert "is not installed on this host" in str(found.answers["multipass"])


def test_a_wrong_setting_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="executeable"):
        hosts.look(["multipass"], str(tmp_path), {"multipass": {"executeable": "x"}})
