# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """What all modules of the collection have in common."""

    DOCUMENTATION = r"""
options:
  state_dir:
    description:
      - The folder that holds the fleet's state on the managed host, and the socket of fleetd.
      - By default the host's E(FLEET_STATE_DIR), else C(/var/lib/autovibe) for root, else C(autovibe) in
        E(XDG_STATE_HOME), which is C(~/.local/state) when not set.
    type: path
attributes:
  platform:
    description: The operating systems that it runs on.
    support: full
    platforms: posix
  action_group:
    description: C(module_defaults) of this group set options such as O(state_dir) for all modules of the collection.
    support: full
    membership: [autovibe.fleet.fleet]
requirements:
  - Python 3.9 or newer on the managed host
author:
  - autovibe contributors (@autovibe)
"""

    CHANGE = r"""
attributes:
  check_mode:
    description: Can run in C(check_mode) and return the changes that it would make, without making them.
    support: full
  diff_mode:
    description: Returns what has changed, or would change in C(check_mode), when in diff mode.
    support: full
  idempotent:
    description: When run twice in a row with the same options, the second run changes nothing.
    support: full
options: {}
"""

    INFO = r"""
attributes:
  check_mode:
    description: Can run in C(check_mode).
    support: full
    details: It only reads.
  diff_mode:
    description: Returns what has changed when in diff mode.
    support: N/A
    details: It changes nothing.
options: {}
"""

    FACTS = r"""
attributes:
  facts:
    description: Can return C(ansible_facts), which become facts of the host.
    support: full
    details: Only with O(facts=true).
options:
  facts:
    description:
      - Whether to set what was found as facts of the host as well, so that later plays, templates of other hosts and
        M(ansible.builtin.group_by) can use it.
    type: bool
    default: false
"""

    WAIT = r"""
options:
  wait:
    description:
      - Whether to wait until what is started is ready, or until what is stopped has ended.
    type: bool
    default: true
  timeout:
    description:
      - How long to wait, all together. A number of seconds, or a text such as V(90s) or V(2m30s).
      - A process that is not ready within its own C(start_timeout) fails earlier.
    type: str
    default: 5m
"""

    FLEETD = r"""
options: {}
notes:
  - fleetd must run on the managed host for the user that the task runs as. The role P(autovibe.fleet.node#role)
    installs and starts it.
"""
