# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory of machines with the real ansible-inventory, against the fake of Multipass."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.multipass_host import Host

from fleet_core.machines import MachineSpec
from fleet_machines.known_hosts import Keys
from fleet_machines.provider import Job

from .inventories import Inventory


@pytest.fixture
def inventory(tmp_path: Path, host: Host) -> Inventory:
    """An inventory of a host with Multipass, and two machines there."""
    adapter = host.adapter()
    for name, fields in {
        "web-1": {"project": "shop", "tags": ("web", "Blue/Green"), "login": "ubuntu", "memory": 2 * 1024**3},
        "db-1": {"project": "shop", "tags": ("db",)},
    }.items():
        adapter.create(MachineSpec(name, "multipass", image="24.04", **fields), Job.lasting(60))  # type: ignore[arg-type]
    host.calls()
    found = Inventory(tmp_path, {**host.environ, "FLEET_STATE_DIR": str(host.state_dir)})
    found.write(["multipass"])
    return found


def test_machines_are_hosts_in_groups_with_variables_after_one_call(inventory: Inventory, host: Host) -> None:
    found = inventory.listed()
    assert host.calls() == [["list", "--format", "json"]]
    assert found.groups == {
        "provider_multipass": ["db-1", "web-1"],
        "image_24_04": ["db-1", "web-1"],
        "project_shop": ["db-1", "web-1"],
        "state_running": ["db-1", "web-1"],
        "node_localhost": ["db-1", "web-1"],
        "tag_web": ["web-1"],
        "tag_Blue_Green": ["web-1"],
        "tag_db": ["db-1"],
    }
    web = found.hosts["web-1"]
    assert web["ansible_host"] == web["fleet_machine"]["addresses"][0]
    assert f'"ansible_host": "{web["ansible_host"]}"' in found.text  # plainly, without a mark
    assert web["ansible_user"] == "ubuntu"
    assert "ansible_port" not in web
    assert "ansible_ssh_common_args" not in web
    assert web["fleet_machine"]["memory"] == 2 * 1024**3
    graph = inventory.run("ansible-inventory", "--graph", "project_shop")
    assert graph.stdout == "@project_shop:\n  |--db-1\n  |--web-1\n"


def test_a_thousand_machines_are_one_call(inventory: Inventory, host: Host) -> None:
    state = host.instances()
    for number in range(1000):
        state[f"m-{number}"] = {**state["db-1"], "name": f"m-{number}"}
    (host.folder / "state.json").write_text(json.dumps(state))
    found = inventory.listed()
    assert len(found.groups["state_running"]) == 1002
    assert host.calls() == [["list", "--format", "json"]]


def test_options_filter_group_and_construct(inventory: Inventory, host: Host) -> None:
    inventory.write(
        [{"name": "multipass", "node": "this one", "full": True}],
        tags=["web"],
        projects=["shop"],
        states=["running"],
        group_by=["tag", "node"],
        group_prefix="fleet-",
        hostname="fleet_machine.name ~ '.example.org'",
        compose={"ansible_host": "inventory_hostname", "cores": "fleet_machine.cpu"},
        groups={"large": "fleet_machine.memory >= 1024 ** 3", "none": "fleet_machine.memory < 0"},
        keyed_groups=[{"key": "fleet_machine.tags", "prefix": "has"}],
    )
    found = inventory.listed()
    assert sorted(found.hosts) == ["web-1.example.org"]
    assert found.hosts["web-1.example.org"]["ansible_host"] == "web-1.example.org"
    assert found.hosts["web-1.example.org"]["cores"] == 1
    assert sorted(found.groups) == [
        "fleet_node_this_one", "fleet_tag_Blue_Green", "fleet_tag_web", "has_Blue_Green", "has_web", "large",
    ]  # fmt: skip

    inventory.write(["multipass"], states=["stopped"])
    assert inventory.listed().hosts == {}
    inventory.write(["multipass"], strict=True, compose={"x": "nothing_of_that_name"})
    assert "nothing_of_that_name" in inventory.refused()


def test_incomplete_and_deleted_machines(inventory: Inventory, host: Host) -> None:
    adapter = host.adapter()
    adapter.records.update("db-1", incomplete="its creation was interrupted")
    host.edit("web-1", state="Deleted")
    assert sorted(inventory.listed().hosts) == ["db-1"]
    inventory.write(["multipass"], skip_incomplete=True, states=["deleted", "running"])
    assert sorted(inventory.listed().hosts) == ["web-1"]


