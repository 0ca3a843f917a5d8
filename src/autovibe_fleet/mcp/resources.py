# SPDX-License-Identifier: GPL-3.0-or-later
"""Tools on resources: ports, files and devices, of which each has one holder at a time."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field
from typing_extensions import NotRequired, TypedDict

from fleet_core.errors import NotFound
from fleet_node import declarations
from fleet_node import resources as claims

from .tools import ADDS, ENDS, READS, Ctx, Toolbox, host

toolbox = Toolbox()

Owner = Annotated[str, Field(min_length=1, description="Who holds it: a process's id, or any name of your own.")]


class Resource(TypedDict, total=False):
    """A value of a type and who holds it. name: what the owner calls it, by default the type."""

    type: str
    value: str
    owner: str
    name: str


class Resources(TypedDict):
    """Some claims."""

    resources: list[Resource]


class ResourceType(TypedDict, total=False):
    """A kind of resource. counter: values are given out from start to end. check: a command that tells of a value
    whether it is taken."""

    name: str
    counter: bool
    start: int
    end: int
    check: str
    check_means: str
    probe: str
    description: str


class ResourceTypes(TypedDict):
    """All types of resources on this host."""

    types: list[ResourceType]


class Asked(TypedDict):
    """A resource to claim or to release. type: such as tcpport. value: this one; else any. name: what you call it, to
    have several of one type."""

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]

    type: str
    value: NotRequired[str]
    name: NotRequired[str]


@toolbox.tool("List claimed resources", READS)
async def list_resources(
    ctx: Ctx,
    owner: Annotated[str | None, Field(description="Only what this owner holds.")] = None,
    type: Annotated[str | None, Field(description="Only this type.")] = None,  # noqa: A002
) -> Resources:
    """List the ports, files and devices that processes and others hold."""

    def look() -> list[Any]:
        with host(ctx).store() as store:
            found = store.claims([owner] if owner else None)
        return [claim.to_dict() for claim in found if type in (None, "", claim.type)]

    return {"resources": await host(ctx).thread(look)}


@toolbox.tool("Claim resources", ADDS)
async def claim_resources(
    ctx: Ctx, owner: Owner, resources: Annotated[list[Asked], Field(min_length=1, description="What to claim.")]
) -> Resources:
    """Claim resources for an owner, all or none, such as a free TCP port for a server of your own. What the owner holds
    already stays. Give them back by release_resources. Processes of the fleet claim theirs by themselves."""

    def claim() -> list[Any]:
        with host(ctx).store() as store:
            allocation = claims.claim(store, declarations.requests([{"owner": owner, "resources": _plain(resources)}]))
        return [item.to_dict() for item in claims.granted(allocation)[owner].values()]

    return {"resources": await host(ctx).thread(claim)}


@toolbox.tool("Release resources", ENDS)
async def release_resources(
    ctx: Ctx,
    owner: Owner,
    resources: Annotated[list[Asked] | None, Field(description="What to give back; by default all.")] = None,
) -> Resources:
    """Give back what an owner holds, or some of it."""

    def release() -> list[Any]:
        with host(ctx).store() as store:
            found = declarations.to_release(store, [{"owner": owner, "resources": _plain(resources or [])}])
            if not found:
                raise NotFound(f'owner "{owner}": holds no {"such resource" if resources else "resources"}')
            store.release_claims(found)
        return [item.to_dict() for item in found]

    return {"resources": await host(ctx).thread(release)}


@toolbox.tool("List resource types", READS)
async def list_resource_types(ctx: Ctx) -> ResourceTypes:
    """List the types of resources that can be claimed, with their ranges and checks."""

    def look() -> list[Any]:
        with host(ctx).store() as store:
            return [kind.to_dict() for kind in store.types().values()]

    return {"types": await host(ctx).thread(look)}


def _plain(asked: list[Asked]) -> list[dict[str, str]]:
    """Return the requests as declarations take them: a name is the type's unless it is given."""
    return [{"name": item["type"], **{key: str(value) for key, value in item.items()}} for item in asked]
