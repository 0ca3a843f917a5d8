# SPDX-License-Identifier: GPL-3.0-or-later
"""The addon of mitmproxy without mitmproxy: what it does when something goes wrong is to close. The rest is tried in
tests/system/network/test_mitmproxy.py."""

from __future__ import annotations

import asyncio
import json
import os
import pkgutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.core.egress_examples import FENCE

from fleet_core import egress_mitmproxy
from fleet_node import egress_addon
from fleet_node.egress_addon import Addon, Counter, Log, PolicyFile

WEB = "192.168.100.10"


class Broken:
    """A policy that cannot be asked."""

    def now(self) -> Any:
        raise RuntimeError("broken")


@pytest.fixture
def broken() -> Addon:
    addon = Addon()
    addon._file = Broken()  # type: ignore[assignment]
    return addon


def connection(**values: Any) -> Any:
    return SimpleNamespace(id="1", peername=(WEB, 5000), sni=None, error=None, tls_established=False, **values)


def test_mitmproxy_can_be_given_its_source() -> None:
    for package, module in (("fleet_node", "egress_addon.py"), ("fleet_core", "egress_decisions.py")):
        assert pkgutil.get_data(package, module)


def test_the_policy_is_read_again_when_its_file_is_another_one(tmp_path: Path) -> None:
    path = tmp_path / "policy"
    found = PolicyFile(str(path))
    assert not found.now().guest(WEB)
    path.write_text(egress_mitmproxy.policy(FENCE))
    first = found.now()
    assert first.guest(WEB)["machine"] == "web-1"
    assert found.now() is first
    new = tmp_path / "new"
    new.write_text(egress_mitmproxy.policy(FENCE.evolve(guests=())))
    os.replace(new, path)
    assert not found.now().guest(WEB)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "{}", '{"scopes": {"x": {}}, "guests": {}}', '{"scopes": [], "guests": {}}']
)
def test_a_file_that_is_no_policy_lets_nobody_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy"
    path.write_text(egress_mitmproxy.policy(FENCE))
    found = PolicyFile(str(path))
    assert found.now().guest(WEB)
    path.write_text(text)
    assert not found.now().guest(WEB)


def test_a_stranger_is_hung_up_on() -> None:
    client = connection()
    Addon().client_connected(client)
    assert client.error == "this is no machine of the policy"


def test_nobody_gets_in_when_the_policy_cannot_be_asked(broken: Addon) -> None:
    client = connection()
    with pytest.raises(RuntimeError):
        broken.client_connected(client)
    assert client.error


def test_nothing_is_connected_to_when_the_policy_cannot_be_asked(broken: Addon) -> None:
    data = SimpleNamespace(client=connection(), server=SimpleNamespace(address=("example.org", 443), error=None))
    broken._clients["1"] = egress_addon.Client(WEB)
    with pytest.raises(RuntimeError):
        asyncio.run(broken.server_connect(data))
    assert data.server.error
    assert data.server.address == ("example.org", 443)


def test_no_request_goes_out_when_the_policy_cannot_be_asked(broken: Addon) -> None:
    killed = []
    flow = SimpleNamespace(
        client_conn=connection(), metadata={}, kill=lambda: killed.append(True), request=SimpleNamespace()
    )
    with pytest.raises(AttributeError):
        broken.requestheaders(flow)
    assert killed


def test_no_message_goes_on_when_the_policy_cannot_be_asked(broken: Addon) -> None:
    message = SimpleNamespace(content=b"secret", from_client=True)
    request = SimpleNamespace(host="example.org", port=443)
    flow = SimpleNamespace(
        client_conn=connection(), metadata={}, request=request, websocket=SimpleNamespace(messages=[message])
    )
    with pytest.raises(RuntimeError):
        broken.websocket_message(flow)
    assert message.content == b""


def test_a_tunnel_that_was_not_opened_carries_nothing(broken: Addon) -> None:
    message = SimpleNamespace(content=b"secret", from_client=True)
    broken.tcp_message(SimpleNamespace(client_conn=connection(), metadata={}, messages=[message]))
    assert message.content == b""


def test_a_counter_that_is_shut_passes_nothing_on() -> None:
    counter = Counter()
    assert counter(b"abc") == b"abc"
    counter.shut = True
    assert counter(b"abc") == b""
    assert counter.size == 6


def test_the_log_goes_on_in_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Log(str(path))
    log.write({"host": 'a"b\n'})
    path.rename(tmp_path / "old")
    log.write({"host": "c"})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"host": "c"}]
    assert json.loads((tmp_path / "old").read_text()) == {"host": 'a"b\n'}
    assert path.stat().st_mode & 0o007 == 0
