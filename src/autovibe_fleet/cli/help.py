# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet help: the pages that belong to no single command."""

from __future__ import annotations

from typing import Annotated

import typer

from fleet_core import errors
from fleet_core.errors import NotFound
from fleet_core.names import nearest

from .session import Session

_MEANINGS: tuple[tuple[int, str], ...] = (
    (0, "Done, or nothing had to be done."),
    (errors.FleetError.exit_code, "An error without a code of its own."),
    (errors.InvalidInput.exit_code, "The command line or a value is wrong."),
    (errors.NotFound.exit_code, "A named process, template, type, environment, agent or file does not exist."),
    (errors.Conflict.exit_code, "It is held by another, exists already, or the range is exhausted."),
    (errors.TimedOut.exit_code, "It did not happen in time."),
    (errors.ProcessFailed.exit_code, "A process could not be started, or ended when it should run; a task failed."),
    (errors.Unavailable.exit_code, "fleetd, or a tool that is needed, cannot be reached."),
    (errors.StateDamaged.exit_code, "The state on disk cannot be read or written."),
    (130, "Interrupted, or a question was answered with no."),
)
_ENVIRONMENT = (
    ("FLEET_STATE_DIR", "State folder; default /var/lib/autovibe for root, ~/.local/state/autovibe for others."),
    ("FLEET_NO_AUTOSTART", "1: never start fleetd by itself; commands that need it end with exit code 7."),
    ("FLEET_DEBUG", "1: show where an error comes from, as --debug does."),
    ("NO_COLOR", "Set: no colors."),
)
_NAMES = """\
A process has an id: NAME, or ENVIRONMENT/NAME for one that a project file declares.
In a project's folder (one with .runcept.toml in it or above it) a bare NAME means the environment's process of that
name; where it has none, the process NAME of this host. `-e PATH` chooses another project, by folder, file or name.
An agent has a NAME; the process that carries its runs is agents/NAME, and every command on agents takes that name, too.
`fleet stop NAME` stops the process NAME, and where there is none the agent."""

