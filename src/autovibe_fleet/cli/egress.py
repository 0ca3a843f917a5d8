# SPDX-License-Identifier: GPL-3.0-or-later
"""The group `fleet egress`: what machines may reach, now, and changes to it that restart nothing."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any

import typer

from fleet_core.egress import MODES
from fleet_core.egress_denials import sentence
from fleet_core.egress_live import Live, live_change, without_live
from fleet_core.egress_presets import PRESETS, preset_entries
from fleet_core.errors import InvalidInput, NotFound, Unavailable
from fleet_core.moments import iso
from fleet_core.names import nearest
from fleet_core.quantities import parse_duration
from fleet_node import egress_denial_log
from fleet_node.egress_engine import Engine
from fleet_node.egress_plans import Planned
from fleet_node.egress_report import report, shown_live
from fleet_node.egress_store import DENIALS, METRICS

from . import completion
from .commands import Noun
from .output import Column, json_text
from .session import Session, with_session

app = Noun()

Machine = Annotated[
    str,
    typer.Option("--machine", "-m", metavar="NAME", help="This machine.", autocompletion=completion.egress_machines),
]
Project = Annotated[
    str,
    typer.Option(
        "--project", metavar="NAME", help="All machines of this project.", autocompletion=completion.egress_projects
    ),
]
Default = Annotated[bool, typer.Option("--default", help="All machines.")]
For = Annotated[
    str,
    typer.Option("--for", metavar="TIME", help="For how long, such as 30m or 2h; by default until it is taken back."),
]
Force = Annotated[
    bool, typer.Option("--force", help="A name that looks like a slip, or a public suffix as a whole, is meant.")
]
Entries = Annotated[list[str], typer.Argument(metavar="TARGET...")]


@app.callback(invoke_without_command=True, help="What machines may reach, on this host.")
@with_session
def without_command(session: Session, context: typer.Context) -> None:
    """Show it when no command is given."""
    if context.invoked_subcommand is None:
        show(session)


def show(session: Session, machine: Machine = "", project: Project = "", default: Default = False) -> None:
    """Show what is in force: for one machine, one project or all."""
    found = report(Engine(session.folder), denials=10)
    if not found["applied"]:
        raise NotFound("network policy: none is in force here; apply one with the module autovibe.fleet.egress_policy")
    wanted = _scopes_shown(found, machine, project, default)
    if session.as_json:
        session.out.data({**found, "scopes": [one for one in found["scopes"] if one["name"] in wanted]})
        return
    _show(session, found, wanted)


app.command("show")(with_session(show))


@app.command()
@with_session
def allow(
    session: Session,
    targets: Entries,
    machine: Machine = "",
    project: Project = "",
    default: Default = False,
    duration: For = "",
    force: Force = False,
) -> None:
    """Open something at once: example.org, example.org:8443, 192.0.2.7:22, 192.0.2.0/24:any/udp, or a preset.

    Nothing is restarted. It stays, also when the policy is applied again, until it ends or is taken back.
    """
    _change(session, "allow", targets, (machine, project, default), duration, force)


@app.command()
@with_session
def deny(
    session: Session,
    targets: Entries,
    machine: Machine = "",
    project: Project = "",
    default: Default = False,
    duration: For = "",
    force: Force = False,
) -> None:
    """Close a domain, an address or a network at once, whatever is allowed. Connections that it forbids are cut."""
    _change(session, "deny", targets, (machine, project, default), duration, force)


@app.command()
@with_session
def mode(
    session: Session,
    word: Annotated[str, typer.Argument(metavar="|".join(MODES), autocompletion=completion.egress_modes)],
    machine: Machine = "",
    project: Project = "",
    default: Default = False,
    duration: For = "",
) -> None:
    """Change the mode at once: locked lets nothing through, strict the proxy only, open nearly everything."""
    _change(session, "mode", [word], (machine, project, default), duration)


@app.command()
@with_session
def forget(
    session: Session,
    targets: Annotated[list[str] | None, typer.Argument(metavar="[TARGET...]")] = None,
    machine: Machine = "",
    project: Project = "",
    default: Default = False,
    everything: Annotated[bool, typer.Option("--all", help="All changes of all scopes.")] = False,
) -> None:
    """Take back what allow, deny and mode have changed: these targets, or all of a machine, a project or everywhere."""
    engine = Engine(session.folder)
    known = engine.live()
    scope = "" if everything else _scope(engine, machine, project, default, {one.scope for one in known})
    if everything and (machine or project or default):
        raise InvalidInput("--all: expected it alone, without --machine, --project or --default")
    kept = set(known)
    for target in targets or [""]:
        kept &= set(without_live(known, scope, target))
        if target and set(known) == set(without_live(known, scope, target)):
            entries = [one.entry for one in known if not scope or one.scope == scope]
            raise NotFound(f'live change "{target}": not there{nearest(target, entries)}')
    drop = [one for one in known if one not in kept]
    planned = engine.change(drop=drop) if drop else Planned(live=known)
    if session.as_json:
        session.out.data({"taken_back": [shown_live(one) for one in drop], **_told(planned)})
    else:
        for one in drop:
            session.out.line(f"Taken back: {_sentence(one)}")
        if not drop:
            session.out.line("Nothing was changed live.")


@app.command()
@with_session
def presets(
    session: Session,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[PRESET...]", autocompletion=completion.egress_presets)
    ] = None,
) -> None:
    """List the services that a policy opens by one word; with names, what these open and what that means."""
    for name in names or ():
        if name not in PRESETS:
            raise NotFound(f'preset "{name}": not known{nearest(name, PRESETS)}')
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "title": PRESETS[name].title,
            "takes_uploads": PRESETS[name].uploads,
            "by_nature": PRESETS[name].opens,
            "entries": [one.text for one in preset_entries(name)],
        }
        for name in names or PRESETS
    ]
    if session.as_json:
        session.out.data({"presets": rows})
    elif names:
        for row in rows:
            session.out.line(f"{row['name']}: {row['title']}")
            session.out.line(f"  opens: {', '.join(row['entries'])}")
            session.out.line(f"  takes uploads: {'yes' if row['takes_uploads'] else 'no'}")
            session.out.line(f"  by nature: {row['by_nature']}")
    else:
        columns = [Column("preset"), Column("uploads"), Column("for", flexible=True)]
        session.out.table(
            columns, [(row["name"], "yes" if row["takes_uploads"] else "no", row["title"]) for row in rows]
        )


@app.command()
@with_session
def watch(
    session: Session,
    lines: Annotated[int, typer.Option("--lines", "-n", metavar="N", min=0, help="Begin with the last N.")] = 10,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Go on with what is denied from now on.")] = True,
    machine: Machine = "",
    project: Project = "",
) -> None:
    """Follow what is denied, with the machine's name; --json writes a line of JSON each."""
    path = Engine(session.folder).store.folder / DENIALS
    following = egress_denial_log.follow(path) if follow else iter(())
    for records in (egress_denial_log.last(path, lines), following):
        for record in records:
            if machine in ("", record.get("machine")) and project in ("", record.get("project")):
                if session.as_json:
                    print(json_text(record), flush=True)
                else:
                    session.out.line(sentence(record))


