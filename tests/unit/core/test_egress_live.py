# SPDX-License-Identifier: GPL-3.0-or-later
"""Live changes: one form each, the later settles the earlier."""

from __future__ import annotations

import pytest

from fleet_core.egress_entries import Entry
from fleet_core.egress_live import Live, going_on, lasting, live_change, live_from_dict, with_live, without_live
from fleet_core.errors import InvalidInput
from fleet_core.fences import Guest


@pytest.mark.parametrize(
    ("verb", "text", "entry"),
    [
        ("allow", "*.Example.org", "example.org"),
        ("allow", "example.org:443", "example.org"),
        ("allow", "192.0.2.7:22", "192.0.2.7:22"),
        ("allow", "github", "github"),
        ("deny", "Example.org.", "example.org"),
        ("deny", "192.0.2.0/24", "192.0.2.0/24"),
        ("mode", "locked", "locked"),
    ],
)
def test_a_change_has_one_form(verb: str, text: str, entry: str) -> None:
    found = live_change("project-shop", verb, text, 9, 5)
    assert found == Live("project-shop", verb, entry, 9, 5)
    assert live_from_dict(found.to_dict()) == found


@pytest.mark.parametrize(
    ("scope", "verb", "text", "message"),
    [
        ("shop", "allow", "a.org", "expected default, project-NAME or machine-NAME"),
        ("machine-", "allow", "a.org", "machine name"),
        ("project-a b", "allow", "a.org", "project name"),
        ("default-x", "allow", "a.org", "expected default"),
        ("default", "alow", "a.org", 'did you mean "allow"'),
        ("default", "allow", "githbu", 'did you mean "github"'),
        ("default", "allow", "githbu.com", "spelt almost like"),
        ("default", "allow", "com", "public suffix"),
        ("default", "deny", "a.org:80", "expected an address"),
        ("default", "deny", "gist.githbu.com", "spelt almost like"),
        ("default", "deny", "github", "presets open, they do not close"),
        ("default", "mode", "lock", 'did you mean "locked"'),
    ],
)
def test_a_wrong_change_is_refused(scope: str, verb: str, text: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        live_change(scope, verb, text)


def test_what_was_forced_once_is_not_asked_again() -> None:
    found = live_change("default", "allow", "githbu.com", force=True)
    assert live_from_dict(found.to_dict()) == found
    assert found.to_entry() == Entry("domain", "githbu.com", "tcp", ((443, 443),), force=True)
    closed = live_change("default", "deny", "githbu.com", force=True)
    assert live_from_dict(closed.to_dict()) == closed
    assert closed.to_entry() == Entry("domain", "githbu.com", "any")


def test_an_entry_ends_with_its_change() -> None:
    assert live_change("default", "allow", "pypi", 9).to_entry() == Entry("preset", "pypi", "any", until=9)
    assert live_change("default", "deny", "a.org", 9).to_entry() == Entry("domain", "a.org", "any", until=9)


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        ([], ("default", "allow", "a.org", 5), ["allow a.org"]),
        ([("default", "allow", "a.org", 9)], ("default", "allow", "a.org", 5), ["allow a.org"]),
        ([("default", "allow", "a.org", 0)], ("default", "deny", "a.org", 5), ["deny a.org"]),
        ([("default", "deny", "a.org", 0)], ("default", "allow", "a.org:80", 5), ["allow a.org:80"]),
        ([("default", "allow", "a.org", 0)], ("default", "allow", "a.org:80", 5), ["allow a.org", "allow a.org:80"]),
        ([("default", "allow", "a.org", 0)], ("machine-x", "deny", "a.org", 5), ["allow a.org", "deny a.org"]),
        ([("default", "mode", "open", 0)], ("default", "mode", "locked", 5), ["mode locked"]),
        ([("default", "mode", "open", 0)], ("default", "allow", "a.org", 5), ["allow a.org", "mode open"]),
    ],
)
def test_the_later_change_settles_the_earlier(before: list, change: tuple, after: list[str]) -> None:  # type: ignore[type-arg]
    found = with_live([live_change(*item) for item in before], live_change(*change))
    assert [f"{item.verb} {item.entry}" for item in found] == after
    assert all(item.until == 5 for item in found if (item.scope, item.verb, item.entry) == change[:3])


def test_changes_are_taken_back_by_scope_and_entry() -> None:
    changes = [live_change("default", "allow", "a.org:80"), live_change("default", "deny", "b.org"),
               live_change("project-x", "allow", "a.org")]  # fmt: skip
    assert without_live(changes) == ()
    assert without_live(changes, "default") == (changes[2],)
    assert without_live(changes, entry="a.org") == (changes[1],)
    assert without_live(changes, "default", "b.org") == (changes[0], changes[2])


def test_lasting_leaves_out_what_has_ended() -> None:
    changes = [live_change("default", "allow", "b.org", 10), live_change("default", "allow", "a.org")]
    assert lasting(changes, 9) == (changes[1], changes[0])
    assert lasting(changes, 10) == (changes[1],)


def test_what_closes_waits_for_machines_that_are_gone() -> None:
    changes = tuple(
        live_change(scope, verb, text)
        for scope in ("default", "project-shop", "machine-web-1", "project-gone", "machine-gone")
        for verb, text in (("allow", "a.org"), ("deny", "b.org"), ("mode", "locked"))
    )
    changes += (live_change("machine-also-gone", "mode", "open"),)
    left = set(changes) - set(going_on(changes, [Guest("web-1", "br", "52:54:00:00:00:01", project="shop")]))
    assert {(change.scope, change.verb) for change in left} == {
        ("project-gone", "allow"),
        ("machine-gone", "allow"),
        ("machine-also-gone", "mode"),
    }
