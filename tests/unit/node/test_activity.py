# SPDX-License-Identifier: GPL-3.0-or-later
"""What counts as use of an environment."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autovibe_fleet.node import activity
from autovibe_fleet.node.activity import Connection

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100 1 0 100 0 0 10 0
   1: 0100007F:0BB8 0100007F:C001 01 00000000:00000000 00:00000000 00000000     0        0 101 1 0 20 4 30 10 -1
   2: 0100007F:C001 0100007F:0BB8 01 00000000:00000000 00:00000000 00000000     0        0 102 1 0 20 4 30 10 -1
   3: 0100007F:0BB9 0100007F:C002 06 00000000:00000000 03:00000A7A 00000000     0        0 0 3 0
   4: broken
   5: 0100007F:XXXX 0100007F:C002 01 00000000:00000000 03:00000A7A 00000000     0        0 0 3 0
"""
TABLE6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when inode
   0: 0000000000000000FFFF00000100007F:0BB8 0000000000000000FFFF00000100007F:C003 01 0:0 00:0 0     0        0 103 1 0
"""
OUTSIDE = Connection(3000, 49153, 101)
CLIENT = Connection(49153, 3000, 102)


def test_established_connections_are_read_from_the_tables() -> None:
    assert activity.connections(TABLE) == [OUTSIDE, CLIENT]
    assert activity.connections(TABLE6) == [Connection(3000, 49155, 103)]
    assert activity.connections("") == []


@pytest.mark.parametrize(
    ("rows", "ports", "own", "used"),
    [
        ([OUTSIDE, CLIENT], {3000}, (), {3000}),
        ([OUTSIDE], {3000}, (), {3000}),
        ([OUTSIDE, CLIENT], {3000}, {101}, {3000}),
        ([OUTSIDE, CLIENT], {3000}, {102}, set()),
        ([OUTSIDE, CLIENT], {3001}, (), set()),
        ([OUTSIDE, CLIENT], set(), (), set()),
        ([OUTSIDE, CLIENT, Connection(3000, 50000, 104)], {3000}, {101, 102}, {3000}),
        ([Connection(3001, 40000, 1), Connection(3000, 40001, 2)], {3000, 3001}, {1, 2}, {3000, 3001}),
    ],
)
def test_connections_between_own_processes_do_not_count(
    rows: list[Connection], ports: set[int], own: set[int], used: set[int]
) -> None:
    assert activity.ports_in_use(rows, ports, own) == used


def test_a_family_is_all_that_descend() -> None:
    assert activity.family({2, 9}, {2: 1, 3: 2, 4: 3, 5: 1, 6: 5}) == {2, 3, 4, 9}
    assert activity.family({1}, {1: 1, 2: 1}) == {1, 2}


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server


CLIENT_PROGRAM = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1]))); print(1, flush=True); sys.stdin.read()"  # noqa: E501


@contextmanager
def client(port: int, nested: bool = False) -> Iterator[int]:
    """Another process that holds a connection; yields its pid, or its parent's."""
    argv = [sys.executable, "-c", CLIENT_PROGRAM, str(port)]
    if nested:
        argv = ["/bin/sh", "-c", '"$@"; true', "sh", *argv]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child.pid
        assert child.stdin is not None
        child.stdin.close()


needs_proc = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="there is no /proc")


@needs_proc
@pytest.mark.parametrize("nested", [False, True])
def test_a_connection_of_another_process_is_seen_while_it_lasts(nested: bool) -> None:
    with listening() as server:
        port = server.getsockname()[1]
        assert activity.established_ports({port}) == set()
        with client(port, nested) as pid:
            assert activity.established_ports({port, 1}) == {port}
            assert activity.established_ports({port}, [pid]) == set()
            assert activity.established_ports({port}, [os.getppid() + 10**7]) == {port}
        assert activity.established_ports([]) == set()


@needs_proc
def test_a_check_of_the_calling_process_is_no_use() -> None:
    with listening() as server, socket.create_connection(server.getsockname()):
        assert activity.established_ports({server.getsockname()[1]}) == set()


@needs_proc
def test_parents_and_sockets_of_this_process() -> None:
    assert activity.parents()[os.getpid()] == os.getppid()
    with listening() as server:
        assert os.stat(server.fileno()).st_ino in activity.socket_inodes([os.getpid(), 10**9])
