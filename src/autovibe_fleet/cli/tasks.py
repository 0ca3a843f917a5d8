# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet task: run lists of commands and prompts, here or on another machine, and look at what they did."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from fleet_core.errors import ProcessFailed
from fleet_core.task_lists import TaskList, select
from fleet_node import artifacts, task_host, task_service, task_state
from fleet_node.task_attempts import clean_text

from ..tasks import files, running
from ..tasks.machine import Machine
from . import completion
from .commands import Noun
from .output import Column, colored
from .session import Session, with_session
from .task_progress import Progress, spent

app = Noun(help="Task lists: commands and prompts with needs and limits.", no_args_is_help=True)
SHOWN_LINES = 20  # of a failed task's output

File = Annotated[str, typer.Argument(metavar="FILE", help="Task list in JSON or YAML; - reads standard input.")]
Run = Annotated[
    str, typer.Argument(metavar="RUN", autocompletion=completion.task_runs, help="Number of a run; last is the newest.")
]
On = Annotated[
    str, typer.Option("--machine", "-m", metavar="HOST", help="There, over ssh; it needs nothing but Python 3.9.")
]
SshConfig = Annotated[str, typer.Option("--ssh-config", metavar="FILE", help="Configuration file of ssh.")]
Workdir = Annotated[
    str, typer.Option("--workdir", "-C", metavar="DIR", help="Where the tasks run, instead of the list's own workdir.")
]
Env = Annotated[
    list[str] | None,
    typer.Option("--env", metavar="NAME[=VALUE]", help="Pass a variable to the tasks; NAME alone takes yours."),
]
Only = Annotated[list[str] | None, typer.Option("--only", metavar="NAME", help="This task alone; may be repeated.")]
From = Annotated[str, typer.Option("--from", metavar="NAME", help="This task and all that need it.")]
Parallel = Annotated[int | None, typer.Option("--parallel", "-j", metavar="N", min=1, help="How many run at once.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the last run: what it has done is not done again.")]
Fetch = Annotated[str, typer.Option("--artifacts", metavar="DIR", help="Copy the artifacts there.")]


def _job(
    session: Session, file: str, workdir: str, env: list[str] | None, only: list[str] | None, start: str,
    parallel: int | None, resume: bool,
) -> running.Job:  # fmt: skip
    tasks: TaskList = select(files.read(file), only or (), start)
    if parallel:
        tasks = replace(tasks, parallel=parallel)
    environ = running.environment(tasks, env or (), os.environ)
    more = [name for text in env or () if (name := text.partition("=")[0]) not in tasks.passed]
    tasks = replace(tasks, pass_env=(*tasks.pass_env, *more))
    return running.Job(
        tasks, workdir, resume, "" if file == "-" else os.path.abspath(file), environ, bool(only or start)
    )


@app.command()
@with_session
def run(
    session: Session,
    file: File,
    machine: On = "",
    workdir: Workdir = "",
    resume: Resume = False,
    parallel: Parallel = None,
    only: Only = None,
    start: From = "",
    env: Env = None,
    fetch: Fetch = "",
    check: Annotated[bool, typer.Option("--check", help="Show what would be done, and do nothing.")] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Start it and return; `attach` watches it.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show output as it comes.")] = False,
    ssh_config: SshConfig = "",
) -> None:
    """Run a task list.

    Tasks that need nothing of each other run at the same time. Ctrl-C ends all of them.
    """
    job = _job(session, file, workdir, env, only, start, parallel, resume)
    where = running.machine(machine, ssh_config, session.state_dir)
    if check:
        _show_plan(session, running.plan(where, job, session.folder))
        return
    if detach:
        _detach(session, where, job)
        return
    with Progress(session.as_json, verbose) as progress:
        if where is None:
            view = running.run_here(job, session.folder, progress.take)
        else:
            view = running.run_on(where, job, progress.take)
    _finish(session, where, view, fetch)


def _detach(session: Session, where: Machine | None, job: running.Job) -> None:
    number = task_service.start(job.request, session.folder).run.id if where is None else where.start(job.plain())[0]
    if session.as_json:
        session.out.data({"run": number})
    else:
        session.out.line(f"Run {number} works by itself; watch it with `fleet task attach {number}{_at(where)}`")


def _at(where: Machine | None) -> str:
    return "" if where is None else f" --machine {where.name}"


