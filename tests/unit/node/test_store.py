# SPDX-License-Identifier: GPL-3.0-or-later
"""The store: transactions, damage, privacy."""

from __future__ import annotations

import os
import sqlite3
import stat

import pytest

from fleet_core.errors import StateDamaged
from fleet_core.process_status import ProcessStatus
from fleet_core.processes import process_spec
from fleet_core.resource_types import DEFAULTS, ResourceType
from fleet_core.templates import template
from fleet_node.store import Store


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "state")
    yield opened
    opened.close()


def test_folder_and_database_are_private(store):
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


def test_default_types_are_there_and_can_be_replaced_and_removed(store):
    assert set(store.types()) == {kind.name for kind in DEFAULTS}
    store.put_types([ResourceType("gpu", counter=True, start=0, end=1)])
    assert store.types()["gpu"].end == 1
    store.remove_types(["gpu", "license"])
    assert not {"gpu", "license"} & set(store.types())
    store.put_types([ResourceType("gpu")])
    assert "gpu" in store.types()


def test_templates_and_processes_come_back_as_they_were(store):
    made = template({"id": "web", "command": "serve ${tcpport}", "resources": ["tcpport"], "vars": {"x": None}})
    store.put_templates([made])
    assert store.templates() == {"web": made}
    spec = process_spec({"id": "shop/web", "command": "serve", "health": "tcp://127.0.0.1:1"})
    status = ProcessStatus(state="running", pid=7, claimed={"tcpport": ("tcpport", "3000")}, exit_code=None)
    store.put_processes([(spec, status)])
    assert store.processes() == {"shop/web": (spec, status)}
    store.put_statuses({"shop/web": status.evolve(state="stopped"), "unknown": status})
    assert store.processes(["shop/web", "unknown"])["shop/web"][1].state == "stopped"


def test_a_failed_transaction_leaves_nothing(store):
    def cut_off():
        with store.transaction():
            store.put_setting("a", 1)
            store.put_types([ResourceType("lamp")])
            raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        cut_off()
    assert store.setting("a") is None
    assert "lamp" not in store.types()


@pytest.mark.parametrize("damage", [b"this is not a database" * 100, b""])
def test_a_damaged_file_is_kept_and_a_new_one_begun(tmp_path, damage):
    first = Store(tmp_path)
    first.put_setting("mark", 1)
    path = first.path
    first.close()
    for suffix in ("-wal", "-shm"):
        if os.path.exists(f"{path}{suffix}"):
            os.unlink(f"{path}{suffix}")
    path.write_bytes(damage)
    second = Store(tmp_path)
    assert second.setting("mark") is None
    if damage:
        assert second.kept_aside is not None
        assert second.kept_aside.read_bytes() == damage
    second.close()


def test_a_newer_schema_is_refused_and_left_alone(tmp_path):
    Store(tmp_path).close()
    with sqlite3.connect(tmp_path / "fleet.db") as connection:
        connection.execute("PRAGMA user_version = 999")
    with pytest.raises(StateDamaged, match="newer version"):
        Store(tmp_path)
    with sqlite3.connect(tmp_path / "fleet.db") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (999,)


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StateDamaged, match="taken"):
        Store(tmp_path / "taken")
