# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests checked against the API schemas that Proxmox VE publishes, which lie beside the checkout.

As strict as Proxmox itself: parameters that it does not know, that are missing, or that have another form.
"""

from __future__ import annotations

import functools
import json
import lzma
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.recorded import _PLACES

FILE = "pve-apidoc.json.xz"
VERSIONS = ("8.4", "9.1", "9.2")
_NODE = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
# The formats of Proxmox that have names, as far as they are used.
_FORMATS = {
    "pve-node": _NODE,
    "dns-name": rf"{_LABEL}(?:\.{_LABEL})*",
    "pve-configid": r"[A-Za-z][A-Za-z0-9_-]+",
    "pve-storage-id": r"[A-Za-z][A-Za-z0-9._-]*[A-Za-z0-9]",
    "pve-poolid": r"[A-Za-z0-9._/-]+",
    "pve-tag-list": r"(?:[A-Za-z0-9_][A-Za-z0-9_.+-]*[;, ]?)*",
    "pve-configid-list": r"(?:[A-Za-z][A-Za-z0-9_-]+[;, ]?)*",
    "pve-bridge-id": r"[A-Za-z0-9._-]{1,15}",
    "mac-addr": r"(?i:[0-9a-f][02468ace](?::[0-9a-f]{2}){5})",
    "urlencoded": r"(?:[A-Za-z0-9._~!*'()-]|%[0-9a-fA-F]{2})*",
    "pve-ipv4-config": r"dhcp|\d+(?:\.\d+){3}/\d+",
    "pve-ipv6-config": r"auto|dhcp|[0-9a-fA-F:.]+/\d+",
    "ipv4": r"\d+(?:\.\d+){3}",
    "ipv6": r"[0-9a-fA-F:.]+",
    "pve-volume-id": r"[A-Za-z][A-Za-z0-9._-]*:.+",
    "pve-volume-id-or-qm-path": r"none|cdrom|/.+|[A-Za-z][A-Za-z0-9._-]*:.+",
}


@functools.cache
def schemas() -> Mapping[str, Any] | None:
    """Return the published schemas by version, or None when they are not here."""
    path = next((place / FILE for place in _PLACES if str(place) != "." and (place / FILE).is_file()), None)
    return None if path is None else json.loads(lzma.decompress(Path(path).read_bytes()))["schemas"]


def problems(version: str, method: str, path: str, params: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a request, by the schema of a version. path: without /api2/json."""
    found = _match(version, path)
    if found is None:
        return [f"no such path: {path}"]
    template, values = found
    known = schemas()[version]["paths"][template]  # type: ignore[index]
    if method not in known:
        return [f"{template} has no {method}"]
    declared = known[method].get("parameters", {}).get("properties", {})
    given = {**{key: value for key, value in values.items() if key in declared}, **params}
    wrong = []
    for name, value in given.items():
        spec = declared.get(name) or declared.get(re.sub(r"\d+$", "[n]", name))
        if spec is None:
            wrong.append(f"{name}: unknown")
            continue
        wrong += [f"{name}: {text}" for text in _wrong(spec, value)]
        needs = spec.get("requires")
        if needs and needs not in given:
            wrong.append(f"{name}: needs {needs}")
    wrong += [f"{name}: missing" for name, spec in declared.items() if not spec.get("optional") and name not in given]
    return [f"{method} {template}: {text}" for text in wrong]


def all_problems(requests: Iterable[Any]) -> list[str]:
    """Return what is wrong with requests by any of the versions."""
    found = {
        f"{version}: {text}"
        for request in requests
        for version in VERSIONS
        for text in problems(version, request.method, request.path, request.params)
    }
    return sorted(found)


@functools.cache
def _templates(version: str) -> list[tuple[Any, str]]:
    paths = sorted(schemas()[version]["paths"], key=lambda path: path.count("{"))  # type: ignore[index]
    result = []
    for path in paths:
        pattern = re.sub(r"\\?\{(volume)\\?\}", r"(?P<\1>.+)", re.escape(path))
        pattern = re.sub(r"\\?\{([a-z_-]+)\\?\}", lambda m: f"(?P<{m[1].replace('-', '_')}>[^/]+)", pattern)
        result.append((re.compile(pattern), path))
    return result


def _match(version: str, path: str) -> tuple[str, dict[str, str]] | None:
    for pattern, template in _templates(version):
        found = pattern.fullmatch(path)
        if found:
            return template, found.groupdict()
    return None


def _wrong(spec: Mapping[str, Any], value: Any) -> Iterable[str]:
    if isinstance(value, list):
        if spec.get("type") != "array":
            yield "is a list"
        return
    text, kind = str(value), spec.get("type", "string")
    if kind == "integer" and not re.fullmatch(r"-?\d+", text):
        yield f"no whole number: {text!r}"
    elif kind == "number" and not re.fullmatch(r"-?\d+(?:\.\d+)?", text):
        yield f"no number: {text!r}"
    elif kind == "boolean" and text not in ("0", "1"):
        yield f"no truth value: {text!r}"
    elif kind in ("integer", "number"):
        low, high = spec.get("minimum"), spec.get("maximum")
        if (low is not None and float(text) < float(low)) or (high is not None and float(text) > float(high)):
            yield f"out of range: {text}"
    if spec.get("enum") and text not in spec["enum"]:
        yield f"none of {spec['enum']}: {text!r}"
    if len(text) > int(spec.get("maxLength", 10**9)):
        yield "too long"
    if spec.get("pattern") and not re.fullmatch(_perl(spec["pattern"]), text):
        yield f"does not match {spec['pattern']}: {text!r}"
    form = spec.get("format")
    if isinstance(form, Mapping):
        yield from _property_string(form, text)
    elif form in _FORMATS and not re.fullmatch(_FORMATS[form], text):
        yield f"no {form}: {text!r}"


def _property_string(form: Mapping[str, Any], text: str) -> Iterable[str]:
    default = next((key for key, spec in form.items() if spec.get("default_key")), None)
    given: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals:
            if default is None or default in given:
                yield f"no key in {part!r}"
                continue
            key, value = default, key
        spec = form.get(key)
        if spec is None:
            yield f"unknown key {key!r}"
            continue
        target = spec.get("alias", key)
        given[target] = value
        if "keyAlias" in spec:
            given[spec["keyAlias"]] = key
        target_spec = form.get(target, spec)
        yield from (f"{key}: {wrong}" for wrong in _wrong(target_spec, value) if "alias" not in spec or value)
    for key, spec in form.items():
        if not spec.get("optional") and "alias" not in spec and key not in given:
            yield f"lacks {key}"


def _perl(pattern: str) -> str:
    return pattern.replace("(?^i:", "(?i:").replace("(?^:", "(?:")
