# SPDX-License-Identifier: GPL-3.0-or-later
"""Network namespaces of one test run, the agents inside them, and the proof that they reach nothing else."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PREFIX = "fleetlab"
CLONE_NEWNET = 0x40000000
Done = subprocess.CompletedProcess[str]


class NamespaceError(Exception):
    """A command of the lab failed, or an agent could not do what it was asked."""


def command(*argv: str, stdin: str | None = None, timeout: float = 60, check: bool = True) -> Done:
    """Run a command. Raises NamespaceError with its words when it fails."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode:
        raise NamespaceError(f"{' '.join(argv)}: exit code {done.returncode}: {(done.stderr + done.stdout).strip()}")
    return done


class Agent:
    """The program agent.py in a namespace: every method of it, asked for by name."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            [*argv, sys.executable, str(HERE / "agent.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            reply = json.loads(line)
            future = self._waiting.pop(reply["id"])
            if "error" in reply:
                future.set_exception(NamespaceError(reply["error"]))
            else:
                future.set_result(reply["result"])
        for future in tuple(self._waiting.values()):
            future.set_exception(NamespaceError("the agent ended"))

    def begin(self, what: str, **values: Any) -> Future[Any]:
        """Ask for something and do not wait: several tries at once."""
        future: Future[Any] = Future()
        assert self._process.stdin is not None
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = future
            self._process.stdin.write(json.dumps({"id": number, "do": what, "with": values}) + "\n")
            self._process.stdin.flush()
        return future

    def ask(self, what: str, **values: Any) -> Any:
        """Ask for something and return the answer. Raises NamespaceError."""
        return self.begin(what, **values).result(timeout=120)

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Namespace:
    """A network namespace. name: as `ip netns` knows it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._agent: Agent | None = None

    @property
    def words(self) -> tuple[str, ...]:
        """The words that run a program in here."""
        return ("ip", "netns", "exec", self.name)

    @property
    def agent(self) -> Agent:
        if self._agent is None:
            self._agent = Agent(self.words)
        return self._agent

    def run(self, *argv: str, stdin: str | None = None, check: bool = True, timeout: float = 60) -> Done:
        """Run a program in here to its end."""
        return command(*self.words, *argv, stdin=stdin, check=check, timeout=timeout)

    def start(self, *argv: str, **options: Any) -> subprocess.Popen[str]:
        """Start a program in here. options: of subprocess.Popen."""
        return subprocess.Popen([*self.words, *argv], text=True, start_new_session=True, **options)

    def ip(self, *lines: str) -> None:
        """Run lines of `ip` (without that word) in one go."""
        command("ip", "-n", self.name, "-batch", "-", stdin="\n".join(lines) + "\n")

    def json(self, *words: str) -> Any:
        """What `ip -json WORDS` shows in here."""
        return json.loads(command("ip", "-n", self.name, "-json", *words).stdout or "[]")

    def sysctl(self, **values: int | str) -> None:
        """Set kernel switches of this namespace: net__ipv4__ip_forward=1."""
        script = "".join(f"{name.replace('__', '.')}={value}\n" for name, value in values.items())
        self.run("sysctl", "-q", "-p", "-", stdin=script)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Let this thread, and what it starts, be in here: sockets, /proc/sys/net, programs. Not /sys/class/net."""
        libc = ctypes.CDLL(None, use_errno=True)
        with open("/proc/thread-self/ns/net", "rb") as old, open(f"/run/netns/{self.name}", "rb") as new:
            if libc.setns(new.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns {self.name}")
            try:
                yield
            finally:
                if libc.setns(old.fileno(), CLONE_NEWNET):
                    os.abort()  # everything after this would happen in the wrong network

    def probe(self, what: str, **values: Any) -> Any:
        """Try one thing from in here (probes.py) and return what came back."""
        return self.agent.ask(what, **values)

    def remove(self) -> None:
        """End what runs in here, then the namespace itself."""
        if self._agent is not None:
            self._agent.stop()
        delete(self.name)


def delete(name: str) -> None:
    """End every process of a namespace of this lab, and the namespace."""
    for _turn in range(3):
        pids = command("ip", "netns", "pids", name, check=False).stdout.split()
        for pid in pids:
            command("kill", "-KILL", pid, check=False)
        if not pids:
            break
    command("ip", "netns", "del", name, check=False)


class Namespaces:
    """The namespaces of one lab. Their names bear this process's number, so that what a killed run left is found."""

    _labs = itertools.count(1)

    def __init__(self) -> None:
        sweep()
        self._prefix = f"{PREFIX}{os.getpid()}x{next(self._labs)}-"
        self._made: dict[str, Namespace] = {}

    def add(self, name: str) -> Namespace:
        namespace = Namespace(self._prefix + name)
        command("ip", "netns", "add", namespace.name)
        self._made[name] = namespace
        return namespace

    def __iter__(self) -> Iterator[Namespace]:
        return iter(self._made.values())

    def connect(self, one: Namespace, first: str, other: Namespace, second: str) -> None:
        """Join two namespaces by a pair of interfaces, neither of which is ever in the root namespace."""
        one.ip(f"link add {first} type veth peer name {second} netns {other.name}")

    def prove_closed(self) -> None:
        """Raise NamespaceError if an interface of any namespace leads out of them all."""
        own = {namespace.name for namespace in self}
        for namespace in self:
            listed = command("ip", "-n", namespace.name, "netns", "list-id")
            names = dict(re.findall(r"^nsid (\d+).*\(iproute2 netns name: (\S+)\)", listed.stdout, re.M))
            for link in namespace.json("-details", "link"):
                kind = link.get("linkinfo", {}).get("info_kind", link["link_type"])
                number = link.get("link_netnsid")
                peer = namespace.name if number is None else names.get(str(number), "a namespace without a name")
                if kind not in ("loopback", "veth", "bridge", "gre", "sit", "ipip", "tun") or peer not in own:
                    raise NamespaceError(f"{namespace.name}: interface {link['ifname']} ({kind}) leads to {peer}")

    def remove(self) -> None:
        for namespace in self:
            namespace.remove()


def sweep() -> None:
    """Remove namespaces of test runs that were killed."""
    for entry in Path("/run/netns").glob(f"{PREFIX}*") if Path("/run/netns").is_dir() else ():
        number = re.match(rf"{PREFIX}(\d+)x", entry.name)
        if number and not Path(f"/proc/{number[1]}").exists():
            delete(entry.name)
