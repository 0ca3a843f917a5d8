# SPDX-License-Identifier: GPL-3.0-or-later
"""A Proxmox host that is reached by SSH for real, and whose qm is the fake beside this file."""

from __future__ import annotations

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.integration.ssh_server import SshServer, ssh_server

from fleet_machines.provider import Job, Ran
from fleet_machines.proxmox_ssh import Execute, OpenSSH

FAKE = Path(__file__).resolve().parent / "qm"
GIB = 1024**3


class QmHost:
    """folder: of the fake. server: its sshd."""

    def __init__(self, folder: Path, server: SshServer) -> None:
        self.folder = folder
        self.server = server
        self.cache = folder / "cache"

    def ssh(self) -> OpenSSH:
        return OpenSSH(self.server.name, str(self.server.config))

    def local(self) -> Execute:
        """The same without SSH, for tests of many commands."""
        environ = {**os.environ, "PATH": f"{self.server.home / 'bin'}{os.pathsep}{os.environ['PATH']}"}

        def execute(argv: Sequence[str], stdin: str, job: Job) -> Ran:
            done = subprocess.run(
                argv, input=stdin, capture_output=True, text=True, check=False, env=environ, timeout=job.left() + 5
            )
            return Ran(done.returncode, done.stdout, done.stderr)

        return execute

    def settings(self, **values: Any) -> None:
        (self.folder / "settings.json").write_text(json.dumps(values))

    def faults(self, *faults: dict[str, Any]) -> None:
        (self.folder / "faults.json").write_text(json.dumps(faults))

    def calls(self) -> list[list[str]]:
        """What was called, and forget it. Commands that only read are left out."""
        path = self.folder / "calls.jsonl"
        found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        path.unlink(missing_ok=True)
        return [call for call in found if call[:2] not in (["qm", "config"], ["qm", "status"]) and call[0] == "qm"]

    def called(self, words: str) -> bool:
        """Whether a command that begins like this was called. It stays known."""
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return any(" ".join(json.loads(line)).startswith(words) for line in lines)

    def state(self) -> dict[str, Any]:
        path = self.folder / "state.json"
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"machines": {}, "volumes": {}}
        return found

    def config(self, vmid: int) -> dict[str, str]:
        found: dict[str, str] = self.state()["machines"][str(vmid)]["config"]
        return found

    def edit(self, vmid: int, **values: str) -> None:
        state = self.state()
        state["machines"][str(vmid)]["config"].update(values)
        (self.folder / "state.json").write_text(json.dumps(state))

    def snippets(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "local").rglob("*") if path.is_file())


@contextmanager
def qm_host(folder: Path) -> Iterator[QmHost]:
    fake, names = folder / "pve", folder / "names"
    fake.mkdir()
    names.mkdir()
    (folder / "sshd").mkdir()
    with ssh_server(folder / "sshd") as server:
        for name in ("qm", "pvesm", "pveversion"):
            (names / name).symlink_to(FAKE)
            program = server.home / "bin" / name
            program.write_text(f'#!/bin/sh\nFAKE_QM={fake} exec {sys.executable} -I -S {names / name} "$@"\n')
            program.chmod(0o755)
        yield QmHost(fake, server)


class Images(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, also from the middle of a file; cut: how many bytes of an answer are sent before it breaks."""

    cut = 0

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        whole = path.read_bytes()
        begin = int(self.headers.get("Range", "bytes=0-")[len("bytes=") : -1])
        if begin >= len(whole):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(whole) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(whole) - 1}/{len(whole)}")
        self.end_headers()
        type(self).seen.append(begin)
        if type(self).cut and not begin:
            self.wfile.write(whole[: type(self).cut])
            self.close_connection = True
            return
        self.wfile.write(whole[begin:])

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    seen: list[int] = []


@contextmanager
def image_server(folder: Path, cut: int = 0) -> Iterator[tuple[str, list[int]]]:
    """Serve a folder on 127.0.0.1 and yield its address, and from where on its files were asked for."""
    kind = type("Handler", (Images,), {"cut": cut, "seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(kind, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", kind.seen  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def disk_image(path: Path, size: int = 2 * GIB) -> Path:
    """Write what the fake takes for the image of a disk of this size."""
    path.write_text(f"disk of {size} bytes\n" + "x" * 5000)
    return path


def job(seconds: float = 60, said: list[str] | None = None) -> Job:
    return Job.lasting(seconds, (said if said is not None else []).append)


__all__ = ["QmHost", "disk_image", "image_server", "job", "qm_host"]
