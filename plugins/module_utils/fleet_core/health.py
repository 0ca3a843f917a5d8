# SPDX-License-Identifier: GPL-3.0-or-later
"""Health checks as data: what is asked, how often, and when the answer counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from .errors import InvalidInput
from .names import as_int, check_keys, describe
from .quantities import parse_duration

_KEYS = ("url", "interval", "timeout", "retries", "start_period", "action")
ACTIONS = ("restart", "none")


@dataclass(frozen=True)
class HealthCheck:
    """One check of a process.

    url: http://, https://, tcp://HOST:PORT or cmd://SHELL COMMAND. interval, timeout, start_period: seconds.
    retries: failures in a row that make a process unhealthy. In the start period failures do not count.
    action: what follows when a running process becomes unhealthy, "restart" or "none".
    """

    url: str
    interval: float = 10.0
    timeout: float = 5.0
    retries: int = 3
    start_period: float = 0.0
    action: str = "restart"

    def to_dict(self) -> dict[str, Any]:
        return {
            "url": self.url,
            "interval": self.interval,
            "timeout": self.timeout,
            "retries": self.retries,
            "start_period": self.start_period,
            "action": self.action,
        }


@dataclass(frozen=True)
class HttpTarget:
    """Where an HTTP check asks. target: path and query."""

    tls: bool
    host: str
    port: int
    target: str


@dataclass(frozen=True)
class Health:
    """What the answers so far say. failures: in a row. healthy: None while nothing can be said."""

    failures: int = 0
    healthy: bool | None = None


def judge(check: HealthCheck, health: Health, ok: bool, age: float) -> Health:
    """Return what one more answer makes of a process. age: seconds since it was started.

    One good answer makes it healthy, `retries` bad ones in a row make it unhealthy. In the start period bad answers do
    not count, until a good one has shown that it is up.
    """
    if ok:
        return Health(0, True)
    if health.healthy is None and age < check.start_period:
        return health
    failures = health.failures + 1
    return Health(failures, False if failures >= check.retries else health.healthy)


def health_check(where: str, data: object) -> HealthCheck:
    """Return a validated check from a URL or a mapping. ${variables} may stand anywhere in the URL."""
    if isinstance(data, str):
        data = {"url": data}
    given = check_keys(where, data, _KEYS)
    url = given.get("url")
    if not isinstance(url, str) or not url.strip():
        raise InvalidInput(f"{where}: expected a url, found {describe(url)}")
    url = url.strip()
    scheme = url.partition("://")[0]
    if scheme not in ("http", "https", "tcp", "cmd") or not url.partition("://")[2]:
        raise InvalidInput(f'{where}: expected http://, https://, tcp://HOST:PORT or cmd://COMMAND, found "{url}"')
    if "${" not in url:
        parse_url(where, url)
    default = HealthCheck(url)
    seconds = {
        key: parse_duration(f"{where}: {key}", given[key] if given.get(key) is not None else getattr(default, key))
        for key in ("interval", "timeout", "start_period")
    }
    for key in ("interval", "timeout"):
        if seconds[key] <= 0:
            raise InvalidInput(f"{where}: expected {key} above 0, found {seconds[key]:g}")
    action = given.get("action") or default.action
    if action not in ACTIONS:
        raise InvalidInput(f'{where}: expected action "restart" or "none", found "{action}"')
    retries = as_int(f"{where}: retries", given.get("retries") or default.retries, 1, 1000)
    return HealthCheck(url, seconds["interval"], seconds["timeout"], retries, seconds["start_period"], action)


def parse_url(where: str, url: str) -> HttpTarget | tuple[str, int] | str:
    """Return what a final check URL asks: an HttpTarget, (host, port) for tcp, or the shell command of cmd://."""
    scheme, _separator, rest = url.partition("://")
    if scheme == "cmd":
        return rest
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidInput(f'{where}: "{url}": {error}') from None
    if not host:
        raise InvalidInput(f'{where}: "{url}": expected a host')
    if scheme == "tcp":
        if port is None or parts.path not in ("", "/"):
            raise InvalidInput(f'{where}: expected tcp://HOST:PORT, found "{url}"')
        return (host, port)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return HttpTarget(scheme == "https", host, port or (443 if scheme == "https" else 80), target)
