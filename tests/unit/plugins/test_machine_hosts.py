# SPDX-License-Identifier: GPL-3.0-or-later
"""How machines become hosts of an inventory: names, groups, variables, and what is refused."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
import yaml
from ansible.template import is_trusted_as_template

from ansible_collections.autovibe.fleet.plugins.inventory import machines
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.errors import (
    Conflict,
    FleetError,
    InvalidInput,
    ProcessFailed,
)
from ansible_collections.autovibe.fleet.plugins.module_utils.fleet_core.machines import STATES
from ansible_collections.autovibe.fleet.plugins.plugin_utils import machine_nodes
from ansible_collections.autovibe.fleet.plugins.plugin_utils.machine_hosts import (
    GROUPS,
    Found,
    Place,
    Reach,
    check_host_name,
    groups_of,
    machine_from,
    safe,
    unique,
    variables_of,
    wanted,
)
from ansible_collections.autovibe.fleet.plugins.plugin_utils.machine_nodes import Node, nodes_from

HOSTILE = "{{ lookup('pipe', 'touch x') }}\n[all]\x1b[2J"


def found(name: str = "web-1", provider: str = "qemu", node: str = "rack", **fields: Any) -> Found:
    proxy = fields.pop("proxy", ())
    return Found(machine_from({"name": name, "provider": provider, **fields}), Place(provider, node, proxy))


# -- machines -----------------------------------------------------------------------------------------------------


def test_a_machine_has_all_fields_whatever_a_provider_left_out() -> None:
    machine = machine_from({"name": "a", "state": "flying", "strange": 1, "tags": None})
    assert machine["state"] == "unknown"
    assert (machine["port"], machine["tags"], machine["detail"], machine["cpu"]) == (22, [], {}, 0)
    assert "strange" not in machine


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (None, "expected a machine with a name, found nothing"),
        ([], "expected a machine with a name"),
        ({"name": 3}, "expected a machine with a name"),
        ({"name": "a", "port": "22; rm"}, "machine 'a': port: expected int, found str '22; rm'"),
        ({"name": "a", "port": True}, "port: expected int"),
        ({"name": "a", "tags": "web"}, "tags: expected list"),
        ({"name": "a", "tags": [["web"]]}, "tags: expected texts"),
        ({"name": "a", "addresses": [1]}, "addresses: expected texts"),
        ({"name": "a", "detail": []}, "detail: expected mapping"),
        ({"name": "a", "login": ["root"]}, "login: expected str"),
    ],
)
def test_what_is_no_machine_is_told(data: Any, said: str) -> None:
    with pytest.raises(InvalidInput) as error:
        machine_from(data)
    assert said in error.value.message


# -- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["web-1", "a", "web.example.org", "Web_1", "1und1", "x" * 253])
def test_names_that_hosts_can_have(name: str) -> None:
    assert check_host_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", "-oProxyCommand=x", "a b", "a\nb", HOSTILE, "web;id", "{{ x }}", "a/b", "web-", "x" * 254, "é", None, 3,
        "localhost", "LocalHost", "localhost.localdomain", "evil.localhost", "127.0.0.1", "10.0.0.1", "::1", "all",
        "ungrouped",
    ],
)  # fmt: skip
def test_a_name_that_could_stand_for_something_else_is_refused(name: Any) -> None:
    with pytest.raises(InvalidInput):
        check_host_name(name)


def test_two_of_one_name_are_an_error_that_says_where_they_are() -> None:
    both = [found(), found(provider="multipass", node="mini")]
    with pytest.raises(Conflict, match=r'"web-1": qemu \(rack\) and multipass \(mini\) have one of this name'):
        unique(["web-1", "web-1"], both, "error")
    with pytest.raises(Conflict):
        unique(["web-1", "WEB-1"], both, "error")  # one host name


def test_two_of_one_name_both_get_a_suffix_whatever_the_order() -> None:
    both = [found(), found(provider="multipass"), found("db")]
    assert unique(["web", "web", "db"], both, "suffix") == ["web.qemu", "web.multipass", "db"]
    assert unique(["web", "web", "db"], both[1::-1] + both[2:], "suffix") == ["web.multipass", "web.qemu", "db"]
    nodes = [found(node="rack 1"), found(node="rack-2.example.org")]
    assert unique(["web", "web"], nodes, "suffix") == ["web.qemu.rack-1", "web.qemu.rack-2-example-org"]
    with pytest.raises(Conflict, match="2 of this name on one node"):
        unique(["web", "web"], [found(), found()], "suffix")


# -- groups -------------------------------------------------------------------------------------------------------


def test_groups_are_by_provider_image_family_project_tag_state_and_node() -> None:
    one = found(image="python-0123456789", project="shop", tags=["web", "Blue/Green"], state="running")
    assert list(groups_of(one, GROUPS)) == [
        "provider_qemu", "image_python", "project_shop", "tag_web", "tag_Blue_Green", "state_running", "node_rack",
    ]  # fmt: skip
    assert list(groups_of(one, ["tag"], "fleet-")) == ["fleet_tag_web", "fleet_tag_Blue_Green"]
    assert list(groups_of(found(), GROUPS)) == ["provider_qemu", "state_unknown", "node_rack"]


def test_the_node_that_a_cluster_tells_counts() -> None:
    assert list(groups_of(found(detail={"node": "pve-2"}), ["node"])) == ["node_pve_2"]


@pytest.mark.parametrize("text", [HOSTILE, "all", "é", "a:b", "a,b", "../x", "a b"])
def test_a_tag_cannot_become_another_group(text: str) -> None:
    (name,) = groups_of(found(tags=[text]), ["tag"])
    assert name.startswith("tag_")
    assert name.isascii()
    assert name.isidentifier()
    assert safe(name) == name


# -- variables ----------------------------------------------------------------------------------------------------


def test_variables_are_what_ansible_needs_to_log_in() -> None:
    one = found(addresses=["127.0.0.1", "10.0.2.15"], port=2201, login="debian", tags=["web"])
    values = variables_of(one, Reach())
    assert values["ansible_host"] == "127.0.0.1"
    assert (values["ansible_port"], values["ansible_user"]) == (2201, "debian")
    assert values["fleet_machine"]["tags"] == ["web"]
    assert values["fleet_machine"]["node"] == "rack"
    assert "ansible_ssh_common_args" not in values


def test_what_is_not_known_is_not_set() -> None:
    assert list(variables_of(found(), Reach())) == ["fleet_machine"]


def test_machines_with_the_same_address_on_two_nodes_share_no_connection() -> None:
    fields: dict[str, Any] = {"addresses": ["127.0.0.1"], "port": 2201}
    paths = {variables_of(found(node=node, **fields), Reach())["ansible_control_path"] for node in ("rack-1", "rack-2")}
    assert len(paths) == 2
    assert all(path.startswith("%(directory)s/") and path.count("%") == 1 for path in paths)


def test_a_known_machine_is_trusted_by_its_key_alone() -> None:
    reach = Reach("/var/lib/auto vibe/known_hosts", frozenset({"web-1"}), "/var/lib/id")
    values = variables_of(found(addresses=["10.0.0.5"]), reach)
    words = shlex.split(values["ansible_ssh_common_args"])
    assert "StrictHostKeyChecking=yes" in words
    assert "HostKeyAlias=web-1" in words
    assert 'UserKnownHostsFile="/var/lib/auto vibe/known_hosts"' in words
    assert values["ansible_ssh_private_key_file"] == "/var/lib/id"
    assert "ansible_ssh_common_args" not in variables_of(found("web-2", addresses=["10.0.0.6"]), reach)


def test_a_machine_behind_a_node_is_reached_through_it() -> None:
    (node,) = nodes_from([{"name": "qemu", "host": "me@rack-1", "ssh_args": "-F '/my dir/100%'"}])
    values = variables_of(Found(machine_from({"name": "a"}), node.place), Reach())
    option, value = shlex.split(values["ansible_ssh_common_args"])
    assert option == "-o"
    assert value == "ProxyCommand=ssh -o BatchMode=yes -F '/my dir/100%%' -W [%h]:%p -- me@rack-1"


@pytest.mark.parametrize(
    "fields",
    [
        {"addresses": ["-oProxyCommand=touch x"]},
        {"addresses": ["10.0.0.1 -o x"]},
        {"addresses": ["fe80::1%`id`"]},
        {"addresses": ["$(id)"]},
        {"addresses": ["evil.example.org"]},
        {"login": "root -oProxyCommand=x"},
        {"login": "-l"},
        {"login": HOSTILE},
        {"port": 0},
        {"port": 70000},
        {"port": -1},
    ],
)
def test_only_addresses_ports_and_accounts_get_into_what_ssh_is_told(fields: dict[str, Any]) -> None:
    assert list(variables_of(found(**fields), Reach())) == ["fleet_machine"]


# -- filters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        (([], [], [], False), True),
        ((["shop"], [], [], False), True),
        (([""], [], [], False), False),
        ((["", "shop"], [], [], False), True),
        (([], ["web", "blue"], [], False), True),
        (([], ["web", "red"], [], False), False),
        (([], [], ["running"], False), True),
        (([], [], ["stopped"], False), False),
        (([], [], [], True), False),
    ],
)
def test_filters(options: Any, passes: bool) -> None:
    one = found(project="shop", tags=["web", "blue"], state="running", incomplete="no disk")
    assert wanted(one, *options) is passes


def test_a_deleted_machine_is_left_out_unless_it_is_asked_for() -> None:
    assert not wanted(found(state="deleted"), [], [], [], False)
    assert wanted(found(state="deleted"), [], [], ["deleted"], False)


# -- nodes --------------------------------------------------------------------------------------------------------


def test_nodes_have_names_and_defaults() -> None:
    nodes = nodes_from(
        [
            "multipass",
            {"name": "qemu", "host": "root@rack-1.example.org", "command": "sudo -n fleet", "timeout": "2m"},
            {"name": "qemu", "host": "rack-2", "node": "two", "jump": ""},
            {"name": "multipass", "node": "mini", "host": "localhost"},
        ],
        "/state",
    )
    assert [(node.provider, node.name, node.host, node.jump) for node in nodes] == [
        ("multipass", "localhost", "", ""),
        ("qemu", "rack-1.example.org", "root@rack-1.example.org", "root@rack-1.example.org"),
        ("qemu", "two", "rack-2", ""),
        ("multipass", "mini", "", ""),
    ]
    assert [node.state_dir for node in nodes] == ["/state", "", "", "/state"]
    assert nodes[1].command == ("sudo", "-n", "fleet")
    assert nodes[1].timeout == 120


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "providers: expected a list of providers"),
        ("qemu", "providers: expected a list of providers"),
        ([{}], "providers[0]: expected the name of a provider"),
        ([3], "providers[0]: expected a mapping, found int 3"),
        (["multipas"], 'did you mean "multipass"?'),
        ([{"name": "multipass", "hots": "x"}], 'providers[0]: unknown key "hots", did you mean "host"?'),
        ([{"name": "multipass", "host": "-oProxyCommand=x"}], "providers[0].host: expected HOST or USER@HOST"),
        ([{"name": "multipass", "host": "a b"}], "providers[0].host"),
        ([{"name": "multipass", "jump": "a;b"}], "providers[0].jump"),
        ([{"name": "multipass", "settings": ["a"]}], "providers[0].settings: expected a mapping, found list"),
        ([{"name": "multipass", "command": "'"}], "providers[0].command: expected words"),
        ([{"name": "multipass", "timeout": "soon"}], "providers[0].timeout"),
        (["multipass", {"name": "multipass"}], '"multipass on localhost" stands twice'),
    ],
)
def test_a_wrong_entry_is_told(data: Any, said: str) -> None:
    with pytest.raises(FleetError) as error:
        nodes_from(data)
    assert said in error.value.message


def test_what_is_asked_decides_the_key_in_the_cache_and_secrets_do_not() -> None:
    base = Node("proxmox", "pve", settings={"host": "pve", "token_secret": "a"})
    same = Node("proxmox", "pve", settings={"host": "pve", "token_secret": "b"}, timeout=3)
    other = [
        Node("proxmox", "pve", settings={"host": "pve-2"}),
        Node("proxmox", "pve", settings={"host": "pve", "token_id": "x"}),
        Node("proxmox", "pve", settings={"host": "pve"}, full=True),
        Node("proxmox", "pve", settings={"host": "pve"}, state_dir="/x"),
        Node("proxmox", "pve", settings={"host": "pve"}, host="root@pve"),
        Node("proxmox", "rack", settings={"host": "pve"}),
    ]
    assert same.fingerprint == base.fingerprint
    assert len({node.fingerprint for node in (base, *other)}) == 1 + len(other)
    assert "token_secret" not in repr(base)


# -- what a node answers ------------------------------------------------------------------------------------------


def test_what_a_shell_prints_before_the_answer_is_passed_over() -> None:
    text = "Welcome!\n{not json\n"
    with pytest.raises(ProcessFailed):
        machine_nodes.read(text, "qemu on rack")
    text = "Welcome to rack!\n" + json.dumps({"machines": [{"name": "a"}]}, indent=2) + "\n"
    assert [machine["name"] for machine in machine_nodes.read(text, "qemu on rack")] == ["a"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected what `fleet machines list --json` writes, found ''"),
        ("[]", "expected what"),
        ("{}", "expected what"),
        ('{"machines": {}}', "expected what"),
        ('{"machines": [1]}', "expected a machine with a name, found int 1"),
        ('{"machines": [' * 20000, "expected what"),
        ('{"machines": [{"name": "a", "detail": 1}]}', "machine 'a': detail"),
    ],
)
def test_an_answer_that_is_none_is_told(text: str, said: str) -> None:
    with pytest.raises(ProcessFailed) as error:
        machine_nodes.read(text, "qemu on rack")
    assert error.value.message.startswith("qemu on rack: ")
    assert said in error.value.message


def fake_ssh(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    program = tmp_path / "ssh"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


REMOTE = Node("qemu", "rack", host="me@rack", settings={"token_secret": "hunter2"}, timeout=5)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo 'ssh: connect to host rack: No route to host' >&2; exit 255",
            "me@rack cannot be reached by ssh: ssh: con",
        ),
        ("echo 'sh: fleet: not found' >&2; exit 127", "fleet is not installed on me@rack, or not in the PATH"),
        ('echo \'{"error": {"code": "unavailable", "message": "no \\u001b[2Jfleetd"}}\' >&2; exit 7', "no [2Jfleetd"),
        ("echo oops >&2; exit 3", "fleet machines list ended with 3 on me@rack: oops"),
        ("exit 3", "ended with 3 on me@rack: exit code 3"),
        ("echo '{}'", "expected what `fleet machines list --json` writes"),
    ],
)
def test_a_node_that_fails_is_told(script: str, said: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ssh(tmp_path, monkeypatch, script)
    (answer,) = machine_nodes.ask_all([REMOTE])
    assert answer.error is not None
    assert answer.error.message.startswith("qemu on rack: ")
    assert said in answer.error.message
    assert "\x1b" not in answer.error.message


def test_a_node_that_stalls_or_floods_holds_nobody_up(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ssh(tmp_path, monkeypatch, "sleep 60 & sleep 60")
    (answer,) = machine_nodes.ask_all([Node("qemu", "rack", host="rack", timeout=0.3)])
    assert "did not answer within 0.3 s" in str(answer.error)
    monkeypatch.setattr(machine_nodes, "_LARGEST", 1000)
    fake_ssh(tmp_path, monkeypatch, "yes")
    (answer,) = machine_nodes.ask_all([REMOTE])
    assert "it answered with more than" in str(answer.error)


def test_settings_go_by_standard_input_and_no_host_is_an_option(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_ssh(
        tmp_path,
        monkeypatch,
        f'printf "%s\\n" "$@" >{tmp_path}/argv; cat >{tmp_path}/stdin; echo \'{{"machines": []}}\'',
    )
    (answer,) = machine_nodes.ask_all([REMOTE])
    assert (answer.error, answer.machines) == (None, [])
    argv = (tmp_path / "argv").read_text().splitlines()
    assert argv[-3:-1] == ["--", "me@rack"]
    assert argv[-1] == "fleet machines list --json --provider qemu --settings-input"
    assert "BatchMode=yes" in argv
    assert json.loads((tmp_path / "stdin").read_text()) == {"token_secret": "hunter2"}
    assert "hunter2" not in (tmp_path / "argv").read_text()


# -- documentation ------------------------------------------------------------------------------------------------


def test_what_is_documented_is_what_is_understood() -> None:
    data = yaml.safe_load(machines.DOCUMENTATION)["options"]
    assert set(data["providers"]["suboptions"]) == set(machine_nodes.KEYS)
    assert tuple(data["group_by"]["choices"]) == tuple(data["group_by"]["default"]) == GROUPS
    assert tuple(data["states"]["choices"]) == STATES
    assert data["plugin"]["choices"] == [machines.InventoryModule.NAME]
    for example in yaml.safe_load_all(machines.EXAMPLES):
        known = {*data, "compose", "groups", "keyed_groups", "strict"}
        assert {key for key in example if not key.startswith("cache")} <= known
        assert nodes_from([one for one in example["providers"] if one not in ("qemu",)])


def test_what_machines_say_is_not_trusted_and_what_we_compose_is_plain() -> None:
    assert machines.InventoryModule.trusted_by_default is False
    assert not is_trusted_as_template(machines.checked("fleet_machine", "x"))
    assert not is_trusted_as_template(machines.checked("ansible_ssh_common_args", "-o {{ x }}"))
    assert is_trusted_as_template(machines.checked("ansible_host", "10.0.0.1"))
