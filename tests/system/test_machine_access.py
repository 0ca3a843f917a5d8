# SPDX-License-Identifier: GPL-3.0-or-later
"""The script that lets people log in to machines, on real Debian hosts."""

from __future__ import annotations

import subprocess

from tests.system.lab import Host

from fleet_core.machine_access import Answer, answer, script

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDo2Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6Ojo6 it's $(ada) `here`"
OTHER = KEY.replace("Ojo6", "Ojp6")


def ask(host: Host, login: str, *keys: str, change: bool = True) -> Answer:
    done = host.run("sh", "-s", stdin=script(login, keys, change=change), check=False)
    return answer(host.name, done.returncode, done.stdout, done.stderr)


def test_an_account_is_added_and_keys_are_put_in_once(host: Host) -> None:
    looked = ask(host, "ada.l", KEY, change=False)
    assert looked.done == ("add the user", "authorize a key")
    assert "ada.l" not in host.sh("cut -d: -f1 /etc/passwd").splitlines()
    made = ask(host, "ada.l", KEY)
    assert made.done == looked.done
    assert made.host_keys
    assert host.sh("stat -c '%a %U' /home/ada.l/.ssh /home/ada.l/.ssh/authorized_keys").split("\n") == [
        "700 ada.l",
        "600 ada.l",
    ]
    assert ask(host, "ada.l", KEY, change=False) == ask(host, "ada.l", KEY) == Answer(made.host_keys)
    assert ask(host, "ada.l", KEY, OTHER).done == ("authorize a key",)
    assert host.sh("cat /home/ada.l/.ssh/authorized_keys").splitlines() == [KEY, OTHER]
    assert host.sh("runuser -u ada.l -- sudo -n id -u") == "0"
    assert host.sh("visudo -c >/dev/null && echo right") == "right"


def test_a_file_without_a_last_newline_is_kept_and_links_lead_root_nowhere(host: Host) -> None:
    host.run("useradd", "--create-home", "eve")
    host.sh(
        "install -d -o eve -g eve -m 700 /home/eve/.ssh; printf '%s' '"
        + OTHER.partition(" it")[0]
        + "' >/home/eve/.ssh/authorized_keys; chown eve /home/eve/.ssh/authorized_keys"
    )
    ask(host, "eve", KEY)
    assert len(host.sh("cat /home/eve/.ssh/authorized_keys").splitlines()) == 2
    host.sh("ln -sf /etc/nothing-of-eve /home/eve/.ssh/authorized_keys")
    refused = host.run("sh", "-s", stdin=script("eve", [KEY]), check=False)
    assert refused.returncode == 4
    assert host.run("test", "-e", "/etc/nothing-of-eve", check=False).returncode == 1
    assert "eve" not in host.sh("ls /etc/sudoers.d")  # whoever was there before has the rights of before


def test_host_keys_that_the_machine_has_are_told_and_missing_ones_are_made(host: Host) -> None:
    told = set(ask(host, "root", KEY).host_keys)
    there = host.sh("cut -d' ' -f1,2 /etc/ssh/ssh_host_*_key.pub").splitlines()
    assert told == set(there)
    host.sh("rm /etc/ssh/ssh_host_*")
    made = ask(host, "root", KEY)
    assert made.done == ("make host keys",)
    assert set(made.host_keys).isdisjoint(told)
    names = subprocess.run(
        ["ssh-keygen", "-l", "-f", "-"], input="\n".join(made.host_keys), capture_output=True, text=True, check=True
    )
    assert "ED25519" in names.stdout
