# SPDX-License-Identifier: GPL-3.0-or-later
"""What fleet steer shows: agents, their steps and iterations, as fleetd's answers and events tell it.

An event costs the same with ten iterations of history and with ten thousand. Every change is returned as pairs of what
changed and of which agent, so that whoever draws can wait and draw many changes at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
Changes = set[tuple[str, str]]  # ("tree" | "agent" | "injections" | "stale" | "ended", name of an agent)

FIRST = 4  # iterations of a step that are shown until more are asked for
PAGE = 50  # iterations of one request
KEPT_INJECTIONS = 500  # an agent
FINISHED = ("succeeded", "failed", "interrupted")
BUSY = ("running", "starting", "waiting", "stopping")


_ORDER = ("queued", "sent", "delivered", "refused")  # that a steering message goes through


def _fresher(known: Row | None, row: Row) -> Row:
    """Return what is to be kept of an iteration: an answer may be older than the event that came before it."""
    return known if known is not None and known.get("finished") and not row.get("finished") else row


def _moved(injection: Row) -> tuple[float, int]:
    state = injection.get("state")
    return float(injection.get("moved") or 0), _ORDER.index(state) if state in _ORDER else 0


def _waits(injection: Row) -> bool:
    return injection.get("state") in ("queued", "sent")


@dataclass(frozen=True)
class Key:
    """Names one line of the tree. kind: agent, step, iteration, more."""

    kind: str
    agent: str
    step: str = ""
    iteration: int = 0

    @property
    def above(self) -> Key | None:
        """The line that this one lies under."""
        if self.kind == "agent":
            return None
        return Key("agent", self.agent) if self.kind == "step" else Key("step", self.agent, self.step)


@dataclass
class Step:
    """One step of an agent's pipeline. rows: the iterations that are loaded, newest first. count: all there were."""

    label: str
    kind: str = "call"
    method: str = ""
    count: int = 0
    rows: list[Row] = field(default_factory=list)
    last: Row | None = None
    loaded: bool = False
    complete: bool = False
    shown: int = FIRST

    @property
    def newest(self) -> int:
        """The id of the newest iteration that is known."""
        return int(self.last["id"]) if self.last else 0

    @property
    def visible(self) -> Sequence[Row]:
        """The iterations that the tree shows."""
        if not self.rows and self.last:
            return [self.last]
        return self.rows[: self.shown]

    def find(self, ident: int) -> Row | None:
        """Return an iteration that is loaded."""
        if self.last and self.last["id"] == ident:
            return self.last
        return next((row for row in self.rows if row["id"] == ident), None)

    def take(self, row: Row) -> None:
        """Take an iteration that began or changed."""
        ident = row["id"]
        row = _fresher(self.find(ident), row) if ident == self.newest else row
        if ident > self.newest:
            self.count += 1
            if self.loaded:
                self.rows.insert(0, row)
        else:
            for index, known in enumerate(self.rows):  # what changes is among the newest
                if known["id"] == ident:
                    self.rows[index] = row
                if known["id"] <= ident:
                    break
        if ident >= self.newest:
            self.last = row

    def page(self, rows: Sequence[Row], before: int | None, asked: int) -> None:
        """Take a page of iterations, newest first. before: the id that it was asked for, None for the newest."""
        known = {row["id"]: row for row in self.rows[: len(rows)]}
        rows = [_fresher(known.get(row["id"]), row) for row in rows]
        if before is None:
            newer = [row for row in self.rows if rows and row["id"] > rows[0]["id"]]
            joined = any(row["id"] in known for row in rows)  # else iterations between are not known
            older = [row for row in self.rows if row["id"] < rows[-1]["id"]] if joined and len(rows) >= asked else []
            self.complete = len(rows) < asked or (self.complete and bool(older))
            self.rows = [*newer, *rows, *older]
            if self.rows:
                self.last = self.rows[0]
        elif not self.rows or self.rows[-1]["id"] == before:
            self.rows.extend(rows)
            self.complete = len(rows) < asked
        self.loaded = True
        self.count = max(self.count, len(self.rows))


