#!/usr/bin/python

# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: agent_task
short_description: Run lists of commands and prompts
version_added: 0.1.0
description:
  - Runs a task list on the managed host - shell commands, and prompts for coding agents, with dependencies, timeouts,
    retries, expectations and artifacts. Tasks that need nothing of each other run at the same time.
  - The host needs Python and what the tasks use; not fleetd, nor the C(fleet) command.
  - Progress is shown while it runs. The run is a process of the host's own, so a lost connection does not end it.
    Neither does interrupting the play; O(state=cancelled) ends it.
  - The module fails when a task fails, with a sentence that names it. The results of all tasks are returned then, too.
  - The format of a list is described in C(docs/tasks.md); C(fleet task schema) prints its JSON Schema.
extends_documentation_fragment:
  - autovibe.fleet.fleet
attributes:
  action:
    description: Has an action plugin, which reads the list and receives the artifacts on the control node.
    support: full
  check_mode:
    description: Can run in C(check_mode) and return the plan, without executing anything.
    support: full
  diff_mode:
    description: Returns which tasks were executed, or would be executed in C(check_mode), when in diff mode.
    support: full
  idempotent:
    description: When run twice in a row with the same options, the second run changes nothing.
    support: partial
    details:
      - A task is executed every time, which is a change, unless each of its C(creates) matches a file.
      - With O(resume=true), what the last run has done is not done again. When it had done all, nothing is changed.
options:
  state:
    description:
      - V(finished) runs the list and waits for its end. With O(run), it only waits.
      - V(started) starts the list and does not wait.
      - V(cancelled) ends the run O(run) with all its tasks.
    type: str
    choices: [finished, started, cancelled]
    default: finished
  src:
    description:
      - The list as a JSON or YAML file on the control node. It is searched below C(files) of the role or the playbook,
        and decrypted if it is in a vault. It is not a template.
    type: path
  definition:
    description:
      - The list itself, instead of O(src).
    type: dict
  tasks:
    description:
      - The tasks alone, instead of O(src).
    type: list
    elements: dict
  name:
    description:
      - What the list is called. O(resume) goes on with the last run of this name in the same folder.
      - By default the name that the list gives itself, else the file's.
    type: str
  workdir:
    description:
      - The folder on the managed host in which the tasks run, instead of the list's own.
      - A relative one begins at the folder that Ansible works in, which is the user's home.
    type: path
  env:
    description:
      - Environment variables for all tasks. In contrast to those of the list they may be secrets - they are not stored,
        and hidden in what the tasks print when their names look like a secret's.
    type: dict
  parallel:
    description:
      - How many tasks run at the same time, instead of the list's own number.
    type: int
  timeout:
    description:
      - How long all tasks together may take, instead of the list's own limit. A number of seconds, or a text such as
        V(90s) or V(2m30s).
    type: str
  resume:
    description:
      - Whether to go on with the last run of this list in this folder. What it has done is not done again, as long as
        the task is still the same.
      - Without an earlier run, all tasks are executed. Runs with O(only) or O(start_at) do not count, and cannot be
        resumed.
    type: bool
    default: false
  only:
    description:
      - Execute these tasks alone; what they need counts as done.
    type: list
    elements: str
  start_at:
    description:
      - Execute this task and all that need it; what they need counts as done.
    type: str
  artifacts:
    description:
      - A folder on the control node into which the artifacts of the tasks are copied. It is made if it is missing.
      - With several hosts, give each its own, such as V(artifacts/{{ inventory_hostname }}).
    type: path
  run:
    description:
      - The number of an earlier run, to be waited for or to be cancelled.
    type: str
  wait:
    description:
      - How many seconds to wait with O(state=finished); 0 waits for the end, however long it takes.
      - When the time is over the run goes on, and RV(finished) is false.
    type: float
    default: 0
  events_after:
    description:
      - Return the events of the run behind this RV(position). It serves the display of progress.
    type: int
    default: 0
seealso:
  - module: autovibe.fleet.agent
"""

EXAMPLES = r"""
- name: Say hello, twice at the same time
  autovibe.fleet.agent_task:
    tasks:
      - name: one
        run: echo "hello from $(hostname)"
      - name: two
        run: python3 --version
        expect:
          stdout_contains: Python 3
  register: greetings

- name: Show what the first one printed
  ansible.builtin.debug:
    msg: "{{ greetings.tasks[0].stdout }}"

- name: Make a folder for the next list
  ansible.builtin.file:
    path: /tmp/fleet-example-report
    state: directory
    mode: "0755"

- name: Write a report once, check it, and fetch it
  autovibe.fleet.agent_task:
    definition:
      version: 1
      name: report
      workdir: /tmp/fleet-example-report
      tasks:
        - name: write
          run: mkdir -p out && date >out/report.txt
          creates: out/report.txt
          artifacts: [out]
        - name: check
          run: test -s out/report.txt
          needs: [write]
    artifacts: /tmp/fleet-example-fetched

- name: Start a list that takes long
  autovibe.fleet.agent_task:
    state: started
    tasks:
      - name: long
        run: sleep 600
  register: long

- name: End it
  autovibe.fleet.agent_task:
    state: cancelled
    run: "{{ long.run }}"
"""

RETURN = r"""
actions:
  description: Which tasks were executed, or would be executed in check mode, one sentence each.
  type: list
  elements: str
  returned: success
  sample: [run task install, run task test]
plan:
  description: What would be executed, in which order; tasks of one number at the same time.
  type: list
  elements: str
  returned: in check mode, without O(run)
  sample: ["python: 2 tasks, at most 4 at once", "  1. install  uv sync", "  2. test     pytest  [after install]"]
