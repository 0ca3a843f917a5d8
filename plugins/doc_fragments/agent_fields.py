# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """The options of an agent's definition."""

    AGENTS = r"""
options:
  agents:
    description:
      - The definitions of agents. One that exists under the name is replaced as a whole, which makes a new revision
        when anything that changes its behaviour differs.
    type: list
    elements: dict
    suboptions:
      name:
        description: Its name.
        type: str
        required: true
      runner:
        description:
          - The program that does the work. V(command) is any program of your own, see O(agents[].command). The others
            are command lines of coding agents, which the role P(autovibe.fleet.agent#role) installs.
        type: str
        required: true
        choices: [claude, codex, opencode, aider, gemini, qwen, command]
      description:
        description: What it is for, in one sentence.
        type: str
      model:
        description: The model that the runner is to use. By default the runner's own choice.
        type: str
      command:
        description: With the runner V(command), the shell command that gets each prompt on its standard input.
        type: str
      options:
        description: What is passed on to the runner.
        type: dict
        suboptions:
          executable:
            description: The program, a name or an absolute path. By default the one that the role installed.
            type: str
          permission_mode:
            description: What the runner may do without asking, such as V(acceptEdits).
            type: str
          system_prompt:
            description: A system prompt instead of the runner's own.
            type: str
          arguments:
            description: Further arguments of the command line.
            type: list
            elements: str
          config:
            description: Settings of the runner, name to value, such as those of C(codex -c).
            type: dict
      session:
        description:
          - Whether each iteration of a loop begins a new session of the runner, or goes on in the last one. The default
            is V(fresh).
        type: str
        choices: [fresh, resume]
      methods:
        description:
          - The prompts by name. Each is a text, or a mapping with C(parameters), a list of names, and C(body).
          - C([parameter]) in the text is replaced by an argument; other brackets stay.
        type: dict
      pipeline:
        description:
          - The steps, in their order. The result of a step fills the first parameter that is left, or follows the
            prompt.
          - An agent with a single method needs no pipeline; it calls the method once.
        type: list
        elements: dict
        suboptions:
          label:
            description: The step's name. By default that of its method.
            type: str
          call:
            description: The method that is called once.
            type: str
          map:
            description:
                - The method that is called for each item of O(agents[].pipeline[].items) or
                  O(agents[].pipeline[].over).
            type: str
          loop:
            description: The method that is called again and again, until the work is complete or a limit is reached.
            type: str
          arguments:
            description: The values of the method's parameters, in their order.
            type: list
            elements: str
          over:
            description: The label of an earlier step whose result is the list.
            type: str
          items:
            description: The list itself.
            type: list
            elements: str
          times:
            description: How often a loop calls its method. By default until completion or a limit.
            type: int
      limits:
        description: When a run has to end. V(0) is no limit.
        type: dict
        suboptions:
          iterations:
            description: The iterations of a run. Default V(0).
            type: int
          duration:
            description: The time of a run, such as V(2h). Default V(0).
            type: str
          cost:
            description: The cost of a run in USD. Default V(0).
            type: float
          tokens:
            description: The tokens of a run. Default V(0).
            type: int
          turns:
            description: The turns of one iteration, as the runner itself counts them. Default V(0).
            type: int
          iteration_timeout:
            description: The time of one iteration. Default V(1h).
            type: str
      backoff:
        description: How soon a failed iteration is tried again.
        type: dict
        suboptions:
          delay:
            description: The time after the first failure; it doubles with each further one. Default V(5s).
            type: str
          max_delay:
            description: The longest time. Default V(5m).
            type: str
          jitter:
            description: The part of the time, 0 to 1, that is drawn by chance. Default V(0.2).
            type: float
      circuit_breaker:
        description: When failing iterations are no longer tried again.
        type: dict
        suboptions:
          failures:
            description: The failures in a row that open it. Default V(3).
            type: int
          pause:
            description: The time that nothing is tried then. Default V(5m).
            type: str
          trips:
            description: How often it may open before the run fails. Default V(3).
            type: int
      completion:
        description: How the agent says that the work is complete.
        type: dict
        suboptions:
          phrase:
            description: The words that stand in its answer then.
            type: str
      verification:
        description: How fleetd finds out whether the work is complete.
        type: dict
        suboptions:
          command:
            description: A shell command, run in the workspace; its exit code 0 says that the work is complete.
            type: str
          timeout:
            description: The time that it may take. Default V(10m).
            type: str
      watchdog:
        description: When a run makes no progress. V(0) turns a rule off, which is the default of all.
        type: dict
        suboptions:
          commits:
            description: The iterations without a new commit.
            type: int
          repeats:
            description: How often the same tool may be called with the same input in a row.
            type: int
          silence:
            description: The time without any output of the runner.
            type: str
          action:
            description: What follows. V(report) only notes it, and is the default; V(stop) ends the run.
            type: str
            choices: [report, stop]
      workspace:
        description: Where it works.
        type: dict
        suboptions:
          kind:
            description:
              - V(folder) is a folder as it is, and the default. V(worktree) is a git worktree and V(clone) a git clone,
                made for the run, with a branch of its own as the result.
            type: str
            choices: [folder, worktree, clone]
          path:
            description: The folder. By default one of the agent's own in the state folder.
            type: str
          repository:
            description: The git repository of a worktree or a clone.
            type: str
          base:
            description: The branch or commit to begin with. By default the repository's current one.
            type: str
          branch:
            description: The branch to work on. By default C(agent/NAME/run-N).
            type: str
      env:
        description:
          - Environment variables of the runner.
          - Names that look like a secret's, such as C(API_TOKEN), are refused, as definitions are kept and shown. Put
            secrets into a file of O(agents[].env_files).
        type: dict
      env_files:
        description: Files of C(NAME=value) lines on the managed host, read at each start of a run.
        type: list
        elements: str
      schedule:
        description: When it runs by itself.
        type: dict
        suboptions:
          cron:
            description: A time in five fields, such as V(0 3 * * 1-5).
            type: str
          every:
            description: The time between two starts, such as V(1h).
            type: str
      legacy_form:
        description: The form that an agent of a C(.p) file has there. It is set by what reads such files.
        type: str
"""