@dataclass
class Agent:
    """One agent. statistics: by step, "" for all of them. revisions: oldest first, empty until they are asked for.

    injections_known: whether fleetd was asked for them; events alone bring those of now. told: how many events told of
    its state.
    """

    view: dict[str, Any]
    steps: dict[str, Step] = field(default_factory=dict)
    statistics: dict[str, Row] = field(default_factory=dict)
    revisions: list[Row] = field(default_factory=list)
    injections: dict[int, Row] = field(default_factory=dict)
    injections_known: bool = False
    told: int = 0

    @property
    def name(self) -> str:
        return str(self.view["name"])

    @property
    def state(self) -> str:
        return str(self.view.get("state") or "stopped")

    @property
    def run(self) -> Row:
        """The run that goes on, or the last one; empty when it never ran."""
        return self.view.get("run") or {}

    @property
    def definition(self) -> Row:
        """The definition of the newest revision that is known."""
        return (self.revisions[-1].get("definition") or {}) if self.revisions else {}

    def method(self, name: str) -> Row | None:
        """Return {parameters, body} of a method."""
        found = (self.definition.get("methods") or {}).get(name)
        if isinstance(found, str):
            return {"parameters": [], "body": found}
        return found if isinstance(found, Mapping) else None

    def iteration(self, step: str, ident: int) -> Row | None:
        """Return an iteration that is loaded."""
        found = self.steps.get(step)
        return found.find(ident) if found else None

    def take_view(self, view: Row) -> None:
        """Take what fleetd says of the agent. Steps that the pipeline no longer has are left out."""
        run, told_run = self.run, view.get("run") or {}
        self.view = dict(view)
        if run and (run.get("id"), run.get("updated") or 0) > (told_run.get("id") or 0, told_run.get("updated") or 0):
            self.view["run"] = run
        steps = {}
        for told in view.get("steps") or ():
            label = str(told["label"])
            step = steps[label] = self.steps.get(label) or Step(label)
            step.kind, step.method = str(told.get("kind") or "call"), str(told.get("method") or "")
            last = told.get("last")
            if isinstance(last, Mapping) and last["id"] >= step.newest:
                if last["id"] != step.newest:
                    step.loaded = False
                step.take(last)
                step.count = int(told.get("iterations") or 0)
            step.count = max(step.count, int(told.get("iterations") or 0))
        self.steps = steps

    def outbox(self, row: Row) -> list[Row]:
        """Return the steering messages that concern an iteration, oldest first."""
        step = self.steps.get(str(row.get("step")))
        newest = step is not None and row.get("id") == step.newest
        found = []
        for injection in self.injections.values():
            ids = (injection.get("iteration"), injection.get("delivered_in"))
            ahead = _waits(injection) and not any(ids)
            if row.get("id") in ids or (newest and ahead and injection.get("step") in (None, "", row.get("step"))):
                found.append(injection)
        return found


@dataclass(frozen=True)
class Line:
    """One line of the tree. item: the agent, the step or the iteration. first: the newest iteration of its step."""

    key: Key
    depth: int
    item: Any
    open: bool = False
    foldable: bool = False
    first: bool = False


