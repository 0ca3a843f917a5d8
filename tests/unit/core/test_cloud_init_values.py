# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.requirements import require_tool

from fleet_core.cloud_init_values import KEYS, VARIABLES, git_config, machine_values, values_from_env
from fleet_core.distributions import DISTRIBUTIONS
from fleet_core.dotenv import parse_dotenv
from fleet_core.errors import FleetError, InvalidInput
from fleet_core.ssh_keys import KEY_TYPES, public_key

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDo2Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6 ada@example.com"
SMALL = {"name": "dev-1", "ssh_public_keys": [KEY]}
MAC = "52:54:00:12:34:02"


def key(kind: str, size: int = 40) -> str:
    name = kind.encode()
    return f"{kind} {base64.b64encode(len(name).to_bytes(4, 'big') + name + bytes(size)).decode()}"


@pytest.mark.parametrize("kind", KEY_TYPES)
def test_every_type_of_key_is_taken(kind: str) -> None:
    assert public_key("k", f"  {key(kind)}   a  b ") == f"{key(kind)} a b"


BAD_KEYS = {
    "ssh-rsa AAAAB3NzaC1yc2E...": "k: the ssh-rsa key is not complete: expected the whole line of the .pub file",
    "ssh-ed25519": "k: the ssh-ed25519 key is not complete",
    key("ssh-ed25519", 5): "k: the ssh-ed25519 key is not complete",
    key("ssh-rsa").replace("ssh-rsa", "ssh-ed25519"): "k: the ssh-ed25519 key is not complete",
    key("ssh-dss"): "k: DSA keys are no longer accepted",
    "ssh-ed22519 AAAA": 'found the type "ssh-ed22519", did you mean "ssh-ed25519"?',
    "~/.ssh/id_ed25519.pub": 'k: expected TYPE BASE64 COMMENT, found the type "~/.ssh/id_ed25519.pub"',
    f"{KEY}\n{KEY}": "k: expected a public SSH key on one line",
    "-----BEGIN OPENSSH PRIVATE KEY-----\nhush": "k: found a private key; expected the public one",
}


@pytest.mark.parametrize("text", BAD_KEYS)
def test_bad_keys_are_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        public_key("k", text)
    assert BAD_KEYS[text] in str(raised.value)
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_keys_of_ssh_keygen_are_taken(tmp_path: Path, kind: str) -> None:
    program = require_tool("ssh-keygen", "to make keys")
    subprocess.run([program, "-q", "-t", kind, "-N", "", "-C", "a b", "-f", str(tmp_path / "key")], check=True)
    text = (tmp_path / "key.pub").read_text()
    assert public_key("k", text) == text.strip()
    with pytest.raises(InvalidInput, match="found a private key"):
        public_key("k", (tmp_path / "key").read_text())


