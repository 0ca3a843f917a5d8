# SPDX-License-Identifier: GPL-3.0-or-later
"""Machines, images and checkpoints as values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.checkpoints import Checkpoint, check_checkpoint_name, in_order
from fleet_core.errors import InvalidInput
from fleet_core.images import ImageSpec
from fleet_core.machines import KEYS, MachineSpec, Network, machine_spec, machine_specs
from fleet_core.quantities import format_size, parse_size

GIB = 1024**3


def test_a_machine_is_read_from_what_people_write() -> None:
    spec = machine_spec(
        {
            "name": "dev-1",
            "image": " 24.04 ",
            "cpu": "2",
            "memory": "1.5G",
            "disk": 20 * GIB,
            "networks": ["br0", {"name": "br1", "mac": "52-54-00-AB-cd-ef", "address": "192.168.100.5/24"}],
            "user_data": "#cloud-config\n",
            "tags": ["web", "db", "web"],
            "project": "shop",
        },
        provider="qemu",
    )
    assert (spec.provider, spec.image, spec.cpu, spec.memory, spec.disk) == ("qemu", "24.04", 2, 3 * GIB // 2, 20 * GIB)
    assert spec.networks == (Network("br0"), Network("br1", "52:54:00:ab:cd:ef", "192.168.100.5/24"))
    assert spec.tags == ("db", "web")
    assert spec.project == "shop"


def test_what_is_not_given_is_not_wanted() -> None:
    spec = machine_spec({"name": "a", "provider": "qemu", "cpu": None, "tags": None})
    assert spec == MachineSpec("a", "qemu")
    assert spec.to_dict() == {"name": "a", "provider": "qemu"}


def test_user_data_are_shown_as_their_hash() -> None:
    spec = machine_spec({"name": "a", "provider": "qemu", "user_data": "password: hunter2"})
    assert "hunter2" not in repr(spec)
    assert spec.to_dict()["user_data"].startswith("sha256:")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "-a"}, "machine name '-a': expected a host name"),
        ({"name": "a.b"}, "expected a host name"),
        ({"name": "a" * 64}, "expected a host name"),
        ({"name": 5}, "machine name int 5"),
        ({"cpus": 2}, 'machine "a": unknown key "cpus", did you mean "cpu"?'),
        ({"cpu": 0}, 'machine "a": cpu: expected a number from 1 to 1024, found 0'),
        ({"memory": "2 apples"}, 'machine "a": memory: expected a size such as'),
        ({"memory": "512"}, 'machine "a": memory: expected at least 16M, such as "2G", found str'),
        ({"disk": 1}, 'machine "a": disk: expected at least 16M'),
        ({"provider": ""}, "provider name ''"),
        ({"tags": ["no spaces"]}, "tag name 'no spaces'"),
        ({"tags": 5}, 'machine "a": tags: expected a list'),
        ({"project": "x/y"}, "project name 'x/y'"),
        ({"networks": 5}, "networks: expected a list"),
        ({"networks": [{"mac": "x"}]}, "networks[0]: expected the name of a network"),
        ({"networks": [{"name": "b", "mac": "x"}]}, "networks[0].mac: expected a hardware address"),
        ({"networks": [{"name": "b", "address": "10.0.0.1"}]}, 'expected "dhcp" or an address with its prefix'),
        ({"networks": [{"name": "b", "address": "10.0.0.1/64"}]}, 'expected "dhcp" or an address with its prefix'),
        ({"networks": [{"name": "b", "gateway": "home"}]}, "networks[0].gateway: expected an IP address"),
        ({"networks": [{"name": "b", "mtu": 1}]}, 'networks[0]: unknown key "mtu"'),
        ({"networks": ["b,mode=x"]}, "networks[0].name: expected letters, digits"),
        ({"networks": [{"name": "b", "mac": "52:54:00:00:00:01"}] * 2}, "52:54:00:00:00:01 stands twice"),
    ],
)
def test_what_is_wrong_is_named_in_one_sentence(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        machine_spec({"name": "a", "provider": "qemu", **wrong})
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_names_that_are_one_host_name_stand_once() -> None:
    with pytest.raises(InvalidInput, match='machine "Dev": is the same host name as "dev" in the list'):
        machine_specs([{"name": "dev"}, {"name": "Dev"}], "qemu")
    with pytest.raises(InvalidInput, match='machine "dev": stands twice'):
        machine_specs([{"name": "dev"}, {"name": "dev"}], "qemu")
    assert len(machine_specs([{"name": "dev"}, {"name": "dev", "provider": "multipass"}], "qemu")) == 2


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries({"name": st.just("a"), "provider": st.just("qemu")}, optional=dict.fromkeys(KEYS[2:], ANY))
)
def test_any_input_is_a_machine_or_a_sentence(data: dict[str, Any]) -> None:
    try:
        found = machine_spec(data).to_dict()["name"]
    except InvalidInput as error:
        found = error.message
    assert found


@given(ANY.filter(lambda data: not isinstance(data, dict) or "name" not in data))
def test_a_machine_that_is_no_mapping_is_refused(data: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^machine"):
        machine_spec(data, "qemu")


@given(st.integers(min_value=0, max_value=2**62))
def test_a_formatted_size_is_the_very_size(size: int) -> None:
    assert parse_size("size", format_size(size)) == size


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0"), (512 * 1024**2, "512M"), (3 * GIB // 2, "1.5G"), (20 * GIB, "20G"), (1025, "1025")]
)
def test_sizes_are_formatted_as_people_write_them(size: int, text: str) -> None:
    assert format_size(size) == text


def test_the_inputs_of_an_image_decide_its_hash() -> None:
    spec = ImageSpec("gold", "multipass", "24.04", user_data="#cloud-config\n", commands=("true",))
    assert spec.inputs == ImageSpec("gold-2", "multipass", "24.04", 2, None, None, "#cloud-config\n", ("true",)).inputs
    assert (
        spec.inputs != ImageSpec("gold", "multipass", "22.04", user_data="#cloud-config\n", commands=("true",)).inputs
    )
    with pytest.raises(InvalidInput, match="expected a base image"):
        ImageSpec("gold", "multipass", "")


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["", *"abcdefx"])), unique_by=lambda pair: pair[0])
)
def test_checkpoints_stand_behind_their_parents(pairs: list[tuple[str, str]]) -> None:
    ordered = in_order(Checkpoint(name, "m", parent) for name, parent in pairs)
    assert sorted(one.name for one in ordered) == sorted(name for name, _parent in pairs)
    parents = dict(pairs)

    def circular(name: str) -> bool:
        seen = set()
        while name in parents and name not in seen:
            seen.add(name)
            name = parents[name]
        return name in seen

    position = {one.name: number for number, one in enumerate(ordered)}
    for name, parent in pairs:
        if parent in position and not circular(name):
            assert position[parent] < position[name]


def test_a_checkpoint_has_a_name_that_every_provider_takes() -> None:
    assert check_checkpoint_name("before-upgrade") == "before-upgrade"
    for wrong in ("", "a.b", "1", "a_b", None):
        with pytest.raises(InvalidInput, match="checkpoint name"):
            check_checkpoint_name(wrong)
