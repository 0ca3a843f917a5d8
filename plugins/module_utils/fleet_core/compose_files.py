# SPDX-License-Identifier: GPL-3.0-or-later
"""The services of a compose file as a project file (https://github.com/compose-spec/compose-spec/blob/main/spec.md).

A service runs here as a process of the host: its command, environment, health and order carry over, its container
does not. Everything that is left behind is said in a note.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Mapping
from typing import Any

from .errors import InvalidInput
from .names import NAME, as_bool, as_int, as_text, check_name, describe
from .procfiles import Imported, literal
from .quantities import parse_duration

_VARIABLE = re.compile(r"\$\$|\$([A-Za-z_][A-Za-z0-9_]*)|\$\{([A-Za-z_][A-Za-z0-9_]*)(?:(:?[-?+])([^{}]*))?\}")
_TOP = ("services", "name", "version")
_TAKEN = (
    "command",
    "cpus",
    "depends_on",
    "deploy",
    "entrypoint",
    "env_file",
    "environment",
    "healthcheck",
    "image",
    "mem_limit",
    "ports",
    "restart",
    "stop_grace_period",
    "stop_signal",
    "ulimits",
    "user",
    "volumes",
    "working_dir",
)
_CONDITIONS = {
    "service_started": "started",
    "service_healthy": "healthy",
    "service_completed_successfully": "completed",
}
_RESTARTS = {
    "no": "never",
    "false": "never",
    "always": "always",
    "unless-stopped": "always",
    "on-failure": "on-failure",
}


def compose_file(data: object, name: str) -> Imported:
    """Return the environment that the services of a parsed compose file make. name: used if the file has none.

    ${VARIABLES} of the file become vars with their defaults. Raises InvalidInput for a file that is no compose file.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("services"), Mapping):
        found = describe(data.get("services")) if isinstance(data, Mapping) else describe(data)
        raise InvalidInput(f"compose file: expected services, found {found}")
    notes = [
        f'"{key}" of the file is not taken over' for key in data if key not in _TOP and not str(key).startswith("x-")
    ]
    given = data.get("name")
    name = check_name("environment", str(given) if given and NAME.fullmatch(str(given)) else name)
    services: dict[str, _Service] = {}
    for key, item in data["services"].items():
        service = _Service(check_name("service", as_text("compose file: service", key)), item)
        if service.fields:
            services[service.name] = service
        notes.extend(service.notes)
    for service in services.values():
        left_out = service.keep_dependencies(services)
        notes.extend(f"{service.name}: no longer waits for {other}, which is left out" for other in left_out)
    if not services:
        raise InvalidInput(f"compose file: no service has a command that this host could run: {'; '.join(notes)}")
    processes = {service.name: service.fields for service in services.values()}
    return Imported({"environment": {"name": name}, "processes": processes}, tuple(notes))


