# SPDX-License-Identifier: GPL-3.0-or-later
"""The S-expressions of gcluster and the ids made of them."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_core.agent_forms import (
    Form,
    agent_form,
    form,
    form_of,
    legacy_id,
    method_form,
    pipeline_form,
    quote,
    read_form,
    stored_form,
)
from fleet_core.agents import agent_definition
from fleet_core.errors import FleetError, InvalidInput
from fleet_core.prompt_agents import agent_from_form
from fleet_core.prompt_pipelines import pipeline

BUILDER = {
    "name": "builder",
    "runner": "claude",
    "methods": {"build": "Build it."},
    "pipeline": [{"loop": "build"}],
}
FORM = '(defagent "builder"\n  (pipeline\n    (step "build" (loop build))))'


def test_the_vectors_of_the_original() -> None:
    definition = agent_definition(BUILDER)
    assert form(definition) == FORM
    bare = hashlib.sha256(FORM.encode()).hexdigest()
    assert bare == "0281ec2f8fd1d175dcd0e57034b7abde2854bfb45718ab184c47fb1ecc67e931"
    assert stored_form(FORM) == f"; id=0281ec2f\n{FORM}\n"
    assert legacy_id(definition) == "08e730bdcd38bc1d179975defe8a56367ac71dd72683828b2f21791c2736e588"


def test_the_legacy_id_does_not_cover_bodies_and_ours_does() -> None:
    before, after = agent_definition(BUILDER), agent_definition({**BUILDER, "methods": {"build": "Build more."}})
    assert legacy_id(before) == legacy_id(after)
    assert before.id != after.id


def test_methods_and_pipelines_have_forms() -> None:
    assert method_form("spec", ("idea", "why"), 'Say "[idea]"\nand why.') == (
        '(defmethod spec (idea why)\n  "Say \\"[idea]\\"\\nand why.")'
    )
    source = pipeline("p -> label (m) -> l2 (map(ref, m)) -> l3 (loop(m))")
    assert source is not None
    assert pipeline_form("name", ("p",), source) == (
        '(defpipeline name (p)\n  (pipeline p\n    (step "label" (call m))\n    (step "l2" (map ref m))\n'
        '    (step "l3" (loop m))))'
    )


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("", '""'),
        ('a "b" \\c', r'"a \"b\" \\c"'),
        ("a\tb\nc\r\a\b\f\v", r'"a\tb\nc\r\a\b\f\v"'),
        ("\x00\x1b\x7f", r'"\x00\x1b\x7f"'),
        ("é ✓ 漢 🚀", '"é ✓ 漢 🚀"'),
        ("\u00a0\u200b\ufeff\x85", r'"\u00a0\u200b\ufeff\u0085"'),
        ("\U000e0001", r'"\U000e0001"'),
    ],
)
def test_text_is_quoted_as_go_does(text: str, quoted: str) -> None:
    assert quote(text) == quoted


FORMS = [
    FORM,
    '(defagent "x"\n  "Just \\"work\\".\\n\\u200b\\x1b")',
    '(defagent "x"\n  (pipeline topic\n    (step "a b" (call m))\n    (step "c" (map chapters m))))',
    '(defagent "x"\n  (pipeline\n    (step "c" (map [one, two] m))))',
]


@pytest.mark.parametrize("text", FORMS)
def test_a_form_is_read_and_written_back(text: str) -> None:
    assert agent_form(read_form(text)) == text
    assert agent_form(read_form(stored_form(text))) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'agent form: expected (defagent "NAME" …), found'),
        ("(defmethod x () 1)", 'agent form: expected (defagent "NAME" …)'),
        ('(defagent "x"', "agent form: expected a closing bracket at the end"),
        ('(defagent "x\n', "agent form: line 1: expected a closing quote"),
        ('(defagent x "y")', "agent form: expected a name in quotes"),
        ('(defagent "x" (steps))', 'agent form "x": expected (pipeline …) or a text'),
        ('(defagent "x" (pipeline (step "a" (run m))))', 'expected (step "LABEL" (call METHOD))'),
        ('(defagent "x" "\\q")', 'agent form: expected an escape of Go, found "\\q"'),
        ("(" * 10000, "agent form: expected at most 50 brackets in each other"),
    ],
)
def test_what_is_wrong_with_a_form_is_named(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        read_form(text)
    assert message in str(error.value)


def test_an_agent_of_a_form_keeps_the_form_and_its_id() -> None:
    text = '(defagent "x"\n  (pipeline topic\n    (step "a" (call m))\n    (step "c" (map chapters n))))'
    found = agent_from_form(text, {"m": "List chapters", "n": "Write it"}, {"runner": "codex"})
    assert found.runner == "codex"
    assert [step.to_dict() for step in found.pipeline] == [
        {"call": "m", "label": "a"},
        {"map": "n", "label": "c", "over": "a"},
    ]
    assert form(found) == text
    assert form(agent_definition(found.to_dict())) == text


def test_a_prompt_agent_of_a_form_is_one_call() -> None:
    found = agent_from_form('(defagent "x"\n  "Work.")', {"agent-x": "Work."})
    assert form_of(found) == Form("x", None, "Work.")
    assert found.legacy_form == ""


@given(st.text(max_size=40))
def test_quoting_is_reversible(text: str) -> None:
    encodable = text.encode("utf-8", "replace").decode()
    assert read_form(agent_form(Form("x", None, encodable))).body == encodable


@given(st.text(st.sampled_from('()"\\ ;\nabxu0') | st.characters(), max_size=40))
def test_any_text_is_a_form_or_an_error(text: str) -> None:
    for source in (text, f'(defagent "x" {text})', f'(defagent "x" (pipeline (step "a" {text})))'):
        try:
            found = agent_from_form(source, {"a": "x"})
        except FleetError:
            continue
        assert agent_definition(found.to_dict()) == found