HOSTILE = "{{ lookup('ansible.builtin.pipe', 'touch PWNED') }}"


def test_what_machines_say_is_never_templated(inventory: Inventory, host: Host, tmp_path: Path) -> None:
    """Neither when the inventory is made, nor by a task, nor from the cache, nor by an expression that uses it."""
    adapter = host.adapter()
    adapter.records.update("web-1", tags=[HOSTILE, "a\nb", "\u001b[2J"], project=HOSTILE, login=HOSTILE)
    inventory.write(
        ["multipass"],
        compose={"first": "fleet_machine.tags[0]", "joined": "fleet_machine.tags | join(' ')"},
        groups={"bad": "fleet_machine.project == 'x'"},
        keyed_groups=[{"key": "fleet_machine.project", "prefix": "p"}],
        cache=True,
        cache_plugin="ansible.builtin.jsonfile",
        cache_connection=str(tmp_path / "cache"),
    )
    play = tmp_path / "play.yml"
    play.write_text(
        json.dumps(
            [
                {
                    "hosts": "web-1",
                    "connection": "local",
                    "gather_facts": False,
                    "tasks": [
                        {"ansible.builtin.debug": {"msg": text}}
                        for text in (
                            "{{ fleet_machine.tags[0] }}",
                            "{{ first }} {{ joined }}",
                            "{{ hostvars['web-1'].fleet_machine.project }}",
                            "{{ hostvars['web-1'].fleet_machine | to_json }}",
                        )
                    ],
                }
            ]
        )
    )
    for _turn in range(2):  # the second from the cache
        found = inventory.listed()
        assert found.hosts["web-1"]["fleet_machine"]["tags"][0] == HOSTILE
        assert '"__ansible_unsafe": "{{ lookup' in found.text
        assert "ansible_user" not in found.hosts["web-1"]
        assert all(name.isidentifier() for name in found.groups)
        done = inventory.run("ansible-playbook", str(play))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "touch PWNED" in done.stdout
    assert len(host.calls("list")) == 1
    assert list(tmp_path.rglob("PWNED")) == []


def test_a_name_that_stands_for_another_host_is_left_out_with_a_warning(inventory: Inventory, host: Host) -> None:
    state = host.instances()
    for name in ("localhost", "127.0.0.1", "-oProxyCommand=x", "a b", HOSTILE):
        state[name] = {**state["db-1"]}
    (host.folder / "state.json").write_text(json.dumps(state))
    found = inventory.listed()
    assert sorted(found.hosts) == ["db-1", "web-1"]
    assert found.told.count("it is left out") == 5


def test_settings_are_templates_that_see_the_environment_and_extra_variables(
    inventory: Inventory, host: Host, tmp_path: Path
) -> None:
    here = {"PATH": "/usr/bin:/bin", "EXECUTABLE": str(host.executable)}
    inventory.write([{"name": "multipass", "settings": {"executable": "{{ lookup('env', 'EXECUTABLE') }}"}}])
    assert sorted(inventory.listed(**here).hosts) == ["db-1", "web-1"]
    inventory.write([{"name": "multipass", "settings": {"executable": "{{ where }}/multipass"}}])
    assert sorted(inventory.listed("-e", f"where={host.executable.parent}", **here).hosts) == ["db-1", "web-1"]
    assert "'where' is undefined" in inventory.refused(**here)


# -- the cache ----------------------------------------------------------------------------------------------------


@pytest.fixture
def cached(inventory: Inventory, tmp_path: Path) -> dict[str, Any]:
    return {
        "cache": True,
        "cache_plugin": "ansible.builtin.jsonfile",
        "cache_connection": str(tmp_path / "cache"),
        "cache_timeout": 600,
    }


def test_a_cached_answer_makes_no_call_until_it_is_flushed(
    inventory: Inventory, host: Host, cached: dict[str, Any]
) -> None:
    inventory.write(["multipass"], **cached)
    first = inventory.listed()
    assert len(host.calls()) == 1
    assert inventory.listed().data == first.data
    # Filters and groups are no part of what is cached.
    inventory.write(["multipass"], tags=["db"], group_by=["tag"], **cached)
    assert inventory.listed().groups == {"tag_db": ["db-1"]}
    assert host.calls() == []
    inventory.listed("--flush-cache")
    assert len(host.calls()) == 1


