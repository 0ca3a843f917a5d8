# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The nodes of providers that an inventory asks: here in this process, on another host over OpenSSH. One call each."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Any

from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import (
    FleetError,
    InvalidInput,
    ProcessFailed,
    TimedOut,
    Unavailable,
    from_code,
)
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.names import (
    as_bool,
    as_text,
    check_keys,
    describe,
)
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.quantities import parse_duration
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_machines import providers
from ansible_collections.autovibe.fleet.plugins.plugin_utils.machine_hosts import HERE, Place, machine_from

KEYS = ("name", "node", "host", "settings", "state_dir", "command", "ssh_args", "jump", "timeout", "full")
HOST = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_\[][A-Za-z0-9_.:%\[\]-]*")

_SECRET = re.compile(r"secret|passw|passphrase|private|token(?!_id)", re.IGNORECASE)
_OPTIONS = ("BatchMode=yes", "ConnectTimeout=10", "ServerAliveInterval=10", "ServerAliveCountMax=3")
_LARGEST = 64 * 1024**2  # bytes of an answer: a thousand machines are one
_SSH_FAILED, _NO_COMMAND = 255, 127

Machines = list[dict[str, Any]]


@dataclass(frozen=True)
class Node:
    """One source of machines.

    name: what people call it; host: where it is asked, empty for here; command: the words of `fleet` there; jump: the
    host that leads to its machines, empty when they are reached directly; timeout: seconds.
    """

    provider: str
    name: str = HERE
    host: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    state_dir: str = ""
    command: tuple[str, ...] = ("fleet",)
    ssh_args: tuple[str, ...] = ()
    jump: str = ""
    timeout: float = 60.0
    full: bool = False

    def __str__(self) -> str:
        return f"{self.provider} on {self.name}"

    @property
    def place(self) -> Place:
        return Place(self.provider, self.name, self.proxy)

    @property
    def proxy(self) -> tuple[str, ...]:
        """The words of ssh's ProxyCommand, as its shell reads them."""
        if not self.jump:
            return ()
        words = map(shlex.quote, ("ssh", "-o", "BatchMode=yes", *self.ssh_args))
        return (*(word.replace("%", "%%") for word in words), "-W", "[%h]:%p", "--", self.jump.replace("%", "%%"))

    @property
    def fingerprint(self) -> str:
        """A hash of all that decides what the answer is about. Secrets decide nothing of that."""
        settings = {key: value for key, value in self.settings.items() if not _SECRET.search(key)}
        parts = (self.provider, self.name, self.host, settings, self.state_dir, self.command, self.ssh_args, self.full)
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Answer:
    """The machines of a node, or why there are none."""

    node: Node
    machines: Machines = field(default_factory=list)
    error: FleetError | None = None


def nodes_from(data: object, state_dir: str = "") -> tuple[Node, ...]:
    """Return the nodes that the option ``providers`` lists. state_dir: of those here that name none.

    Raises InvalidInput, which names the entry and the key.
    """
    if not isinstance(data, (list, tuple)) or not data:
        raise InvalidInput(f"providers: expected a list of providers, found {describe(data)}")
    nodes = tuple(_node(f"providers[{number}]", item, state_dir) for number, item in enumerate(data))
    seen: set[tuple[str, str]] = set()
    for node in nodes:
        if (node.provider, node.name) in seen:
            raise InvalidInput(f'providers: "{node}" stands twice; give one of them another node: NAME')
        seen.add((node.provider, node.name))
    return nodes


def ask_all(nodes: Sequence[Node]) -> tuple[Answer, ...]:
    """Ask all nodes at the same time, one list call each, and return their answers in order."""
    with ThreadPoolExecutor(max_workers=min(32, len(nodes)) or 1, thread_name_prefix="node") as pool:
        return tuple(pool.map(_answer, nodes))


def read(text: str, where: str) -> Machines:
    """Return the machines that `fleet machines list --json` wrote. What a shell prints before is passed over."""
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith("{")), 0)
    try:
        data = json.loads("\n".join(lines[start:]))
    except (ValueError, RecursionError):
        data = None
    found = data.get("machines") if isinstance(data, dict) else None
    if not isinstance(found, list):
        raise ProcessFailed(f"{where}: expected what `fleet machines list --json` writes, found {text.strip()[:80]!r}")
    return machines_from(found, where)


def machines_from(data: object, where: str) -> Machines:
    """Return machines from a list of mappings. Raises ProcessFailed for another thing."""
    if not isinstance(data, (list, tuple)):
        raise ProcessFailed(f"{where}: expected a list of machines, found {describe(data)}")
    try:
        return [machine_from(item) for item in data]
    except InvalidInput as error:
        raise ProcessFailed(f"{where}: {error.message}") from None


