# SPDX-License-Identifier: GPL-3.0-or-later
"""Process templates."""

from __future__ import annotations

from typing import Any

import pytest

from fleet_core.errors import InvalidInput
from fleet_core.processes import launch
from fleet_core.templates import instantiate, template

POSTGRES = {
    "id": "postgres",
    "label": "PostgreSQL",
    "command": "postgres -D ${datadir} -p %tcpport",
    "resources": ["tcpport", "datadir"],
    "vars": {"datadir": None, "size": "128MB"},
}


def test_a_template_reads_back_in_the_format_of_the_process_manager() -> None:
    found = template(POSTGRES)
    assert found.to_dict() == POSTGRES
    assert list(found.to_dict()) == ["id", "label", "command", "resources", "vars"]
    assert template({"id": "x", "command": "y"}).to_dict() == {"id": "x", "command": "y", "resources": [], "vars": {}}


def test_further_fields_follow() -> None:
    found = template({**POSTGRES, "stop_signal": "INT", "health": "tcp://127.0.0.1:${tcpport}", "action": "psql"})
    assert found.fields["stop_signal"] == "SIGINT"
    assert template(found.to_dict()) == found
    assert found.to_dict()["action"] == "psql"


def test_a_process_is_made_from_a_template() -> None:
    spec = instantiate(template(POSTGRES), {"id": "shop/db", "vars": {"datadir": "/data"}, "env": {"A": "1"}})
    assert (spec.id, spec.template, spec.label) == ("shop/db", "postgres", "PostgreSQL")
    assert spec.vars == {"datadir": "/data", "size": "128MB"}
    job = launch(spec, {"tcpport": ("tcpport", "5432"), "datadir": ("datadir", "/data")})
    assert job.argv == ("postgres", "-D", "/data", "-p", "5432")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "template: expected a mapping with id and command, found nothing"),
        ({"command": "x"}, "template name None: expected"),
        ({"id": "a/b", "command": "x"}, "template name 'a/b': expected"),
        ({"id": "t"}, 'template "t": expected a command, found nothing'),
        ({"id": "t", "command": "x", "depends_on": ["a"]}, 'template "t": unknown key "depends_on"'),
        ({"id": "t", "command": "x", "template": "u"}, 'template "t": unknown key "template"'),
        ({"id": "t", "command": "x", "vars": []}, 'template "t": vars: expected a mapping'),
        (
            {"id": "t", "command": "x", "resource": []},
            'template "t": unknown key "resource", did you mean "resources"?',
        ),
    ],
)
def test_a_wrong_template_is_an_error_that_names_it(data: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        template(data)
    assert str(caught.value).startswith(message)
