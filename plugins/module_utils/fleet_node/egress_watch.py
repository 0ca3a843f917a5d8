# SPDX-License-Identifier: GPL-3.0-or-later
"""The process egress-watch: it writes down what is denied, keeps time, and repairs what others change.

Run by fleetd as `python -m fleet_node.egress_watch STATE_DIR`. The rules hold without it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core import egress_fence, egress_metrics
    from fleet_core.egress_denials import Denial, Gathering, Roster, denial, logged
    from fleet_core.errors import FleetError
    from fleet_core.fences import Fence
else:
    try:
        from ..fleet_core import egress_fence, egress_metrics
        from ..fleet_core.egress_denials import Denial, Gathering, Roster, denial, logged
        from ..fleet_core.errors import FleetError
        from ..fleet_core.fences import Fence
    except ImportError:  # installed as a top-level package
        from fleet_core import egress_fence, egress_metrics
        from fleet_core.egress_denials import Denial, Gathering, Roster, denial, logged
        from fleet_core.errors import FleetError
        from fleet_core.fences import Fence

from . import (
    egress_denial_log,
    egress_nflog,
    egress_proxies,
    egress_proxy_log,
    egress_questions,
    egress_services,
    egress_wanted,
)
from .egress_backends import backend
from .egress_engine import Engine
from .egress_store import AGED, DENIALS, METRICS, NOTHING, Record

GATHER, TICK, COUNT, RETRY = 1.0, 5.0, 10.0, 10.0  # seconds between writing, looking at the rules, counting, retrying
SURELY = 30.0  # seconds between looks at the rules where the kernel tells of changes
SETTLED = 0.3  # seconds after a change until it is looked at
_PACKAGES = ("fleet_core", "fleet_node")
AGE = 3600.0  # seconds after which what names led to is old


class Watch:
    """What the process knows. engine: of the state folder that it watches."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.store = engine.store
        self.gathering = Gathering()
        self.denials: Counter[tuple[str, str]] = Counter()
        self.repairs = 0
        self.record: Record = NOTHING
        self.known = egress_wanted.Recorded()
        self.fence: Fence = Fence()
        self.roster = Roster(self.fence)
        self.loaded = True
        self._reader: egress_nflog.Reader | None = None
        self.foreign = False
        self._events: egress_nflog.Events | None = None
        self._looked = 0.0
        self._questions = egress_questions.Questions(self.store)
        proxy = egress_proxies.folder_of(self.store)
        self._proxied = egress_proxy_log.ProxyLog(proxy / egress_proxies.LOG)
        self._of_squid = egress_proxy_log.ProxyLog(proxy / egress_proxies.SQUID_LOG)
        self._names: dict[int, str] = {}
        self._own: set[str] = set()
        self._due: dict[str, float] = {}
        self._said = ""
        self._ending = False
        self._waking = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._code = own_files()

    def run(self) -> None:
        """Watch until a signal ends it."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        while not self._ending:
            for name, pause, work in self._chores():
                if time.monotonic() >= self._due.get(name, 0.0):
                    self._due[name] = time.monotonic() + pause
                    self._try(work)
            self._wait()
        self._try(self._gathered)

    def _chores(self) -> list[tuple[str, float, Any]]:
        return [
            ("open", RETRY, self._open),
            ("gather", GATHER, self._gathered),
            ("tick", TICK, self.tick),
            ("count", COUNT, self._count),
            ("logs", COUNT, self._keep_small),
        ]

    def _keep_small(self) -> None:
        self._proxied.keep_small()
        self._of_squid.keep_small(kept=1)  # guests can make squid complain

    def _end(self, *_signal: Any) -> None:
        self._ending = True
        os.write(self._waking[1], b"x")  # select() would go on after a signal

    def _try(self, work: Any) -> None:
        """Do something; what goes wrong is said once, and tried again later."""
        try:
            work()
        except FleetError as error:
            if error.message != self._said:
                say(error.message)
            self._said = error.message

    def _wait(self) -> None:
        pause = max(0.0, min(self._due.values()) - time.monotonic())
        sources = [one for one in (self._waking[0], self._reader, self._events) if one is not None]
        ready = select.select(sources, [], [], pause)[0]
        if self._reader in ready:
            self._try(self._read)
        if self._events in ready:
            self._try(self._changed)

    # Denials

    def _open(self) -> None:
        self._look()
        group = self.fence.log_group
        if self._reader is not None and self._reader.group != group:
            self._reader.close()
            self._reader = None
        self._own = egress_nflog.own_addresses()  # interfaces and addresses come and go
        if self._reader is None:
            self._reader = egress_nflog.Reader(group)
            say(f"reading what group {group} of the kernel's log tells")

        if self._events is None:
            with contextlib.suppress(FleetError):
                self._events = egress_nflog.Events()

    def _changed(self) -> None:
        """Let the next look at the rules come soon, for somebody has changed some."""
        if self._events is not None and self._events.changed():
            self._looked = 0.0
            self._due["tick"] = min(self._due["tick"], time.monotonic() + SETTLED)

    def _read(self) -> None:
        """Take in what the kernel has logged; a flood is left to its buffer after a while, so that chores get done."""
        end = time.monotonic() + GATHER / 2
        while self._reader is not None and time.monotonic() < end:
            data = self._reader.read()
            if data is None:
                return
            now = self.engine.now()
            for found in logged(data):
                if found.indev not in self._names or (found.physindev and found.physindev not in self._names):
                    self._names = egress_nflog.interfaces()
                    self._own = egress_nflog.own_addresses()
                one = denial(found, self._names, self.roster, now, self._own)
                if one is not None:
                    self._add(one)

    def _add(self, one: Denial) -> None:
        self.gathering.add(one)
        self.denials[(one.machine or "unknown", one.reason)] += one.count

    def _gathered(self) -> None:
        """Write down the denials of the last second."""
        self._look()
        for one in self._questions.refused(self.fence, self.roster, self.engine.now()):
            self._add(one)
        for one in self._proxied.refused(self.roster, self.engine.now()):
            self._add(one)
        taken = self.gathering.take()
        if taken:
            error = egress_denial_log.write(self.store.folder / DENIALS, taken)
            if error:
                say(f"{self.store.folder / DENIALS}: cannot be written: {error}")

    # Time and others

    def _look(self) -> None:
        """Read what is applied if it is another generation than before."""
        name = ""
        with contextlib.suppress(OSError):
            name = os.path.basename(os.readlink(self.store.applied))
        if name != self.record.name:
            self.record = self.store.read()
            self.known = egress_wanted.recorded(self.record)
            self.fence = self.known.fence or Fence()
            self._compare()
            self.roster = Roster(self.fence)

    def _compare(self) -> None:
        """Find out whether another version of ours wrote the rules. Those are left alone: two would take turns."""
        self.foreign = False
        if self.record.declared is None:
            return
        own = backend(_backend_of(self.record)).files(self.fence)
        self.foreign = any(self.record.files.get(name) != text for name, text in own.items())
        if self.foreign:
            say("another version has put the policy in force than the one that is installed: only denials are logged")

    def tick(self) -> None:
        """Put in force what time has changed, repair what others have changed, let old addresses end."""
        if replaced(self._code):  # what the new one applies is no damage that the old one has to repair
            say("the application was replaced; fleetd starts this process again with the new one")
            self._end()
            return
        self._look()
        if self.record.declared is None or self.foreign:
            return
        # iptables tells nobody of its changes.
        told = self._events is not None and _backend_of(self.record) == "nftables"
        if time.monotonic() >= self._looked + (SURELY if told else 0.0) or not self._looked:
            self._looked = time.monotonic()
            self.loaded = backend(_backend_of(self.record)).loaded(self.fence)
        why = self._reason()
        if why:
            planned = self.engine.refresh()
            if planned.change.changed:
                self.repairs += 0 if self.loaded else 1
                say(f"{why}: {', '.join(planned.change.actions)}")
            self.loaded = True
            self._look()
        self._age()

    def _reason(self) -> str:
        """Return why the policy has to be looked at, or an empty text."""
        if not self.loaded:
            return "the rules in the kernel are not those that were applied"
        if self.store.unfinished():
            return "an apply was interrupted"
        now, then = int(self.engine.now()), int(self.record.basis.get("now") or 0)
        declaration = self.known.declaration
        if declaration is None:
            return ""
        end = egress_fence.next_end(declaration, self.known.live, then)
        if end and end <= now:
            return "what was open for a time has ended"
        if not declaration.resolvers and list(self.engine.upstreams()) != list(
            self.record.basis.get("upstreams") or ()
        ):
            return "this host asks other resolvers"
        return ""

    def _age(self) -> None:
        path = self.store.folder / AGED
        now = time.time()
        try:
            age = now - os.stat(path).st_mtime
        except FileNotFoundError:
            self.store.put(AGED, "")
            return
        if 0 <= age < AGE:
            return
        with self.store.lock():
            backend(_backend_of(self.record)).age(self.fence)
            self.store.put(AGED, "")
        ids = [egress_services.process_id(egress_services.DNS, scope.name) for scope in self.fence.scopes]
        self.engine.services.hang_up(ids)

    # Numbers

    def _count(self) -> None:
        self._look()
        if self.record.declared is None:
            return
        rules = backend(_backend_of(self.record))
        views = {}
        with contextlib.suppress(FleetError):
            views = self.engine.services.views()
        numbers = egress_metrics.Numbers(
            self.fence,
            rules.counters(self.fence),
            rules.learned(self.fence),
            dict(self.denials),
            {ident: view.get("status") == "running" for ident, view in views.items()},
            live=len(self.record.live),
            repairs=self.repairs,
            lost=self._reader.lost if self._reader is not None else 0,
            left_out=self.gathering.left_out,
            applied=int(self.record.basis.get("now") or 0),
            loaded=self.loaded,
        )
        self.store.put(METRICS, egress_metrics.render(egress_metrics.families(numbers)), 0o600)


def _backend_of(record: Record) -> str:
    return str((record.declared or {}).get("backend") or "nftables")


def own_files() -> dict[str, tuple[int, int]]:
    """Return the files of the application that this process runs."""
    modules = [module for name, module in list(sys.modules.items()) if name.partition(".")[0] in _PACKAGES]
    files = {str(file) for module in modules if (file := getattr(module, "__file__", None))}
    return {file: state for file in files if (state := _state(file)) is not None}


def replaced(files: Mapping[str, tuple[int, int]]) -> bool:
    """Tell whether other files stand there now, all of them: not while an installation goes on."""
    states = {file: _state(file) for file in files}
    return states != dict(files) and None not in states.values()


def _state(file: str) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def say(text: str) -> None:
    """Tell what was done, in the log of the process."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def main() -> None:
    """Watch the state folder that the command line names."""
    Watch(Engine(Path(sys.argv[1]) if len(sys.argv) > 1 else None)).run()


if __name__ == "__main__":
    main()
