# SPDX-License-Identifier: GPL-3.0-or-later
"""fleet logs: what processes printed, and what happened to them. Read straight from disk, or from journald."""

from __future__ import annotations

import heapq
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fleet_core.errors import FleetError, InvalidInput, NotFound
from fleet_core.names import nearest
from fleet_node import logs as log_files

from . import completion, projects
from .output import colored, json_text
from .session import Session

if TYPE_CHECKING:
    from fleet_node.client import Client

_LINES = 100
_TOUCH = 30.0  # seconds between two notes to fleetd that somebody watches an environment
_COLORS = ("cyan", "magenta", "green", "yellow", "blue", "bright_cyan", "bright_magenta", "bright_green")
_OWN = (log_files.LIFECYCLE, log_files.INFO, log_files.ERROR)  # what fleetd says of a process

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """Where the lines of one process are: a log file, or the journal of a unit in a scope of systemd."""

    id: str
    file: str
    unit: str = ""
    scope: str = "system"

    def read(
        self, lines: int | None, since: str, follow: bool, stop: Callable[[], bool] | None = None
    ) -> Iterator[Record]:
        """Yield records, oldest first."""
        if self.unit:
            return log_files.read_journal(self.unit, self.scope, lines, since, follow, stop, self.id)
        return log_files.read(self.file, lines, since, follow, stop)


def logs(
    session: Session,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", autocompletion=completion.processes),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is printed from now on.")] = False,
    lines: Annotated[
        int | None,
        typer.Option("--lines", "-n", min=0, help="How many lines from the end (default: 100, or all with --since)."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Every line that is kept.")] = False,
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="Only lines since then: 10m (ago) or 2026-01-31T08:00:00Z.")
    ] = "",
    timestamps: Annotated[bool, typer.Option("--timestamps", "-t", help="Begin each line with its time.")] = False,
) -> None:
    """Show what processes printed.

    Without a name, all processes of the project's environment. Lines that begin with [fleet] tell what happened to the
    process. With --json, one record a line.
    """
    found = sources(session, names or [])
    limit = None if everything else lines if lines is not None else None if since else _LINES
    write = _json_line if session.as_json else _Printer(session, [source.id for source in found], timestamps).write
    records = _followed(session, found, limit, since) if follow else _merged(found, limit, since)
    try:
        for ident, record in records:
            write(ident, record)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def sources(session: Session, names: Sequence[str]) -> list[Source]:
    """Return where the logs of the named processes are, or those of the chosen environment's."""
    client = session.running_client()
    environment = ""
    if names:
        ids = projects.process_ids(session, names)
    else:
        environment = projects.chosen(session)[0]
        if not environment:
            raise InvalidInput("logs: expected a NAME, or a project in the current folder or by -e")
        ids = [ident for ident in session.store.processes() if ident.startswith(f"{environment}/")]
    known = session.store.processes(ids)
    shown = _views(client, [ident for ident in ids if ident in known])
    return [shown.get(ident) or _recorded(session, ident, known) for ident in ids]


def _views(client: Client | None, ids: Sequence[str]) -> dict[str, Source]:
    if client is None or not ids:
        return {}
    scope = client.call("daemon.status").get("scope") or "system"
    return {
        view["id"]: Source(view["id"], view["log_file"], view.get("unit") or "", scope)
        for view in client.call("processes.list", ids=ids)["processes"]
    }


def _recorded(session: Session, ident: str, known: Mapping[str, Any]) -> Source:
    """Return the place of a log that no fleetd tells: none runs, or the process was deleted."""
    from fleet_core.processes import ProcessSpec

    from ..node.output import log_file

    environment = ident.rpartition("/")[0]
    project = session.store.environments().get(environment, {}).get("project_dir", "") if environment else ""
    path = log_file(known[ident][0] if ident in known else ProcessSpec(ident, "-"), project, session.folder)
    if ident in known and known[ident][1].driver == "systemd":
        from fleet_core.systemd_units import unit_name
        from fleet_node.systemd import resolve_scope, unit_prefix

        return Source(ident, "", unit_name(ident, unit_prefix(session.folder)), resolve_scope("auto"))
    if ident not in known and not path.exists():
        raise NotFound(f'process "{ident}": not declared{nearest(ident, session.store.processes())}')
    return Source(ident, str(path))


