# SPDX-License-Identifier: GPL-3.0-or-later
"""Types, templates and claims as they should be, against the store: planned first, written second."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.changes import Change, difference
    from fleet_core.errors import Conflict, InvalidInput
    from fleet_core.processes import hide_secrets
    from fleet_core.resource_types import ResourceType, resource_type
    from fleet_core.resources import Allocation, Claim, Request, request
    from fleet_core.templates import Template, template
else:
    try:
        from ..fleet_core.changes import Change, difference
        from ..fleet_core.errors import Conflict, InvalidInput
        from ..fleet_core.processes import hide_secrets
        from ..fleet_core.resource_types import ResourceType, resource_type
        from ..fleet_core.resources import Allocation, Claim, Request, request
        from ..fleet_core.templates import Template, template
    except ImportError:  # installed as a top-level package
        from fleet_core.changes import Change, difference
        from fleet_core.errors import Conflict, InvalidInput
        from fleet_core.processes import hide_secrets
        from fleet_core.resource_types import ResourceType, resource_type
        from fleet_core.resources import Allocation, Claim, Request, request
        from fleet_core.templates import Template, template

from .store import Store


@dataclass(frozen=True)
class TypesPlan:
    """Resource types to write and to remove, and the change that this is."""

    change: Change
    put: tuple[ResourceType, ...] = ()
    remove: tuple[str, ...] = ()

    def apply(self, store: Store) -> None:
        store.put_types(self.put)
        store.remove_types(self.remove)


@dataclass(frozen=True)
class TemplatesPlan:
    """Templates to write and to remove, and the change that this is."""

    change: Change
    put: tuple[Template, ...] = ()
    remove: tuple[str, ...] = ()

    def apply(self, store: Store) -> None:
        store.put_templates(self.put)
        store.remove_templates(self.remove)


def plan_types(store: Store, items: Iterable[Mapping[str, Any]], present: bool = True) -> TypesPlan:
    """Return what makes the types present as given, or absent.

    Keys that an item does not give stay as they are in a type that exists. A check replaces a probe, and the other way
    round.
    Raises Conflict when claimed values would lose their type, or the space in which they are unique.
    """
    known = store.types()
    wanted = dict(known)
    for item in items:
        name = str(item.get("name") or "")
        if present:
            kind = resource_type(_merged(wanted.get(name), item))
            wanted[kind.name] = kind
        else:
            wanted.pop(name, None)
    changed = [kind for name, kind in wanted.items() if known.get(name) != kind]
    removed = [name for name in known if name not in wanted]
    moved = {kind.name for kind in changed if kind.name in known and known[kind.name].space != kind.space}
    _refuse_claimed(store, {*removed, *moved})
    change = difference(_plain_types(known), _plain_types(wanted), "resource type")
    return TypesPlan(change, tuple(changed), tuple(removed))


def _merged(old: ResourceType | None, item: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in item.items() if value is not None}
    data = {} if old is None else old.to_dict()
    if given.get("probe"):
        data = {key: value for key, value in data.items() if key not in ("check", "check_means", "timeout")}
    if given.get("check"):
        data.pop("probe", None)
    if given.get("counter") is False:
        data = {key: value for key, value in data.items() if key not in ("start", "end")}
    return {**data, **given}


def _refuse_claimed(store: Store, names: set[str]) -> None:
    claims = [claim for claim in store.claims() if claim.type in names] if names else []
    if claims:
        first = claims[0]
        count = sum(claim.type == first.type for claim in claims)
        raise Conflict(
            f'resource type "{first.type}": {count} of its values are claimed ("{first}" by "{first.owner}");'
            " release them first"
        )


def _plain_types(kinds: Mapping[str, ResourceType]) -> dict[str, Any]:
    return {name: kind.to_dict() for name, kind in kinds.items()}


def plan_templates(store: Store, items: Iterable[Mapping[str, Any]], present: bool = True) -> TemplatesPlan:
    """Return what makes the templates present exactly as given, or absent. Secrets are hidden in the change."""
    known = store.templates()
    wanted = dict(known)
    for item in items:
        if present:
            made = template(item)
            wanted[made.id] = made
        else:
            wanted.pop(str(item.get("id") or ""), None)
    change = difference(_plain_templates(known), _plain_templates(wanted), "process template")
    shown = [{name: public_template(data) for name, data in side.items()} for side in (change.before, change.after)]
    put = tuple(made for name, made in wanted.items() if known.get(name) != made)
    removed = tuple(name for name in known if name not in wanted)
    return TemplatesPlan(Change(shown[0], shown[1], change.actions), put, removed)


def public_template(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a template's plain data with every value hidden whose name looks like a secret's."""
    hidden = {key: hide_secrets(data[key]) for key in ("env", "vars") if data.get(key)}
    return {**data, **hidden}


def _plain_templates(items: Mapping[str, Template]) -> dict[str, Any]:
    return {name: item.to_dict() for name, item in items.items()}


def requests(claims: Iterable[Mapping[str, Any]]) -> tuple[Request, ...]:
    """Return the requests of owners: [{owner, resources: ["type", "type:value", {type, value, name}]}]."""
    found: dict[tuple[str, str], Request] = {}
    for item in claims:
        for data in item.get("resources") or ():
            made = request(data, str(item.get("owner") or ""))
            if found.setdefault((made.owner, made.name), made) != made:
                raise InvalidInput(
                    f'owner "{made.owner}": resource "{made.name}" stands twice; give the second one a name of its own'
                )
    return tuple(found.values())


def to_release(store: Store, claims: Iterable[Mapping[str, Any]]) -> list[Claim]:
    """Return what owners hold: all of it for an owner without resources, otherwise only what the resources name."""
    held = store.claims(str(item.get("owner") or "") for item in claims)
    found: dict[tuple[str, str], Claim] = {}
    for item in claims:
        owner = str(item.get("owner") or "")
        asked = requests([item])
        for claim in held:
            if claim.owner == owner and (not asked or any(_names(one, claim) for one in asked)):
                found[(claim.type, claim.value)] = claim
    return list(found.values())


def _names(asked: Request, claim: Claim) -> bool:
    return (asked.name, asked.type) == (claim.name, claim.type) and asked.value in ("", claim.value)


def claims_change(claimed: Iterable[Claim] = (), released: Iterable[Claim] = ()) -> Change:
    """Return the change that claims and releases are: "OWNER NAME" to "TYPE:VALUE"."""
    claimed, released = tuple(claimed), tuple(released)
    return Change(
        {f"{claim.owner} {claim.name}": str(claim) for claim in released},
        {f"{claim.owner} {claim.name}": str(claim) for claim in claimed},
        (
            *(f"release {claim} of {claim.owner}" for claim in released),
            *(f"claim {claim} for {claim.owner}" for claim in claimed),
        ),
    )


def allocation_change(allocation: Allocation) -> Change:
    """Return the change that an allocation is."""
    return claims_change(allocation.claimed, allocation.released)
