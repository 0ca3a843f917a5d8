# SPDX-License-Identifier: GPL-3.0-or-later
"""Processes of a network policy: their declarations are legal, and mean what they should."""

from __future__ import annotations

import pytest

from fleet_core.names import check_process_id
from fleet_core.processes import launch, process_spec
from fleet_node.egress_services import DNS, WATCH, item, process_id


@pytest.mark.parametrize("name", ["default", "project-shop", "machine-" + "x" * 63, "machine-a.b_c-d"])
def test_every_scope_has_a_legal_id_of_its_own(name: str) -> None:
    ident = check_process_id(process_id(DNS, name))
    assert len(ident) <= 63
    assert ident.startswith("egress-dns-")
    assert ident != process_id(DNS, name[:-1] + "y")


def test_words_reach_the_program_as_they_are() -> None:
    argv = ["/usr/sbin/dnsmasq", "--conf-file=/srv/a b/%tcpport/${x}/$HOME/'q'.conf", ""]
    spec = process_spec(item("egress-dns-default", "names", argv, "text"))
    assert list(launch(spec, {}).argv) == argv


def test_python_is_the_one_of_fleetd() -> None:
    spec = process_spec(item(WATCH, "watch", ["-I", "-m", "fleet_node.egress_watch", "/srv/x"], python=True))
    found = launch(spec, {}, extra={"python": "/opt/py/bin/python3"}).argv
    assert found == ("/opt/py/bin/python3", "-I", "-m", "fleet_node.egress_watch", "/srv/x")


def test_another_configuration_is_another_declaration() -> None:
    first, again, other = (process_spec(item("x", "x", ["true"], text)) for text in ("a", "a", "b"))
    assert first == again
    assert first != other


def test_a_process_comes_back_for_ever() -> None:
    policy = process_spec(item("x", "x", ["true"])).restart
    assert (policy.policy, policy.burst) == ("always", 0)