class _Service:
    """One service on its way to a process: fields fill up, and notes say what is left behind."""

    def __init__(self, name: str, data: object) -> None:
        self.name = name
        self.where = f'service "{name}"'
        self.notes: list[str] = []
        self.fields: dict[str, Any] = {}
        self._vars: dict[str, str] = {}
        if not isinstance(data, Mapping):
            raise InvalidInput(f"{self.where}: expected a mapping, found {describe(data)}")
        self._data = data
        if self._command():
            for key in data:
                if key not in _TAKEN and not str(key).startswith("x-"):
                    self._note(f'"{key}" is not taken over')
            self._folder()
            self._environment()
            self._ports()
            self._health()
            self._dependencies()
            self._life()
            self._limits()
            if self._vars:
                self.fields["vars"] = dict(self._vars)

    def _note(self, text: str) -> None:
        self.notes.append(f"{self.name}: {text}")

    def _command(self) -> bool:
        words: list[str] = []
        for key in ("entrypoint", "command"):
            value = self._data.get(key)
            if isinstance(value, str):
                words.append(self._text(key, value))
            elif isinstance(value, (list, tuple)):
                words.extend(_quoted(self._text(key, item)) for item in value)
            elif value is not None:
                raise InvalidInput(f"{self.where}: {key}: expected text or a list, found {describe(value)}")
        command = " ".join(words).strip()
        image = self._data.get("image")
        if not command:
            source = f"image {image}" if image else "it is built from a Dockerfile"
            self._note(f"left out: {source}, and no command says what this host should run")
            return False
        if image:
            self._note(f"image {image} is not used; its program must be installed on this host")
        self.fields["command"] = command
        return True

    def _text(self, key: str, value: object) -> str:
        """Return compose text in our command language: its variables become vars, $$ a dollar sign."""
        if isinstance(value, bool):
            value = "true" if value else "false"
        text = as_text(f"{self.where}: {key}", value)
        parts: list[str] = []
        plain, position = "", 0
        for found in _VARIABLE.finditer(text):
            plain += text[position : found.start()]
            position = found.end()
            if found.group(0) == "$$":
                plain += "$"
            else:
                variable = self._variable(found)
                if variable and plain.endswith("$"):
                    # "$${" would be a literal "${".
                    self._vars["dollar"] = "$"
                    variable, plain = f"${{dollar}}{variable}", plain[:-1]
                parts.extend((literal(plain), variable))
                plain = ""
        return "".join((*parts, literal(plain + text[position:])))

    def _variable(self, found: re.Match[str]) -> str:
        name = found.group(1) or found.group(2)
        operator, word = (found.group(3) or "").lstrip(":"), found.group(4) or ""
        if operator == "+":
            self._note(f'"{found.group(0)}" is read as empty')
            return ""
        if operator == "?":
            self._note(f"{name} must be given: set vars.{name}")
        elif operator != "-" and name not in self._vars:
            self._note(f"{name} comes from the shell in compose; here it is vars.{name}, empty")
        if operator != "?":
            self._vars.setdefault(name, literal(word))
        return f"${{{name}}}"

    def _folder(self) -> None:
        """A folder inside the container is one of the host where the file mounts one there."""
        mounts = {}
        for item in _items(f"{self.where}: volumes", self._data.get("volumes")):
            source, target, kind = _mount(item)
            if kind == "bind" and target:
                mounts[target.rstrip("/")] = source
            self._note(f"volume {':'.join(filter(None, (source, target)))} is not mounted")
        inside = self._data.get("working_dir")
        build = self._data.get("build")
        context = build.get("context") if isinstance(build, Mapping) else build
        if inside is not None:
            path = posixpath.normpath(as_text(f"{self.where}: working_dir", inside))
            for target in sorted(mounts, key=len, reverse=True):
                if target and (path == target or path.startswith(f"{target}/")):
                    self.fields["working_dir"] = posixpath.normpath(
                        posixpath.join(mounts[target], path[len(target) :].strip("/"))
                    )
                    return
            self._note(f"working_dir {path} is a folder of the container and is left out")
        if isinstance(context, str) and "://" not in context and "$" not in context:
            self.fields["working_dir"] = posixpath.normpath(context)

    def _environment(self) -> None:
        data = self._data.get("environment")
        pairs: dict[str, object] = {}
        if isinstance(data, Mapping):
            pairs = {as_text(f"{self.where}: environment", key): value for key, value in data.items()}
        else:
            for item in _items(f"{self.where}: environment", data):
                key, equals, value = as_text(f"{self.where}: environment", item).partition("=")
                pairs[key] = value if equals else None
        found = {key: self._text("environment", value) for key, value in pairs.items() if value is not None}
        for key in pairs.keys() - found.keys():
            self._note(f"{key} is passed on from the shell in compose; fleetd has no such shell")
        if found:
            self.fields["env_vars"] = found
        files = self._data.get("env_file")
        paths = []
        for item in [files] if isinstance(files, (str, Mapping)) else _items(f"{self.where}: env_file", files):
            path = item.get("path") if isinstance(item, Mapping) else item
            paths.append(self._text("env_file", path))
        if paths:
            self.fields["env_files"] = paths

    def _ports(self) -> None:
        needs: list[dict[str, str]] = []
        for item in _items(f"{self.where}: ports", self._data.get("ports")):
            for port, published in self._port(item):
                if published not in ("", port):
                    self._note(f"port {published} is not mapped to {port}: the process listens on {port} itself")
                name = "tcpport" if not needs else f"tcpport_{port}"
                if all(need["value"] != port for need in needs):
                    needs.append({"type": "tcpport", "name": name, "value": port})
        if needs:
            self.fields["resources"] = [f"tcpport:{needs[0]['value']}", *needs[1:]]

    def _port(self, item: object) -> list[tuple[str, str]]:
        """Return (port in the container, port on the host) pairs of a port entry; nothing, and a note, for UDP."""
        if isinstance(item, Mapping):
            target, published = str(item.get("target") or ""), str(item.get("published") or "")
            protocol = str(item.get("protocol") or "tcp")
        else:
            text, _slash, protocol = _resolved(as_text(f"{self.where}: ports", item)).partition("/")
            head, _colon, target = text.rpartition(":")
            published = head.rpartition(":")[2]
        if protocol not in ("", "tcp"):
            self._note(f"port {target}/{protocol} is not claimed: only TCP ports are")
            return []
        ports = [_range(f"{self.where}: ports", text) for text in (target, published)]
        if ports[1] and len(ports[1]) != len(ports[0]):
            ports[1] = []
        return [(port, ports[1][index] if ports[1] else "") for index, port in enumerate(ports[0])]

    def _health(self) -> None:
        data = self._data.get("healthcheck")
        if data is None:
            return
        where = f"{self.where}: healthcheck"
        if not isinstance(data, Mapping):
            raise InvalidInput(f"{where}: expected a mapping, found {describe(data)}")
        test = data.get("test")
        if as_bool(f"{where}: disable", data.get("disable", False)) or test in (["NONE"], "NONE", ("NONE",)):
            return
        if isinstance(test, (list, tuple)) and test and test[0] in ("CMD", "CMD-SHELL"):
            words = [self._text("healthcheck", word) for word in test[1:]]
            command = " ".join(words if test[0] == "CMD-SHELL" else [_quoted(word) for word in words])
        elif isinstance(test, str):
            command = self._text("healthcheck", test)
        else:
            self._note(
                "its health check is in the image and is left out" if test is None else "its health check is left out"
            )
            return
        if not command.strip():
            raise InvalidInput(f"{where}: expected a test command, found {describe(test)}")
        # The defaults of compose, where they are not ours.
        check: dict[str, Any] = {"url": f"cmd://{command}", "interval": "30s", "timeout": "30s"}
        for key in ("interval", "timeout", "start_period"):
            if data.get(key) is not None:
                parse_duration(f"{where}: {key}", data[key])
                check[key] = data[key]
        if data.get("retries") is not None:
            check["retries"] = as_int(f"{where}: retries", data["retries"], 1, 1000)
        self.fields["health"] = check
        for key in data.keys() - {"test", "interval", "timeout", "retries", "start_period", "disable"}:
            self._note(f'healthcheck: "{key}" is not taken over')

    def _dependencies(self) -> None:
        data = self._data.get("depends_on")
        if not isinstance(data, Mapping):
            names = _items(f"{self.where}: depends_on", data)
            data = {as_text(f"{self.where}: depends_on", name): {} for name in names}
        found = []
        for name, item in data.items():
            condition = (item.get("condition") if isinstance(item, Mapping) else None) or "service_started"
            if condition not in _CONDITIONS:
                expected = ", ".join(_CONDITIONS)
                raise InvalidInput(
                    f'{self.where}: depends_on "{name}": expected {expected}, found {describe(condition)}'
                )
            found.append({"process": as_text(f"{self.where}: depends_on", name), "condition": _CONDITIONS[condition]})
        if found:
            self.fields["depends_on"] = found

    def keep_dependencies(self, services: Mapping[str, Any]) -> list[str]:
        """Drop the dependencies on services that are left out, and return their names."""
        found = self.fields.get("depends_on", [])
        kept = [item for item in found if item["process"] in services]
        if kept:
            self.fields["depends_on"] = kept
        elif found:
            del self.fields["depends_on"]
        return [item["process"] for item in found if item not in kept]

    def _life(self) -> None:
        restart = self._data.get("restart")
        word = "no" if restart is None or restart is False else as_text(f"{self.where}: restart", restart)
        policy, _colon, attempts = word.partition(":")
        if policy not in _RESTARTS:
            raise InvalidInput(f'{self.where}: restart: expected {", ".join(_RESTARTS)}, found "{word}"')
        self.fields["restart"] = _RESTARTS[policy]
        if attempts:
            burst = as_int(f"{self.where}: restart", attempts, 0, 10**6)
            self.fields["restart"] = {"policy": _RESTARTS[policy], "burst": burst}
        if self._data.get("stop_signal") is not None:
            self.fields["stop_signal"] = as_text(f"{self.where}: stop_signal", self._data["stop_signal"])
        if self._data.get("stop_grace_period") is not None:
            parse_duration(f"{self.where}: stop_grace_period", self._data["stop_grace_period"])
            self.fields["stop_timeout"] = self._data["stop_grace_period"]
        if self._data.get("user") is not None:
            user, _colon, group = self._text("user", self._data["user"]).partition(":")
            self.fields["user"] = user
            if group:
                self._note(f"group {group} is not taken over: the process has the groups of user {user}")

    def _limits(self) -> None:
        limits: dict[str, Any] = {}
        deploy = _mapping(self._data.get("deploy"))
        strict = _mapping(_mapping(deploy.get("resources")).get("limits"))
        memory = strict.get("memory", self._data.get("mem_limit"))
        cpus = strict.get("cpus", self._data.get("cpus"))
        if memory is not None:
            limits["memory"] = memory
        if cpus is not None:
            try:
                limits["cpu"] = round(float(as_text(f"{self.where}: cpus", cpus)) * 100)
            except (ValueError, OverflowError):
                raise InvalidInput(f"{self.where}: cpus: expected a number, found {describe(cpus)}") from None
        ulimits = _mapping(self._data.get("ulimits"))
        for name, ours in (("nofile", "open_files"), ("nproc", "processes")):
            value = ulimits.get(name)
            value = value.get("soft") if isinstance(value, Mapping) else value
            if value is not None:
                limits[ours] = value
        if limits:
            self.fields["limits"] = limits
        for key in deploy.keys() - {"resources"}:
            self._note(f'deploy: "{key}" is not taken over')


