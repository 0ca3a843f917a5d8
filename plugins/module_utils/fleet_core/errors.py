# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception tree. A message names the thing, what was expected and what was found."""

from __future__ import annotations


class FleetError(Exception):
    """Base of every error that a user can cause or must know.

    code: a stable word for programs. exit_code: what the command line returns. rpc_code: JSON-RPC error number
    (application range of https://www.jsonrpc.org/specification#error_object).
    """

    code = "error"
    exit_code = 1
    rpc_code = -32000

    @property
    def message(self) -> str:
        return str(self)


class InvalidInput(FleetError):
    """A value that no state of the host could make right."""

    code = "invalid_input"
    exit_code = 2
    rpc_code = -32602


class NotFound(FleetError):
    """A named thing does not exist."""

    code = "not_found"
    exit_code = 3
    rpc_code = -32004


class Conflict(FleetError):
    """The thing exists, held by another or in a state that forbids the operation."""

    code = "conflict"
    exit_code = 4
    rpc_code = -32009


class Exhausted(Conflict):
    """A counter range has no free value left."""

    code = "exhausted"
    rpc_code = -32010


class ImpossibleEvent(Conflict):
    """The life cycle table has no row for this event in this state."""

    code = "impossible_event"
    rpc_code = -32011


class TimedOut(FleetError):
    """Something did not happen within its limit."""

    code = "timed_out"
    exit_code = 5
    rpc_code = -32008


class ProcessFailed(FleetError):
    """A process could not be started, or ended when it should run."""

    code = "process_failed"
    exit_code = 6
    rpc_code = -32012


class Unavailable(FleetError):
    """fleetd, a tool or a service that the operation needs cannot be reached."""

    code = "unavailable"
    exit_code = 7
    rpc_code = -32003


class StateDamaged(FleetError):
    """The state on disk cannot be read or written."""

    code = "state_damaged"
    exit_code = 8
    rpc_code = -32013


def _tree(root: type[FleetError]) -> list[type[FleetError]]:
    found = [root]
    for child in root.__subclasses__():
        found.extend(_tree(child))
    return found


def from_code(code: str, message: str) -> FleetError:
    """Return the exception of this tree whose code is given; FleetError for an unknown code."""
    for kind in _tree(FleetError):
        if kind.code == code:
            return kind(message)
    return FleetError(message)
