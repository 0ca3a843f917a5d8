# Copyright (c) autovibe contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where modules end: errors become fail_json, a Change becomes changed and diff, check mode is looked at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Callable, NamedTuple, NoReturn

from ansible.module_utils.basic import AnsibleModule

from ._arguments import STATE_DIR
from ._secrets import show_settings
from .fleet_core.changes import Change
from .fleet_core.errors import FleetError


class Result(NamedTuple):
    """What a module returns: the change, and its values by the names that RETURN documents.

    diff: what Ansible is to show instead of the change's own before and after.
    """

    change: Change
    values: Mapping[str, Any]
    diff: Any = None


Run = Callable[[Mapping[str, Any]], Result]


def fleet_module(options: Mapping[str, Any], **kwargs: Any) -> AnsibleModule:
    """Return a module with these options and state_dir."""
    module = AnsibleModule(argument_spec={**options, **STATE_DIR}, supports_check_mode=True, **kwargs)
    show_settings(module)
    return module


def run_change(module: AnsibleModule, plan: Run, apply: Run, params: Mapping[str, Any] | None = None) -> NoReturn:
    """Plan in check mode, apply otherwise, then exit. Both take the parameters; neither sees the module.

    params: instead of the module's own, which are what it reports as its invocation.
    """
    with failures(module):
        change, values, diff = (plan if _only_checks(module) else apply)(module.params if params is None else params)
    if module._diff:
        shown = {"before": dict(change.before) or "", "after": dict(change.after) or ""} if diff is None else diff
        values = {**values, "diff": shown}
    module.exit_json(changed=change.changed, actions=list(change.actions), **values)


def run_info(
    module: AnsibleModule, read: Callable[[Mapping[str, Any]], Mapping[str, Any]], **in_check_mode: Any
) -> NoReturn:
    """Read, then exit. read takes the parameters and returns what RETURN documents.

    in_check_mode: what parameters are then, those of a reading that leaves something behind.
    """
    with failures(module):
        values = read({**module.params, **(in_check_mode if _only_checks(module) else {})})
    module.exit_json(changed=False, **values)


def _only_checks(module: AnsibleModule) -> bool:
    return bool(module.check_mode)


@contextlib.contextmanager
def failures(module: AnsibleModule) -> Iterator[None]:
    """Turn an error of the fleet into the failure of the task."""
    try:
        yield
    except FleetError as error:
        # values: what was done nevertheless, where a task does many things at once
        module.fail_json(msg=error.message, code=error.code, **getattr(error, "values", {}))
