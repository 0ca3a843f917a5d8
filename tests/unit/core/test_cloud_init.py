# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import email
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core import cloud_init
from fleet_core.cloud_init_values import machine_values
from fleet_core.errors import InvalidInput

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDo2Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6"
FOLDER = Path(__file__).parents[3] / "plugins/plugin_utils/cloud_init_schemas"
SCHEMA = json.loads((FOLDER / "schema-cloud-config-v1.json").read_text())
NETWORKS = {number: json.loads((FOLDER / f"schema-network-config-v{number}.json").read_text()) for number in (1, 2)}


def test_documents_merge_as_cloud_init_merges_parts() -> None:
    one = {"packages": ["git"], "users": [{"name": "a"}], "apt": {"conf": "x"}, "timezone": "UTC"}
    other = {"packages": ["jq", "git"], "apt": {"proxy": "y"}, "timezone": "Etc/UTC"}
    assert cloud_init.merge([one, other]) == {
        "packages": ["git", "jq"],
        "users": [{"name": "a"}],
        "apt": {"conf": "x", "proxy": "y"},
        "timezone": "Etc/UTC",
    }
    assert one["packages"] == ["git"]


WRONG: list[tuple[Any, list[str]]] = [
    ({"ssh_authorized_keys": [KEY]}, []),
    ({"users": [{"name": "a", "ssh_import_id": ["gh:a"]}]}, []),
    ([], ["user-data: expected a mapping, found list []"]),
    ({"packages": ["git"]}, ["user-data: no user has ssh_authorized_keys: nobody could log in"]),
    (
        {"ssh_authorized_keys": [KEY], "pakages": ["git"]},
        ['user-data: unknown key "pakages", did you mean "packages"?'],
    ),
    (
        {"ssh_authorized_keys": [KEY], "users": [{"name": "a", "nmae": "b"}]},
        ['user-data: users[0]: unknown key "nmae", did you mean "name"?'],
    ),
    (
        {"ssh_authorized_keys": [KEY], "users": [{"name": "a", "plain_text_passwd": "hush"}]},
        ["user-data: users[0].plain_text_passwd: a password does not belong in user data"],
    ),
    (
        {"ssh_authorized_keys": [KEY], "ssh_pwauth": True},
        ["user-data: ssh_pwauth: expected false: who logs in has a key"],
    ),
    (
        {"ssh_authorized_keys": [KEY], "write_files": [{"path": "/k", "content": "-----BEGIN RSA PRIVATE KEY-----"}]},
        ["user-data: write_files[0].content: a private key does not belong in user data"],
    ),
]


@pytest.mark.parametrize(("data", "expected"), WRONG)
def test_problems_of_user_data_are_sentences(data: Any, expected: list[str]) -> None:
    found = [cloud_init.sentence("user-data", item) for item in cloud_init.user_data_problems(SCHEMA, data)]
    assert found == expected
    assert "hush" not in str(found)


def test_network_configuration_is_matched_by_address_and_valid() -> None:
    interfaces = [
        {"mac_address": "52-54-00-12-34-AA", "name": "lan", "mtu": 1400, "dhcp6": True},
        {
            "mac_address": "52:54:00:12:34:bb",
            "addresses": ["10.0.0.5/24", "fd00::5/64"],
            "gateway": "10.0.0.1, fd00::1",
            "nameservers": ["10.0.0.1"],
            "search": "lab.example",
        },
    ]
    made = machine_values({"name": "a", "ssh_public_keys": KEY, "interfaces": interfaces})
    found = cloud_init.network_config(made.interfaces)
    assert cloud_init.network_problems(NETWORKS, found) == []
    assert found["ethernets"] == {
        "lan": {
            "match": {"macaddress": "52:54:00:12:34:aa"},
            "set-name": "lan",
            "dhcp4": True,
            "dhcp6": True,
            "mtu": 1400,
        },
        "net1": {
            "match": {"macaddress": "52:54:00:12:34:bb"},
            "set-name": "net1",
            "dhcp4": False,
            "addresses": ["10.0.0.5/24", "fd00::5/64"],
            "routes": [{"to": "0.0.0.0/0", "via": "10.0.0.1"}, {"to": "::/0", "via": "fd00::1"}],
            "nameservers": {"addresses": ["10.0.0.1"], "search": ["lab.example"]},
        },
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "expected a mapping, found nothing"),
        ({"version": 3}, "version: expected version 1 or 2, found int 3"),
        ({"ethernets": {}}, "version: expected version 1 or 2, found nothing"),
        ({"version": 2, "ethernet": {}}, 'unknown key "ethernet", did you mean "ethernets"?'),
        ({"network": {"version": 2, "ethernets": {"a": {"dhcp4": 7}}}}, "network.ethernets.a.dhcp4"),
        ({"version": 1, "config": [{"type": "phisical", "name": "a"}]}, "config[0]"),
    ],
)
def test_problems_of_network_configurations_are_sentences(data: Any, message: str) -> None:
    found = [cloud_init.sentence("network", item) for item in cloud_init.network_problems(NETWORKS, data)]
    assert message in found[0]


def test_meta_data_needs_an_id_and_a_name() -> None:
    made = machine_values({"name": "a", "ssh_public_keys": KEY})
    good = cloud_init.meta_data(made, "x", "y")
    assert cloud_init.meta_data_problems(good) == []
    assert good["instance-id"] != cloud_init.meta_data(made, "x", "z")["instance-id"]
    assert good == cloud_init.meta_data(made, "x", "y")
    wrong = cloud_init.meta_data_problems({"instance-id": 3, "local-hostnam": "a"})
    assert [item.text for item in wrong] == ['unknown key "local-hostnam", did you mean "local-hostname"?']
    wrong = cloud_init.meta_data_problems({"instance-id": 3})
    assert [item.text for item in wrong] == ["expected text, found int 3", "expected text, found nothing"]


texts = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n"), max_size=80)


@given(st.lists(st.tuples(st.sampled_from(list(cloud_init.PART_TYPES)), texts), min_size=1, max_size=4))
def test_parts_come_back_out_of_a_message(parts: list[tuple[str, str]]) -> None:
    made = [(f"{number}.part", f"{first}\n{text}") for number, (first, text) in enumerate(parts)]
    message = cloud_init.mime(made)
    assert message == cloud_init.mime(made)
    found = email.message_from_string(message)
    assert found.is_multipart()
    assert not found.defects
    for (name, text), (first, _text), part in zip(made, parts, found.get_payload(), strict=True):
        assert part.get_filename() == name
        assert part.get_content_type() == cloud_init.PART_TYPES[first]
        assert part.get_payload(decode=True).decode().rstrip("\n") == text.rstrip("\n")
        assert (part["Merge-Type"] == cloud_init.MERGE) == (first == "#cloud-config")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "user data: expected one part or more, found none"),
        ([("a", "echo")], "part \"a\": expected a first line such as #cloud-config or #!/bin/sh, found 'echo'"),
        ([('a"', "#!/bin/sh")], "part 'a\"': expected a file name of plain letters"),
    ],
)
def test_parts_that_cloud_init_would_not_know_are_refused(parts: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        cloud_init.mime(parts)
    assert str(raised.value) == message
