# SPDX-License-Identifier: GPL-3.0-or-later
"""Host keys of machines in known_hosts, and the script that reads them."""

from __future__ import annotations

import base64
import shlex
import subprocess

import pytest

from fleet_core.errors import InvalidInput, ProcessFailed
from fleet_core.known_hosts import best, known, ssh_options, updated
from fleet_core.machine_access import answer, script
from fleet_machines.access import Access, shared


def key(kind: str = "ssh-ed25519", number: int = 1) -> str:
    blob = len(kind).to_bytes(4, "big") + kind.encode() + b"\0\0\0\x20" + bytes([number]) * 32
    return f"{kind} {base64.b64encode(blob).decode()}"


def test_the_best_host_key_is_kept_without_its_comment() -> None:
    assert best("m", [key("ssh-rsa"), key("ecdsa-sha2-nistp256"), key() + " root@m"]) == key()
    assert best("m", [key("ssh-rsa")]) == key("ssh-rsa")
    with pytest.raises(InvalidInput, match='machine "m": expected a host key of one of ssh-ed25519'):
        best('machine "m"', [])
    with pytest.raises(InvalidInput, match="not complete"):
        best('machine "m"', ["ssh-ed25519 AAAA"])


def test_a_machine_has_one_line_and_other_lines_stay() -> None:
    others = f"# mine\n[10.0.0.1]:2222 {key(number=9)}\n@cert-authority *.example.com {key(number=8)}\n"
    text = updated(others, {"web-1": key(), "web-2": key(number=2)})
    assert text == f"{others}web-1 {key()}\nweb-2 {key(number=2)}\n"
    assert known(text) == {"web-1": key(), "web-2": key(number=2)}
    assert updated(text, {"web-1": key(number=3)}).splitlines()[3] == f"web-1 {key(number=3)}"
    assert updated(text, {}, ["web-1", "web-2", "nosuch"]) == others
    assert updated(text + f"web-1 {key(number=7)}\n", {"web-1": key()}) == text
    assert updated("", {}, ["web-1"]) == ""


def test_ssh_takes_the_key_of_that_name_and_no_other() -> None:
    words = ssh_options("web-1", '/srv/50% of "it"/known_hosts')
    assert words[::2] == ("-o",) * (len(words) // 2)
    assert {"StrictHostKeyChecking=yes", "HostKeyAlias=web-1", "GlobalKnownHostsFile=/dev/null"} <= set(words)
    assert 'UserKnownHostsFile="/srv/50%% of \\"it\\"/known_hosts"' in words
    proxied = ssh_options("web-1", "/k", ["ssh", "-W", "[%h]:%p", "host"])
    assert proxied[-1] == "ProxyCommand=ssh -W [%h]:%p host"
    assert shlex.split(shlex.join(proxied)) == list(proxied)


def test_the_script_holds_keys_as_data_and_is_valid_shell() -> None:
    text = script("ada", [key() + " it's $(reboot) `x`"])
    assert subprocess.run(["sh", "-n"], input=text, text=True, check=False).returncode == 0
    assert "login=ada\nchange=1\n" in text
    for login in ("", "-rf", "a b", "a;b", "$(x)"):
        with pytest.raises(InvalidInput, match="login name"):
            script(login, [key()])
    with pytest.raises(InvalidInput, match="expected at least one public SSH key"):
        script("ada", [])
    with pytest.raises(InvalidInput, match="on one line"):
        script("ada", [key() + "\nEND-OF-PUBLIC-KEYS\nreboot"])


def test_what_the_script_said_is_read_and_a_failure_is_told() -> None:
    said = answer("m", 0, f"did add the user\ndid authorize a key\ndid authorize a key\nhost {key()}\nend\n", "")
    assert (said.host_keys, said.done) == ((key(),), ("add the user", "authorize a key"))
    with pytest.raises(ProcessFailed, match=r'machine "m": .* ended with 3, and said: useradd: no'):
        answer('machine "m"', 3, "", "useradd: no\n")
    with pytest.raises(ProcessFailed, match="ended with 0, and said: nothing"):
        answer("m", 0, "", "")
    with pytest.raises(InvalidInput, match="m: host key"):
        answer("m", 0, "host ssh-ed25519 AAAA\nend\n", "")


def test_machines_with_the_same_host_key_are_told() -> None:
    found = [Access(name, "ada", "::1", 22, (key(number=number),)) for name, number in (("a", 1), ("b", 2), ("c", 1))]
    assert [text.partition(":")[0] for text in shared(found)] == ["machines a, c"]
    assert shared(found[:2]) == ()
