# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import textwrap

_CHECK = r"""
url:
  description:
    - What is asked. V(http://...) and V(https://...) want a status below 400, V(tcp://HOST:PORT) a connection,
      V(cmd://COMMAND) the exit code 0 of a shell command. C(${variables}) are replaced.
  type: str
  required: true
interval:
  description: The time between two checks. Default V(10s).
  type: str
timeout:
  description: The time that one check may take. Default V(5s).
  type: str
retries:
  description: The failures in a row that count. Default V(3).
  type: int
start_period:
  description: The time after the start in which failures do not count. Default V(0s).
  type: str
action:
  description:
    - What follows when a running process becomes unhealthy. Default V(restart).
  type: str
  choices: [restart, none]
"""

# The fields that a process and a template have in common.
_FIELDS = r"""
label:
  description: A title for people.
  type: str
command:
  description:
    - What to run. Words are split as in a POSIX shell, quotes included; no shell runs unless O(THIS[].shell=true).
    - C(${name}) is replaced by a variable or by the value of a claimed resource, C(%counter) claims the next value of
      that counter type, C(%%) is a percent sign.
  type: str
shell:
  description: Whether the command is run by C(/bin/sh). Replaced values are quoted.
  type: bool
vars:
  description:
    - Variables of the command and the other texts.
    - One whose value is null has no default and must be given where a process is made.
    - A variable with the name of a resource gives that resource's value.
    - Values are hidden in diffs and results when the name looks like that of a secret, such as C(db_password).
  type: dict
resources:
  description:
    - What the process claims while it is declared. Each is a type such as V(tcpport), a type with a value such as
      V(datadir:/srv/data), or a mapping with C(type), C(name) (the variable, by default the type) and C(value).
  type: list
  elements: raw
working_dir:
  description:
    - The folder to run in. In an environment it may be relative to the project's folder.
  type: str
env:
  description:
    - Environment variables, added to the few that a process inherits. C(${variables}) are replaced.
    - Values are kept in the host's state. They are hidden in diffs and results when the name looks like that of a
      secret, such as C(API_TOKEN). Use O(THIS[].env_files) for what must not be kept.
  type: dict
env_files:
  description: Files of C(NAME=value) lines on the managed host, read at each start.
  type: list
  elements: str
user:
  description: The user to run as. Only a fleetd that runs as root can change it.
  type: str
action:
  description: A command that people can run for this process, for example to open it.
  type: str
stop_signal:
  description: The signal that asks it to end, such as V(SIGINT). Default V(SIGTERM).
  type: str
stop_timeout:
  description: The time after that signal before SIGKILL ends it. Default V(10s).
  type: str
start_timeout:
  description: The time in which it must become ready. Default V(60s).
  type: str
restart:
  description: Whether and how soon it is started again after it ended.
  type: dict
  suboptions:
    policy:
      description:
        - V(on-failure) is after an exit code that is not 0, or a signal. It is the default.
      type: str
      choices: [never, on-failure, always]
    delay:
      description: The time before the second restart of a row; each further one waits twice as long. Default V(500ms).
      type: str
    max_delay:
      description: The longest time between two restarts. Default V(60s).
      type: str
    jitter:
      description: The part of a delay, 0 to 1, that is drawn by chance. Default V(0.2).
      type: float
    burst:
      description: How many restarts are allowed in the window; V(0) sets no limit. Default V(10).
      type: int
    window:
      description: The time in which restarts are counted. Default V(5m).
      type: str
readiness:
  description: When it is ready. Without it, a process is ready as soon as it runs.
  type: dict
  suboptions:
CHECK
health:
  description: Whether it works while it runs. Without it, a process that runs is healthy.
  type: dict
  suboptions:
CHECK
limits:
  description: What it may use.
  type: dict
  suboptions:
    memory:
      description: Bytes, or a text such as V(512M).
      type: str
    cpu:
      description: Percent of one core, such as V(150%).
      type: str
    open_files:
      description: How many files it may have open.
      type: int
    processes:
      description: How many processes its user may have.
      type: int
    nice:
      description: The scheduling priority, -20 (first) to 19 (last).
      type: int
logs:
  description: When its log is rotated.
  type: dict
  suboptions:
    max_size:
      description: The size of one file. Default V(10M).
      type: str
    keep:
      description: How many rotated files are kept. Default V(5).
      type: int
"""

_DEPENDS_ON = r"""
depends_on:
  description: The processes that must be up first.
  type: list
  elements: dict
  suboptions:
    process:
      description: The id of the other process; in an environment its name is enough.
      type: str
      required: true
    condition:
      description:
        - V(started) - it runs; V(healthy) - its check passed, or it runs and has none; V(completed) - it ended with 0.
        - The default is V(healthy).
      type: str
      choices: [started, healthy, completed]
"""


def _suboptions(option: str, *parts: str) -> str:
    fields = "".join(parts).replace("\nCHECK", textwrap.indent(_CHECK, "    ").rstrip()).replace("THIS", option)
    return textwrap.indent(fields, "      ")


class ModuleDocFragment:
    """The options of processes and of templates. The modules describe the list and its ids themselves."""

    PROCESSES: str = r"""
options:
  processes:
    description:
      - The processes. One of which only the O(processes[].id) is given keeps its declaration; otherwise the declaration
        is replaced by what is given here, laid over the template.
    type: list
    elements: dict
    suboptions:
      id:
        description:
          - Its name, or C(ENVIRONMENT/NAME) for a process of an environment.
        type: str
        required: true
        aliases: [name]
      template:
        description: The template whose fields it takes. Fields given here come first; vars and env are merged.
        type: str
""" + _suboptions("processes", _FIELDS, _DEPENDS_ON)

    TEMPLATES: str = r"""
options:
  templates:
    description:
      - The templates. One that exists is replaced as a whole.
    type: list
    elements: dict
    required: true
    suboptions:
      id:
        description: Its name.
        type: str
        required: true
        aliases: [name]
""" + _suboptions("templates", _FIELDS)