# fmt: off
EGRESS = (
    "applied", "backend", "since", "loaded", "scopes", "machines", "live: [LIVE]", "learned", "counters",
    "denials: [DENIAL]", "services", "conflicts", "problems",
)
DENIAL = (
    "time", "machine", "project", "scope", "reason", "source", "destination", "protocol", "port", "name", "count",
)
PROCESS = (
    "id", "name", "environment", "template", "label", "command", "status", "desired", "pid", "started", "uptime",
    "restarts", "exit_code", "healthy", "completed", "error", "driver", "resources", "types", "urls", "memory", "cpu",
    "user", "working_dir", "depends_on", "log_file", "unit", "adopted", "waiting_for",
)
ENVIRONMENT = (
    "name", "path", "project_dir", "status", "inactivity_timeout", "idle", "last_activity", "error", "processes",
)
RUN = (
    "id", "name", "hash", "state", "reason", "workdir", "source", "parallel", "started", "finished", "duration",
    "resumed", "notes", "artifacts", "tasks: [TASK]",
)
TASK = (
    "name", "state", "reason", "rc", "attempts", "started", "finished", "duration", "stdout", "stderr", "truncated",
    "output_file", "artifacts", "warnings", "kept",
)
AGENT = (
    "name", "state", "description", "runner", "model", "revision", "id", "legacy_id", "desired", "process", "pid",
    "run", "steps", "queued", "next_run", "error", "created", "updated",
)
AGENT_RUN = (
    "id", "agent", "revision", "state", "reason", "started", "finished", "position", "totals", "workspace", "updated",
)
ITERATION = (
    "id", "number", "run", "agent", "step", "item", "revision", "state", "reason", "error", "started", "finished",
    "duration", "session", "usage", "cost", "result", "attempt_of", "token", "pid", "pid_started", "verification",
    "watchdog",
)
MESSAGE = ("id", "agent", "iteration", "time", "type", "content", "detail")
INJECTION = (
    "id", "agent", "step", "iteration", "sender", "text", "state", "reason", "created", "moved", "delivered_in",
)
MACHINE = (
    "name", "provider", "state", "addresses", "image", "cpu", "memory", "disk", "networks", "user_data", "tags",
    "project", "login", "port", "checkpoints", "incomplete", "detail",
)
CHECKPOINT = ("name", "machine", "parent", "comment", "created", "live", "size", "kind")
IMAGE = (
    "name", "provider", "kind", "aliases", "release", "version", "inputs", "incomplete", "family", "created", "size",
    "detail",
)
OUTCOME = ("name", "ok", "done", "not_done", "error", "code", "seconds")
# fmt: on
_JSON = (
    ("start, stop, restart, delete", "{change: {before, after, actions}, processes: [PROCESS]}"),
    ("ps", "{processes: [PROCESS]}"),
    ("inspect", "{process: PROCESS, declaration}"),
    ("logs", "one line a record: {process, timestamp, level, message, process_name, process_id}"),
    ("discover", "{found: [{pid, command, argv, cwd, user, ports, started, memory}]}; with --adopt {process: PROCESS}"),
    ("run-action", "{exit_code, output}"),
    ("kill-all", "{stopped: [ID]}"),
    ("init", "{path, notes: [TEXT]}"),
    ("activate, deactivate", "{change, environment: ENVIRONMENT}"),
    ("status", "{environment: ENVIRONMENT}; outside of a project as daemon status"),
    ("list", "{environments: [ENVIRONMENT]}"),
    ("template list", "{templates: [TEMPLATE]}"),
    ("template show", "{template: TEMPLATE}"),
    ("template add", "{change, templates: [ID]}"),
    ("template remove", "{change}"),
    ("template export", "TEMPLATE for one name, else [TEMPLATE]"),
    ("resource-type list", "{resource_types: [TYPE]}"),
    ("resource-type show", "{resource_type: TYPE, claimed}"),
    ("resource-type add, remove", "{change}"),
    ("resources list", "{resources: [{type, value, owner, name}]}"),
    ("resources claim, release, reap", "{change, resources: [{type, value, owner, name}]}; reap --dry-run as list"),
    ("apply", "{change, summary: {created, updated, unchanged, removed}, agents: [AGENT], dry_run}"),
    ("agents, agents list", "{agents: [AGENT]}"),
    ("agents show", "{agent: AGENT, definition}"),
    ("agents history", "{iterations: [ITERATION]}; with --messages each with messages: [MESSAGE]"),
    ("run, agents history --follow", "one line a record: {kind: message, iteration, injection or run, ...}"),
    ("agents runs", "{runs: [AGENT-RUN]}"),
    ("agents statistics", "{statistics, steps: {LABEL: statistics}}"),
    ("agents export", "the definition for one name, else a list"),
    ("agents delete, rollback, edit", "{change, agents: [AGENT]}"),
    ("run --detach, pause, resume", "{agents: [AGENT]}; as interrupt; stop adds agents to what it writes"),
    ("message", "{injection: INJECTION}"),
    ("revisions", "{revisions: [{number, id, legacy_id, time, origin, definition}], current}"),
    ("diff", "{agent, from, to, lines: [TEXT]}"),
    ("schema", "the JSON Schema"),
    ("task run, show, attach", "RUN; with --artifacts also fetched: {folder, files: [PATH]}; --detach {run}"),
    ("task plan, run --check", "{plan: {name, workdir, parallel, steps, tasks}, pending: [NAME], notes, run}"),
    ("task list", "{runs: [RUN]}, without stdout and stderr"),
    ("task cancel", "{cancelled, view: RUN}"),
    ("task artifacts", "{folder, files: [PATH]}"),
    ("task schema", "the JSON Schema of task lists"),
    ("machines, machines list", "{machines: [MACHINE], errors: [PROVIDER]}"),
    ("machines show", "{machine: MACHINE, checkpoints: [CHECKPOINT]}"),
    ("machines start, stop, restart, delete", "{outcomes: [OUTCOME], machines: [MACHINE]}"),
    ("machines run", "{exit_code, stdout, stderr}"),
    ("machines checkpoints", "{checkpoints: [CHECKPOINT]}"),
    ("machines checkpoint", "{checkpoint: CHECKPOINT}"),
    ("machines restore", "{machine: MACHINE}"),
    ("machines images", "{images: [IMAGE], errors: [PROVIDER]}"),
    ("machines providers", "{providers: [PROVIDER]}"),
    ("egress, egress show", "EGRESS"),
    ("egress allow, deny, mode", "{changes: [LIVE], actions: [TEXT], live: [LIVE]}"),
    ("egress forget", "{taken_back: [LIVE], actions: [TEXT], live: [LIVE]}"),
    ("egress presets", "{presets: [{name, title, takes_uploads, by_nature, entries: [TEXT]}]}"),
    ("egress watch", "one line a record: DENIAL"),
    (
        "daemon status",
        "{running, version, pid, started, driver, scope, state_dir, processes: {STATE: COUNT}, environments}",
    ),
    ("daemon start, restart", "{result, ...} and what daemon status says"),
    ("daemon logs", "one line a record: {line}"),
    ("daemon stop", "{result, stopped: [ID]}"),
    ("state export", "the state; with a FILE {path, processes: COUNT}"),
    ("state import", "{change, adopted: [ID], stopped: [ID]}"),
    ("version", "{version}"),
    ("any error, on stderr", "{error: {code, message, exit_code}}"),
    ("PROCESS", "{" + ", ".join(PROCESS) + "}"),
    ("ENVIRONMENT", "{" + ", ".join(ENVIRONMENT) + "}"),
    ("AGENT", "{" + ", ".join(AGENT) + "}"),
    ("AGENT-RUN", "{" + ", ".join(AGENT_RUN) + "}"),
    ("ITERATION", "{" + ", ".join(ITERATION) + "}"),
    ("MESSAGE", "{" + ", ".join(MESSAGE) + "}"),
    ("INJECTION", "{" + ", ".join(INJECTION) + "}"),
    ("MACHINE", "{" + ", ".join(MACHINE) + "}"),
    ("CHECKPOINT", "{" + ", ".join(CHECKPOINT) + "}"),
    ("IMAGE", "{" + ", ".join(IMAGE) + "}"),
    ("OUTCOME", "{" + ", ".join(OUTCOME) + "}"),
    ("EGRESS", "{" + ", ".join(EGRESS) + "}"),
    ("LIVE", "{scope, verb, entry, until, at}"),
    ("DENIAL", "{" + ", ".join(DENIAL) + "}"),
    ("PROVIDER", "{name, usable, machines: COUNT, error, code}"),
    ("RUN", "{" + ", ".join(RUN) + "}"),
    ("TASK", "{" + ", ".join(TASK) + "}; of a prompt also usage, cost, session, turns"),
)


