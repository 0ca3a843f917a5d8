# SPDX-License-Identifier: GPL-3.0-or-later
"""The folder of the proxy: what is written there, when, and whatever its user has put there before."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from tests.unit.core.egress_examples import FENCE

from fleet_core import egress_mitmproxy
from fleet_node import egress_proxies
from fleet_node.egress_proxies import OPTIONS_FILE, POLICY_FILE, folder_of
from fleet_node.egress_store import EgressStore, Record


@pytest.fixture
def store(tmp_path: Path, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> EgressStore:
    monkeypatch.setattr(egress_proxies, "FOLDERS", str(tmp_path))
    monkeypatch.setattr(egress_proxies, "_user", lambda name: pwd.getpwuid(os.getuid()))
    monkeypatch.setattr(os, "fchown", lambda *words: None)
    found = EgressStore(state_dir)
    folder_of(found).mkdir(parents=True)
    return found


def publish(store: EgressStore, policy: str) -> None:
    options = egress_mitmproxy.options(FENCE, str(folder_of(store)))
    egress_proxies.publish(store, Record(name="applied-1", files={POLICY_FILE: policy, OPTIONS_FILE: options}))


def states(store: EgressStore) -> dict[str, tuple[int, int]]:
    found = {path.name: path.stat() for path in folder_of(store).iterdir()}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in found.items()}


def test_another_policy_leaves_the_addon_alone(store: EgressStore) -> None:
    """mitmproxy loads an addon that was written again: connections that run would be nobody's, and never be cut."""
    publish(store, "{}")
    before = states(store)
    assert set(before) == {"addon.py", "egress_decisions.py", "config.yaml", "mitmproxy.json"}
    publish(store, '{"scopes": {}}')
    after = states(store)
    assert {name for name in after if after[name] != before[name]} == {"mitmproxy.json"}
    publish(store, '{"scopes": {}}')
    assert states(store) == after


def test_what_the_proxys_user_has_put_there_is_replaced_and_not_followed(store: EgressStore, tmp_path: Path) -> None:
    publish(store, "{}")
    addon = folder_of(store) / "addon.py"
    text = addon.read_text()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(text)
    addon.unlink()
    addon.symlink_to(elsewhere)
    (folder_of(store) / "mitmproxy.json").write_text('{"scopes": "all"}')
    publish(store, "{}")
    assert not addon.is_symlink()
    assert addon.read_text() == text
    assert (folder_of(store) / "mitmproxy.json").read_text() == "{}"
