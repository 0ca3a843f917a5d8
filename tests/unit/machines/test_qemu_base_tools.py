# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import sys
import time
from email import message_from_string
from pathlib import Path

import pytest

from fleet_core.errors import ProcessFailed, TimedOut, Unavailable
from fleet_machines import qemu_base_tools as tools
from fleet_machines.provider import Job
from fleet_machines.qemu_base import file_of
from fleet_machines.qemu_images_user_data import with_agent


def test_a_program_that_fails_says_why() -> None:
    with pytest.raises(ProcessFailed) as error:
        tools.run(["/bin/sh", "-c", "echo one >&2; echo 'two\033[2J' >&2; exit 3"], Job.lasting(10), "base x")
    assert error.value.message == "base x: sh ended with 3: two [2J"


def test_a_program_that_is_not_there_is_named_with_its_package() -> None:
    with pytest.raises(
        Unavailable, match="base x: the program no-such is not installed on this host; expected package p"
    ):
        tools.need("no-such", "p", "base x")


def test_a_program_that_does_not_end_is_ended_with_all_it_started(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! >{tmp_path}/pid; wait"
    with pytest.raises(TimedOut, match="base x: sh did not end within 1s"):
        tools.run(["/bin/sh", "-c", script], Job.lasting(1), "base x")
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 5
    while Path(f"/proc/{pid}/stat").exists() and time.monotonic() < end:
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            break
        time.sleep(0.02)
    else:
        assert not Path(f"/proc/{pid}").exists()


def test_open_files_reach_the_program_under_high_numbers(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("inside")
    handle = tools.out_of_the_way(os.open(path, os.O_RDONLY))
    try:
        assert handle >= 100
        code = f"import os; print(os.read({handle}, 9).decode())"
        assert tools.run([sys.executable, "-c", code], Job.lasting(20), "x", held=(handle,)) == "inside\n"
    finally:
        os.close(handle)


def test_of_mmdebstrap_the_cause_is_told_and_not_its_end() -> None:
    said = (
        "I: running\nW: a warning\nmke2fs: no space left\n"
        "E: setup failed: E: command failed: sh -c '#!/bin/sh\nset -eu\n"
        "I: cleaning\nE: mmdebstrap failed to run\n"
    )
    assert tools.last_line(said) == (
        "mke2fs: no space left; E: setup failed: E: command failed: sh -c '#!/bin/sh; set -eu"
    )
    assert tools.last_line("I: done\n") == "it said nothing"


def test_a_long_text_keeps_its_end() -> None:
    assert tools.fit("x" * 1000 + "end").endswith("xend")
    assert len(tools.fit("x" * 1000)) == 400


@pytest.mark.parametrize(
    ("base", "path"),
    [
        ("/srv/a b.qcow2", "/srv/a b.qcow2"),
        ("file:///srv/a%20b.qcow2", "/srv/a b.qcow2"),
        ("file://localhost/srv/x", "/srv/x"),
        ("file://other/srv/x", None),
        ("file:x", None),
        ("x.qcow2", None),
    ],
)
def test_files_are_named_by_path_or_address(base: str, path: str | None) -> None:
    found = file_of(base)
    assert (None if found is None else str(found)) == path


@pytest.mark.parametrize("given", [None, "#cloud-config\npackages: [gít]\n", "#!/bin/sh\necho 1\n"])
def test_user_data_are_a_part_of_their_own_beside_the_agent(given: str | None) -> None:
    parts = list(message_from_string(with_agent(given)).walk())[1:]
    texts = [bytes(part.get_payload(decode=True)).decode() for part in parts]  # type: ignore[arg-type]
    assert texts[:-1] == ([given] if given else [])
    assert "qemu-guest-agent" in texts[-1]
    assert all(part.get_content_type() == "text/plain" for part in parts)
    assert all(part["Merge-Type"].startswith("list(append)") for part in parts)