def _node(where: str, item: object, state_dir: str) -> Node:
    data = {"name": item} if isinstance(item, str) else item
    data = {key: value for key, value in check_keys(where, data, KEYS).items() if value is not None}
    texts = {key: as_text(f"{where}.{key}", data[key]) for key in ("name", "node", "host", "jump") if key in data}
    provider = texts.get("name", "")
    if not provider:
        raise InvalidInput(f"{where}: expected the name of a provider, such as name: qemu")
    host, jump = texts.get("host", ""), texts.get("jump", texts.get("host", ""))
    if host == HERE:
        host, jump = "", texts.get("jump", "")
    for key, value in (("host", host), ("jump", jump)):
        if value and not HOST.fullmatch(value):
            raise InvalidInput(f"{where}.{key}: expected HOST or USER@HOST, found {value!r}")
    settings = data.get("settings", {})
    if not isinstance(settings, Mapping):
        raise InvalidInput(f"{where}.settings: expected a mapping, found {type(settings).__name__}")
    if not host and provider not in providers.names():
        providers.provider(provider, state_dir)  # which says what is known
    return Node(
        provider=provider,
        name=texts.get("node") or host.rpartition("@")[2] or _host_in(str(settings.get("host") or "")) or HERE,
        host=host,
        settings={str(key): value for key, value in settings.items()},
        state_dir=as_text(f"{where}.state_dir", data["state_dir"])
        if "state_dir" in data
        else ""
        if host
        else state_dir,
        command=_words(f"{where}.command", data.get("command", "fleet")) or ("fleet",),
        ssh_args=_words(f"{where}.ssh_args", data.get("ssh_args", ())),
        jump=jump,
        timeout=parse_duration(f"{where}.timeout", data.get("timeout", 60)),
        full=as_bool(f"{where}.full", data.get("full", False)),
    )


def _host_in(text: str) -> str:
    """Return the host of an address or a URL."""
    return re.sub(r"^\w+://|/.*$|(?<=[^:]):\d+(?=/|$)", "", text)


def _words(where: str, value: object) -> tuple[str, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(as_text(where, item) for item in value)
    try:
        return tuple(shlex.split(as_text(where, value)))
    except ValueError as error:
        raise InvalidInput(f"{where}: expected words as a shell reads them: {error}") from None


def _answer(node: Node) -> Answer:
    try:
        return Answer(node, _remote(node) if node.host else _here(node))
    except FleetError as error:
        return Answer(node, error=error)
    except Exception as error:  # one node's surprise must not hide the others
        return Answer(node, error=FleetError(f"{node}: {type(error).__name__}: {error}"))


def _here(node: Node) -> Machines:
    provider = providers.provider(node.provider, node.state_dir or None, node.settings)
    found = provider.describe()
    if node.full:
        # By name, for some providers do not go to each machine when all are asked for. Which of several is meant by a
        # name that they share, they cannot know.
        names = [name for name, machine in found.items() if not machine.detail.get("same_name")]
        found = {**found, **provider.describe(names, full=True)}
    return machines_from([machine.to_dict() for machine in found.values()], str(node))


def _remote(node: Node) -> Machines:
    words = [*node.command, "machines", "list", "--json", "--provider", node.provider, "--settings-input"]
    words += ["--full"] if node.full else []
    words += ["--state-dir", node.state_dir] if node.state_dir else []
    options = [word for option in _OPTIONS for word in ("-o", option)]
    argv = ["ssh", "-T", *options, *node.ssh_args, "--", node.host, shlex.join(words)]
    # By standard input: a list of processes shows arguments, and settings may hold secrets.
    code, stdout, stderr = _run(argv, json.dumps(dict(node.settings)).encode(), node)
    if code == 0:
        return read(stdout, str(node))
    raise _error(node, code, stderr)


def _run(argv: Sequence[str], given: bytes, node: Node) -> tuple[int, str, str]:
    """Run a command within the node's time; neither a flood nor a stall of its output can hold us up."""
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise Unavailable(f"{node}: ssh is not installed here; expected OpenSSH's client on PATH") from None
    late = threading.Event()

    def end() -> None:
        late.set()
        _kill(child)

    timer = threading.Timer(node.timeout, end)
    timer.start()
    try:
        with child, ThreadPoolExecutor(max_workers=2) as pool:
            texts = [pool.submit(_all, stream, child) for stream in (child.stdout, child.stderr) if stream]
            with contextlib.suppress(BrokenPipeError), child.stdin as stdin:  # the exit code says why
                stdin.write(given)
            stdout, stderr = (text.result() for text in texts)
            code = child.wait()
    finally:
        timer.cancel()
        _kill(child)
    if late.is_set():
        raise TimedOut(f"{node}: it did not answer within {node.timeout:g} s")
    if len(stdout) > _LARGEST:
        raise ProcessFailed(f"{node}: it answered with more than {_LARGEST // 1024**2} MiB")
    return code, stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace")


def _all(stream: IO[bytes], child: subprocess.Popen[bytes]) -> bytes:
    text = stream.read(_LARGEST + 1)
    if len(text) > _LARGEST:
        _kill(child)
    return text


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)


def _error(node: Node, code: int, stderr: str) -> FleetError:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = _printable(lines[-1]) if lines else f"exit code {code}"
    if code == _SSH_FAILED:
        return Unavailable(f"{node}: {node.host} cannot be reached by ssh: {last}")
    if code == _NO_COMMAND:
        return Unavailable(
            f"{node}: {node.command[0]} is not installed on {node.host}, or not in the PATH of its non-interactive "
            f"shells; expected it, or its path in command: {last}"
        )
    try:
        told = json.loads(lines[-1])["error"]
        return from_code(str(told["code"]), f"{node}: {_printable(str(told['message']))}")
    except (IndexError, ValueError, KeyError, TypeError):
        return ProcessFailed(f"{node}: fleet machines list ended with {code} on {node.host}: {last}")


def _printable(text: str) -> str:
    """Return what another host says without what a terminal would act on, and bounded."""
    return "".join(char for char in text if char.isprintable())[:500]