run:
  description: The number of the run on the managed host. Give it to O(run), or to C(fleet task show) there.
  type: str
  returned: when not in check mode
  sample: "12"
name:
  description: The name of the list.
  type: str
  returned: when not in check mode
  sample: python
state:
  description: V(running), V(succeeded), V(failed) or V(interrupted).
  type: str
  returned: when not in check mode
  sample: succeeded
reason:
  description: Why the run as a whole was ended early, or nothing.
  type: str
  returned: when not in check mode
  sample: ""
finished:
  description: Whether the run is over.
  type: bool
  returned: when not in check mode
  sample: true
workdir:
  description: The folder in which the tasks ran, or would run.
  type: str
  returned: always
  sample: /srv/shop
duration:
  description: How long the run took, in seconds; null as long as it goes on.
  type: float
  returned: when not in check mode
  sample: 12.5
notes:
  description: What has changed in the list since the run that is resumed, and the like.
  type: list
  elements: str
  returned: always
  sample: ['task "test" has changed']
artifacts:
  description: The files that the tasks have left, relative to RV(workdir).
  type: list
  elements: str
  returned: when not in check mode
  sample: [dist/shop-1.0-py3-none-any.whl]
fetched:
  description: The files that were copied to O(artifacts), relative to it.
  type: list
  elements: str
  returned: when O(artifacts) is given
  sample: [dist/shop-1.0-py3-none-any.whl]
tasks:
  description: The result of each task, in the order of the list.
  type: list
  elements: dict
  returned: when not in check mode
  contains:
    name:
      description: Its name.
      type: str
      returned: always
      sample: test
    state:
      description:
        - V(succeeded), V(failed), V(interrupted), V(skipped), V(unchanged) because of C(creates), V(running) or
          V(pending).
      type: str
      returned: always
      sample: succeeded
    reason:
      description: Why it is so, or nothing.
      type: str
      returned: always
      sample: ""
    kept:
      description: Whether the run that is resumed had done it.
      type: bool
      returned: always
      sample: false
    rc:
      description: The exit code of a command; negative is the signal that killed it. null for a prompt.
      type: int
      returned: always
      sample: 0
    attempts:
      description: How often it was tried.
      type: int
      returned: always
      sample: 1
    started:
      description: When it began, in seconds since the epoch.
      type: float
      returned: always
      sample: 1795255711.12
    finished:
      description: When it ended, in seconds since the epoch.
      type: float
      returned: always
      sample: 1795255712.43
    duration:
      description: How long it took, in seconds.
      type: float
      returned: always
      sample: 1.31
    stdout:
      description: The end of what it printed, at most 16 KiB; of a prompt, the answer.
      type: str
      returned: always
      sample: 3 passed
    stderr:
      description: The end of what it printed to standard error, at most 16 KiB.
      type: str
      returned: always
      sample: ""
    truncated:
      description: Whether there was more than that.
      type: bool
      returned: always
      sample: false
    output_file:
      description: The file on the managed host with all that it printed.
      type: str
      returned: always
      sample: /var/lib/autovibe/tasks/12/test.log
    artifacts:
      description: The files that it has left, relative to RV(workdir).
      type: list
      elements: str
      returned: always
      sample: []
    warnings:
      description: What may be wrong, such as a pattern of artifacts that nothing matches.
      type: list
      elements: str
      returned: always
      sample: []
    usage:
      description: Tokens that a prompt has used, by kind.
      type: dict
      returned: for a prompt
      sample: {input_tokens: 1200, output_tokens: 310}
    cost:
      description: What a prompt has cost in USD; null when its runner does not tell.
      type: float
      returned: for a prompt
      sample: 0.0132
    session:
      description: The session of a prompt's runner.
      type: str
      returned: for a prompt
      sample: 3f0c8d0e-5f0b-4f43-9d0e-1b1f2a3c4d5e
    turns:
      description: How many turns a prompt's runner took.
      type: int
      returned: for a prompt
      sample: 3
position:
  description: The position behind RV(events), for O(events_after).
  type: int
  returned: with O(wait)
  sample: 1024
events:
  description: What has happened since O(events_after).
  type: list
  elements: dict
  returned: with O(wait)
  sample: [{event: task, run: "12", task: test, state: succeeded, time: 1795255712.43}]
"""

from typing import Any

from ansible_collections.autovibe.fleet.plugins.module_utils._module import fleet_module, run_change
from ansible_collections.autovibe.fleet.plugins.module_utils._tasks import apply, plan, take_environment

OPTIONS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["finished", "started", "cancelled"], "default": "finished"},
    "src": {"type": "path"},
    "definition": {"type": "dict"},
    "tasks": {"type": "list", "elements": "dict"},
    "name": {"type": "str"},
    "workdir": {"type": "path"},
    "env": {"type": "dict", "no_log": True},
    "parallel": {"type": "int"},
    "timeout": {"type": "str"},
    "resume": {"type": "bool", "default": False},
    "only": {"type": "list", "elements": "str"},
    "start_at": {"type": "str"},
    "artifacts": {"type": "path"},
    "run": {"type": "str"},
    "wait": {"type": "float", "default": 0},
    "events_after": {"type": "int", "default": 0},
}


def main() -> None:
    module = fleet_module(
        OPTIONS,
        mutually_exclusive=[("src", "definition", "tasks", "run")],
        required_one_of=[("src", "definition", "tasks", "run")],
        required_if=[("state", "cancelled", ["run"])],
    )
    run_change(module, plan, apply, take_environment(module))


if __name__ == "__main__":
    main()
