# SPDX-License-Identifier: GPL-3.0-or-later
"""From the networks that are wanted of a machine to its network cards."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .qemu_command import BRIDGE, ISOLATED, USER, Card, tap_name

if TYPE_CHECKING:
    from fleet_core.errors import InvalidInput
    from fleet_core.machine_cards import card
    from fleet_core.machines import Network
else:
    try:
        from ..fleet_core.errors import InvalidInput
        from ..fleet_core.machine_cards import card
        from ..fleet_core.machines import Network
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import InvalidInput
        from fleet_core.machine_cards import card
        from fleet_core.machines import Network

LONGEST_INTERFACE = 15  # characters of an interface's name (IFNAMSIZ)
DEFAULT = (Network(USER),)


def check(what: str, networks: Sequence[Network], root: bool) -> None:
    """Raise InvalidInput for networks that no machine here can have. root: whether bridges can be used."""
    for number, network in enumerate(networks):
        where = f"{what}: networks[{number}]"
        if network.name in (USER, ISOLATED):
            if network.address not in ("", "dhcp") or network.gateway:
                raise InvalidInput(f'{where}: the network "{network.name}" gives addresses itself; expected none')
        elif len(network.name) > LONGEST_INTERFACE:
            raise InvalidInput(
                f"{where}: expected the name of a bridge, of at most {LONGEST_INTERFACE} characters, "
                f'or "{USER}" or "{ISOLATED}", found "{network.name}"'
            )
        elif not root:
            raise InvalidInput(
                f'{where}: only root can connect machines to the bridge "{network.name}"; run as root, or use '
                f'"{USER}" or "{ISOLATED}"'
            )


def given_macs(networks: Sequence[Network]) -> tuple[Network, ...]:
    """Return the networks with a hardware address for each: the given one, or a new one of QEMU's range."""
    return tuple(
        network if network.mac else Network(network.name, new_mac(), network.address, network.gateway)
        for network in networks
    )


def new_mac() -> str:
    """Return a hardware address that is as good as unique."""
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(3))


def cards_of(machine: str, networks: Sequence[Network], salt: str) -> tuple[Card, ...]:
    """Return the cards of a machine. salt: tells the fleets of one host apart."""
    return tuple(
        Card(network.name, network.mac)
        if network.name in (USER, ISOLATED)
        else Card(BRIDGE, network.mac, network.name, tap_name(machine, number, salt))
        for number, network in enumerate(networks)
    )


def interfaces(machine: str, record: Mapping[str, Any], salt: str) -> list[dict[str, str]]:
    """Return the cards of a machine as its detail tells them."""
    networks = [Network(**one) for one in record.get("cards") or ()]
    return [card(network, made.tap) for network, made in zip(networks, cards_of(machine, networks, salt))]


def read(record: Mapping[str, Any]) -> tuple[Network, ...]:
    """Return the networks of a record."""
    return tuple(Network(**one) for one in record.get("networks") or ())


def fixed_addresses(networks: Sequence[Network]) -> tuple[str, ...]:
    """Return the addresses that machines were given on bridges."""
    return tuple(one.address.partition("/")[0] for one in networks if one.address not in ("", "dhcp"))
