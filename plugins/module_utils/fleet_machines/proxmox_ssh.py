# SPDX-License-Identifier: GPL-3.0-or-later
"""Golden images by ``qm`` over SSH: for Proxmox VE 7, whose API cannot import a disk, and for those who prefer it.

Nothing secret is in an argument: user data, scripts and the addresses of images go by standard input.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Protocol

from . import golden
from . import proxmox_qm as qm
from .provider import Job, Ran
from .proxmox_marks import Mark, mark_of, tags_of

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, FleetError, InvalidInput, ProcessFailed, TimedOut, Unavailable
    from fleet_core.images import ImageSpec
    from fleet_core.names import as_int, as_text, check_keys
    from fleet_core.quantities import format_duration
else:
    try:
        from ..fleet_core.errors import Conflict, FleetError, InvalidInput, ProcessFailed, TimedOut, Unavailable
        from ..fleet_core.names import as_int, as_text, check_keys
        from ..fleet_core.quantities import format_duration
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, FleetError, InvalidInput, ProcessFailed, TimedOut, Unavailable
        from fleet_core.names import as_int, as_text, check_keys
        from fleet_core.quantities import format_duration

SHUTDOWN = 120  # seconds for a sealed machine to shut down before it is powered off
TIDYING = 60.0  # seconds, beyond the deadline if need be, to take a secret away from the host
MOST_INPUT = 1024**2  # bytes that the guest agent takes as standard input (qm(1), guest exec)

_NO_SUCH = re.compile(r"does not exist|no such (vm|guest)", re.IGNORECASE)
# Another task holds the machine, or the cluster's file system is busy: both pass.
_BUSY = re.compile(r"can't lock file|got (?:lock )?timeout|cluster not ready|VM is locked", re.IGNORECASE)
# 255 is how ssh says that it failed itself. qm ends with it too, as Perl programs do.
_SHIFTED = '"$@"; code=$?; [ "$code" -ne 255 ] || code=254; exit "$code"'
_SSH_FAILED = 255


class Execute(Protocol):
    """Runs a command on a Proxmox host, whose shell never reads the words."""

    def __call__(self, argv: Sequence[str], stdin: str, job: Job) -> Ran: ...


class OpenSSH:
    """Runs commands by the ssh of this computer, with its keys, agent and known hosts; it never asks anything.

    destination: as ssh takes it. config: a file instead of the user's ssh_config, or empty.
    """

    def __init__(self, destination: str, config: str = "", program: str = "ssh") -> None:
        if not destination or destination.startswith("-") or re.search(r"[\s\x00-\x1f]", destination):
            raise InvalidInput(f"setting ssh: expected [USER@]HOST or ssh://[USER@]HOST[:PORT], found {destination!r}")
        self.destination = destination
        options = [*(("-F", config) if config else ()), "-o", "BatchMode=yes", "-o", "ConnectTimeout=20"]
        self._command = [program, *options, "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4", "-T"]

    def __call__(self, argv: Sequence[str], stdin: str, job: Job) -> Ran:
        remote = shlex.join(("sh", "-c", _SHIFTED, "sh", *argv))
        what = f"ssh {self.destination}"
        try:
            child = subprocess.Popen(  # pylint: disable=ansible-bad-function # no module in fleet_machines
                [*self._command, "--", self.destination, remote],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
                env={**os.environ, "LC_ALL": "C"},
            )
        except OSError as error:
            raise Unavailable(f"{what}: {self._command[0]} cannot be run: {error.strerror}") from error
        try:
            stdout, stderr = child.communicate(stdin, timeout=max(job.left(), 0.1))
        except subprocess.TimeoutExpired:
            _end(child)
            raise TimedOut(f"{what}: {argv[0]} did not end within {format_duration(job.limit)}") from None
        except BaseException:
            _end(child)
            raise
        if child.returncode == _SSH_FAILED:
            raise Unavailable(f"{what}: {golden.said(Ran(1, '', stderr))}")
        return Ran(child.returncode, stdout, stderr)


@dataclass(frozen=True)
class SshSettings:
    """The setting ``ssh``. destination: as ssh takes it. config: a file instead of the user's ssh_config.

    snippets: the storage for user data while an image is built, with content "snippets". cache: the folder of the
    host where downloaded base images are kept. ids: those that images get, by their names; the others get the next
    free one.
    """

    destination: str
    config: str = ""
    snippets: str = "local"
    cache: str = qm.FOLDER
    ids: Mapping[str, int] = field(default_factory=dict)


def ssh_settings(given: object) -> SshSettings:
    """Return the setting from a mapping with the fields of SshSettings."""
    found = check_keys("setting ssh", given, tuple(part.name for part in fields(SshSettings)))
    ids = check_keys("setting ssh: ids", found.get("ids") or {}, tuple(found.get("ids") or {}))
    texts = {
        key: as_text(f"setting ssh: {key}", found[key])
        for key in ("destination", "config", "snippets", "cache")
        if found.get(key)
    }
    if "destination" not in texts:
        raise InvalidInput("setting ssh: destination: expected [USER@]HOST of a Proxmox host")
    numbers = {str(name): as_int(f"setting ssh: ids: {name}", vmid, 100, 999999999) for name, vmid in ids.items()}
    if not texts.get("cache", "/").startswith("/"):
        raise InvalidInput(f"setting ssh: cache: expected an absolute path, found {texts['cache']!r}")
    return SshSettings(**texts, ids=numbers)


class Qm:
    """The ``qm`` of one host. Every method names the thing in its errors."""

    def __init__(self, execute: Execute) -> None:
        self._execute = execute

    def version(self, job: Job) -> qm.Version:
        return qm.version_of(self._run("Proxmox VE", ("pveversion",), job).stdout)

    def config(self, vmid: int, job: Job) -> dict[str, str] | None:
        """Return the configuration of a machine, or None when there is no such one."""
        ran = self._patient(("qm", "config", str(vmid)), "", job)
        if ran.code and _NO_SUCH.search(ran.stderr):
            return None
        if ran.code:
            raise ProcessFailed(f"machine {vmid}: qm config: {golden.said(ran)}")
        return qm.parse_config(ran.stdout)

    def take(self, what: str, command: qm.Command, job: Job) -> Ran:
        """Carry a command out. Raises ProcessFailed with its last words."""
        job.report(command.text)
        return self._run(what, command.argv, job, command.stdin)

    def running(self, vmid: int, job: Job) -> bool:
        return "running" in self._run(f"machine {vmid}", ("qm", "status", str(vmid)), job).stdout

    def inside(self, what: str, vmid: int, script: str, job: Job) -> Ran:
        """Run a shell script as root inside, by the guest agent."""
        if len(script.encode()) > MOST_INPUT:
            raise InvalidInput(f"{what}: a script of {len(script)} characters; the guest agent takes 1 MiB")
        argv = ("qm", "guest", "exec", str(vmid), "--pass-stdin", "1", "--timeout", "0", "--", "/bin/sh", "-s")
        said = self._run(what, argv, job, script).stdout
        try:
            data: dict[str, Any] = json.loads(said)
        except ValueError:
            raise ProcessFailed(f"{what}: qm guest exec: expected JSON, found {said[:80]!r}") from None
        if not data.get("exited"):
            raise TimedOut(f"{what}: a script inside did not end")
        code = data.get("exitcode")
        return Ran(
            int(code) if code is not None else 128 + int(data.get("signal") or 0),
            str(data.get("out-data") or ""),
            str(data.get("err-data") or ""),
        )

    def wait_for_agent(self, what: str, vmid: int, job: Job) -> None:
        job.report("wait for the guest agent")
        while not self._answers(vmid, job):
            job.check(f"{what}: its guest agent did not answer; the base or its user data must bring qemu-guest-agent")
            job.pause(2.0)

    def stop(self, what: str, vmid: int, job: Job) -> None:
        """Shut a machine down, or power it off when it does not obey."""
        seconds = str(max(1, int(min(SHUTDOWN, job.left()))))
        self._run(what, ("qm", "shutdown", str(vmid), "--timeout", seconds, "--forceStop", "1"), job)

    def _answers(self, vmid: int, job: Job) -> bool:
        try:
            return self._execute(("qm", "guest", "cmd", str(vmid), "ping"), "", job).code == 0
        except TimedOut:  # who waits knows a better sentence
            return False

    def _run(self, what: str, argv: Sequence[str], job: Job, stdin: str = "") -> Ran:
        ran = self._patient(argv, stdin, job)
        if ran.code:
            verb = " ".join(argv[:2]) if argv[0] == "qm" else argv[0]
            raise ProcessFailed(f"{what}: {verb} ended with {ran.code}: {golden.said(ran)}")
        return ran

    def _patient(self, argv: Sequence[str], stdin: str, job: Job) -> Ran:
        pause = 1.0
        while True:
            ran = self._execute(argv, stdin, job)
            if not ran.code or not _BUSY.search(ran.stderr) or job.left() <= pause:
                return ran
            job.report(f"wait: {golden.said(ran)}")
            job.pause(pause)
            pause = min(2 * pause, 10.0)


def make(template: qm.Template, execute: Execute, job: Job) -> tuple[str, ...]:
    """Have a template as described, and return what was done. What is there already is not done again."""
    host, what = Qm(execute), f'template "{template.name}"'
    config = host.config(template.vmid, job)
    done = _prepared(host, what, template, config, host.version(job), job)
    if (host.config(template.vmid, job) or {}).get("template") != "1":
        command = qm.convert(template)
        host.take(what, command, job)
        done.append(command.text)
    _check_whole(host, what, template, job)
    return tuple(done)


def build(spec: ImageSpec, template: qm.Template, snippets: str, created: str, execute: Execute, job: Job) -> Mark:
    """Build a golden image in the machine that a template describes, and return its mark.

    snippets: the storage for user data, which is there only while the image is built. What an interrupted build left
    is removed first. An image of the same inputs is left as it is.
    """
    host, what = Qm(execute), f'image "{spec.image_name}"'
    config, version = host.config(template.vmid, job), host.version(job)
    mark = Mark(spec.inputs, created, spec.login, incomplete=True)
    if config is not None:
        there = _ours(what, spec, template, config)
        if not there.incomplete and config.get("template") == "1" and qm.is_base(config):
            return there
        job.report("remove what an earlier build left of it")
        if host.running(template.vmid, job):
            host.take(what, qm.Command("power it off", ("qm", "stop", str(template.vmid))), job)
        host.take(what, qm.destroy(template.vmid), job)
    snippet = f"{snippets}:snippets/{spec.image_name}.yml" if spec.user_data else ""
    template = replace(template, tags=mark.tags(), snippet=snippet, cloud_init=False)
    try:
        if spec.user_data:
            host.take(what, _put(snippet, spec.user_data), job)
        _prepared(host, what, replace(template, cloud_init=True), None, version, job)
        host.take(what, qm.Command("start it", ("qm", "start", str(template.vmid))), job)
        host.wait_for_agent(what, template.vmid, job)
        golden.prepare(spec, lambda script: host.inside(what, template.vmid, script, job), job)
        job.report("shut it down")
        host.stop(what, template.vmid, job)
    finally:
        if snippet:
            _drop(host, what, snippet, job)
    clean = qm.cleaned(template, host.config(template.vmid, job) or {})
    if clean:
        host.take(what, clean, job)
    host.take(what, qm.convert(template), job)
    _check_whole(host, what, template, job)
    mark = replace(mark, incomplete=False)
    host.take(what, _tag(template.vmid, mark), job)
    return mark


def _prepared(
    host: Qm, what: str, template: qm.Template, config: Mapping[str, str] | None, version: qm.Version, job: Job
) -> list[str]:
    done: list[str] = []
    if config is None or (qm.DISK not in config and "unused0" not in config and config.get("template") != "1"):
        fetch = qm.fetch(template)
        if fetch:
            host.take(what, fetch, job)
            done.append(fetch.text)
    last: tuple[str, ...] = ()
    while True:
        command = qm.next_command(template, config, version)
        if command is None:
            return done
        if command.argv == last:
            raise ProcessFailed(f"{what}: {' '.join(command.argv[:2])} ended well, but changed nothing")
        host.take(what, command, job)
        done.append(command.text)
        last, config = command.argv, host.config(template.vmid, job)


def _ours(what: str, spec: ImageSpec, template: qm.Template, config: Mapping[str, str]) -> Mark:
    found = mark_of(tags_of(config.get("tags")))
    if found is None or config.get("name") != spec.image_name:
        raise Conflict(f"{what}: id {template.vmid} is taken by {config.get('name', '')!r}, which is no such image")
    if config.get("lock"):
        raise Conflict(
            f"{what}: {template.vmid} is locked ({config['lock']}): another task works on it, or was killed; then "
            f"`qm unlock {template.vmid}` frees it"
        )
    return found


def _check_whole(host: Qm, what: str, template: qm.Template, job: Job) -> None:
    config = host.config(template.vmid, job) or {}
    if config.get("template") != "1" or not qm.is_base(config):
        raise ProcessFailed(f"{what}: {template.vmid} is half a template: its disk is no base volume; remove it")


def _put(snippet: str, text: str) -> qm.Command:
    return qm.Command("hand the user data over", ("sh", "-eu", "-c", qm.PUT_SNIPPET, "sh", snippet), text)


def _drop(host: Qm, what: str, snippet: str, job: Job) -> None:
    """Take the user data away from the host, also when the time is over; an error of the build is worth more."""
    command = qm.Command("take the user data away", ("sh", "-eu", "-c", qm.DROP_SNIPPET, "sh", snippet))
    try:
        host.take(what, command, Job(time.monotonic() + TIDYING, TIDYING, job.report))
    except FleetError as error:
        job.report(f"the user data could not be removed from {snippet}: {error.message}")


def _tag(vmid: int, mark: Mark) -> qm.Command:
    return qm.Command("mark it", ("qm", "set", str(vmid), "--tags", ";".join(mark.tags())))


def _end(child: subprocess.Popen[str]) -> None:
    """End the client. What it started on the host may go on; the next run looks."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        child.kill()
    child.communicate()
