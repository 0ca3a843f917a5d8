# SPDX-License-Identifier: GPL-3.0-or-later
"""What a machine needs to use the explicit proxy: files of apt, pip and git, variables for all other programs.

The role proxy_client writes them; user data of cloud-init can, before the first package is fetched.

Sources: apt.conf(5); pip.pypa.io (configuration); git-config(1); environment(5), environment.d(5),
systemd-system.conf(5) (DefaultEnvironment=); curl(1) (NO_PROXY); nodejs.org (NODE_EXTRA_CA_CERTS, NODE_USE_ENV_PROXY).
npm takes the proxy from these variables.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InvalidInput

MARK = "# {mark} fleet proxy"  # around what stands in a file of others; the role has the same
_LOCAL = ("localhost", "127.0.0.1", "::1")
_URL = re.compile(r"http://(?P<host>[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d{1,5})/?")
_BYPASS = re.compile(r"[A-Za-z0-9.:/_*-]+")
_CERTIFICATE = re.compile(r"\s*(-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----\s*)+")


@dataclass(frozen=True)
class ProxyClient:
    """url: of the proxy, http://ADDRESS:PORT. bypass: hosts and domains that are reached without it, such as the hub.

    authority: certificates in PEM that the machine is to trust (mitmproxy's), empty for none. bundle: where the system
    keeps what it trusts.
    """

    url: str
    bypass: tuple[str, ...] = ()
    authority: str = ""
    bundle: str = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class ClientFile:
    """A file of the machine. block: whether text is a part of it, between marks, and the rest is not ours."""

    path: str
    text: str
    block: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {"path": self.path, "text": self.text, "block": self.block}


def proxy_client(
    url: str, bypass: Iterable[str] = (), authority: str = "", bundle: str = ProxyClient.bundle
) -> ProxyClient:
    """Return a client of these settings. Raises InvalidInput."""
    found = _URL.fullmatch(url)
    if not found or not 0 < int(found["port"]) < 65536:
        raise InvalidInput(f'url: expected http://ADDRESS:PORT with no user name, found "{_shown(url)}"')
    names = tuple(dict.fromkeys((*_LOCAL, *(str(name).strip() for name in bypass))))
    wrong = next((name for name in names if not _BYPASS.fullmatch(name)), None)
    if wrong is not None:
        raise InvalidInput(f'bypass: expected host names, domains, addresses or networks, found "{wrong}"')
    if authority and not _CERTIFICATE.fullmatch(authority):
        raise InvalidInput("authority: expected certificates in PEM and nothing else, found other text")
    return ProxyClient(url.rstrip("/"), names, f"{authority.strip()}\n" if authority.strip() else "", bundle)


def _shown(url: str) -> str:
    """Return a URL without the password that it may hold."""
    return re.sub(r"//[^/@]*@", "//***@", url)


def environment(client: ProxyClient) -> dict[str, str]:
    """Return the variables that programs look for, in both spellings."""
    values = {"http_proxy": client.url, "https_proxy": client.url, "no_proxy": ",".join(client.bypass)}
    values.update({name.upper(): value for name, value in values.items()})
    values["NODE_USE_ENV_PROXY"] = "1"
    if client.authority:
        # Each brings a list of authorities of its own, or looks for the system's under another name.
        names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO", "AWS_CA_BUNDLE")
        values.update(dict.fromkeys((*names, "CARGO_HTTP_CAINFO", "NODE_EXTRA_CA_CERTS"), client.bundle))
    return values


def client_files(client: ProxyClient) -> tuple[ClientFile, ...]:
    """Return the files of a machine that uses the proxy, without the authority's, whose place depends on the system."""
    variables = environment(client)
    plain = "".join(f"{name}={value}\n" for name, value in variables.items())
    quoted = " ".join(f'"{name}={value}"' for name, value in variables.items())
    head = "# Written by fleet: changes are lost.\n"
    return (
        ClientFile("/etc/apt/apt.conf.d/80fleet-proxy", _apt(client)),
        ClientFile("/etc/xdg/pip/pip.conf", _pip(client)),
        ClientFile("/etc/gitconfig", _git(client), block=True),
        ClientFile("/etc/environment", plain, block=True),
        ClientFile("/etc/environment.d/80-fleet-proxy.conf", head + plain),
        ClientFile("/etc/systemd/system.conf.d/80-fleet-proxy.conf", f"{head}[Manager]\nDefaultEnvironment={quoted}\n"),
        ClientFile("/etc/profile.d/fleet-proxy.sh", head + "".join(_export(*item) for item in variables.items())),
    )


def _marked(file: ClientFile) -> str:
    if not file.block:
        return file.text
    begin, end = MARK.format(mark="BEGIN"), MARK.format(mark="END")
    return f"{begin}\n{file.text}{end}\n"


def _export(name: str, value: str) -> str:
    return f"export {name}='{value}'\n"


def _apt(client: ProxyClient) -> str:
    lines = ["// Written by fleet: changes are lost."]
    lines += [f'Acquire::{scheme}::Proxy "{client.url}";' for scheme in ("http", "https")]
    hosts = [name for name in client.bypass if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", name) and name not in _LOCAL]
    lines += [f'Acquire::{scheme}::Proxy::{name} "DIRECT";' for name in hosts for scheme in ("http", "https")]
    return "\n".join(lines) + "\n"


def _pip(client: ProxyClient) -> str:
    lines = ["# Written by fleet: changes are lost.", "[global]", f"proxy = {client.url}"]
    return "\n".join([*lines, *([f"cert = {client.bundle}"] if client.authority else [])]) + "\n"


def _git(client: ProxyClient) -> str:
    trust = f"\tsslCAInfo = {client.bundle}\n" if client.authority else ""
    direct = "".join(
        f'[http "{scheme}://{name}"]\n\tproxy =\n' for name in _hosts(client) for scheme in ("http", "https")
    )
    return f"[http]\n\tproxy = {client.url}\n{trust}{direct}"


def _hosts(client: ProxyClient) -> list[str]:
    """Return what is one host: git knows no domains and no networks here."""
    return [
        name for name in client.bypass if name not in _LOCAL and not name.startswith((".", "*")) and not _network(name)
    ]


def _network(name: str) -> bool:
    try:
        return ipaddress.ip_network(name, strict=False).num_addresses > 1 or ":" in name
    except ValueError:
        return "/" in name


def cloud_config(client: ProxyClient) -> Mapping[str, Any]:
    """Return user data that does the same at the first boot, before packages are installed."""
    files: list[dict[str, Any]] = [
        {"path": file.path, "content": _marked(file), "permissions": "0644", **({"append": True} if file.block else {})}
        for file in client_files(client)
    ]
    found: dict[str, Any] = {
        "apt": {"http_proxy": client.url, "https_proxy": client.url},
        "write_files": files,
        # systemd has read its own configuration before these files were there.
        "runcmd": [["systemctl", "daemon-reexec"]],
    }
    if client.authority:
        found["ca_certs"] = {"trusted": [client.authority]}
    return found
