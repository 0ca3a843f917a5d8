# SPDX-License-Identifier: GPL-3.0-or-later
"""What Proxmox VE answers, read: its data, or one error sentence; and whether it is worth asking again.

Proxmox says most of what goes wrong with status 500 and a line of text, in the reason phrase of HTTP; what is wrong
with a parameter comes with status 400, by the parameter's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.errors import (
        Conflict,
        FleetError,
        InvalidInput,
        NotFound,
        ProcessFailed,
        TimedOut,
        Unavailable,
    )
else:
    try:
        from ..fleet_core.errors import (
            Conflict,
            FleetError,
            InvalidInput,
            NotFound,
            ProcessFailed,
            TimedOut,
            Unavailable,
        )
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import (
            Conflict,
            FleetError,
            InvalidInput,
            NotFound,
            ProcessFailed,
            TimedOut,
            Unavailable,
        )

# Parameters whose values no error may repeat.
SECRETS = ("cipassword", "password", "input-data", "content", "ticket")

# Another operation holds the machine or its file. Nothing was done, so anything can be asked again.
_LOCKED = re.compile(r"is locked|can't lock file|cfs-lock .* error|error with cfs lock|unable to acquire|lock request")
# Something that gets better by itself.
_PASSING = re.compile(r"got timeout|no quorum|temporarily unavailable|connection|start worker failed|try again", re.I)
# Something that stays.
_MISSING = re.compile(r"does not exist|no such|not found|unable to find|unable to parse worker upid", re.I)
_TAKEN = re.compile(r"already exists|already used|already running|already defined", re.I)
_STATE = re.compile(
    r"not running|is running|protection mode|is a template|used in|is still in use|in use|HA resource", re.I
)
_PRIVILEGE = re.compile(r"Permission check failed(?: \((?P<path>[^,)]*)(?:, (?P<privilege>[^)]*))?\))?")


class Reply(Exception):
    """What Proxmox answered to a request that failed: the cause of the error that was raised for it.

    status: of HTTP, 0 when no answer came. said: its words. parameters: what is wrong with which parameter.
    sent: whether it may have been carried out nevertheless.
    """

    def __init__(
        self, status: int, said: str, parameters: Mapping[str, str] | None = None, sent: bool = True, after: float = 0.0
    ) -> None:
        super().__init__(said)
        self.status, self.said, self.sent, self.after = status, said, sent, after
        self.parameters = dict(parameters or {})

    @property
    def locked(self) -> bool:
        return self.status == 500 and _LOCKED.search(self.said) is not None

    @property
    def missing(self) -> bool:
        return self.status in (404, 500) and not self.locked and _MISSING.search(self.said) is not None

    @property
    def taken(self) -> bool:
        return self.status in (400, 500) and _TAKEN.search(self.text) is not None

    @property
    def undone(self) -> bool:
        """Whether it is known that nothing was done, although it may work later."""
        # 595: the node that was asked could not reach the one that it is about.
        return self.locked or self.status in (429, 503, 595) or (self.status == 0 and not self.sent)

    @property
    def passing(self) -> bool:
        """Whether the same request may work a little later."""
        if self.undone or self.status == 0 or self.status in (502, 504, 596, 597, 598, 599):
            return True
        lasting = _MISSING.search(self.said) or _TAKEN.search(self.said) or _STATE.search(self.said)
        return self.status == 500 and (not lasting or _PASSING.search(self.said) is not None)

    @property
    def text(self) -> str:
        """Its words, with those about parameters."""
        wrong = "; ".join(f"{name}: {text}" for name, text in sorted(self.parameters.items()))
        if not wrong:
            return self.said
        return wrong if self.said.startswith("Parameter verification failed") else f"{self.said}: {wrong}"


def reply_of(error: BaseException) -> Reply:
    """Return what Proxmox answered, of an error that the session raised; of any other one a reply that says nothing."""
    found = error.__cause__
    return found if isinstance(found, Reply) else Reply(0, str(error))


def read(status: int, reason: str, body: str, hidden: Iterable[str] = (), after: str = "") -> Any:
    """Return the data of an answer. Raises Reply for anything that is not success. hidden: secrets not to repeat."""
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if 200 <= status < 300:
        if not isinstance(found, dict) or "data" not in found:
            raise Reply(502, "an answer that is not Proxmox VE's: is there something else at this address?")
        return found["data"]
    found = found if isinstance(found, dict) else {}
    said = " ".join(str(found.get("message") or reason or "").split()) or "no reason"
    errors = found.get("errors")
    wrong = errors.items() if isinstance(errors, dict) else ()
    raise Reply(
        status,
        redacted(said, hidden),
        {str(name): redacted(" ".join(str(text).split()), hidden) for name, text in wrong},
        after=float(after) if after.isdigit() else 0.0,
    )


def redacted(text: str, hidden: Iterable[str]) -> str:
    """Return the text without these secrets."""
    for secret in hidden:
        if secret:
            text = text.replace(secret, "***")
    return text


def error_of(what: str, asked: str, reply: Reply, account: str = "") -> FleetError:
    """Return the error for a reply. what: the thing that it is about. asked: what was asked, for people.

    account: who asked, for what it lacks. The caller raises it from the reply.
    """
    begin = f"{what}: {asked}: " if asked else f"{what}: "
    status, text = reply.status, reply.text
    if status == 401:
        return Unavailable(f"{begin}Proxmox VE does not let {account or 'this account'} in: {text}")
    if status == 403:
        return Conflict(begin + _lacks(account, text))
    if status == 400:
        return InvalidInput(f"{begin}Proxmox VE does not take it: {text}")
    if reply.locked:
        return Conflict(f"{begin}it is held by another operation: {text}")
    if reply.missing:
        return NotFound(f"{begin}{text}")
    if status == 501:
        return Unavailable(f"{begin}this version of Proxmox VE cannot do that: {text}")
    if status == 0:
        return Unavailable(begin + text)
    if status == 429 or status > 500:
        return Unavailable(f"{begin}Proxmox VE answered {status}: {text}")
    if reply.taken or _STATE.search(text):
        return Conflict(f"{begin}{text}")
    return (TimedOut if "got timeout" in text else ProcessFailed)(f"{begin}Proxmox VE answered {status}: {text}")


def _lacks(account: str, text: str) -> str:
    found = _PRIVILEGE.search(text)
    if found is None or not found["path"]:
        return f"{account or 'this account'} may not do that: {text}"
    if not found["privilege"]:
        return f"{account or 'this account'} may not do that: {found['path']}"
    lacked = found["privilege"].replace("|", " or ")
    return f"{account or 'this account'} lacks the privilege {lacked} on {found['path']}"
