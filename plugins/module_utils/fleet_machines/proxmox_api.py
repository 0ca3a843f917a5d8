# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests to a Proxmox VE, by many threads at once: tried again where that is safe, and every failure one sentence.

proxmoxer brings the login, tickets and uploads. The rest is done here, because its default timeout is 5 seconds, it
never tries again, and it writes parameters, secrets among them, to its log.

    session = Session({"host": "pve1", "token_id": "fleet@pve!ansible", "token_secret": "..."})
    session.get("/cluster/resources", {"type": "vm"})
    session.post(f"/nodes/{node}/qemu/{vmid}/clone", {"newid": 120}, what='machine "web-1"', asked="clone it", job=job)

What failed is raised as an error of fleet_core; ``reply_of(error)`` tells what Proxmox had answered.
"""

from __future__ import annotations

import collections
import email.utils
import random
import re
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

from .provider import Job
from .proxmox_replies import SECRETS, Reply, error_of, read, redacted, reply_of
from .proxmox_settings import Settings, settings_of

if TYPE_CHECKING:
    from fleet_core.errors import FleetError, Unavailable
    from fleet_core.quantities import format_duration
else:
    try:
        from ..fleet_core.errors import FleetError, Unavailable
        from ..fleet_core.quantities import format_duration
    except ImportError:  # installed as a top-level package
        from fleet_core.errors import FleetError, Unavailable
        from fleet_core.quantities import format_duration

__all__ = ["Reply", "Session", "reply_of", "segment"]

CONNECTING = 10.0  # seconds for a connection
READING = 120.0  # seconds that a request may take with all its repetitions when no job limits it
TRIES = 6
MOST_CONNECTIONS = 64
_NOT_SENT = ("NewConnectionError", "NameResolutionError", "ConnectTimeoutError", "ProxyError")
_ERRNO = re.compile(r"\[Errno -?\d+\] ([^'\")]+)")
_CERTIFICATE = re.compile(r"certificate verify failed: ([^(\]]+)")
_TEMPLATES = (
    (re.compile(r"UPID:[^/]+"), "{upid}"),
    (re.compile(r"(?<=/nodes/)[^/]+"), "{node}"),
    (re.compile(r"(?<=/qemu/)\d+"), "{vmid}"),
    (re.compile(r"(?<=/snapshot/)[^/]+"), "{snapname}"),
    (re.compile(r"(?<=/storage/)[^/]+"), "{storage}"),
    (re.compile(r"(?<=/content/).+"), "{volume}"),
)


def segment(text: object) -> str:
    """Return a value so that it can stand in a path, such as a volume id with its slashes."""
    return quote(str(text), safe="")


class Session:
    """One way to a Proxmox VE. settings: of the provider, or a Settings.

    first_pause: seconds before the second try, then twice as long each time, at most longest_pause; half of it is
    chance, so that many threads do not come back together. lock_wait: seconds to wait for another operation on a
    machine. counts: requests sent by method and path, such as "GET /nodes/{node}/qemu/{vmid}/config".
    """

    first_pause = 0.25
    longest_pause = 8.0
    lock_wait = 60.0

    def __init__(self, settings: Mapping[str, Any] | Settings) -> None:
        self.settings = settings if isinstance(settings, Settings) else settings_of(settings)
        self.counts: collections.Counter[str] = collections.Counter()
        self._hidden = [self.settings.password, self.settings.token_secret]
        self._lock = threading.Lock()
        self._own = threading.local()
        self._backend: Any = None
        self._logins = 0
        self._ahead = 0.0
        self._adapter: Any = None
        self._release: tuple[int, ...] = ()

    # -- what callers use ---------------------------------------------------------------------------------------------

    @property
    def requests(self) -> int:
        """How many requests were sent, repeated ones each time."""
        return sum(self.counts.values())

    def now(self) -> float:
        """The present time by the cluster's clock, in seconds since 1970, as its last answer told."""
        return time.time() + self._ahead

    def release(self) -> tuple[int, ...]:
        """The version of Proxmox VE, such as (9, 1). Asked once."""
        if not self._release:
            found = self.get("/version")
            numbers = re.findall(r"\d+", str(found.get("version") or found.get("release") or ""))
            self._release = tuple(int(number) for number in numbers[:2]) or (0,)
        return self._release

    def get(self, path: str, params: Mapping[str, Any] | None = None, **how: Any) -> Any:
        """Read something; see request."""
        return self.request("GET", path, params, **how)

    def put(self, path: str, params: Mapping[str, Any] | None = None, **how: Any) -> Any:
        """Set something to values that are the same however often they are set; see request."""
        return self.request("PUT", path, params, **how)

    def post(self, path: str, params: Mapping[str, Any] | None = None, **how: Any) -> Any:
        """Do something; see request."""
        return self.request("POST", path, params, **how)

    def delete(self, path: str, params: Mapping[str, Any] | None = None, **how: Any) -> Any:
        """Remove something; see request."""
        return self.request("DELETE", path, params, **how)

    def upload(self, node: str, storage: str, file: IO[bytes], content: str, **how: Any) -> Any:
        """Upload an open file, whose name becomes that on the storage, and return the UPID of the task.

        One of the same name is replaced, so it can be repeated.
        """
        path = f"/nodes/{node}/storage/{storage}/upload"
        return self.request("POST", path, {"content": content, "filename": file}, repeat=True, **how)

    def request(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None = None,
        *,
        what: str = "",
        asked: str = "",
        job: Job | None = None,
        repeat: bool | None = None,
        timeout: float = 0.0,
    ) -> Any:
        """Return the data of an answer. Truth values become 1 and 0, None is left out.

        what: the thing that it is about, such as 'machine "web-1"'; asked: what is done to it; both for errors.
        job: how long it may go on. repeat: whether doing it twice is the same as once; by default so for GET and PUT.
        Others are repeated only when Proxmox did nothing. timeout: seconds for one answer, instead of the setting.
        """
        repeat = method in ("GET", "PUT") if repeat is None else repeat
        job = job or Job.lasting(READING)
        values = {name: _value(value) for name, value in (params or {}).items() if value is not None}
        hidden = [*self._hidden, *(str(values[name]) for name in SECRETS if values.get(name))]
        began, tries, renewed = time.monotonic(), 0, False
        while True:
            tries += 1
            try:
                return self._once(method, path, values, hidden, timeout or self.settings.timeout, job)
            except Reply as reply:
                if reply.status == 401 and not renewed and not self.settings.token_id:
                    renewed = True  # a ticket that ran out: nothing was done
                    self._forget_login()
                    continue
                patient = time.monotonic() - began < self.lock_wait if reply.locked else tries < TRIES
                again = reply.undone or (repeat and reply.passing)
                pause = max(reply.after, self._pause(tries))
                if not again or not patient or job.left() <= pause:
                    raise self._error(what, asked or _asked(method, path), reply, repeat) from reply
                if tries == 2:
                    job.report(f"try again: {reply.text}")
                job.pause(pause)

    def close(self) -> None:
        """Close all connections."""
        if self._adapter is not None:
            self._adapter.close()

    # -- parts --------------------------------------------------------------------------------------------------------

    def _once(
        self, method: str, path: str, values: dict[str, Any], hidden: Sequence[str], timeout: float, job: Job
    ) -> Any:
        with self._lock:
            self.counts[f"{method} {_template(path)}"] += 1
        body = dict(values) if method in ("POST", "PUT") else None
        for value in (body or {}).values():
            if hasattr(value, "seek"):
                value.seek(0)
        answer = self._told(
            lambda: self._connection().request(
                method,
                f"{self._login().get_base_url()}{path}",
                params=None if body is not None else values,
                data=body,
                timeout=(CONNECTING, max(1.0, min(timeout, job.left() + 1.0))),
                allow_redirects=False,  # Proxmox sends none, and a token must go nowhere else
            ),
            hidden,
        )
        self._note_time(answer.headers.get("Date", ""))
        return read(answer.status_code, answer.reason, answer.text, hidden, answer.headers.get("Retry-After", ""))

    def _told(self, call: Any, hidden: Sequence[str]) -> Any:
        """Return what call returns. Raises Reply when no answer came, and the error for what no repetition helps."""
        requests = _packages()[0]
        try:
            return call()
        except requests.exceptions.SSLError as error:
            raise Unavailable(f"{self.settings.where}: {_untrusted(str(error))}") from error
        except requests.exceptions.ConnectTimeout:
            raise Reply(0, f"it does not answer within {format_duration(CONNECTING)}", sent=False) from None
        except requests.exceptions.Timeout:
            raise Reply(0, "the answer did not come in time") from None
        except requests.exceptions.RequestException as error:
            inner = error.args[0] if error.args else None
            kind = type(getattr(inner, "reason", inner)).__name__
            found = _ERRNO.search(str(error))
            said = found[1].strip() if found else redacted(str(inner or error), hidden)
            raise Reply(0, f"the connection failed: {said}", sent=kind not in _NOT_SENT) from None

    def _error(self, what: str, asked: str, reply: Reply, repeat: bool) -> FleetError:
        error = error_of(what or self.settings.where, asked, reply, self.settings.account)
        if not repeat and reply.sent and reply.status in (0, 502, 504, 596, 597, 598, 599):
            return type(error)(f"{error.message}; it may have been done nevertheless")
        return error

    def _pause(self, tries: int) -> float:
        longest = min(self.longest_pause, self.first_pause * 2 ** (tries - 1))
        return float(longest * (0.5 + random.random() / 2))

    def _note_time(self, date: str) -> None:
        try:
            self._ahead = email.utils.parsedate_to_datetime(date).timestamp() - time.time()
        except (TypeError, ValueError):
            return

    def _connection(self) -> Any:
        """The HTTP session of this thread. All of them share one pool of connections."""
        backend = self._login()
        if getattr(self._own, "backend", None) is not backend:
            session = backend.get_session()
            session.mount("https://", self._adapter)
            self._own.backend, self._own.session = backend, session
        return self._own.session

    def _login(self) -> Any:
        """proxmoxer's backend. Logs in when it must, once for all threads."""
        with self._lock:
            if self._backend is None:
                self._backend = self._new_backend()
            return self._backend

    def _forget_login(self) -> None:
        with self._lock:
            if getattr(self._own, "backend", None) is self._backend:  # no other thread was faster
                self._backend = None

    def _new_backend(self) -> Any:
        requests, https, refused = _packages()
        settings = self.settings
        if self._adapter is None:
            self._adapter = requests.adapters.HTTPAdapter(
                pool_connections=4, pool_maxsize=MOST_CONNECTIONS, max_retries=0
            )
        how: dict[str, Any] = {"password": settings.password}
        if settings.token_id:
            how = {"token_name": settings.token_id, "token_value": settings.token_secret}
        else:
            self.counts["POST /access/ticket"] += 1
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            return self._told(
                lambda: https.Backend(
                    host,
                    user=settings.user,
                    port=settings.port,
                    verify_ssl=settings.verify,
                    timeout=(CONNECTING, settings.timeout),
                    **how,
                ),
                self._hidden,
            )
        except refused as error:
            if "TFA" in str(error):
                raise self._second_factor() from None
            found = re.search(r"code: (\d+)", str(error))
            if found and found[1] != "401":
                raise Reply(0, f"the login was answered with {found[1]}", sent=False) from None
            reply = Reply(401, "wrong user or password")
            raise error_of(settings.where, "log in", reply, settings.user) from reply
        except (AttributeError, KeyError, TypeError, ValueError):  # or no Proxmox VE at all
            raise self._second_factor() from None

    def _second_factor(self) -> FleetError:
        return Unavailable(
            f"{self.settings.where}: the login of {self.settings.user} was not answered as expected: does it need a "
            "second factor? A token (token_id and token_secret) needs none"
        )


def _packages() -> tuple[Any, Any, Any]:
    """requests, proxmoxer's HTTPS backend, and its error for a refused login. Raises Unavailable without them."""
    try:
        import requests  # first: without it proxmoxer ends the process
        from proxmoxer import core
        from proxmoxer.backends import https
    except ImportError as error:
        raise Unavailable(
            "provider proxmox: the host that it runs on needs the Python packages proxmoxer and requests for "
            f"{sys.executable}: {error}"
        ) from error
    return requests, https, core.AuthenticationError


def _untrusted(text: str) -> str:
    found = _CERTIFICATE.search(text)
    if found is None:
        return f"no TLS connection can be made: {text[-200:]}"
    return (
        f"its TLS certificate is not trusted: {found[1].strip().rstrip('.')}; set verify to the file of the CA that "
        "signs it (/etc/pve/pve-root-ca.pem of a node), and host to a name that is in it"
    )


def _asked(method: str, path: str) -> str:
    return f"{method} {path.split('?', 1)[0]}"


def _template(path: str) -> str:
    for pattern, name in _TEMPLATES:
        path = pattern.sub(name, path)
    return path


def _value(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else value