def _merged(found: Sequence[Source], lines: int | None, since: str) -> Iterator[tuple[str, Record]]:
    """Yield the records of all sources in the order of time; of several, the last so many of all."""
    streams = [_named(source.id, source.read(lines, since, False)) for source in found]
    if len(streams) == 1:
        yield from streams[0]
        return
    merged = list(heapq.merge(*streams, key=lambda item: str(item[1].get("timestamp"))))
    yield from merged if lines is None else merged[len(merged) - min(lines, len(merged)) :]


def _named(ident: str, records: Iterator[Record]) -> Iterator[tuple[str, Record]]:
    for record in records:
        yield ident, record


def _followed(session: Session, found: Sequence[Source], lines: int | None, since: str) -> Iterator[tuple[str, Record]]:
    _Watching(session, found).start()
    if len(found) == 1:
        yield from _named(found[0].id, found[0].read(lines, since, True))
        return
    arrived: queue.Queue[tuple[str, Record] | FleetError] = queue.Queue(1000)

    def pump(source: Source) -> None:
        try:
            for record in source.read(lines, since, True):
                arrived.put((source.id, record))
        except FleetError as error:
            arrived.put(error)

    for source in found:
        threading.Thread(target=pump, args=(source,), daemon=True).start()
    while True:
        item = arrived.get()
        if isinstance(item, FleetError):
            raise item
        yield item


class _Watching(threading.Thread):
    """Tells fleetd now and then that somebody watches the environments, so that they do not fall asleep."""

    def __init__(self, session: Session, found: Sequence[Source]) -> None:
        super().__init__(daemon=True)
        self._session = session
        self._names = sorted({source.id.partition("/")[0] for source in found if "/" in source.id})

    def run(self) -> None:
        while self._names:
            for name in self._names:
                try:
                    with self._session.connect() as client:
                        client.call("environments.touch", name=name)
                except FleetError:
                    pass
            time.sleep(_TOUCH)


def _json_line(ident: str, record: Record) -> None:
    sys.stdout.write(json_text({"process": ident, **record}) + "\n")
    sys.stdout.flush()


class _Printer:
    """Writes records for people: with the name in front when there are several processes, in color on a terminal."""

    def __init__(self, session: Session, ids: Sequence[str], timestamps: bool) -> None:
        self._timestamps = timestamps
        self._shown = colored if sys.stdout.isatty() else str
        self._colors = session.out.is_terminal and "NO_COLOR" not in os.environ
        single_environment = len({ident.partition("/")[0] for ident in ids}) == 1
        names = {ident: ident.rpartition("/")[2] if single_environment else ident for ident in ids}
        width = max(len(name) for name in names.values()) if names else 0
        self._heads = {ident: f"{name:<{width}} | " if len(ids) > 1 else "" for ident, name in names.items()}
        self._styles = {ident: _COLORS[number % len(_COLORS)] for number, ident in enumerate(ids)}
        self._codes = _codes() if self._colors else {}

    def write(self, ident: str, record: Record) -> None:
        """Write one record on one line."""
        message, level = self._shown(str(record["message"])), record.get("level")
        if level in _OWN:
            message = self._styled("red" if level == log_files.ERROR else "dim", f"[fleet] {message}")
        time_of = f"{_local(str(record.get('timestamp')))} " if self._timestamps else ""
        head = self._styled(self._styles[ident], self._heads[ident]) if self._heads[ident] else ""
        sys.stdout.write(f"{head}{self._styled('dim', time_of) if time_of else ''}{message}\n")
        sys.stdout.flush()

    def _styled(self, style: str, text: str) -> str:
        return f"\033[{self._codes[style]}m{text}\033[0m" if self._colors else text


def _codes() -> dict[str, str]:
    """SGR parameters (ECMA-48, 8.3.117); what a process prints must not pass through Rich's markup."""
    plain = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "magenta": "35", "cyan": "36", "dim": "2"}
    return {**plain, "bright_green": "92", "bright_magenta": "95", "bright_cyan": "96"}


def _local(stamp: str) -> str:
    """Return a record's time in the local zone, to the millisecond."""
    from datetime import datetime

    try:
        moment = datetime.fromisoformat(stamp.replace("Z", "+00:00"))
    except ValueError:
        return stamp
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
