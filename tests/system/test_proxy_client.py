# SPDX-License-Identifier: GPL-3.0-or-later
"""The role proxy_client on a real systemd host: what its programs are told, and that it goes away again."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.requirements import require_tool
from tests.system.lab import Host, Lab
from tests.system.lab.playbooks import play

pytestmark = pytest.mark.timeout(300)

URL = "http://192.168.100.1:3128"
VARIABLES = {"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"}


@pytest.fixture(scope="module")
def host(lab: Lab) -> Iterator[Host]:
    host = lab.host("proxied", "debian13")
    # What stands there and is of others.
    host.write("/etc/environment", "EDITOR=vi\n")
    host.write("/etc/gitconfig", "[user]\n\tname = Ada\n")
    yield host
    host.stop()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> str:
    require_tool("openssl", "to make a certificate authority")
    folder = tmp_path_factory.mktemp("authority")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=proxy of tests", "-days", "2"]
    subprocess.run([*command, "-keyout", folder / "key", "-out", folder / "crt"], check=True, capture_output=True)
    return Path(folder, "crt").read_text()


def configure(host: Host, *options: str, check: bool = True, **values: Any) -> str:
    role = {
        "role": "autovibe.fleet.proxy_client",
        "vars": {f"proxy_client_{name}": value for name, value in values.items()},
    }
    return play(host, [{"hosts": "fleet", "gather_facts": False, "roles": [role]}], *options, check=check)


def changed(output: str) -> int:
    return int(re.findall(r"changed=(\d+)", output)[-1])


def state(host: Host) -> str:
    return host.sh("find /etc -newer /etc/machine-id -type f -exec sha256sum {} + | sort -k 2; cat /etc/environment")


def test_without_an_address_nothing_is_written(host: Host) -> None:
    before = state(host)
    assert "url: expected http://ADDRESS:PORT" in " ".join(configure(host, check=False, url="192.168.100.1").split())
    assert state(host) == before


def test_check_mode_tells_and_writes_nothing(host: Host) -> None:
    before = state(host)
    output = configure(host, "--check", "--diff", url=URL)
    assert "+Acquire::https::Proxy" in output
    assert changed(output) > 0
    assert state(host) == before


def test_programs_are_told_and_a_second_run_changes_nothing(host: Host) -> None:
    values: dict[str, Any] = {"url": URL, "bypass": ["hub.fleet"]}
    assert changed(configure(host, **values)) > 0
    assert changed(configure(host, **values)) == 0
    shown = host.sh("apt-config dump | grep -i proxy")
    assert f'Acquire::https::Proxy "{URL}";' in shown
    assert 'Acquire::http::Proxy::hub.fleet "DIRECT";' in shown
    assert URL in host.sh("python3 -m pip config list")
    text = host.sh("cat /etc/gitconfig")
    assert "name = Ada" in text
    assert f"proxy = {URL}" in text


def test_services_and_logins_have_the_variables(host: Host) -> None:
    service = host.sh("systemd-run --quiet --pipe --wait env")
    login = host.sh("env -i bash -lc env")
    kept = host.sh("cat /etc/environment")
    for text in (service, login, kept):
        assert {line.partition("=")[0] for line in text.splitlines()} >= VARIABLES
        assert "NO_PROXY=localhost,127.0.0.1,::1,hub.fleet" in text
    assert "EDITOR=vi" in kept


def test_another_address_takes_the_place_of_the_first_and_an_authority_is_trusted(host: Host, authority: str) -> None:
    configure(host, url="http://192.168.100.2:3128", authority=authority)
    assert host.sh("grep -rl 192.168.100.1:3128 /etc || true") == ""
    assert host.sh("grep -c 'BEGIN fleet proxy' /etc/environment").strip() == "1"
    assert "NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt" in host.sh("cat /etc/environment")
    assert authority.strip() in host.sh("cat /etc/ssl/certs/ca-certificates.crt")


def test_it_goes_away_and_leaves_what_is_of_others(host: Host, authority: str) -> None:
    assert changed(configure(host, state="absent")) > 0
    assert changed(configure(host, state="absent")) == 0
    assert host.sh("grep -rlE '3128|fleet.proxy' /etc || true") == ""
    assert host.sh("cat /etc/environment").split() == ["EDITOR=vi"]
    assert "name = Ada" in host.sh("cat /etc/gitconfig")
    assert "_proxy" not in host.sh("systemd-run --quiet --pipe --wait env")
    assert authority.strip() not in host.sh("cat /etc/ssl/certs/ca-certificates.crt")
