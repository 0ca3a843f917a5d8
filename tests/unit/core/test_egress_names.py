# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of policies: one spelling each, none that resolvers would read as something else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.egress_names import PUBLIC_SUFFIXES, check_spelling, check_whole, covered, covers, domain, widest
from fleet_core.errors import InvalidInput

LABEL = st.from_regex(r"[a-z]([a-z0-9-]{0,5}[a-z0-9])?", fullmatch=True)
NAMES = st.lists(LABEL, min_size=2, max_size=4).map(".".join)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("example.org", "example.org"),
        ("Example.ORG", "example.org"),
        ("example.org.", "example.org"),
        (" example.org ", "example.org"),
        ("*.example.org", "example.org"),
        ("_acme.example.org", "_acme.example.org"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("b\u00fccher.example", "xn--bcher-kva.example"),
        ("B\u00dcCHER.example", "xn--bcher-kva.example"),
        ("\u4f8b\u3048.jp", "xn--r8jz45g.jp"),
        ("a" * 63 + ".org", "a" * 63 + ".org"),
        (".".join(["a" * 49] * 5) + ".org", ".".join(["a" * 49] * 5) + ".org"),
        ("1.example", "1.example"),
        ("com", "com"),
    ],
)
def test_domain_has_one_spelling(text: str, name: str) -> None:
    assert domain("x", text) == name


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ".",
            "*",
            "*.",
            "*.*.example.org",
            "a.*.org",
            "example.*",
            "a*.example.org",
            "example..org",
            ".example.org",
        ),
        *("example.org..", "-a.org", "a-.org", "a b.org", "a\tb.org", "a\nb.org", "a/b.org", "a;b.org", 'a"b.org'),
        *("a" * 64 + ".org", ".".join(["a" * 62] * 4) + ".org", "127.1", "0x7f.1", "0x7f000001", "2130706433", "1.2.3"),
        *("192.0.2.1", "a.0x", "stra\u00dfe.de", "\u03c2.gr", "a\u200db.org", "\uff45xample.org", "a\u3002org"),
        *("e\u0301xample.org", "ex\u00adample.org", "\u2488com", "a\u2024org", "\ud800.org", "[::1]", "a:b", "a@b.org"),
    ],
)
def test_domain_refuses_what_others_could_read_differently(text: str) -> None:
    with pytest.raises(InvalidInput):
        domain("x", text)


@pytest.mark.parametrize("value", [None, 5, True, ["example.org"], {"a": 1}, b"example.org"])
def test_domain_refuses_what_is_no_text(value: object) -> None:
    with pytest.raises(InvalidInput, match=r"x: expected a domain"):
        domain("x", value)


@given(NAMES)
def test_domain_reads_its_own_result(name: str) -> None:
    assert domain("x", domain("x", name.upper() + ".")) == domain("x", name)


@given(st.text(max_size=20))
def test_domain_returns_only_what_is_safe_in_a_configuration_file(text: str) -> None:
    try:
        name = domain("x", text)
    except InvalidInput:
        return
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")
    assert len(name) <= 253
    assert all(0 < len(label) <= 63 for label in name.split("."))


@pytest.mark.parametrize(
    ("above", "name", "expected"),
    [
        ("example.org", "example.org", True),
        ("example.org", "a.b.example.org", True),
        ("example.org", "badexample.org", False),
        ("a.example.org", "example.org", False),
        ("org", "example.org", True),
    ],
)
def test_a_domain_covers_itself_and_what_is_below(above: str, name: str, expected: bool) -> None:
    assert covers(above, name) is expected
    assert covered(name, [above]) is expected


@given(st.lists(NAMES, max_size=8))
def test_widest_covers_the_same_and_nothing_twice(names: list[str]) -> None:
    found = widest(names)
    assert all(covered(name, found) for name in names)
    assert set(found) <= set(names)
    assert not any(covers(one, other) for one in found for other in found if one != other)
    assert list(found) == sorted(found)


@pytest.mark.parametrize("name", ["com", "co.uk", "github.io", "org", "cloudfront.net", "vercel.app"])
def test_a_public_suffix_as_a_whole_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=r"public suffix.*force: true"):
        check_whole("x", name)


@pytest.mark.parametrize("name", ["me.github.io", "example.co.uk", "example.com", "d111.cloudfront.net"])
def test_what_is_below_a_public_suffix_is_fine(name: str) -> None:
    assert check_whole("x", name) == name


def test_public_suffixes_are_domains() -> None:
    assert {domain("x", name) for name in PUBLIC_SUFFIXES} == PUBLIC_SUFFIXES


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("githbu.com", "github.com"),
        ("gihub.com", "github.com"),
        ("githubb.com", "github.com"),
        ("github.con", "github.com"),
        ("glthub.com", "github.com"),
        ("api.githbu.com", "github.com"),
        ("api.antropic.com", "api.anthropic.com"),
    ],
)
def test_a_domain_one_slip_away_from_a_known_one_is_refused(name: str, meant: str) -> None:
    with pytest.raises(InvalidInput, match=f'did you mean that.*|"{meant}"') as caught:
        check_spelling("x", name, {"github.com", "api.anthropic.com", "pypi.org"})
    assert f'"{meant}"' in str(caught.value)


@pytest.mark.parametrize("name", ["github.com", "api.github.com", "gitlab.com", "gitea.com", "example.org", "x.org"])
def test_known_and_other_domains_pass(name: str) -> None:
    assert check_spelling("x", name, {"github.com", "api.anthropic.com", "pypi.org"}) == name