def test_another_question_is_not_answered_from_the_cache(
    inventory: Inventory, host: Host, cached: dict[str, Any], tmp_path: Path
) -> None:
    inventory.write(["multipass"], **cached)
    inventory.listed()
    host.calls()
    inventory.write([{"name": "multipass", "full": True}], **cached)
    assert inventory.listed().hosts["db-1"]["fleet_machine"]["memory"] == 1024**3
    assert host.calls("info") != []
    inventory.write([{"name": "multipass", "settings": {"executable": str(host.executable)}}], **cached)
    inventory.listed()
    assert len(host.calls()) == 1


def test_an_entry_of_the_cache_that_is_damaged_is_asked_for_again(
    inventory: Inventory, host: Host, cached: dict[str, Any], tmp_path: Path
) -> None:
    inventory.write(["multipass"], **cached)
    inventory.listed()
    (entry,) = (tmp_path / "cache").iterdir()
    text = entry.read_text()
    assert "[]" in text
    entry.write_text(text.replace("[]", "3"))  # networks
    assert sorted(inventory.listed().hosts) == ["db-1", "web-1"]
    assert len(host.calls()) == 2


# -- failures -----------------------------------------------------------------------------------------------------


def test_a_node_that_fails_is_an_error_or_a_warning_and_is_never_cached(
    inventory: Inventory, host: Host, cached: dict[str, Any]
) -> None:
    down = {"name": "multipass", "node": "mini", "settings": {"executable": "/no/such/multipass"}}
    inventory.write([down, "multipass"], **cached)
    text = inventory.refused()
    assert "/no/such/multipass" in text
    assert "strict_nodes: false goes on without this node" in text
    inventory.write([down, "multipass"], strict_nodes=False, **cached)
    found = inventory.listed()
    assert sorted(found.hosts) == ["db-1", "web-1"]
    assert "its machines are missing in the inventory" in found.told
    # The one that answered is cached, the one that did not is asked again.
    host.calls()
    again = inventory.listed()
    assert host.calls() == []
    assert "its machines are missing in the inventory" in again.told


@pytest.mark.parametrize(
    ("providers", "options", "said"),
    [
        (["multipas"], {}, 'did you mean "multipass"?'),
        ([{"name": "multipass", "settings": {"exe": "x"}}], {}, 'unknown key "exe"'),
        ([], {}, "providers: expected a list of providers"),
        (["multipass"], {"states": ["flying"]}, "flying"),
        (["multipass"], {"group_by": ["colour"]}, "colour"),
        (["multipass"], {"hostname": "no_such_variable"}, "hostname: cannot be told for machine"),
        ([{"name": "multipass"}, {"name": "multipass", "node": "b"}], {}, "have one of this name"),
        (["multipass"], {"hostname": "'one'"}, 'machine "one": multipass (localhost) and multipass (localhost)'),
    ],
)
def test_a_wrong_configuration_is_told_in_a_sentence(
    inventory: Inventory, providers: Any, options: Any, said: str
) -> None:
    inventory.write(providers, **options)
    assert said in inventory.refused()


def test_two_of_one_name_get_suffixes(inventory: Inventory) -> None:
    inventory.write(["multipass", {"name": "multipass", "node": "b"}], duplicates="suffix", tags=["db"])
    assert sorted(inventory.listed().hosts) == ["db-1.multipass.b", "db-1.multipass.here"]


def test_a_malformed_answer_is_told(inventory: Inventory, host: Host) -> None:
    host.executable.write_text("#!/bin/sh\necho '{\"list\": [1]}'\n")
    assert 'expected a list "list" of objects with names' in inventory.refused()


def test_only_files_of_that_name_are_read(inventory: Inventory) -> None:
    other = Inventory(inventory.folder, inventory.environ, "fleet.yml")
    other.write(["multipass"])
    assert "machines.yml" not in other.refused()
    other = Inventory(inventory.folder, inventory.environ, "lab.machines.yaml")
    other.write(["multipass"])
    assert sorted(other.listed().hosts) == ["db-1", "web-1"]


def test_machines_whose_host_keys_are_known_are_trusted_by_them(inventory: Inventory, host: Host) -> None:
    keys = Keys(host.state_dir)
    keys.update({"web-1": "ssh-ed25519 AAAA"})
    keys.make_key()
    found = inventory.listed().hosts
    assert "HostKeyAlias=web-1" in found["web-1"]["ansible_ssh_common_args"]
    assert found["web-1"]["ansible_ssh_private_key_file"] == str(keys.private_key)
    assert "ansible_ssh_common_args" not in found["db-1"]