@app.command()
@with_session
def metrics(session: Session) -> None:
    """Print the numbers of the policy for Prometheus, as the watch last wrote them to STATE_DIR/egress/metrics.prom."""
    path = Engine(session.folder).store.folder / METRICS
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"{path}: not there yet; the process egress-watch writes it") from None
    except PermissionError:
        raise Unavailable(f"{path}: only root can read it; run as root") from None
    print(text, end="")


def _change(
    session: Session,
    verb: str,
    targets: Sequence[str],
    where: tuple[str, str, bool],
    duration: str,
    force: bool = False,
) -> None:
    engine = Engine(session.folder)
    scope = _scope(engine, *where)
    if not scope:
        raise InvalidInput(f"{verb}: expected whom it is for: --machine NAME, --project NAME or --default")
    now = int(time.time())
    until = now + int(parse_duration("--for", duration)) if duration else 0
    if duration and until <= now:
        raise InvalidInput(f'--for: expected at least one second, found "{duration}"')
    changes = [live_change(scope, verb, target, until, now, force) for target in targets]
    planned = engine.change(add=changes)
    if session.as_json:
        session.out.data({"changes": [shown_live(one) for one in changes], **_told(planned)})
        return
    for one in changes:
        session.out.line(_sentence(one))


def _scope(engine: Engine, machine: str, project: str, default: bool, changed: Collection[str] = ()) -> str:
    """Return the scope that the options name, an empty text for none. Raises NotFound for one that nobody is in.

    changed: scopes that count although nobody is in them any more.
    """
    if sum(map(bool, (machine, project, default))) > 1:
        raise InvalidInput("expected one of --machine, --project and --default, found several")
    fence = engine.fence()
    if fence is None:
        raise NotFound("network policy: none is in force here; apply one with the module autovibe.fleet.egress_policy")
    machines, projects = {guest.name for guest in fence.guests}, {guest.project for guest in fence.guests} - {""}
    scope = f"machine-{machine}" if machine else f"project-{project}" if project else "default" if default else ""
    if scope in changed:
        return scope
    if machine and machine not in machines:
        raise NotFound(f'machine "{machine}": not in the network policy of this host{nearest(machine, machines)}')
    if project and project not in projects:
        raise NotFound(f'project "{project}": no machine of this host is in it{nearest(project, projects)}')
    return scope