def _mapping(data: object) -> Mapping[Any, Any]:
    return data if isinstance(data, Mapping) else {}


def _items(where: str, data: object) -> list[Any]:
    if data is None:
        return []
    if not isinstance(data, (list, tuple)):
        raise InvalidInput(f"{where}: expected a list, found {describe(data)}")
    return list(data)


def _quoted(text: str) -> str:
    """Return one argument for a command line; the variables in it keep their meaning, all else is literal."""
    if "${" not in text:
        return shlex.quote(text)
    return '"' + re.sub(r'\$\$\{|\$(?!\{)|[\\"`]', lambda found: f"\\{found[0]}", text) + '"'


def _resolved(text: str) -> str:
    """Return compose text with the defaults of its variables in their place."""
    return _VARIABLE.sub(lambda found: (found.group(4) or "") if (found.group(3) or "").endswith("-") else "", text)


def _mount(item: object) -> tuple[str, str, str]:
    """Return (source, target, kind) of a volume entry; kind is "bind" for a folder of the host."""
    if isinstance(item, Mapping):
        return str(item.get("source") or ""), str(item.get("target") or ""), str(item.get("type") or "volume")
    parts = str(item).split(":")
    if len(parts) == 1:
        return "", parts[0], "volume"
    return parts[0], parts[1], "bind" if parts[0].startswith((".", "/", "~")) else "volume"


def _range(where: str, text: str) -> list[str]:
    """Return the ports of "80" or "3000-3005"."""
    if not text:
        return []
    first, dash, last = text.partition("-")
    begin = as_int(where, first, 1, 65535)
    end = as_int(where, last, begin, min(65535, begin + 99)) if dash else begin
    return [str(port) for port in range(begin, end + 1)]
