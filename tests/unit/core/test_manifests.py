# SPDX-License-Identifier: GPL-3.0-or-later
"""Manifests: made of real folders by the script that runs in machines, and taken from nobody on trust."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.errors import FleetError, InvalidInput, ProcessFailed
from fleet_core.manifests import (
    LONGEST_TEXT,
    Entry,
    Manifest,
    check_folders,
    compare,
    from_dict,
    lines,
    parse,
    script,
    shown,
    verify,
)


def ran(*folders: str, most: int = 1000) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-s"], input=script(folders, 30, most), capture_output=True, text=True, check=False, timeout=60
    )


def made(*folders: str) -> Manifest:
    done = ran(*folders)
    assert done.stderr == ""
    return parse(done.stdout, folders)


def said(missing: Any, entries: Any) -> str:
    """What a script would print."""
    plain = json.dumps([missing, entries]).encode()
    return (
        f"manifest {len(entries)} {hashlib.sha256(plain).hexdigest()} {base64.b64encode(zlib.compress(plain)).decode()}"
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "srv with 'quotes' and $(blanks)"
    (folder / "sub").mkdir(parents=True)
    (folder / "file").write_text("hello")
    (folder / "sub" / "link").symlink_to("../file")
    (folder / "out").symlink_to("/etc")
    (folder / "empty").touch(mode=0o600)
    return folder


def test_a_manifest_holds_paths_sizes_and_hashes_and_no_content(root: Path) -> None:
    (root / "file").chmod(0o640)
    done = ran(str(root), "/nowhere")
    found = parse(done.stdout, [str(root), "/nowhere"])
    assert found.missing == ("/nowhere",)
    assert (found.files, found.size) == (2, 5)
    entry = found.entries[f"{root}/file"]
    assert entry == Entry("file", 5, hashlib.sha256(b"hello").hexdigest(), 0o640)
    assert found.entries[f"{root}/out"] == Entry("link", target="/etc")
    assert not any(path.startswith(f"{root}/out/") for path in found.entries)  # links are not followed
    assert "hello" not in done.stdout
    assert "hello" not in json.dumps(found.to_dict())
    assert from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert made(str(root)).digest == made(str(root)).digest


def test_what_changed_is_found(root: Path) -> None:
    before = made(str(root))
    (root / "file").write_text("other")
    (root / "empty").chmod(0o644)
    (root / "out").unlink()
    (root / "out").symlink_to("/usr")
    (root / "sub" / "link").unlink()
    (root / "sub" / "link").mkdir()
    (root / "new").touch()
    after = made(str(root))
    diff = compare(before, after)
    assert diff.added == (f"{root}/new",)
    assert diff.changed == {
        f"{root}/empty": "mode",
        f"{root}/file": "content",
        f"{root}/out": "target",
        f"{root}/sub/link": "kind",
    }
    assert str(diff) == "1 added, 4 changed"
    assert compare(after, before).removed == (f"{root}/new",)
    assert not verify(before, before)
    assert verify(before, after)
    with pytest.raises(InvalidInput, match="expected one of"):
        verify(before, made("/nowhere"))


HOSTILE = [
    b"line\nbreak",
    b"\x1b[2J\x1b]0;title\x07",
    b"back\\slash",
    b"\xff\xfe",
    "caf\u00e9".encode(),
    b"\xe2\x80\xaert",
]


def test_names_that_would_harm_a_terminal_are_one_printable_line_each(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "x")
    os.mkdir(folder)
    for name in HOSTILE:
        os.close(os.open(os.path.join(folder, name), os.O_CREAT))
    found = made(str(tmp_path / "x"))
    names = {path.rpartition("/")[2] for path in found.entries} - {"x"}
    assert names == {
        *("line\\nbreak", "\\x1b[2J\\x1b]0;title\\x07", "back\\\\slash", "\\udcff\\udcfe", "caf\u00e9", "\\u202ert"),
    }
    assert all(line.isprintable() for line in lines(found))
    json.dumps(found.to_dict()).encode()


@given(st.text(), st.text())
def test_two_paths_never_look_the_same(one: str, other: str) -> None:
    assert shown(one).isprintable()
    assert (shown(one) == shown(other)) == (one == other)


def test_pipes_and_devices_are_recorded_and_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert made(str(tmp_path)).entries[f"{tmp_path}/pipe"].kind == "other"


def test_too_many_files_and_linked_folders_are_refused_by_the_script(root: Path) -> None:
    for folder, most, message in ((root, 3, "more than 3 files and folders"), (root / "out", 99, "name that instead")):
        done = ran(str(folder), most=most)
        assert (done.returncode, done.stdout) == (1, "")
        assert message in done.stderr


GOOD = ["file", 1, "0" * 64, 0o644, ""]
REFUSED: list[tuple[str, str]] = [
    ("", "one that is none"),
    ("manifest 0 x", "one that is none"),
    ("manifest 0 x !!!!", "cut off, or is damaged"),
    (said([], {"/srv/a": GOOD})[:-12], "cut off, or is damaged"),
    (said([], {"/srv/a": GOOD}).replace("manifest 1 ", "manifest 1 0"), "cut off, or is damaged"),
    ("x" * (LONGEST_TEXT + 1), "of more than 16M"),
    (said([], [1]), "of more than 200000 files"),
    (said(["/etc"], {}), "of other folders"),
    (said([], {"/etc/passwd": GOOD}), "'/etc/passwd', which is in none of the folders"),
    (said([], {"/srv/../etc": GOOD}), "which is in none of the folders"),
    (said([], {"/srv//a": GOOD}), "which is in none of the folders"),
    (said([], {"/srv/" + "a" * 5000: GOOD}), "which is in none of the folders"),
    (said([], {"/srv/a": ["file", -1, "0" * 64, 0, ""]}), "something else for '/srv/a'"),
    (said([], {"/srv/a": ["file", True, "0" * 64, 0, ""]}), "something else for '/srv/a'"),
    (said([], {"/srv/a": ["file", 1, "password", 0, ""]}), "something else for '/srv/a'"),
    (said([], {"/srv/a": ["socket", 1, "", 0, ""]}), "something else for '/srv/a'"),
    (said([], {"/srv/a\n": 5}), "something else for '/srv/a\\\\n'"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[f"{number}" for number in range(len(REFUSED))])
def test_a_guest_that_says_something_else_is_refused(text: str, message: str) -> None:
    with pytest.raises(ProcessFailed) as caught:
        parse(text, ["/srv"])
    assert message in caught.value.message
    assert len(caught.value.message) < 300
    assert caught.value.message.isprintable()


def test_a_bomb_is_not_unpacked() -> None:
    packed = zlib.compress(b"[" * (200 * 1024**2), 9)
    with pytest.raises(ProcessFailed, match="of more than 64M"):
        parse(f"manifest 1 0 {base64.b64encode(packed).decode()}", ["/srv"])


def test_deep_json_is_refused() -> None:
    plain = b"[" * 100_000
    packed = base64.b64encode(zlib.compress(plain)).decode()
    with pytest.raises(ProcessFailed, match="of another form"):
        parse(f"manifest 1 {hashlib.sha256(plain).hexdigest()} {packed}", ["/srv"])


@given(st.text(max_size=200))
def test_any_text_is_a_manifest_or_an_error_of_ours(text: str) -> None:
    for candidate in (text, f"noise\nmanifest 1 2 {text}"):
        with pytest.raises(FleetError):
            parse(candidate, ["/srv"])


ENTRIES = st.dictionaries(
    st.sampled_from(["/srv/a", "/srv/b", "/srv/c/d", "/srv/c", "/etc/x"]),
    st.builds(Entry, st.sampled_from(["file", "folder"]), st.integers(0, 3), st.just(""), st.integers(0, 3)),
)


@given(ENTRIES, ENTRIES)
def test_a_difference_leads_from_one_to_the_other(old: dict[str, Entry], new: dict[str, Entry]) -> None:
    before, after = Manifest(("/etc", "/srv"), old), Manifest(("/srv", "/etc"), new)
    diff = compare(before, after)
    result = {path: entry for path, entry in old.items() if path not in diff.removed}
    result.update({path: new[path] for path in (*diff.added, *diff.changed)})
    assert result == new
    assert bool(diff) == (old != new)
    inner = compare(before, Manifest(("/srv/c",), {path: e for path, e in new.items() if path.startswith("/srv/c")}))
    assert all(path.startswith("/srv/c") for path in (*inner.added, *inner.removed, *inner.changed))


def test_manifests_of_other_folders_are_not_compared() -> None:
    with pytest.raises(InvalidInput, match="expected two of the same folders, found /srv and /etc"):
        compare(Manifest(("/srv",)), Manifest(("/etc",)))


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ("/srv", "expected a list"),
        (["srv"], "absolute paths"),
        (["/srv/../etc"], 'without ".."'),
        (["/a\0b"], "absolute paths"),
        ([f"/{number}" for number in range(65)], "at most 64"),
        ([5], "absolute paths"),
    ],
)
def test_wrong_folders_are_one_sentence(folders: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_folders("folders", folders)
    assert message in caught.value.message


def test_folders_are_named_once_and_plainly() -> None:
    assert check_folders("folders", ["/srv/", "//srv", "/srv/./a", "/"]) == ("/", "/srv", "/srv/a")
    with pytest.raises(InvalidInput, match="expected a list of folders"):
        script("/srv")
    with pytest.raises(InvalidInput, match="at least one"):
        script([])


@pytest.mark.parametrize(
    "data", [None, [], {}, {"folders": ["/a"]}, {"folders": ["/a"], "entries": {"/a": 5}, "missing": []}]
)
def test_a_damaged_record_is_refused(data: Any) -> None:
    with pytest.raises(InvalidInput, match="expected one that was saved"):
        from_dict(data)