BAD: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "machine \"\": name: expected 1 to 63 small letters, digits and '-', found str ''"),
    ({"name": "A_b"}, "name: expected 1 to 63 small letters"),
    ({"ssh_public_keys": []}, "ssh_public_keys: expected a public SSH key, found none; nobody could log in"),
    ({"ssh_public_keys": None}, "ssh_public_keys: expected a public SSH key, found none"),
    ({"ssh_public_keys": 3}, "ssh_public_keys: expected a list of keys, found int 3"),
    ({"memory": "lots"}, 'memory: expected a size such as "512M" or "2G", found str \'lots\''),
    ({"memory": 4096}, "memory: expected 256M or more, found 4096 (numbers without a unit are bytes)"),
    ({"disk": "1G"}, "disk: expected 2G or more, found 1G"),
    ({"cpus": 0}, "cpus: expected a number from 1 to 512, found 0"),
    ({"memry": "4G"}, 'machine "dev-1": unknown key "memry", did you mean "memory"?'),
    ({"distribution": "ubuntu-24"}, 'unknown distribution "ubuntu-24", did you mean "ubuntu-24.04"?'),
    ({"distribution": "arch"}, 'unknown distribution "arch"; expected one of ubuntu-22.04'),
    ({"user": "root"}, "user: expected a user name of small letters other than root"),
    ({"user": "a;b"}, "user: expected a user name"),
    ({"git_name": "a\nb"}, "git_name: expected printable text on one line"),
    ({"git_email": "me"}, "git_email: expected an address such as me@example.com, found str 'me'"),
    ({"packages": "jq; rm"}, "packages: expected a Debian package, found str 'jq;'"),
    ({"runners": ["clade"]}, 'runners: unknown runner "clade", did you mean "claude"?'),
    ({"timezone": "../etc"}, "timezone: expected a name such as Europe/Berlin"),
    ({"fleet_package": "a; rm -rf"}, "fleet_package: expected NAME==VERSION or the URL of a wheel"),
    ({"fleet_wheel": "a.zip"}, "fleet_wheel: expected the path of a wheel"),
    ({"fleet_wheel": "/a-1.whl", "fleet_package": "a==1"}, "expected fleet_package or fleet_wheel, found both"),
    ({"pip_index": "mirror"}, "pip_index: expected a URL such as https://mirror.example/simple, found str 'mirror'"),
    ({"npm_registry": "https://a:hush@b/"}, "npm_registry: expected a URL without a user and a password"),
    ({"mac_address": 190}, "mac_address: expected text, found a number; YAML wants quotes around it"),
    ({"mac_address": "01:00:00:00:00:00"}, "mac_address: expected the hardware address of one device"),
    ({"mac_address": MAC, "addresses": "10.0.0.5"}, "expected an address with its prefix such as 10.0.0.5/24"),
    ({"mac_address": MAC, "gateway": "10.0.0.1"}, "gateway: expected addresses beside it"),
    ({"mac_address": MAC, "interfaces": [{"mac_address": MAC}]}, "expected interfaces or mac_address, found both"),
    ({"interfaces": [{"mac_address": MAC}] * 2}, f"interfaces: mac_address {MAC} is there twice"),
    ({"interfaces": [{"mac": MAC}]}, 'interfaces[0]: unknown key "mac", did you mean "mac_address"?'),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_values_are_refused_in_a_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(FleetError) as raised:
        machine_values({**SMALL, **change})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "hush" not in str(raised.value)


def test_defaults_and_units() -> None:
    made = machine_values({**SMALL, "memory": "8GiB", "distribution": "trixie", "packages": "jq, curl jq"})
    assert (made.memory, made.disk, made.cpus) == (8 * 1024**3, 20 * 1024**3, 2)
    assert (made.distribution.name, made.user, made.packages) == ("debian-13", "dev", ("jq", "curl"))


def test_the_variables_of_the_seed_are_known() -> None:
    text = f'GIT_NAME="A B"\nGIT_EMAIL=a@b.c\nSSH_PUBLIC_KEY="{KEY}"\nVM_NAME=g\nVM_CPUS=2\nVM_MEMORY=4G\nVM_DISK=20G\n'
    made = machine_values(values_from_env(parse_dotenv(text)))
    assert (made.name, made.cpus, made.git_name, made.ssh_public_keys) == ("g", 2, "A B", (KEY,))


def test_unknown_variables_and_secrets_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r'^\.env: unknown variable "VM_MEM", did you mean "VM_MEMORY"\?$'):
        values_from_env({"VM_MEM": "4G"})
    with pytest.raises(InvalidInput, match="ANTHROPIC_API_KEY: secrets stay out of user data") as raised:
        values_from_env({"ANTHROPIC_API_KEY": "hush"})
    assert "hush" not in str(raised.value)


def test_every_variable_is_a_value() -> None:
    assert set(VARIABLES.values()) <= set(KEYS)
    assert values_from_env(dict.fromkeys(VARIABLES, "  ")) == {}


@given(
    st.dictionaries(
        st.sampled_from(KEYS), st.one_of(st.none(), st.integers(), st.text(max_size=9), st.lists(st.text(max_size=5)))
    )
)
def test_any_values_are_taken_or_refused(data: dict[str, Any]) -> None:
    try:
        made = machine_values({**SMALL, **data})
    except FleetError as error:
        message = str(error)
    else:
        message = ""
        assert made.distribution.name in DISTRIBUTIONS
    assert "\n" not in message


@given(st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=20))
def test_git_reads_back_an_identity(name: str) -> None:
    text = git_config(name.strip(), "a@b.c")
    assert text.count("\n") == (3 if name.strip() else 2)


@pytest.mark.parametrize("name", ['Ada "the first"', "back\\slash", "semi;colon # hash", "Zoë"])
def test_git_understands_every_name(tmp_path: Path, name: str) -> None:
    git = require_tool("git", "to read its configuration")
    (tmp_path / "config").write_text(git_config(name, ""), encoding="utf-8")
    command = [git, "config", "--file", str(tmp_path / "config"), "user.name"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{name}\n"