def _sentence(one: Live) -> str:
    kind, _dash, name = one.scope.partition("-")
    whom = "all machines" if kind == "default" else f"{kind} {name}"
    what = {"allow": "Open", "deny": "Closed", "mode": "Mode"}[one.verb]
    return f"{what} for {whom}: {one.entry}" + (f", until {iso(one.until)}" if one.until else "")


def _told(planned: Planned) -> dict[str, Any]:
    return {"actions": list(planned.change.actions), "live": [shown_live(one) for one in planned.live]}


def _scopes_shown(found: Mapping[str, Any], machine: str, project: str, default: bool) -> set[str]:
    """Return the names of the scopes that the options ask for."""
    if default:
        return {"default"}
    cards = [one for one in found["machines"] if machine in ("", one["name"]) and project in ("", one["project"])]
    if (machine or project) and not cards:
        known = [one["name"] for one in found["machines"]]
        raise NotFound(f'"{machine or project}": not in the network policy of this host{nearest(machine, known)}')
    return {one["scope"] for one in cards} if machine or project else {one["name"] for one in found["scopes"]}


def _show(session: Session, found: Mapping[str, Any], wanted: set[str]) -> None:
    out = session.out
    counters = {one["scope"]: one for one in found["counters"]}
    columns = (
        Column("SCOPE"),
        Column("MODE"),
        Column("MACHINES", flexible=True),
        Column("ALLOWED", right=True),
        Column("DENIED", right=True),
    )
    scopes = [one for one in found["scopes"] if one["name"] in wanted]
    out.table(
        columns,
        [
            (
                one["name"],
                one["mode"],
                one["machines"],
                _packets(counters, one, "allowed"),
                _packets(counters, one, "denied"),
            )
            for one in scopes
        ],
        empty="No machine is in the network policy.",
    )
    for one in scopes:
        out.line()
        out.line(f"{one['name']}:")
        hub = ["the hub"] if one["hub"] else []
        out.pairs({"  opens": [*hub, *one["allow"]] or "nothing", "  closes": one["deny"]})
        names = [item for item in found["learned"] if item["scope"] == one["name"]]
        out.pairs({"  learned": [f"{item['name']}: {' '.join(item['addresses'])}" for item in names]})
    live = [_live_line(one) for one in found["live"] if one["scope"] in wanted or wanted & {one["scope"]}]
    stopped = [
        f"{one['id']} is {one['status']}: {one['error']}" for one in found["services"] if one["status"] != "running"
    ]
    loaded = "the kernel has other rules than those that were applied" if found["loaded"] is False else ""
    out.line()
    out.pairs(
        {
            "Live changes": live,
            "Denied last": [sentence(one) for one in found["denials"]],
            "Wrong": [*([loaded] if loaded else []), *stopped, *found["conflicts"]],
            "Not known": found["problems"],
        }
    )


def _packets(counters: Mapping[str, Any], scope: Mapping[str, Any], verdict: str) -> Any:
    found = counters.get(scope["name"], {}).get(verdict)
    return found["packets"] if found else None


def _live_line(one: Mapping[str, Any]) -> str:
    return f"{one['verb']} {one['entry']} for {one['scope']}" + (f" until {one['until']}" if one["until"] else "")


__all__ = ["app"]
