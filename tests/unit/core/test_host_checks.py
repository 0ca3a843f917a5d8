# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host needs to run machines: from what was found to what to do."""

from __future__ import annotations

from typing import Any

import pytest

from fleet_core.errors import InvalidInput
from fleet_core.host_checks import ADVICE, MISSING, OK, TOOLS, Check, Found, Kvm, check_providers, checks, older, table

G = 1024**3
PROGRAMS = {
    "ssh": "9.2",
    "git": "2.39.5",
    "qemu-system-x86_64": "7.2.22",
    "qemu-img": "7.2.22",
    "xorriso": "1.5.4",
    "mmdebstrap": "1.3.5",
    "mke2fs": "1.47.0",
    "newuidmap": "",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "",
    "multipass": "1.16.0",
}
USABLE = Kvm(flags=("vmx",), device=True, usable=True, group="kvm", nested=True)


def host(**fields: Any) -> Found:
    """A host that has everything, but for what is said."""
    whole: dict[str, Any] = {
        "system": "Linux",
        "family": "debian",
        "user": "ada",
        "programs": PROGRAMS,
        "packages": {"proxmoxer": "2.3.0", "requests": "2.34.2"},
        "kvm": USABLE,
        "memory": 16 * G,
        "available": 12 * G,
        "disk": 100 * G,
        "folder": "/var/lib/autovibe",
    }
    return Found(**{**whole, **fields})


def rows(found: Found, *providers: str, memory: int = G, disk: int = 5 * G) -> dict[str, Check]:
    return {row.name: row for row in checks(found, providers or ("qemu",), memory=memory, disk=disk)}


@pytest.mark.parametrize("providers", [("qemu",), ("multipass",), ("proxmox",), ("qemu", "multipass", "proxmox")])
def test_a_host_that_has_everything_needs_nothing(providers: tuple[str, ...]) -> None:
    found = checks(host(), providers, memory=G, disk=G)
    assert {row.state for row in found} == {OK}
    assert {row.advice for row in found} == {""}
    assert len({row.name for row in found}) == len(found)


def without(*names: str) -> dict[str, str]:
    return {name: version for name, version in PROGRAMS.items() if name not in names}


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool.programs], ids=lambda tool: tool.name)
def test_a_program_that_is_not_there_is_missing(tool: Any) -> None:
    provider = tool.provider or "qemu"
    row = rows(host(programs=without(*tool.programs)), provider)[tool.name]
    assert (row.state, row.found) == (MISSING, "-")
    assert row.advice.startswith(f"install {tool.programs[0]}")


@pytest.mark.parametrize(
    ("version", "minimum", "expected"),
    [
        ("7.2.22", (6, 0), False),
        ("5.2", (6, 0), True),
        ("6", (6, 0), True),
        ("10.0", (9, 1), False),
        ("", (6, 0), False),
        ("1.9", (1, 15), True),
    ],
)
def test_versions_are_compared_by_their_numbers(version: str, minimum: tuple[int, ...], expected: bool) -> None:
    assert older(version, minimum) is expected


def test_an_old_version_is_missing_and_says_what_is_needed() -> None:
    row = rows(host(programs={**PROGRAMS, "multipass": "1.13.1"}), "multipass")["multipass"]
    assert (row.state, row.found) == (MISSING, "multipass 1.13.1")
    assert row.advice == "1.15 or newer is needed to run machines, and 1.15 to clone them"


def test_any_of_several_programs_will_do() -> None:
    found = host(programs={**without("xorriso"), "genisoimage": "1.1.11"})
    assert rows(found)["iso"].found == "genisoimage 1.1.11"


def test_only_debian_builds_images_from_debian_packages() -> None:
    programs = without("mmdebstrap", "mke2fs")
    assert "mmdebstrap" not in rows(host(family="redhat", programs=programs))
    assert rows(host(programs=programs))["mmdebstrap"].state == MISSING


