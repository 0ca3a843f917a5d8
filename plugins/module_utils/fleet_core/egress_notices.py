# SPDX-License-Identifier: GPL-3.0-or-later
"""What is valid in a declaration and yet worth a word: one sentence each."""

from __future__ import annotations

from collections.abc import Iterable

from .egress import Declaration, Policy
from .egress_fence import Effective, effective, scope_names
from .egress_live import Live
from .egress_names import covered
from .moments import iso


def notices(declaration: Declaration, live: Iterable[Live] = (), now: int = 0) -> tuple[str, ...]:
    """Return sentences about what does nothing, or less than it seems."""
    live = tuple(live)
    scopes = scope_names(declaration, live, now)
    found = [*_ended(declaration, now), *_unused(declaration)]
    projects = {scopes[guest.name, guest.bridge]: guest.project for guest in declaration.machines}
    policies = {scope: effective(declaration, live, now, scope, project) for scope, project in sorted(projects.items())}
    for scope, policy in policies.items():
        found += _of_scope(declaration, scope, policy)
    for guest in declaration.machines:
        named = policies[scopes[guest.name, guest.bridge]].peers
        for other in () if isinstance(named, str) else named:
            found += _of_peer(declaration, policies, scopes, guest.name, guest.bridge, other)
        if not guest.port:
            found.append(
                f'machine "{guest.name}": its port on {guest.bridge} is not known, so that only its addresses tell it '
                "from others"
            )
    return tuple(dict.fromkeys(found))


def _ended(declaration: Declaration, now: int) -> list[str]:
    return [
        f"policies: {scope}: {item.target} has ended at {iso(item.end(now))}"
        for scope, policy in declaration.policies.items()
        for item in (*policy.presets, *policy.allow, *policy.deny)
        if not item.lasts(now)
    ]


def _unused(declaration: Declaration) -> list[str]:
    projects = {f"project-{guest.project}" for guest in declaration.machines if guest.project}
    return [
        f'policies: project "{scope[8:]}": no machine belongs to it'
        for scope in declaration.policies
        if scope.startswith("project-") and scope not in projects
    ]


def _of_scope(declaration: Declaration, scope: str, policy: Effective) -> list[str]:
    found = []
    if policy.mode == "strict" and not declaration.proxy.kind and not (policy.hub and declaration.hub.addresses):
        found.append(f"{scope}: mode strict without a proxy and a hub: nothing is reached")
    denied = frozenset(item.value for item in policy.deny if item.kind == "domain")
    found += [
        f"{scope}: {item.value} is allowed and denied: it stays closed"
        for item in policy.allow
        if item.kind == "domain" and covered(item.value, denied)
    ]
    if policy.mode == "locked" and declaration.policies.get(scope, Policy()).allow:
        found.append(f"{scope}: mode locked: what it allows stays closed")
    return found


def _of_peer(
    declaration: Declaration,
    policies: dict[str, Effective],
    scopes: dict[tuple[str, str], str],
    name: str,
    bridge: str,
    other: str,
) -> list[str]:
    if (other, bridge) not in scopes:
        return [f'machine "{name}": its peer "{other}" is not on {bridge}']
    back = policies[scopes[other, bridge]].peers
    projects = {guest.name: guest.project for guest in declaration.machines}
    if back == "project" and projects[name] and projects[name] == projects[other]:
        return []
    if isinstance(back, tuple) and name in back:
        return []
    return [] if other == name else [f'machine "{name}": its peer "{other}" does not have it as a peer']