class Model:
    """Everything that is known. open: what is unfolded. search: what the tree is filtered by."""

    def __init__(self) -> None:
        self.agents: dict[str, Agent] = {}
        self.open: set[Key] = set()
        self.search = ""
        self.known = False  # whether fleetd was asked for the agents
        self._lines: list[Line] | None = None

    def take_agents(self, views: Iterable[Row], all_of_them: bool = True) -> Changes:
        """Take the answer of agents.list; agents that are not in it any more are left out."""
        changes: Changes = {("tree", "")}
        names = set()
        for view in views:
            name = str(view["name"])
            names.add(name)
            agent = self.agents.get(name)
            if agent is None:
                agent = self.agents[name] = Agent(dict(view))
            elif agent.view.get("revision") != view.get("revision"):
                agent.revisions = []
            agent.take_view(view)
            changes.add(("agent", name))
        if all_of_them:
            self.known = True
            for name in [name for name in self.agents if name not in names]:
                changes |= self.forget(name)
        self._lines = None
        return changes

    def forget(self, name: str) -> Changes:
        """Leave out an agent that was removed."""
        self.agents.pop(name, None)
        self._lines = None
        return {("tree", ""), ("agent", name)}

    def take_iterations(
        self, name: str, label: str, rows: Sequence[Row], before: int | None = None, asked: int = PAGE
    ) -> Changes:
        """Take the answer of agents.iterations for one step."""
        agent = self.agents.get(name)
        step = agent.steps.get(label) if agent else None
        if step is None:
            return set()
        step.page(rows, before, asked)
        self._lines = None
        return {("tree", ""), ("agent", name)}

    def take_injections(self, name: str, rows: Iterable[Row], live: bool = False) -> Changes:
        """Take steering messages, new or in another state. live: an event told them, so they change what waits."""
        agent = self.agents.get(name)
        if agent is None:
            return set()
        queued = int(agent.view.get("queued") or 0)
        for row in rows:
            known = agent.injections.get(row["id"])
            if known is not None and _moved(known) > _moved(row):
                continue
            if known is not None or live:
                queued += _waits(row) - (_waits(known) if known else not _waits(row))
            agent.injections[row["id"]] = row
        agent.view["queued"] = max(0, queued)
        if len(agent.injections) > KEPT_INJECTIONS:
            for ident in sorted(agent.injections)[:-KEPT_INJECTIONS]:
                del agent.injections[ident]
        return {("injections", name), ("agent", name), ("tree", "")}

    def event(self, event: Row) -> Changes:
        """Take an event of fleetd; messages of iterations are not kept here. "stale": ask for the agent again."""
        kind, name = event.get("kind"), str(event.get("agent") or "")
        agent = self.agents.get(name)
        if kind == "control":
            return {("stale", name)} if event.get("what") in ("revision", "desired") else set()
        if kind not in ("agent", "run", "iteration", "injection"):
            return set()
        if agent is None:
            return {("stale", name)} if name else set()
        changes: Changes = {("agent", name), ("tree", "")}
        if kind == "agent":
            agent.told += 1
            agent.view["state"] = event.get("state") or agent.state
            if event.get("state") in ("removed", "absent") or event.get("revision") != agent.view.get("revision"):
                changes.add(("stale", name))
        elif kind == "run":
            if int(event.get("id") or 0) >= int(agent.run.get("id") or 0):
                agent.view["run"] = {**event}
        elif kind == "iteration":
            changes |= self._iteration(agent, event)
        else:
            changes |= self.take_injections(name, [event], live=True)
        self._lines = None
        return changes

    def _iteration(self, agent: Agent, event: Row) -> Changes:
        step = agent.steps.get(str(event.get("step")))
        if step is None:  # of a revision that is not known yet
            return {("stale", agent.name)}
        step.take({**event})
        return {("ended", agent.name)} if event.get("state") in FINISHED else set()

    # The tree

    def lines(self) -> list[Line]:
        """Return the lines of the tree, folded and filtered."""
        if self._lines is None:
            self._lines = list(self._filtered() if self.search else self._all())
        return self._lines

    def _all(self) -> Iterable[Line]:
        for name in sorted(self.agents):
            agent = self.agents[name]
            key = Key("agent", name)
            yield Line(key, 0, agent, key in self.open, bool(agent.steps))
            if key in self.open:
                for step in agent.steps.values():
                    yield from self._step(agent, step)

    def _filtered(self) -> Iterable[Line]:
        wanted = self.search.casefold()
        for name in sorted(self.agents):
            agent = self.agents[name]
            key = Key("agent", name)
            whole = wanted in name.casefold()
            steps = [step for step in agent.steps.values() if wanted in step.label.casefold()]
            if whole or steps:
                unfolded = key in self.open or not whole
                yield Line(key, 0, agent, unfolded, bool(agent.steps))
                if unfolded:
                    for step in agent.steps.values() if whole else steps:
                        yield from self._step(agent, step)

    def _step(self, agent: Agent, step: Step) -> Iterable[Line]:
        key = Key("step", agent.name, step.label)
        unfolded = key in self.open
        yield Line(key, 1, step, unfolded, step.count > 0)
        if unfolded:
            for index, row in enumerate(step.visible):
                yield Line(Key("iteration", agent.name, step.label, row["id"]), 2, row, first=index == 0)
            if step.count > len(step.visible):
                yield Line(Key("more", agent.name, step.label), 2, step)

    def fold(self, key: Key, unfolded: bool) -> None:
        """Fold or unfold an agent or a step."""
        if key.kind in ("agent", "step"):
            (self.open.add if unfolded else self.open.discard)(key)
            if key.kind == "step" and not unfolded and (step := self.step(key)):
                step.shown = FIRST
            self._lines = None

    def show_more(self, key: Key) -> Step | None:
        """Show more iterations of a step. Returns the step when they have to be loaded."""
        step = self.step(key)
        if step is None:
            return None
        step.shown += PAGE if step.shown > FIRST else PAGE - FIRST
        self._lines = None
        return step if not step.complete and len(step.rows) < step.shown else None

    def find(self, text: str) -> None:
        """Filter the tree by what the names of agents and steps hold; an empty text shows all."""
        self.search = text.strip()
        self._lines = None

    def step(self, key: Key) -> Step | None:
        """Return the step that a line belongs to."""
        agent = self.agents.get(key.agent)
        return agent.steps.get(key.step) if agent else None

    def iteration(self, key: Key) -> Row | None:
        """Return the iteration of a line."""
        step = self.step(key)
        return step.find(key.iteration) if step else None

    def busy(self) -> int:
        """Return how many agents work."""
        return sum(agent.state in ("running", "starting", "waiting") for agent in self.agents.values())