@pytest.mark.parametrize(
    ("kvm", "guest", "words"),
    [
        (Kvm(), "", "firmware"),
        (Kvm(), "virtual machine", "itself a virtual machine"),
        (Kvm(device=True, usable=True), "container", "itself a container"),
        (Kvm(flags=("svm",)), "", "load the module kvm_intel or kvm_amd"),
        (Kvm(flags=("svm",), device=True, group="kvm"), "", "usermod --append --groups kvm ada"),
        (Kvm(flags=("vmx",), device=True, usable=True, works=False), "", "does not run with it"),
    ],
)
def test_what_keeps_kvm_from_working_is_said_and_fails_nothing(kvm: Kvm, guest: str, words: str) -> None:
    found = rows(host(kvm=kvm, guest=guest))
    assert found["kvm"].state == ADVICE
    assert words in found["kvm"].advice
    assert "nested" not in found


def test_a_probe_that_says_it_works_is_believed() -> None:
    row = rows(host(kvm=Kvm(flags=("vmx",), device=True, usable=True, works=True)))["kvm"]
    assert (row.state, row.found) == (OK, "vmx, /dev/kvm")


def test_machines_in_machines_are_advised_on() -> None:
    kvm = Kvm(flags=("vmx",), device=True, usable=True, nested=False)
    assert (rows(host(kvm=kvm))["nested"].state, rows(host())["nested"].state) == (ADVICE, OK)


def test_only_the_group_of_kvm_is_one_to_join() -> None:
    lacking = {"flags": ("vmx",), "device": True}
    assert Kvm(**lacking, group="kvm").joinable
    assert not Kvm(**lacking, group="root").joinable
    assert not Kvm(**lacking, group="kvm", usable=True).joinable
    assert not Kvm(device=True, group="kvm").joinable


def test_macos_has_no_kvm() -> None:
    assert "kvm" not in rows(host(system="Darwin", family="darwin"))


@pytest.mark.parametrize(
    ("fields", "name", "state"),
    [
        ({"memory": G // 2, "available": G // 4}, "memory", MISSING),
        ({"available": G // 2}, "memory", ADVICE),
        ({"disk": 4 * G}, "disk", MISSING),
        ({"disk": 5 * G}, "disk", OK),
    ],
)
def test_memory_and_disk(fields: dict[str, int], name: str, state: str) -> None:
    assert rows(host(**fields))[name].state == state


def test_a_provider_elsewhere_needs_no_room_here() -> None:
    assert not {"memory", "disk"} & set(rows(host(disk=0, memory=0), "proxmox"))


def test_a_provider_that_does_not_answer_yet_is_no_failure() -> None:
    row = rows(host(answers={"qemu": "fleetd does not run"}))["answers"]
    assert (row.state, row.advice) == (ADVICE, "fleetd does not run")
    assert rows(host(answers={"qemu": None}))["answers"].state == OK


def test_an_unknown_provider_is_named_with_a_guess() -> None:
    with pytest.raises(InvalidInput, match='provider "qmu": unknown, did you mean "qemu"'):
        check_providers(["qmu"])
    assert check_providers(["qemu", "qemu"]) == ("qemu",)


def test_the_table_has_a_line_for_each_row() -> None:
    lines = table(checks(host(programs=without("git")), ["qemu"], memory=G, disk=G))
    assert lines[0].split() == ["CHECK", "STATE", "FOUND", "WHAT", "TO", "DO"]
    assert next(line for line in lines if line.startswith("git")).split()[:3] == ["git", "missing", "-"]
    assert {line.index(word) for line, word in zip(lines[:2], ("STATE", "ok"), strict=True)} == {
        lines[0].index("STATE")
    }


def test_only_users_without_root_need_other_user_ids() -> None:
    programs = without("newuidmap")
    assert rows(host(programs=programs))["uidmap"].state == MISSING
    assert "uidmap" not in rows(host(programs=programs, user="root"))


def test_a_file_is_looked_for_too() -> None:
    name = "/usr/share/keyrings/debian-archive-keyring.gpg"
    assert rows(host(programs=without(name)))["keyring"].advice == f"install {name} to trust Debian's packages"
    assert rows(host())["keyring"].state == OK


def test_what_builds_images_is_needed_only_where_they_are_built() -> None:
    bare = host(programs=without("mmdebstrap", "mke2fs", "newuidmap"))
    lacking = {row.name for row in checks(bare, ["qemu"]) if row.state == MISSING}
    assert lacking == {"mmdebstrap", "mke2fs", "uidmap"}
    assert not [row for row in checks(bare, ["qemu"], builds=False) if row.state == MISSING]
