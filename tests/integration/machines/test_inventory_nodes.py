# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory of machines on other nodes: over a real sshd with the real fleet command, and of a fake cluster."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.multipass_host import Host
from tests.integration.ssh_server import SshServer, ssh_server

from fleet_core.machines import MachineSpec
from fleet_machines.known_hosts import Keys
from fleet_machines.provider import Job

from .inventories import Inventory


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("node")) as found:
        yield found


@pytest.fixture
def node(server: SshServer, host: Host) -> dict[str, Any]:
    """A node with Multipass and the fleet command; its entry in the option providers."""
    # What a login shell of that host has.
    environ = {**host.environ, "PATH": f"{host.executable.parent}:/usr/bin:/bin"}
    words = " ".join(f"{name}='{value}'" for name, value in environ.items())
    program = server.home / "bin" / "fleet"
    program.write_text(f'#!/bin/sh\n{words} exec {Path(sys.executable).with_name("fleet")} "$@"\n')
    program.chmod(0o755)
    shutil.rmtree(server.home / "state", ignore_errors=True)
    host.state_dir = server.home / "state"
    return {"name": "multipass", "host": server.name, "ssh_args": f"-F {server.config}"}


def make(host: Host, *names: str) -> None:
    for name in names:
        host.adapter().create(MachineSpec(name, "multipass", image="24.04", tags=("web",)), Job.lasting(60))
    host.calls()


def inventory(tmp_path: Path) -> Inventory:
    """An inventory of a control node where nothing else is."""
    folder = tmp_path / "control"
    folder.mkdir()
    return Inventory(folder, {"FLEET_STATE_DIR": str(folder / "state")})


def test_a_node_over_ssh_is_one_call_and_its_machines_are_behind_it(
    tmp_path: Path, host: Host, node: dict[str, Any], server: SshServer
) -> None:
    make(host, "web-1", "web-2")
    control = inventory(tmp_path)
    control.write([node])
    found = control.listed()
    assert host.calls() == [["list", "--format", "json"]]
    assert found.groups["node_dev_machine"] == ["web-1", "web-2"]
    assert found.groups["tag_web"] == ["web-1", "web-2"]
    arguments = found.hosts["web-1"]["ansible_ssh_common_args"]
    assert arguments == (f"-o 'ProxyCommand=ssh -o BatchMode=yes -F {server.config} -W [%h]:%p -- {server.name}'")


def test_the_settings_of_a_node_reach_its_provider(tmp_path: Path, host: Host, node: dict[str, Any]) -> None:
    make(host, "web-1")
    other = host.executable.with_name("other")
    host.executable.rename(other)
    control = inventory(tmp_path)
    control.write([node])
    assert "multipass is not installed on this host" in control.refused()
    control.write([{**node, "settings": {"executable": str(other)}, "state_dir": str(host.state_dir), "full": True}])
    assert control.listed().hosts["web-1"]["fleet_machine"]["cpu"] == 1


def test_one_node_that_is_down_takes_only_its_own_machines_away(
    tmp_path: Path, host: Host, node: dict[str, Any]
) -> None:
    make(host, "web-1")
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        down = {"name": "qemu", "node": "rack-9", "host": "127.0.0.1", "ssh_args": f"-F /dev/null -p {port}"}
        control = inventory(tmp_path)
        control.write([down, node], strict_nodes=False)
        found = control.listed()
        assert sorted(found.hosts) == ["web-1"]
        assert "qemu on rack-9: 127.0.0.1 cannot be reached by ssh" in " ".join(found.told.split())
        control.write([down, node])
        assert "Connection refused" in control.refused()


def test_a_node_without_fleet_is_told(tmp_path: Path, host: Host, node: dict[str, Any]) -> None:
    control = inventory(tmp_path)
    control.write([{**node, "command": "/opt/fleet"}])
    assert "/opt/fleet is not installed on dev-machine" in control.refused()


def answering(server: SshServer, machines: list[Any]) -> None:
    """Let the node answer with these machines, whatever is asked."""
    text = json.dumps({"machines": machines}, indent=2)
    (server.home / "bin" / "fleet").write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")


