# SPDX-License-Identifier: GPL-3.0-or-later
"""The adapters, by name. A new one is a file beside this one and a function here.

Ansible sends a host only the files that an import statement names, so the names cannot come from a list. Each import
stands in a function: only the adapter that is used is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .provider import Job, Provider, Surroundings
from .records import forget_checkpoints

if TYPE_CHECKING:
    from fleet_core.errors import InvalidInput
    from fleet_core.names import check_keys, nearest
    from fleet_node import paths
else:
    try:
        from ..fleet_core.errors import InvalidInput
        from ..fleet_core.names import check_keys, nearest
        from ..fleet_node import paths
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import InvalidInput
        from fleet_core.names import check_keys, nearest
        from fleet_node import paths

Factory = Callable[[Surroundings], Provider]


def _multipass(surroundings: Surroundings) -> Provider:
    from .multipass import Multipass

    return Multipass(surroundings)


def _proxmox(surroundings: Surroundings) -> Provider:
    from .proxmox import Proxmox

    return Proxmox(surroundings)


def _qemu(surroundings: Surroundings) -> Provider:
    from .qemu import Qemu

    return Qemu(surroundings)


_ADAPTERS: dict[str, Factory] = {"multipass": _multipass, "proxmox": _proxmox, "qemu": _qemu}


def register(name: str, factory: Factory) -> None:
    """Add an adapter that does not come with the collection; one of the same name is replaced."""
    _ADAPTERS[name] = factory


def names() -> tuple[str, ...]:
    """Return the names of all adapters."""
    return tuple(sorted(_ADAPTERS))


def provider(name: str, state_dir: str | None = None, settings: Mapping[str, Any] | None = None) -> Provider:
    """Return the adapter of a name. Raises InvalidInput for an unknown name or setting."""
    if name not in _ADAPTERS:
        hint = nearest(name, _ADAPTERS) or f"; known: {', '.join(names())}"
        raise InvalidInput(f'provider "{name}": unknown{hint}')
    given = {key: value for key, value in (settings or {}).items() if value is not None}
    folder = str(paths.state_dir(state_dir))
    found = _ADAPTERS[name](Surroundings(folder, given))
    check_keys(f'settings of provider "{name}"', given, found.capabilities.settings)
    return _forgetting(found, folder)


def _forgetting(found: Provider, state_dir: str) -> Provider:
    """Let what is kept beside the provider about a machine's checkpoints go with the machine, whoever deletes it."""
    delete = found.delete

    def delete_all(name: str, job: Job) -> None:
        delete(name, job)
        forget_checkpoints(state_dir, found.name, name)

    found.delete = delete_all  # type: ignore[method-assign]
    return found
