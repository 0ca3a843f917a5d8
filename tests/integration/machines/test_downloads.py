# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloads against a real server on the loopback that breaks off, lies, stalls and refuses."""

from __future__ import annotations

import hashlib
import random
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from fleet_core.errors import FleetError, InvalidInput, NotFound, TimedOut, Unavailable
from fleet_machines import downloads
from fleet_machines.provider import Job

CONTENT = random.Random(4).randbytes(3 * 1024 * 1024 + 17)
CHECKSUM = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves one file. cuts: bytes after which the next connections end, one each; codes: what the next ones answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content = CONTENT
        self.cuts: list[int] = []
        self.codes: list[int] = []
        self.ranges = True
        self.stalls = 0
        self.tag = '"one"'
        self.asked: list[str] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/debian.qcow2"


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range") or ""
        server.asked.append(asked)
        if server.codes:
            self.send_error(server.codes.pop(0))
            return
        found = re.fullmatch(r"bytes=(\d+)-", asked)
        first = int(found[1]) if found and server.ranges else 0
        if self.headers.get("If-Range") not in (None, server.tag):
            first = 0
        if first >= len(server.content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("ETag", server.tag)
        self.send_header("Content-Length", str(len(server.content) - first))
        self.end_headers()
        body = server.content[first:]
        if server.stalls:
            server.stalls -= 1
            self.wfile.write(body[:1000])
            self.wfile.flush()
            server.released.wait(20)
        else:
            self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)
        self.close_connection = True

    def log_message(self, *_words: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


def fetch(
    server: Server, folder: Path, checksum: str = CHECKSUM, seconds: float = 20, stalled: float = 5
) -> tuple[Path, list[str]]:
    told: list[str] = []
    job = Job.lasting(seconds, told.append)
    return downloads.cached(server.url, checksum, folder, job, "image", stalled=stalled), told


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    path, _told = fetch(server, tmp_path / "cache")
    again, _told = fetch(server, tmp_path / "cache")
    assert path == again
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o222 == 0
    assert server.asked == [""]
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def test_sha512_is_taken_as_well(server: Server, tmp_path: Path) -> None:
    path, _told = fetch(server, tmp_path, "sha512:" + hashlib.sha512(CONTENT).hexdigest())
    assert path.read_bytes() == CONTENT


def test_a_cut_connection_is_resumed_where_it_ended(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000, 500_000]
    path, told = fetch(server, tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.asked == ["", "bytes=1000000-", "bytes=1500000-"]
    assert "the connection ended after 1000000 of 3145745 bytes; try again in 1 s" in told


def test_the_next_call_goes_on_with_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    server.cuts = [2_000_000]
    with pytest.raises(TimedOut, match="what is there of it is kept"):
        fetch(server, tmp_path, seconds=1)
    path, _told = fetch(server, tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.asked == ["", "bytes=2000000-"]


def test_a_server_without_ranges_is_asked_for_all_again(server: Server, tmp_path: Path) -> None:
    server.cuts, server.ranges = [2_000_000], False
    path, _told = fetch(server, tmp_path)
    assert path.read_bytes() == CONTENT


def test_a_part_that_is_already_whole_is_only_verified(server: Server, tmp_path: Path) -> None:
    (tmp_path / f"{CHECKSUM.replace(':', '-')}.part").write_bytes(CONTENT)
    path, _told = fetch(server, tmp_path)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"x" * 1000, b"x" * (len(CONTENT) + 5)], ids=["other", "too long"])
def test_a_part_of_another_file_is_not_kept(server: Server, tmp_path: Path, part: bytes) -> None:
    (tmp_path / f"{CHECKSUM.replace(':', '-')}.part").write_bytes(part)
    path, _told = fetch(server, tmp_path)
    assert path.read_bytes() == CONTENT
    assert server.asked[-1] == ""


def test_a_file_that_changes_between_two_connections_is_begun_again(server: Server, tmp_path: Path) -> None:
    server.cuts = [1_000_000]
    changed = threading.Timer(0.5, setattr, (server, "tag", '"two"'))
    changed.start()
    path, _told = fetch(server, tmp_path)
    changed.join()
    assert path.read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.content = CONTENT[:-1] + b"!"
    with pytest.raises(InvalidInput) as error:
        fetch(server, tmp_path)
    found = hashlib.sha256(server.content).hexdigest()
    assert error.value.message == f"image: {server.url}: expected {CHECKSUM}, found sha256:{found}"
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cache_is_noticed(server: Server, tmp_path: Path) -> None:
    path, _told = fetch(server, tmp_path)
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    path, told = fetch(server, tmp_path)
    assert path.read_bytes() == CONTENT
    assert "the file in the cache is damaged: download it again" in told


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [(404, NotFound, "the server answered 404 Not Found"), (403, Unavailable, "the server answered 403 Forbidden")],
)
def test_a_refusal_is_final(server: Server, tmp_path: Path, code: int, kind: type[FleetError], said: str) -> None:
    server.codes = [code] * 2
    with pytest.raises(kind, match=said):
        fetch(server, tmp_path)
    assert len(server.asked) == 1


def test_a_server_in_trouble_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.codes = [503]
    path, told = fetch(server, tmp_path)
    assert path.read_bytes() == CONTENT
    assert "the server answered 503 Service Unavailable; try again in 2 s" in told


def test_more_than_was_announced_does_not_fill_the_disk(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spaces = iter([1024**3, 1024**2])
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _path: SimpleNamespace(free=next(spaces)))
    with pytest.raises(Unavailable, match="expected room"):
        fetch(server, tmp_path)


def test_a_server_that_stalls_is_left_and_asked_again(server: Server, tmp_path: Path) -> None:
    server.stalls = 1
    path, told = fetch(server, tmp_path, stalled=0.5)
    assert path.read_bytes() == CONTENT
    assert server.asked == ["", "bytes=1000-"]
    assert any("timed out" in text for text in told)


def test_a_server_that_only_stalls_does_not_take_longer_than_the_job(server: Server, tmp_path: Path) -> None:
    server.stalls = 100
    began = time.monotonic()
    with pytest.raises(TimedOut, match=r"image: http://127\.0\.0\.1:\d+/debian\.qcow2: not downloaded within the time"):
        fetch(server, tmp_path, seconds=2, stalled=30)
    assert time.monotonic() - began < 10


def test_nobody_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "ATTEMPTS", 1)
    job = Job.lasting(20)
    with pytest.raises(Unavailable, match=r"given up after 1 attempts: .*refused"):
        downloads.cached("http://127.0.0.1:1/x", CHECKSUM, tmp_path, job, "image")


@pytest.mark.parametrize("text", ["", "md5:" + "0" * 32, "sha256:12", "0" * 64, "sha512:" + "0" * 64])
def test_a_checksum_must_be_given(text: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="image: expected the checksum of the file"):
        downloads.cached("https://mirror.test/x", text, tmp_path, Job.lasting(1), "image")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://mirror.test/x",
        "https://",
        "https:///x",
        "https://me:secret@mirror.test/x",
        "https://mirror.test:x/",
        "https://a b/",
    ],
)
def test_an_address_must_be_one_without_secrets(url: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as error:
        downloads.cached(url, CHECKSUM, tmp_path, Job.lasting(1), "image")
    assert "secret" not in error.value.message


def test_a_token_in_an_address_is_not_shown(server: Server, tmp_path: Path) -> None:
    server.codes = [404]
    with pytest.raises(NotFound) as error:
        downloads.cached(f"{server.url}?token=secret", CHECKSUM, tmp_path, Job.lasting(5), "image")
    assert "secret" not in error.value.message