def test_ansible_logs_in_through_the_node_by_the_known_host_key(
    tmp_path: Path, node: dict[str, Any], server: SshServer
) -> None:
    """Really: the machine is the node's own sshd, which only the node's address leads to."""
    user = "root" if os.geteuid() == 0 else os.environ["USER"]
    machine = {"name": "web-1", "state": "running", "addresses": ["127.0.0.1"], "port": server.port, "login": user}
    answering(server, [machine, {**machine, "name": "web-2"}])
    control = inventory(tmp_path)
    control.write([node])
    keys = Keys(control.folder / "state")
    keys.make_key()
    base = server.config.parent
    shutil.copy(base / "user", keys.private_key)
    shutil.copy(base / "user.pub", keys.private_key.with_suffix(".pub"))
    key = " ".join((base / "host.pub").read_text().split()[:2])
    keys.update(
        {"web-1": key, "web-2": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGnBT0hAQyuSWm9yQKmkrIIW7Jjd0WTl2wLiKpVqJcTj"}
    )
    done = control.run("ansible", "web-1", "-m", "ansible.builtin.raw", "-a", "echo it is $((6*7))")
    assert "it is 42" in done.stdout, done.stdout + done.stderr
    # One that has another key than the one that is known is not talked to, although the address is the same.
    done = control.run("ansible", "web-2", "-m", "ansible.builtin.raw", "-a", "echo it is $((6*7))")
    assert "it is 42" not in done.stdout
    assert "UNREACHABLE" in done.stdout


def test_a_node_cannot_pass_machines_off_as_other_hosts_or_inject_options(
    tmp_path: Path, node: dict[str, Any], server: SshServer
) -> None:
    evil = "-oProxyCommand=touch${IFS}PWNED"
    answering(
        server,
        [
            {"name": "localhost", "addresses": ["10.0.0.1"]},
            {"name": "web-1", "addresses": [evil, "127.0.0.1;id"], "login": "root -o x", "port": 0},
            {"name": evil},
            {"name": "web-2", "tags": ["{{ lookup('pipe', 'touch PWNED') }}"], "ansible_connection": "local"},
        ],
    )
    control = inventory(tmp_path)
    control.write([{**node, "jump": ""}])
    found = control.listed()
    assert sorted(found.hosts) == ["web-1", "web-2"]
    for variables in found.hosts.values():
        assert [name for name in variables if name.startswith("ansible_")] == []
    assert list(tmp_path.rglob("PWNED*")) == []


@pytest.mark.parametrize(
    ("machines", "said"),
    [
        ([1], "expected a machine with a name, found int 1"),
        ([{"name": "a", "port": "22"}], "machine 'a': port: expected int"),
    ],
)
def test_a_malformed_answer_of_a_node_is_told(
    tmp_path: Path, node: dict[str, Any], server: SshServer, machines: list[Any], said: str
) -> None:
    answering(server, machines)
    control = inventory(tmp_path)
    control.write([node])
    assert f"multipass on dev-machine: {said}" in control.refused()


# -- a cluster ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Any]:
    pytest.importorskip("fakepve", reason="the fake of Proxmox VE needs Python 3.10")
    pytest.importorskip("proxmoxer")
    from tests.fakes.proxmox_host import Host as Cluster

    found = Cluster(tmp_path)
    try:
        yield found
    finally:
        found.stop()


def proxmox(cluster: Any, **fields: Any) -> dict[str, Any]:
    """The entry of the cluster. Its secret comes from the environment."""
    settings = {key: value for key, value in cluster.settings.items() if key != "token_secret"}
    secret = "{{ lookup('ansible.builtin.env', 'TOKEN_SECRET') }}"
    return {"name": "proxmox", "settings": {**settings, "token_secret": secret}, **fields}


def test_a_thousand_machines_of_a_cluster_are_one_request(tmp_path: Path, cluster: Any) -> None:
    for number in range(1000):
        cluster.machine(1000 + number, f"m-{number}", status="running" if number % 2 else "stopped", tags="blue;web")
    control = inventory(tmp_path)
    control.environ["TOKEN_SECRET"] = cluster.settings["token_secret"]
    control.write([proxmox(cluster)])
    found = control.listed()
    assert [(request.method, request.path) for request in cluster.requests()] == [("GET", "/cluster/resources")]
    assert len(found.hosts) == 1000
    assert len(found.groups["tag_blue"]) == 1000
    assert len(found.groups["state_running"]) == 500
    assert len(found.groups["node_pve1"]) == 1000


def test_secrets_and_failures_of_a_cluster_are_never_cached(tmp_path: Path, cluster: Any) -> None:
    cluster.machine(100, "web-1", status="running")
    control = inventory(tmp_path)
    cache = {
        "cache": True,
        "cache_plugin": "ansible.builtin.jsonfile",
        "cache_connection": str(tmp_path / "cache"),
    }
    control.write([proxmox(cluster)], **cache)
    text = control.refused(TOKEN_SECRET="wrong-secret")
    assert "wrong-secret" not in text
    secret = cluster.settings["token_secret"]
    assert sorted(control.listed(TOKEN_SECRET=secret).hosts) == ["web-1"]
    cluster.requests()
    # A secret that was changed asks nothing else: the answer stays the same.
    assert sorted(control.listed(TOKEN_SECRET="new").hosts) == ["web-1"]
    assert cluster.requests() == []
    for path in (tmp_path / "cache").iterdir():
        assert secret not in path.read_text()
    assert secret not in control.path.read_text()


def test_full_asks_the_guest_agents_for_addresses(tmp_path: Path, cluster: Any) -> None:
    cluster.machine(
        100, "web-1", status="running", net0="virtio=BC:24:11:00:00:01,bridge=vmbr0", ipconfig0="ip=10.9.8.7/24"
    )
    control = inventory(tmp_path)
    control.environ["TOKEN_SECRET"] = cluster.settings["token_secret"]
    control.write([proxmox(cluster)])
    assert "ansible_host" not in control.listed().hosts["web-1"]
    control.write([proxmox(cluster, full=True)])
    assert control.listed().hosts["web-1"]["ansible_host"] == "10.9.8.7"


def test_a_cluster_that_stalls_or_answers_nonsense_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def nonsense() -> None:
            for _turn in range(20):
                try:
                    connection, _address = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"nonsense\r\n\r\n")

        threading.Thread(target=nonsense, daemon=True).start()
        control = inventory(tmp_path)
        settings = {"host": f"127.0.0.1:{port}", "token_id": "ci@pve!ansible", "token_secret": "12345678", "timeout": 2}
        control.write([{"name": "proxmox", "settings": settings}])
        text = control.refused()
    assert "127.0.0.1" in text
    assert "strict_nodes: false goes on without this node" in text
