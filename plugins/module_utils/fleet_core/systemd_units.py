# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes as systemd services: unit names, unit files, environment files, and what `systemctl show` prints.

Sources: systemd.unit(5), systemd.service(5), systemd.exec(5), systemd.kill(5), systemd.resource-control(5).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

from .errors import InvalidInput
from .names import describe
from .processes import Launch, ProcessSpec
from .restarts import RestartPolicy

STEPS_SINCE = 254  # RestartSteps= and RestartMaxDelaySec=
PREFIX = "fleet-"
SLICE = "fleet.slice"

# systemd takes these for a clean end, we take them for a failure as of any other signal.
_CLEAN_SIGNALS = "SIGHUP SIGINT SIGTERM SIGPIPE"
# No process has any business with the machine's clock or its power. What goes further (NoNewPrivileges, read-only
# kernel settings, seccomp filters) breaks sudo, containers or virtual machines, so it is left to drop-ins.
_CAPABILITIES = "~CAP_SYS_BOOT CAP_SYS_TIME"
_EXECUTED_WITHIN = 30.0  # seconds: until the program is executed; fleetd itself waits for readiness
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_UNSAFE_IN_PATH = re.compile(r"[\x00-\x1f\x7f\"'\\]")
_QUOTED = str.maketrans({char: f"\\{char}" for char in '\\"$`'})  # in double quotes, as a shell
_ESCAPES = {"\\": "\\\\", '"': '\\"', "%": "%%", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def unit_name(ident: str, prefix: str = PREFIX) -> str:
    """Return the service of a process: fleet-NAME.service, or fleet-ENVIRONMENT:NAME.service.

    A slash cannot stand in a unit's name, and a colon not in an id: the name stays readable and can be turned back.
    """
    return f"{prefix}{ident.replace('/', ':')}.service"


def process_id(unit: str, prefix: str = PREFIX) -> str:
    """Return the process of a unit name, or an empty string for a unit that is none of ours."""
    if not unit.startswith(prefix) or not unit.endswith(".service"):
        return ""
    return unit[len(prefix) : -len(".service")].replace(":", "/")


def quote_word(text: str) -> str:
    """Return one word of an ExecStart= line, such that exactly text arrives. The line needs the prefix ":" for $."""
    return '"' + "".join(_escape(char) for char in text) + '"'


def _escape(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    number = ord(char)
    if number < 32 or number == 127:
        return f"\\x{number:02x}"
    return char


def _path(where: str, what: str, path: str) -> str:
    """Return a path for a setting that takes the rest of its line as it is."""
    if not path.startswith("/") or path != path.strip() or _CONTROL.search(path) or "\n" in path or path.endswith("\\"):
        raise InvalidInput(f"{where}: {what}: systemd takes no such path: {describe(path)}")
    return path.replace("%", "%%")


def exec_start(where: str, program: str, argv: Sequence[str]) -> str:
    """Return the value of ExecStart=. program: the absolute path; argv[0] is what the program sees as its name."""
    for word in (program, *argv):
        if not is_text(word):  # D-Bus, by which systemd is asked about its units, has no other text
            raise InvalidInput(f"{where}: under systemd a command is UTF-8, found {describe(word)}")
    if _UNSAFE_IN_PATH.search(program):
        shell = ("/bin/sh", "sh", "-c", 'exec "$0" "$@"', program, *argv[1:])
        return " ".join([quote_word(f":@{shell[0]}"), *(quote_word(word) for word in shell[1:])])
    return " ".join([quote_word(f":@{program}"), *(quote_word(word) for word in argv)])


def environment_file(where: str, variables: Mapping[str, str]) -> str:
    """Return an EnvironmentFile= with exactly these values. Raises InvalidInput for what systemd would leave out."""
    lines = []
    for name, value in variables.items():
        if not _VARIABLE.fullmatch(name):
            raise InvalidInput(f"{where}: env {name}: under systemd a variable's name has only letters, digits and '_'")
        if _CONTROL.search(value) or not is_text(value):
            raise InvalidInput(f"{where}: env {name}: under systemd a value is UTF-8 without control characters")
        lines.append(f'{name}="{value.translate(_QUOTED)}"\n')
    return "".join(lines)


def passable(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that an EnvironmentFile= can hold; for inherited ones, such as exported shell functions."""
    return {
        name: value
        for name, value in variables.items()
        if _VARIABLE.fullmatch(name) and not _CONTROL.search(value) and is_text(value)
    }


def is_text(value: str) -> bool:
    """Tell whether the value is valid UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _milliseconds(seconds: float) -> str:
    """Return a time span; zero would mean "for ever" to systemd in most places."""
    return f"{max(1, round(seconds * 1000))}ms"


def _restart_lines(policy: RestartPolicy, version: int) -> list[str]:
    if policy.policy == "never":
        return ["Restart=no"]
    lines = [f"Restart={policy.policy}"]
    if policy.policy == "on-failure":
        lines.append(f"RestartForceExitStatus={_CLEAN_SIGNALS}")
    if version >= STEPS_SINCE and policy.max_delay > policy.delay > 0:
        # systemd waits before the first restart too: half a delay, so that the second one waits what the policy says.
        first = policy.delay / 2
        steps = max(1, math.ceil(math.log2(policy.max_delay / first)))
        lines += [f"RestartSec={_milliseconds(first)}", f"RestartSteps={steps}"]
        lines.append(f"RestartMaxDelaySec={_milliseconds(policy.max_delay)}")
    else:
        lines.append(f"RestartSec={_milliseconds(policy.delay)}")
    return lines


def unit(
    spec: ProcessSpec,
    launch: Launch,
    *,
    program: str,
    working_dir: str,
    environment: str,
    user: str = "",
    after: Iterable[str] = (),
    scope: str = "system",
    version: int = 252,
    prefix: str = PREFIX,
) -> str:
    """Return the unit file of a process. Nothing in it changes from launch to launch, and nothing in it is secret.

    program: absolute path of argv[0]. environment: path of its EnvironmentFile. user: "" for the manager's own.
    after: ids of the processes that must outlive this one when the host goes down. version: of systemd.
    """
    where = f'process "{spec.id}"'
    drop_ins = "/etc/systemd/system" if scope == "system" else "~/.config/systemd/user"
    policy, limits = spec.restart, launch.limits
    lines = [
        f"# Written by fleetd; changes are lost. For settings of your own use {drop_ins}/{PREFIX}.service.d/NAME.conf.",
        "[Unit]",
        f"Description=fleet process {spec.id}",
    ]
    units = [unit_name(ident, prefix) for ident in after]
    lines.append("Before=fleetd.service")  # when the host goes down, fleetd ends first and takes that for no crash
    lines += [f"After={' '.join(units)}"] if units else []
    if policy.burst:
        # The first start counts too.
        lines += [f"StartLimitIntervalSec={_milliseconds(policy.window)}", f"StartLimitBurst={policy.burst + 1}"]
    else:
        lines.append("StartLimitIntervalSec=0")
    lines += [
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart={exec_start(where, program, launch.argv)}",
        f"WorkingDirectory={_path(where, 'working_dir', working_dir)}",
        f"EnvironmentFile={_path(where, 'environment', environment)}",
    ]
    lines += [f"User={user}"] if user else []
    lines += [
        f"TimeoutStartSec={_milliseconds(max(spec.start_timeout, _EXECUTED_WITHIN))}",
        f"TimeoutStopSec={_milliseconds(spec.stop_timeout)}",
        "KillMode=control-group",
        f"KillSignal={spec.stop_signal}",
        *_restart_lines(policy, version),
        "IgnoreSIGPIPE=no",
        "OOMPolicy=continue",
        "StandardInput=null",
        "StandardOutput=journal",
        "StandardError=journal",
        f"SyslogIdentifier={spec.id}",
        "LogRateLimitIntervalSec=0",
        f"Slice={SLICE}",
    ]
    lines += [f"CapabilityBoundingSet={_CAPABILITIES}"] if scope == "system" else []
    lines += [f"MemoryMax={limits.memory}"] if limits.memory else []
    lines += [f"CPUQuota={limits.cpu}%"] if limits.cpu else []
    lines += [f"LimitNOFILE={limits.open_files}"] if limits.open_files else []
    lines += [f"TasksMax={limits.processes}"] if limits.processes else []
    lines += [f"Nice={limits.nice}"] if limits.nice else []
    return "\n".join(lines) + "\n"


def keeper(units: Iterable[str]) -> str:
    """Return a target that keeps the given units loaded after they ended.

    systemd drops a stopped unit, and with it its exit code, as soon as nothing loaded mentions it. An ordering is the
    weakest mention: it starts and stops nothing. So no hook has to run in a process's environment to note its end.
    """
    names = sorted(units)
    groups = [names[start : start + 50] for start in range(0, len(names), 50)]
    return "\n".join(
        [
            "# Written by fleetd: while this target is active, systemd remembers how these processes ended.",
            "[Unit]",
            "Description=Results of ended fleet processes",
            *(f"After={' '.join(group)}" for group in groups),
            "",
        ]
    )


def parse_show(output: str) -> list[dict[str, str]]:
    """Return what `systemctl show -p ... UNIT...` printed: one mapping a unit."""
    blocks = []
    for block in output.split("\n\n"):
        found = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if found:
            blocks.append(found)
    return blocks


# Exit statuses of systemd itself when it cannot execute a program (systemd.exec(5), "Process Exit Codes").
EXEC_FAILED = 203
FAILED_STEPS = {
    200: "its working directory cannot be entered",
    201: "its nice level was refused",
    EXEC_FAILED: "the program cannot be executed",
    204: "there is not enough memory",
    205: "a limit was refused",
    209: "its output cannot be connected to the journal",
    216: "its group cannot be set",
    217: "its user does not exist or cannot be set",
    218: "its capabilities cannot be set",
    219: "its cgroup cannot be made",
    224: "PAM refused its session",
    226: "its namespaces cannot be set up",
    228: "its system call filter cannot be set",
    243: "its credentials cannot be set up",
}
