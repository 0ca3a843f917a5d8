# SPDX-License-Identifier: GPL-3.0-or-later
"""The guests of a Proxmox VE cluster: one request lists all of them, whatever their number.

That list is what the nodes told last: a state, a name or a size in it may be some ten seconds old; tags and locks are
not. So what this process did itself, what a task was done to lately, and what does not agree with its own tags is asked
for anew, one machine at a time. When nothing was done, nothing is asked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from . import proxmox_config as configs
from .proxmox_api import Session, reply_of
from .proxmox_config_tags import SUFFIX, Marks, marks_of
from .proxmox_marks import mark_of, tags_of
from .proxmox_tasks import Tasks

if TYPE_CHECKING:
    from fleet_core.errors import Conflict, FleetError, NotFound, Unavailable
    from fleet_core.machine_cards import card
    from fleet_core.machines import Machine
else:
    try:
        from ..fleet_core.errors import Conflict, FleetError, NotFound, Unavailable
        from ..fleet_core.machine_cards import card
        from ..fleet_core.machines import Machine
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import Conflict, FleetError, NotFound, Unavailable
        from fleet_core.machine_cards import card
        from fleet_core.machines import Machine

PROVIDER = "proxmox"
STALE = 20.0  # seconds after which the list knows what was done
AGE = 2.0  # seconds that a list serves for, when nothing was done since
READERS = 16
_STATES = {"running": "running", "stopped": "stopped", "paused": "suspended", "suspended": "suspended"}
_HALF = ("create", "clone")  # locks of a guest that is being made


@dataclass(frozen=True)
class Guest:
    """A virtual machine as Proxmox lists it. status: running, stopped or unknown. lock: what holds it, or empty.

    config: what was read of it, or None. seen: the fields that the list or the configuration told.
    """

    vmid: int
    name: str
    node: str
    status: str = "unknown"
    template: bool = False
    lock: str = ""
    pool: str = ""
    tags: str = ""
    cpu: int = 0
    memory: int = 0
    disk: int = 0
    config: Mapping[str, Any] | None = field(default=None, repr=False)
    seen: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def marks(self) -> Marks:
        return marks_of(self.tags)

    @property
    def path(self) -> str:
        return f"/nodes/{self.node}/qemu/{self.vmid}"

    @property
    def machine_name(self) -> str:
        """The name without what a clone bears until it is finished."""
        return self.name[: -len(SUFFIX)] if self.name.endswith(SUFFIX) else self.name

    @property
    def is_image(self) -> bool:
        """A template, or a golden image that is being built. A fresh clone of one has its tags, but is a machine."""
        mark = mark_of(tags_of(self.tags))
        return self.template or (mark is not None and mark.incomplete)

    @property
    def fresh_clone(self) -> bool:
        return mark_of(tags_of(self.tags)) is not None and not self.is_image

    def evolve(self, **values: Any) -> Guest:
        return replace(self, **values)


class Guests:
    """What there is, for many threads. session: to ask; tasks: to know what was done lately."""

    def __init__(self, session: Session, tasks: Tasks) -> None:
        self.session, self.tasks = session, tasks
        self._lock = threading.Lock()
        self._listing = threading.Lock()
        self._list: tuple[Guest, ...] = ()
        self._when = float("-inf")
        self._lately: set[int] = set()
        self._asked_lately = False
        self._names: dict[int, str] = {}  # of guests that are listed without theirs
        self._done: dict[int, tuple[float, Guest | None]] = {}  # of this process: what became of a guest, None: gone

    # -- what there is ------------------------------------------------------------------------------------------------

    def all(self, age: float = AGE) -> tuple[Guest, ...]:
        """Return all guests. age: seconds that a list may be old."""
        with self._listing:  # others wait for the one who asks
            if time.monotonic() - self._when > age:
                asked = "list the virtual machines"
                found = self.session.get("/cluster/resources", {"type": "vm"}, asked=asked)
                self._list = tuple(
                    guest_of(item) for item in sorted(found or (), key=_vmid) if item.get("type", "qemu") == "qemu"
                )
                self._when, self._asked_lately = time.monotonic(), False
            return self._known(self._list)

    def machines(self, names: Sequence[str] | None = None, *, sure: bool = False, deep: bool = False) -> list[Guest]:
        """Return the machines, or those of these names.

        sure: ask anew for what may be out of date. deep: read the configuration of machines that are not ours.
        """
        wanted = None if names is None else {name.lower() for name in names}
        found = [
            guest
            for guest in (self.named() if sure else self.all())
            if not guest.is_image and (wanted is None or guest.machine_name.lower() in wanted)
        ]
        doubtful = {
            guest.vmid
            for guest in found
            if (sure and guest.vmid in self._recent())
            or self._doubtful(guest)
            or (deep and not guest.marks.ours)
            or self.session.settings.thorough
        }
        ask = [guest for guest in found if guest.vmid in doubtful]
        read = {guest.vmid: new for guest, new in zip(ask, self._read(ask))}
        result = [one for guest in found if (one := read.get(guest.vmid, guest)) is not None and not one.is_image]
        if wanted is not None:
            self._check_known(wanted - {guest.machine_name.lower() for guest in result})
        return result

    def named(self, age: float = AGE) -> tuple[Guest, ...]:
        """Return all guests, with the names of those that are listed without: new ones, and those of a node that is
        away, whose names stay unknown."""
        listed = self.all(age)
        unknown = [guest for guest in listed if not guest.name and not guest.is_image]
        if not unknown:
            return listed
        read = [guest for guest in self._read(unknown) if guest is not None and guest.name]
        with self._lock:
            self._names.update({guest.vmid: guest.name for guest in read})
        fresh = {guest.vmid: guest.evolve(config=None) for guest in read}
        return tuple(fresh.get(guest.vmid, guest) for guest in listed)

    def find(self, name: str, age: float = AGE) -> Guest | None:
        """Return the machine of a name. Raises Conflict when two have it, Unavailable when it may be hidden."""
        found = [
            guest for guest in self.named(age) if guest.machine_name.lower() == name.lower() and not guest.is_image
        ]
        check_single(name, found)
        if not found:
            self._check_known({name})
        return found[0] if found else None

    def get(self, name: str) -> Guest:
        """Return the machine of a name, as it is at this moment. Raises NotFound when there is none."""
        for age in (AGE, 0.0):
            guest = self.find(name, age)
            fresh = None if guest is None else self.read(guest)
            if fresh is not None:
                return fresh
            if guest is not None:  # it was moved to another node, or is gone
                with self._lock:
                    self._done.pop(guest.vmid, None)
        raise NotFound(f'machine "{name}": there is none with {self.session.settings.where}')

    def templates(self, name: str, age: float = AGE) -> list[Guest]:
        """Return the templates of a name or machine id."""
        found = [guest for guest in self.all(age) if guest.template]
        return [guest for guest in found if name in (guest.name, str(guest.vmid))]

    def read(self, guest: Guest) -> Guest | None:
        """Return a guest with its state and configuration of this moment; None when it is gone."""
        what = _what(guest)
        try:
            config = self.session.get(f"{guest.path}/config", what=what, asked="read its configuration")
            status = self.session.get(f"{guest.path}/status/current", what=what, asked="read its state")
        except NotFound:
            return None
        return with_config(guest, config, str(status.get("status") or "unknown"), str(status.get("qmpstatus") or ""))

    # -- what was done ------------------------------------------------------------------------------------------------

    def note(self, guest: Guest) -> Guest:
        """Remember what became of a guest, until the list tells it too."""
        with self._lock:
            self._done[guest.vmid] = (time.monotonic(), guest.evolve(config=None))
        return guest

    def forget(self, guest: Guest) -> None:
        """Remember that a guest is gone."""
        with self._lock:
            self._done[guest.vmid] = (time.monotonic(), None)

    def refresh(self) -> None:
        """Ask for the list again when it is needed next: others than this process did something."""
        self._when = float("-inf")

    # -- parts --------------------------------------------------------------------------------------------------------

    def _known(self, listed: Iterable[Guest]) -> tuple[Guest, ...]:
        with self._lock:
            now = time.monotonic()
            self._done = {vmid: done for vmid, done in self._done.items() if now - done[0] < STALE}
            done = {vmid: guest for vmid, (_when, guest) in self._done.items()}
            names = dict(self._names)
        found = [done.pop(guest.vmid, guest) for guest in listed]
        found = [
            guest.evolve(name=names.get(guest.vmid, "")) if guest is not None and not guest.name else guest
            for guest in found
        ]
        return tuple(guest for guest in [*found, *done.values()] if guest is not None)

    def _recent(self) -> set[int]:
        """The guests that others did something to since the list may have been made. Asked once a list."""
        with self._listing:
            if not self._asked_lately:
                try:
                    recent = self.tasks.recent(self.session.now() - STALE)
                except FleetError:  # a list that is a little old is better than none
                    recent = {}
                self._lately, self._asked_lately = {int(vmid) for vmid in recent}, True
            with self._lock:
                return {vmid for vmid in self._lately if vmid not in self._done}

    def _check_known(self, missing: set[str]) -> None:
        """Raise Unavailable when a missing machine may be there, on a node that is away: nobody tells its name then."""
        hidden = [guest for guest in self.all(STALE) if not guest.name and guest.marks.ours]
        if missing and hidden:
            nodes = ", ".join(sorted({guest.node for guest in hidden}))
            ids = ", ".join(str(guest.vmid) for guest in hidden[:10])
            raise Unavailable(
                f'machine "{min(missing)}": whether it is there cannot be known, for node {nodes} does not answer, and '
                f"nobody else knows the names of its virtual machines {ids}"
            )

    def _doubtful(self, guest: Guest) -> bool:
        """Whether what the list tells does not agree with what was set last."""
        if guest.vmid in self._done:
            return False
        if guest.fresh_clone:
            return True
        size = guest.marks.size
        if size is None or guest.status == "unknown":
            return False
        seen = (guest.cpu, guest.memory // configs.MIB, guest.disk // configs.MIB)
        return any(one and one != other for one, other in zip(size, seen))

    def _read(self, guests: Sequence[Guest]) -> list[Guest | None]:
        if not guests:
            return []
        with ThreadPoolExecutor(max_workers=min(READERS, len(guests))) as pool:
            return list(pool.map(self._read_one, guests))

    def _read_one(self, guest: Guest) -> Guest | None:
        try:
            return self.read(guest)
        except FleetError as error:
            if reply_of(error).status in (403, 595, 596):  # may not be read, or its node is away: as it is listed
                return guest
            raise


def guest_of(item: Mapping[str, Any]) -> Guest:
    """Return a guest from an item of /cluster/resources."""
    return Guest(
        vmid=int(item["vmid"]),
        name=str(item.get("name") or ""),
        node=str(item.get("node") or ""),
        status=str(item.get("status") or "unknown"),
        template=bool(int(item.get("template") or 0)),
        lock=str(item.get("lock") or ""),
        pool=str(item.get("pool") or ""),
        tags=str(item.get("tags") or ""),
        cpu=int(item.get("maxcpu") or 0),
        memory=int(item.get("maxmem") or 0),
        disk=int(item.get("maxdisk") or 0),
        seen={key: item[key] for key in ("hastate", "uptime") if item.get(key)},
    )


def with_config(guest: Guest, config: Mapping[str, Any], status: str = "", qmp: str = "") -> Guest:
    """Return a guest with what its configuration tells."""
    disk = configs.disk_of(config)
    status = status or guest.status
    return guest.evolve(
        name=str(config.get("name") or guest.name),
        status="paused" if qmp in ("paused", "suspended") and status == "running" else status,
        template=bool(int(config.get("template") or 0)),
        lock=str(config.get("lock") or ""),
        tags=str(config.get("tags") or ""),
        cpu=configs.cpus_of(config),
        memory=configs.memory_of(config),
        disk=(disk.size if disk else 0) or guest.disk,
        config=config,
    )


def machine_of(guest: Guest) -> Machine:
    """Return what is told of a guest."""
    marks = guest.marks
    networks = marks.networks if guest.config is None else configs.networks_of(guest.config)
    static = configs.static_addresses(networks)
    addresses = (*static, *(address for address in marks.addresses if address not in static))
    numbers = range(len(networks)) if guest.config is None else configs.net_numbers(guest.config)
    interfaces = [card(network, _port(guest, number)) for number, network in zip(numbers, networks)]
    detail: dict[str, Any] = {"vmid": guest.vmid, "node": guest.node, "interfaces": interfaces}
    for key, value in (("pool", guest.pool), ("lock", guest.lock), ("ha", guest.seen.get("hastate", ""))):
        if value:
            detail[key] = value
    state = _STATES.get(guest.status, "unknown")
    return Machine(
        guest.machine_name,
        PROVIDER,
        "suspended" if guest.lock == "suspended" else state,
        addresses=addresses if state == "running" else (),
        image=marks.image,
        cpu=guest.cpu,
        memory=guest.memory,
        disk=guest.disk,
        networks=networks,
        user_data=marks.user_data,
        tags=marks.tags,
        project=marks.project,
        login=marks.login,
        incomplete=incomplete_of(guest),
        detail=detail,
    )


def _port(guest: Guest, number: int) -> str:
    """The interface of a card on its bridge: behind a bridge of its own where Proxmox filters it. Of machines of ours
    the list of all tells only whether the second fence stands round them."""
    filtered = bool(guest.marks.fence)
    if not filtered and (guest.config is None or guest.marks.ours):
        return ""
    filtered = filtered or configs.filtered(guest.config or {}, number)
    return f"fwpr{guest.vmid}p{number}" if filtered else f"tap{guest.vmid}i{number}"


def incomplete_of(guest: Guest) -> str:
    """Say what is missing of a machine that was not made wholly."""
    if guest.lock in _HALF:
        return f"its disks are being copied, or that was interrupted (lock: {guest.lock})"
    if guest.name.endswith(SUFFIX) or guest.fresh_clone:
        return "it was cloned, but not configured"
    return "it was configured, but did not come up yet" if guest.marks.unfinished else ""


def check_single(name: str, guests: Sequence[Guest]) -> None:
    """Raise Conflict, which names all of them, when there is more than one."""
    if len(guests) > 1:
        ids = ", ".join(f"{guest.vmid} on {guest.node}" for guest in guests)
        raise Conflict(
            f'machine "{name}": {len(guests)} virtual machines have this name: {ids}; rename or remove all but one'
        )


def _what(guest: Guest) -> str:
    return f'machine "{guest.machine_name or guest.vmid}"'


def _vmid(item: Mapping[str, Any]) -> int:
    return int(item.get("vmid") or 0)
