# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The half of agent_task that works on the control node: reads the list, shows progress, receives artifacts."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import shlex
import tempfile
import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ansible_collections.autovibe.fleet.plugins.module_utils._tasks import executed_tasks, failure
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import FleetError
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.quantities import parse_duration
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.task_lists import TaskList, select, task_list
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_node.artifacts import unpack
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_node.task_attempts import clean_text

MODULE = "autovibe.fleet.agent_task"
SOURCES = ("src", "definition", "tasks", "run")
# Options that the control node uses up; the rest go to the module.
_OURS = ("src", "tasks", "definition", "name", "workdir", "parallel", "timeout", "artifacts")
_POLL = 5.0  # seconds that the module waits for news
_RECONNECTS = 6
_NAME = re.compile(r"[^A-Za-z0-9._-]+")

display = Display()


class ActionModule(ActionBase):
    """Runs agent_task: starts the list there, then asks for what is new until it is over."""

    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        self._vars = task_vars or {}
        try:
            return {**result, **self._answer()}
        except FleetError as error:
            raise AnsibleActionFail(error.message) from error

    def _answer(self) -> dict[str, Any]:
        args = dict(self._task.args)
        given = [name for name in SOURCES if args.get(name) is not None]
        if len(given) != 1:
            found = ", ".join(given) or "none of them"
            raise AnsibleActionFail(f"agent_task: expected one of {', '.join(SOURCES)}, found {found}")
        passed = {key: value for key, value in args.items() if key not in _OURS}
        target = self._target(args)
        state = args.get("state", "finished")
        if given == ["run"]:
            if self._task.check_mode or state != "finished":
                return self._module(passed)
            answer = self._module({**passed, "wait": 0.001})
            position = int(args.get("events_after") or 0)
            executed = None
        else:
            passed["definition"] = self._list(args, given[0]).to_dict()
            if self._task.check_mode or state != "finished":
                return self._module(passed)
            answer = self._module({**passed, "state": "started"})
            if answer.get("failed"):
                return answer
            position = int(answer.get("position") or 0)
            executed = answer
        if answer.get("failed"):
            return answer
        rest = {key: passed[key] for key in ("state_dir",) if key in passed}
        limit = float(args.get("wait") or 0)
        answer = self._watch({**rest, "run": answer["run"]}, position, limit, target is not None)
        return self._finish(answer, executed, target)

    def _target(self, args: Mapping[str, Any]) -> Path | None:
        path = args.get("artifacts")
        return None if not path else Path(self._loader.path_dwim(os.path.expanduser(str(path))))

    def _list(self, args: Mapping[str, Any], source: str) -> TaskList:
        """Return the list that the options give, complete."""
        data: Any = {"tasks": args["tasks"]} if source == "tasks" else args.get("definition")
        name = str(args.get("name") or "")
        where = source
        if source == "src":
            where = str(args["src"])
            data = self._read(where)
            name = name or _NAME.sub("-", Path(where).stem).lstrip("._-")[:63]
        data = json.loads(json.dumps(data, default=str))  # without Ansible's own kinds of text
        if isinstance(data, dict):
            own = {"name": args.get("name"), "workdir": args.get("workdir"), "parallel": args.get("parallel")}
            data.update({key: value for key, value in own.items() if value is not None})
        try:
            found = select(task_list(data, name), args.get("only") or (), str(args.get("start_at") or ""))
        except FleetError as error:
            raise AnsibleActionFail(f"agent_task: {where}: {error.message}") from error
        if args.get("timeout") is not None:
            found = dataclasses.replace(found, timeout=parse_duration("agent_task: timeout", args["timeout"]))
        return found

    def _read(self, name: str) -> Any:
        try:
            found = self._find_needle("files", name)
            text = Path(self._loader.get_real_file(found)).read_text(encoding="utf-8-sig")
            return self._loader.load(text, file_name=found)
        except (AnsibleError, OSError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise AnsibleActionFail(f"agent_task: src {name}: cannot be read: {reason}") from error
        finally:
            self._loader.cleanup_all_tmp_files()

    def _module(self, args: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self._execute_module(module_name=MODULE, module_args=args, task_vars=self._vars)
        return found

    def _watch(self, args: dict[str, Any], position: int, limit: float, fetch: bool) -> dict[str, Any]:
        """Ask for news and show them, until the run or the time is over."""
        begun = time.monotonic()
        lost = 0
        while True:
            left = _POLL if not limit else max(0.001, min(_POLL, limit - (time.monotonic() - begun)))
            more = {"events_after": position, "wait": left, **({"artifacts": "x"} if fetch else {})}
            try:
                answer = self._module({**args, **more})
            except AnsibleConnectionFailure as error:
                lost += 1
                if lost > _RECONNECTS:
                    raise
                self._show("", f"connection lost, the run goes on: {error}")
                time.sleep(min(2**lost, 20))
                self._connection.reset()
                continue
            lost = 0
            if answer.get("failed"):
                return answer
            for event in answer.get("events", ()):
                self._event(event)
            position = int(answer["position"])
            if answer["finished"] or (limit and time.monotonic() - begun >= limit):
                return answer

    def _finish(self, answer: dict[str, Any], started: dict[str, Any] | None, target: Path | None) -> dict[str, Any]:
        """Return what the task returns: with artifacts fetched, and failed if the run has failed."""
        archive = answer.pop("archive", None)
        if answer.get("failed"):
            return answer
        if archive and target is not None:
            answer["fetched"] = self._fetch(str(archive), target)
        if not answer["finished"]:
            return {**answer, "changed": bool(started and started.get("changed"))}
        for key in ("events", "position"):
            answer.pop(key, None)
        if started is not None:
            names = executed_tasks(answer) if started.get("changed") else []
            states = {item["name"]: item["state"] for item in answer["tasks"]}
            answer["actions"] = [f"run task {name}" for name in names]
            answer["changed"] = bool(names)
            if self._task.diff:
                answer["diff"] = {"before": "", "after": {name: states[name] for name in names} or ""}
        sentence = failure(answer)
        if sentence:
            answer.update(failed=True, msg=sentence)
        return answer

    def _fetch(self, archive: str, target: Path) -> list[str]:
        try:
            if self._connection.become is None:
                with tempfile.TemporaryDirectory() as folder:
                    local = os.path.join(folder, "artifacts.tar")
                    self._connection.fetch_file(archive, local)
                    with open(local, "rb") as file:
                        return unpack(file, target)
            # As fetch does it: the connection's own user may not read what belongs to another.
            answer = self._execute_module(
                module_name="ansible.legacy.slurp", module_args={"src": archive}, task_vars=self._vars
            )
            if answer.get("failed"):
                raise AnsibleActionFail(f"agent_task: artifacts: {answer.get('msg')}")
            return unpack(BytesIO(base64.b64decode(answer["content"])), target)
        finally:
            self._low_level_execute_command(f"rm -f -- {shlex.quote(archive)}")

    def _event(self, event: Mapping[str, Any]) -> None:
        kind, state = event["event"], event.get("state")
        if kind == "output":
            if display.verbosity:
                self._show(str(event["task"]), f"| {event['text']}")
        elif kind == "task":
            if state == "running":
                text = "started" if event.get("attempts", 1) == 1 else f"attempt {event['attempts']}"
            elif state == "retrying":
                text = f"attempt {event['attempts']} failed: {event['reason']}"
            else:
                spent = "" if event.get("duration") is None else f" in {event['duration']:.1f}s"
                text = f"{state}{spent}" + (f": {event['reason']}" if event.get("reason") else "")
            self._show(str(event["task"]), text)
        elif kind == "run":
            for note in event.get("notes") or ():
                self._show("", str(note))

    def _show(self, task: str, text: str) -> None:
        if self._task.no_log:
            return
        host = self._vars.get("inventory_hostname", "")
        display.display(clean_text(": ".join(part for part in (f"  {host}", task, text) if part)))
