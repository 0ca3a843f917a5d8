# SPDX-License-Identifier: GPL-3.0-or-later
"""Process templates: the fields of a process that many processes share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import InvalidInput
from .names import check_keys, check_name, describe
from .processes import FIELDS, ProcessSpec, process_spec

KEYS = tuple(name for name in FIELDS if name not in ("template", "depends_on"))


@dataclass(frozen=True)
class Template:
    """A named set of process fields: id, label, command, resources, vars, action, and any other field of a process.

    A variable whose default is null must be given when a process is made from the template.
    """

    id: str
    fields: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the template in the format of the process manager: id, label?, command, resources, vars, ..."""
        data: dict[str, Any] = {"id": self.id}
        if self.fields.get("label"):
            data["label"] = self.fields["label"]
        data["command"] = self.fields["command"]
        data["resources"] = list(self.fields.get("resources") or [])
        data["vars"] = dict(self.fields.get("vars") or {})
        for key, value in self.fields.items():
            data.setdefault(key, value)
        return data


def template(data: object) -> Template:
    """Return a validated template. Raises InvalidInput that names the template and the key."""
    if not isinstance(data, Mapping):
        raise InvalidInput(f"template: expected a mapping with id and command, found {describe(data)}")
    name = check_name("template", data.get("id"))
    where = f'template "{name}"'
    check_keys(where, data, KEYS)
    given = {key: value for key, value in data.items() if key != "id" and value is not None}
    try:
        spec = process_spec({"id": name, **given})
    except InvalidInput as error:
        raise InvalidInput(str(error).replace(f'process "{name}"', where, 1)) from None
    plain = spec.to_dict()
    plain.pop("id")
    return Template(name, plain)


def instantiate(source: Template, data: Mapping[str, Any]) -> ProcessSpec:
    """Return the process that the template makes of data (id, vars, and fields to replace)."""
    return process_spec({**data, "template": source.id}, source.fields)