def _finish(session: Session, where: Machine | None, view: dict[str, Any], fetch: str) -> None:
    """Fetch artifacts, show the result, and fail when the run has."""
    if fetch:
        names = _fetch(session, where, view["id"], Path(fetch))
        view["fetched"] = {"folder": os.path.abspath(fetch), "files": names}
    if session.as_json:
        session.out.data(view)
    else:
        _show_end(session, where, view)
    if view["state"] == "interrupted":
        raise KeyboardInterrupt
    if view["state"] == "failed":
        raise ProcessFailed(failure(view))


def _fetch(session: Session, where: Machine | None, number: str, folder: Path) -> list[str]:
    if where is not None:
        return where.fetch(number, folder)
    import tempfile

    with tempfile.TemporaryFile() as file:
        task_service.archive(task_state.find(session.folder, number), file)
        file.seek(0)
        return artifacts.unpack(file, folder)


def failure(view: Mapping[str, Any]) -> str:
    """Return the sentence that names what failed first."""
    failed = [item for item in view["tasks"] if item["state"] == "failed"]
    if not failed:
        return f"task list {view['name']}: {view['reason'] or 'not all tasks were done'}"
    more = f" ({len(failed)} tasks failed)" if len(failed) > 1 else ""
    return f'task "{failed[0]["name"]}": {failed[0]["reason"]}{more}'


def _show_end(session: Session, where: Machine | None, view: Mapping[str, Any]) -> None:
    for item in view["tasks"]:
        if item["state"] == "failed":
            lines = [line for part in ("stdout", "stderr") for line in item[part].splitlines()]
            for line in lines[-SHOWN_LINES:]:
                session.out.line(f"  {item['name']} | {clean_text(line)}")
            if item["truncated"] or len(lines) > SHOWN_LINES:
                session.out.line(f"  all of it: fleet task output {view['id']} {item['name']}{_at(where)}")
    if view.get("fetched"):
        count = len(view["fetched"]["files"])
        session.out.line(f"Copied {count} artifact{'' if count == 1 else 's'} to {view['fetched']['folder']}")
    elif view.get("artifacts"):
        session.out.line(f"Artifacts: {', '.join(view['artifacts'][:10])}{' …' if view['artifacts'][10:] else ''}")
    session.out.line(_total(view))


def _total(view: Mapping[str, Any]) -> str:
    counts: dict[str, int] = {}
    for item in view["tasks"]:
        counts[item["state"]] = counts.get(item["state"], 0) + 1
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    cost = sum(item.get("cost") or 0 for item in view["tasks"])
    paid = f" for ${cost:.4f}" if cost else ""
    resume = "; --resume goes on from here" if view["state"] in ("failed", "interrupted") else ""
    return f"{view['name']}: {told} in {spent(view['duration'])}{paid} (run {view['id']}{resume})"


@app.command()
@with_session
def plan(
    session: Session,
    file: File,
    machine: On = "",
    workdir: Workdir = "",
    resume: Resume = False,
    parallel: Parallel = None,
    only: Only = None,
    start: From = "",
    env: Env = None,
    ssh_config: SshConfig = "",
) -> None:
    """Show what a run would do, in which order."""
    job = _job(session, file, workdir, env, only, start, parallel, resume)
    _show_plan(session, running.plan(running.machine(machine, ssh_config, session.state_dir), job, session.folder))


def _show_plan(session: Session, answer: Mapping[str, Any]) -> None:
    if session.as_json:
        session.out.data({key: value for key, value in answer.items() if key != "text"})
        return
    session.out.line(str(answer["text"]))
    for note in answer["notes"]:
        session.out.line(note)


@app.command("list")
@with_session
def list_runs(session: Session, machine: On = "", ssh_config: SshConfig = "") -> None:
    """List the runs, the newest first."""
    where = running.machine(machine, ssh_config, session.state_dir)
    views = [item.view(False) for item in task_state.written(session.folder)] if where is None else where.runs()
    if session.as_json:
        session.out.data({"runs": views})
        return
    columns = (
        Column("RUN", right=True),
        Column("LIST"),
        Column("STATE"),
        Column("DONE"),
        Column("STARTED"),
        Column("TIME", right=True),
        Column("FOLDER", flexible=True),
    )
    rows = [
        (
            view["id"],
            view["name"],
            view["state"],
            f"{sum(item['state'] in ('succeeded', 'unchanged') for item in view['tasks'])}/{len(view['tasks'])}",
            _clock(view["started"]),
            spent(view["duration"]),
            view["workdir"],
        )
        for view in views
    ]
    session.out.table(columns, rows, empty="No runs. Start one with `fleet task run FILE`.")


def _clock(seconds: float | None) -> str:
    import time

    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


