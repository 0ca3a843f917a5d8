# SPDX-License-Identifier: GPL-3.0-or-later
"""Artifacts: which files globs find, and what an archive may write."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from fleet_core.errors import InvalidInput, ProcessFailed
from fleet_node import artifacts


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in (
        "a.txt",
        "b.log",
        ".hidden",
        "dist/x.whl",
        "dist/sub/y.whl",
        "dist/.keep",
        "odd [1]/z",
        "deep/er/x.whl",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    # Two ways round: every depth doubles the paths through them.
    (root / "loop").symlink_to(".")
    (root / "deep" / "loop").symlink_to("..")
    return root


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("*.txt", ["a.txt"]),
        ("./a.txt", ["a.txt"]),
        ("?.*", ["a.txt", "b.log"]),
        (".hid*", [".hidden"]),
        ("dist", ["dist/.keep", "dist/sub/y.whl", "dist/x.whl"]),
        ("dist/", ["dist/.keep", "dist/sub/y.whl", "dist/x.whl"]),
        ("dist/*", ["dist/sub/y.whl", "dist/x.whl"]),
        ("**/*.whl", ["deep/er/x.whl", "dist/sub/y.whl", "dist/x.whl"]),
        ("dist/**", ["dist/.keep", "dist/sub/y.whl", "dist/x.whl"]),
        ("odd [[]1]/*", ["odd [1]/z"]),
        ("[ab].*", ["a.txt", "b.log"]),
        ("nothing", []),
        ("a.txt/more", []),
    ],
)
def test_globs_find(tree: Path, pattern: str, found: list[str]) -> None:
    assert artifacts.find(str(tree), str(tree), [pattern]) == (found, [] if found else [pattern])
    assert artifacts.matches(str(tree), pattern) == bool(found)


def test_a_glob_of_a_task_begins_in_its_own_folder(tree: Path) -> None:
    assert artifacts.find(str(tree), str(tree / "dist"), ["*.whl"]) == (["dist/x.whl"], [])


@pytest.mark.parametrize("link", ["/etc/passwd", "../..", "../../outside"])
def test_a_link_that_leads_out_is_refused(tree: Path, link: str) -> None:
    (tree.parent / "outside").mkdir()
    (tree / "dist" / "link").symlink_to(link)
    with pytest.raises(ProcessFailed, match=r'artifact ".*/dist/link": leads to .*, out of the folder'):
        artifacts.find(str(tree), str(tree), ["dist"])
    (tree.parent / "outside" / "f").write_text("x")
    with pytest.raises(ProcessFailed, match="out of the folder"):
        artifacts.pack(str(tree), ["../outside/f"], io.BytesIO())


def test_what_cannot_be_read_or_is_no_file_is_named(tree: Path) -> None:
    (tree / "broken").symlink_to("nowhere")
    with pytest.raises(ProcessFailed, match="cannot be read: No such file"):
        artifacts.find(str(tree), str(tree), ["broken"])
    os.mkfifo(tree / "pipe")
    with pytest.raises(ProcessFailed, match="expected a file, found something else"):
        artifacts.find(str(tree), str(tree), ["pipe"])


def test_too_many_files_are_refused(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "MOST", 2)
    with pytest.raises(ProcessFailed, match=r'expected at most 2 files, found more with "\*\*"'):
        artifacts.find(str(tree), str(tree), ["**"])


def archive(*members: tuple[str, bytes, str]) -> io.BytesIO:
    """Return a tar of (name, type, link name)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as file:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, 2 if kind == tarfile.REGTYPE else 0
            file.addfile(member, io.BytesIO(b"hi"))
    out.seek(0)
    return out


@pytest.mark.parametrize(
    "member",
    [
        ("../up", tarfile.REGTYPE, ""),
        ("a/../../up", tarfile.REGTYPE, ""),
        ("/absolute", tarfile.REGTYPE, ""),
        ("a//b", tarfile.REGTYPE, ""),
        ("./x", tarfile.REGTYPE, ""),
        ("", tarfile.REGTYPE, ""),
        ("link", tarfile.SYMTYPE, "/etc/passwd"),
        ("hard", tarfile.LNKTYPE, "/etc/passwd"),
        ("device", tarfile.CHRTYPE, ""),
        ("pipe", tarfile.FIFOTYPE, ""),
        ("folder", tarfile.DIRTYPE, ""),
    ],
)
def test_an_archive_that_would_escape_is_refused(tmp_path: Path, member: tuple[str, bytes, str]) -> None:
    target = tmp_path / "target"
    with pytest.raises(InvalidInput, match="expected a file with a relative path inside"):
        artifacts.unpack(archive(member), target)
    assert list(target.iterdir()) == []
    assert not (tmp_path / "up").exists()


def test_nothing_is_written_through_a_link_that_is_there(tmp_path: Path) -> None:
    target, outside = tmp_path / "target", tmp_path / "outside"
    target.mkdir()
    outside.mkdir()
    (outside / "kept").write_text("kept")
    (target / "folder").symlink_to(outside)
    (target / "file").symlink_to(outside / "kept")
    with pytest.raises(Exception, match="cannot be written"):
        artifacts.unpack(archive(("folder/x", tarfile.REGTYPE, "")), target)
    assert artifacts.unpack(archive(("file", tarfile.REGTYPE, "")), target) == ["file"]
    assert (outside / "kept").read_text() == "kept"
    assert (target / "file").read_text() == "hi"
    assert [path.name for path in outside.iterdir()] == ["kept"]


@pytest.mark.parametrize("data", [b"", b"no tar at all", b"\0" * 700, b"x" * 2000])
def test_a_damaged_archive_is_a_sentence_or_empty(tmp_path: Path, data: bytes) -> None:
    try:
        assert artifacts.unpack(io.BytesIO(data), tmp_path / "target") == []
    except InvalidInput as error:
        assert "the archive is damaged" in error.message  # noqa: PT017