def page(topic: str) -> str:
    """Return the text of a topic."""
    if topic == "exit-codes":
        return "\n".join(f"{code:>3}  {meaning}" for code, meaning in _MEANINGS)
    if topic == "environment":
        return "\n".join(f"{name:<18}  {meaning}" for name, meaning in _ENVIRONMENT)
    if topic == "json":
        return "\n".join(f"{name:<30}  {shape}" for name, shape in _JSON)
    return _NAMES


def tables() -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the pages that are tables, as rows."""
    codes = tuple((str(code), meaning) for code, meaning in _MEANINGS)
    return {"exit-codes": codes, "environment": _ENVIRONMENT, "json": _JSON}


TOPICS = {
    "exit-codes": "What the exit codes mean.",
    "environment": "Environment variables that fleet reads.",
    "json": "What each command writes with --json.",
    "names": "How a name on the command line becomes a process.",
}


def _complete(incomplete: str) -> list[str]:
    return [topic for topic in TOPICS if topic.startswith(incomplete)]


def help_topic(
    session: Session,
    context: typer.Context,
    topic: Annotated[str, typer.Argument(metavar="[TOPIC|COMMAND]", autocompletion=_complete)] = "",
) -> None:
    """Show help on a command or a topic."""
    root = context.find_root()
    if not topic:
        print(root.get_help())
        session.out.line("Topics of `fleet help`:")
        session.out.pairs({f"  {name}": text for name, text in TOPICS.items()})
        return
    if topic in TOPICS:
        if session.as_json and topic == "exit-codes":
            session.out.data({"exit_codes": {str(code): meaning for code, meaning in _MEANINGS}})
        else:
            print(page(topic))
        return
    commands = root.command.commands  # type: ignore[attr-defined]
    if topic not in commands:
        raise NotFound(f'help "{topic}": no such command or topic{nearest(topic, [*TOPICS, *commands])}')
    command = commands[topic]
    with command.make_context(topic, [], parent=root, resilient_parsing=True) as inner:
        text = command.get_help(inner)
    if text:
        print(text)