@app.command()
@with_session
def show(session: Session, number: Run, machine: On = "", ssh_config: SshConfig = "") -> None:
    """Show one run with the result of each task."""
    where = running.machine(machine, ssh_config, session.state_dir)
    view = task_state.find(session.folder, number).view() if where is None else where.view(number)
    if session.as_json:
        session.out.data(view)
        return
    session.out.pairs(
        {
            "Run": view["id"],
            "List": view["name"],
            "File": view["source"],
            "State": view["state"],
            "Reason": view["reason"],
            "Folder": view["workdir"],
            "Started": _clock(view["started"]),
            "Time": spent(view["duration"]),
            "Resumed": view["resumed"] or None,
            "Notes": view["notes"],
        }
    )
    session.out.line()
    columns = (
        Column("TASK"),
        Column("STATE"),
        Column("RC", right=True),
        Column("TIME", right=True),
        Column("ATTEMPTS", right=True),
        Column("COST", right=True),
        Column("REASON", flexible=True),
    )
    rows = [
        (
            item["name"],
            item["state"],
            item["rc"],
            spent(item["duration"]),
            item["attempts"] or None,
            f"${item['cost']:.4f}" if item.get("cost") is not None else None,
            item["reason"],
        )
        for item in view["tasks"]
    ]
    session.out.table(columns, rows)


@app.command()
@with_session
def output(
    session: Session,
    number: Run,
    task: Annotated[str, typer.Argument(metavar="TASK")],
    machine: On = "",
    ssh_config: SshConfig = "",
) -> None:
    """Print all that a task has printed.

    Into a file or a pipe as it is; on a terminal nothing in it moves the cursor.
    """
    sys.stdout.flush()
    where = running.machine(machine, ssh_config, session.state_dir)
    if where is not None:
        import tempfile

        with tempfile.TemporaryFile() as file:
            where.output(number, task, file)
            file.seek(0)
            _print_all(file)
        return
    with open(task_host.log_of(task_state.find(session.folder, number), task), "rb") as log:
        _print_all(log)


def _print_all(file: IO[bytes]) -> None:
    if not sys.stdout.isatty():
        shutil.copyfileobj(file, sys.stdout.buffer)
        return
    for line in io.TextIOWrapper(file, "utf-8", "replace"):
        sys.stdout.write(colored(line))


@app.command()
@with_session
def attach(
    session: Session,
    number: Run = "last",
    machine: On = "",
    fetch: Fetch = "",
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show output as it comes.")] = False,
    ssh_config: SshConfig = "",
) -> None:
    """Watch a run that works by itself.

    From its beginning. Ctrl-C ends the watching only.
    """
    where = running.machine(machine, ssh_config, session.state_dir)
    view: dict[str, Any] | None = None
    if where is None:
        found = task_state.find(session.folder, number)
        events = task_service.follow(found)
    else:
        events = where.follow(number)
    with Progress(session.as_json, verbose) as progress:
        for event in events:
            if event["event"] == "end":
                view = event["view"]
            else:
                progress.take(event)
    _finish(session, where, found.view() if view is None else view, fetch)


@app.command()
@with_session
def cancel(session: Session, number: Run, machine: On = "", ssh_config: SshConfig = "") -> None:
    """End a run with all its tasks."""
    where = running.machine(machine, ssh_config, session.state_dir)
    if where is None:
        found = task_state.find(session.folder, number)
        answer: dict[str, Any] = {"cancelled": task_service.cancel(found), "view": found.view(False)}
    else:
        answer = where.cancel(number)
    if session.as_json:
        session.out.data(answer)
    else:
        ident = answer["view"]["id"]
        session.out.line(f"Ended run {ident}" if answer["cancelled"] else f"Run {ident} was over already")


@app.command("artifacts")
@with_session
def fetch_artifacts(
    session: Session,
    number: Run,
    folder: Annotated[str, typer.Argument(metavar="DIR")],
    machine: On = "",
    ssh_config: SshConfig = "",
) -> None:
    """Copy the files that the tasks of a run have left."""
    names = _fetch(session, running.machine(machine, ssh_config, session.state_dir), number, Path(folder))
    if session.as_json:
        session.out.data({"folder": os.path.abspath(folder), "files": names})
    else:
        session.out.line(f"Copied {len(names)} artifact{'' if len(names) == 1 else 's'} to {os.path.abspath(folder)}")


@app.command()
@with_session
def schema(session: Session) -> None:
    """Print the JSON Schema of task lists."""
    session.out.data(files.schema())
