# SPDX-License-Identifier: GPL-3.0-or-later
"""The product on the lab's gateway: its engine, its fleetd, and the processes that this one runs."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.integration.fleetd import Fleet
from tests.system.network.field import Field, document
from tests.system.network.lab import Lab, wait_for

from fleet_core.fences import Fence
from fleet_node.egress_engine import Engine
from fleet_node.egress_plans import Planned


class Product:
    """The network policy of a gateway. fleet: its fleetd. engine: to be used inside() the gateway."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.fleet = Fleet(folder)
        self.engine = Engine(folder)

    def up(self) -> None:
        self.fleet.up(prefix=self.lab.gateway.words)

    def apply(self, wanted: Mapping[str, Any]) -> Planned:
        """Put a document in force and wait until names are answered."""
        with self.lab.gateway.inside():
            planned = self.engine.apply(wanted)
        self.settle()
        return planned

    def refresh(self) -> Planned:
        with self.lab.gateway.inside():
            return self.engine.refresh()

    def remove(self) -> Planned:
        with self.lab.gateway.inside():
            return self.engine.remove()

    @property
    def fence(self) -> Fence:
        fence = self.engine.fence()
        assert fence is not None
        return fence

    @property
    def ports(self) -> dict[str, int]:
        """The port of each scope's resolver."""
        return {scope.name: scope.resolver_port for scope in self.fence.scopes if scope.resolver_port}

    def settle(self) -> None:
        """Wait until resolvers and the proxy listen, which they do some time after they have begun."""
        fence = self.fence
        datagrams = {scope.resolver_port for scope in fence.scopes if scope.resolver_port and _used(fence, scope.name)}
        streams = {fence.proxy.port} if fence.proxy.kind and any(s.mode != "locked" for s in fence.scopes) else set()
        wait_for(lambda: datagrams <= self._listening("-lun"), f"resolvers listen on {datagrams}", 20)
        wait_for(lambda: streams <= self._listening("-ltn"), f"the proxy listens on {streams}", 30)

    def _listening(self, kind: str) -> set[int]:
        lines = self.lab.gateway.run("ss", "-H", kind).stdout.splitlines()
        return {int(line.split()[3].rpartition(":")[2]) for line in lines}

    def processes(self) -> dict[str, dict[str, Any]]:
        """Our processes as fleetd shows them."""
        return {view["id"]: dict(view) for view in self.fleet.call("processes.list")["processes"]}


def _used(fence: Fence, scope: str) -> bool:
    return bool(fence.guests_of(scope))


@contextlib.contextmanager
def running(lab: Lab) -> Iterator[Product]:
    """A product with no policy yet. All of it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="fleetlab-state-") as name:
        os.chmod(name, 0o755)
        product = Product(lab, Path(name))
        try:
            product.up()
            yield product
        finally:
            with contextlib.suppress(Exception):
                product.remove()
            product.fleet.down()


def field_of(product: Product, backend: str, mode: str) -> Field:
    """Put the policy of the attacks in force in a mode and return where they happen."""
    product.apply(document(product.lab, mode, backend=backend))
    return Field(product.lab, backend, mode, product.ports)
