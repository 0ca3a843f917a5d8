# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine is told so that it uses the proxy."""

from __future__ import annotations

import configparser
import json

import pytest
from tests.golden import check_golden

from fleet_core.egress_clients import client_files, cloud_config, environment, proxy_client
from fleet_core.errors import InvalidInput

URL = "http://192.168.100.1:3128"
PEM = "-----BEGIN CERTIFICATE-----\nMIIB+/==\n-----END CERTIFICATE-----\n"
BYPASS = ("hub.fleet", "10.0.1.20", ".corp.example", "10.2.0.0/16", "fd00::/8")


def test_the_files_are_known() -> None:
    files = client_files(proxy_client(URL, BYPASS, PEM))
    text = "".join(f"=== {file.path}{' (part)' if file.block else ''}\n{file.text}" for file in files)
    check_golden("egress/proxy-client.txt", text)


def test_the_user_data_is_known() -> None:
    check_golden(
        "egress/proxy-client-cloud-config.json", json.dumps(cloud_config(proxy_client(URL, BYPASS, PEM)), indent=1)
    )


def test_both_spellings_of_variables_are_there() -> None:
    found = environment(proxy_client(URL, BYPASS))
    for name in ("http_proxy", "https_proxy"):
        assert found[name] == found[name.upper()] == URL
    assert found["NO_PROXY"] == "localhost,127.0.0.1,::1,hub.fleet,10.0.1.20,.corp.example,10.2.0.0/16,fd00::/8"


def test_squid_needs_no_authority() -> None:
    text = "".join(file.text for file in client_files(proxy_client(URL)))
    assert "CERT" not in text
    assert "CAInfo" not in text
    assert "ca_certs" not in cloud_config(proxy_client(URL))


def test_pip_reads_what_it_is_told() -> None:
    parser = configparser.ConfigParser()
    parser.read_string(next(file.text for file in client_files(proxy_client(URL, (), PEM)) if "pip" in file.path))
    assert dict(parser["global"]) == {"proxy": URL, "cert": "/etc/ssl/certs/ca-certificates.crt"}


@pytest.mark.parametrize("url", [URL, f"{URL}/", "http://gateway:3128", "http://[fd00:100::1]:3128"])
def test_the_address_of_a_proxy_is_taken(url: str) -> None:
    assert proxy_client(url).url == url.rstrip("/")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", ""),
        ("192.168.100.1:3128", "192.168.100.1:3128"),
        ("https://a:3128", "https://a:3128"),
        ("http://a", "http://a"),
        ("http://a:70000", "http://a:70000"),
        ("http://me:hush@a:3128", "http://***@a:3128"),
        ("http://a:3128/'; rm -rf /", "http://a:3128/'; rm -rf /"),
    ],
)
def test_what_is_no_address_of_a_proxy_is_an_error(url: str, shown: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        proxy_client(url)
    assert caught.value.message == f'url: expected http://ADDRESS:PORT with no user name, found "{shown}"'


def test_what_is_no_host_is_an_error() -> None:
    with pytest.raises(InvalidInput, match=r'bypass: expected host names, .*, found "a b"'):
        proxy_client(URL, ["a b"])


@pytest.mark.parametrize("text", ["x", PEM + "x", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_certificate_is_an_error(text: str) -> None:
    with pytest.raises(
        InvalidInput, match="authority: expected certificates in PEM and nothing else, found other text"
    ):
        proxy_client(URL, (), text)
