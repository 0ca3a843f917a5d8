# SPDX-License-Identifier: GPL-3.0-or-later
"""How a Proxmox VE is reached, and where new machines go: from provider_settings, else from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fleet_core.errors import InvalidInput
    from fleet_core.names import as_bool, as_int, as_text, describe
    from fleet_core.quantities import parse_duration
else:
    try:
        from ..fleet_core.errors import InvalidInput
        from ..fleet_core.names import as_bool, as_int, as_text, describe
        from ..fleet_core.quantities import parse_duration
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import InvalidInput
        from fleet_core.names import as_bool, as_int, as_text, describe
        from fleet_core.quantities import parse_duration

PORT = 8006
CLONES = ("auto", "linked", "full")
PREFIX = "PROXMOX_"  # of the environment: PROXMOX_HOST, PROXMOX_TOKEN_SECRET, ...
_WORDS = ("true", "yes", "on", "1", "false", "no", "off", "0")
_TOKEN = re.compile(r"(?:(?P<user>[^!]+)!)?(?P<name>[A-Za-z][A-Za-z0-9.\-_]+)")


@dataclass(frozen=True)
class Settings:
    """host, port: of any node of the cluster. user: NAME@REALM. token_id: NAME, or USER@REALM!NAME.

    verify: whether the TLS certificate must be trusted, or the file of the CA that signs it. timeout: seconds for one
    answer. node: where new machines go; empty: the node with the most free memory that can take them. storage: of
    disks that are copied in full. iso_storage: where seeds with user data are uploaded. bridge: of networks that are
    named "default". pool: of new machines. clone: one of CLONES. hotplug: whether cpu, memory and networks of running
    machines are changed at once, which the guest must support. thorough: read each machine's configuration instead of
    the one list. ssh: how ``qm`` is reached, for images on old versions.
    """

    host: str
    port: int = PORT
    user: str = ""
    password: str = field(default="", repr=False)
    token_id: str = ""
    token_secret: str = field(default="", repr=False)
    verify: bool | str = True
    timeout: float = 60.0
    node: str = ""
    storage: str = ""
    iso_storage: str = "local"
    bridge: str = "vmbr0"
    pool: str = ""
    clone: str = "auto"
    hotplug: bool = False
    thorough: bool = False
    ssh: Mapping[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """What is said of it in sentences."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"Proxmox VE at {host}:{self.port}"

    @property
    def account(self) -> str:
        """Who asks: a user, or a token as Proxmox writes it."""
        return f"{self.user}!{self.token_id}" if self.token_id else self.user


NAMES = tuple(part.name for part in fields(Settings))
_TEXTS = ("user", "password", "token_id", "token_secret", "node", "storage", "iso_storage", "bridge", "pool", "clone")


def settings_of(given: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
    """Return settings from provider_settings; what is not given there is taken from PROXMOX_... of the environment.

    Raises InvalidInput, which names the setting and what was expected, never the value of a secret.
    """
    environ = os.environ if environ is None else environ
    if given.get("password") and not given.get("token_id"):  # of two ways in, that which is given
        environ = {name: value for name, value in environ.items() if not name.startswith(f"{PREFIX}TOKEN_")}
    found: dict[str, Any] = {}
    for name in NAMES:
        value = given.get(name)
        if value is None or value == "":
            value = environ.get(PREFIX + name.upper()) if name != "ssh" else None
        if value is not None and value != "":
            found[name] = value
    for name in ("password", "token_secret"):
        if not isinstance(found.get(name, ""), str):
            raise InvalidInput(f"{_where(name)}: expected text")
    values: dict[str, Any] = {name: as_text(_where(name), found[name]) for name in _TEXTS if name in found}
    values["host"], port = _host(found.get("host"))
    if port or "port" in found:
        values["port"] = as_int(_where("port"), found.get("port", port), 1, 65535)
    if "verify" in found:
        values["verify"] = _verify(found["verify"])
    if "timeout" in found:
        values["timeout"] = max(1.0, parse_duration(_where("timeout"), found["timeout"]))
    for name in ("hotplug", "thorough"):
        if name in found:
            values[name] = as_bool(_where(name), found[name])
    if "ssh" in found:
        if not isinstance(found["ssh"], Mapping):
            raise InvalidInput(f"{_where('ssh')}: expected a mapping, found {describe(found['ssh'])}")
        values["ssh"] = dict(found["ssh"])
    if values.get("clone", "auto") not in CLONES:
        raise InvalidInput(f"{_where('clone')}: expected one of {', '.join(CLONES)}, found {values['clone']!r}")
    return Settings(**_account(values))


def _where(name: str) -> str:
    return f'settings of provider "proxmox": {name}'


def _account(values: dict[str, Any]) -> dict[str, Any]:
    """The user and the token apart, and one way in. A token wins over a password."""
    token = values.get("token_id", "")
    if token:
        parts = _TOKEN.fullmatch(token)
        if parts is None:
            raise InvalidInput(f"{_where('token_id')}: expected NAME or USER@REALM!NAME, found {token!r}")
        values["token_id"], values["user"] = parts["name"], parts["user"] or values.get("user", "")
        if not values.get("token_secret"):
            raise InvalidInput(
                f"{_where('token_secret')}: expected the secret of the token {token}, here or in the environment as "
                f"{PREFIX}TOKEN_SECRET"
            )
        values.pop("password", None)
    elif not values.get("password"):
        raise InvalidInput(
            f"{_where('token_id')}: expected an API token (token_id and token_secret), or user and password, here or "
            f"in the environment as {PREFIX}TOKEN_ID and {PREFIX}TOKEN_SECRET"
        )
    user = values.get("user", "")
    if not user:
        raise InvalidInput(f'{_where("user")}: expected a user with its realm, such as "fleet@pve"')
    values["user"] = user if "@" in user else f"{user}@pam"
    return values


def _host(value: Any) -> tuple[str, str]:
    """The host and the port of NAME, NAME:PORT, [V6]:PORT, a bare V6 address, or of an address with https://."""
    text = as_text(_where("host"), value or "").strip()
    if not text:
        raise InvalidInput(f"{_where('host')}: expected the name of a node, here or in the environment as {PREFIX}HOST")
    text = re.sub(r"^https://", "", text).split("/", 1)[0]
    if text.count(":") > 1 and not text.startswith("["):
        return text, ""
    found = re.fullmatch(r"\[?([A-Za-z0-9._:%-]+?)\]?(?::(\d{1,5}))?", text)
    if found is None:
        raise InvalidInput(f"{_where('host')}: expected a host name or address, found {describe(value)}")
    return found[1], found[2] or ""


def _verify(value: Any) -> bool | str:
    if isinstance(value, bool):
        return value
    text = as_text(_where("verify"), str(value) if isinstance(value, int) else value)
    if text.lower() in _WORDS:
        return as_bool(_where("verify"), text)
    path = os.path.expanduser(text)
    if not os.path.exists(path):
        raise InvalidInput(f"{_where('verify')}: expected true, false or the file of a CA, found {text!r}, not there")
    return path
