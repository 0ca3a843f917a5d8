# SPDX-License-Identifier: GPL-3.0-or-later
"""The .p language: what files mean, and how errors point into them."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping
from typing import Any

import pytest

from fleet_core.agent_forms import form
from fleet_core.agents import AgentDefinition
from fleet_core.errors import InvalidInput, NotFound
from fleet_core.prompt_agents import unused
from fleet_core.prompt_files import Invocation, PlainText, agents, parse


def source(text: str) -> str:
    """The text of a test, its indentation by four spaces turned into tabs."""
    lines = []
    for line in textwrap.dedent(text).split("\n"):
        depth = len(line) - len(line.lstrip(" "))
        lines.append("\t" * (depth // 4) + line.lstrip(" "))
    return "\n".join(lines)


def loader(files: Mapping[str, str]) -> Any:
    def load(path: str) -> str:
        if path not in files:
            raise NotFound(f"{path}: No such file or directory")
        return source(files[path])

    return load


def read(text: str, files: Mapping[str, str] | None = None, name: str = "agents.p", **base: Any) -> Any:
    return agents(parse(source(text), name, loader(files or {})), base)


def only(text: str, files: Mapping[str, str] | None = None, **base: Any) -> AgentDefinition:
    (found,) = read(text, files, **base)
    assert isinstance(found, AgentDefinition)
    return found


def steps(agent: AgentDefinition) -> list[dict[str, Any]]:
    return [step.to_dict() for step in agent.pipeline]


def test_the_example_of_the_original() -> None:
    agent = only(
        """\
        build:
            Read BACKLOG.md, pick one item, build it, commit.
        agent-builder:
            loop(build)
        """,
        limits={"cost": 5},
        model="opus",
    )
    assert (agent.name, agent.runner, agent.model, agent.limits.cost) == ("builder", "claude", "opus", 5)
    assert agent.method("build").body == "Read BACKLOG.md, pick one item, build it, commit."
    assert steps(agent) == [{"loop": "build"}]


def test_a_body_keeps_its_lines_and_ends_at_the_first_unindented_one() -> None:
    parsed = parse("a:\n\tone\n\n\t\ttwo\n\n\n\tthree\n\nb(x, y):\n\tfour [x]\n")
    assert parsed.methods["a"].body == "one\n\n\ttwo\n\n\nthree"
    assert parsed.methods["b"].parameters == ("x", "y")


def test_comments_and_line_ends() -> None:
    text = "\ufeff; one\r\n# two\r\na:\r\n\t# kept\r\n; dropped\r\n\t; kept too\r\n\t@kept\r\n"
    assert parse(text).methods["a"].body == "# kept\n; kept too\n@kept"


def test_the_last_of_two_methods_wins() -> None:
    assert only("a:\n    one\nagent-x:\n    loop(a)\na:\n    two\n").method("a").body == "two"


def test_several_agents_keep_their_order() -> None:
    found = read(
        "agent-b:\n    loop(m)\nm:\n    x\nagent-a:\n    loop(m)\nagent-release-manager:\n    m -> n\nn:\n    y\n"
    )
    assert [agent.name for agent in found] == ["b", "a", "release-manager"]
    assert [len(agent.methods) for agent in found] == [1, 1, 2]


BOOK = source("""\
    book(topic):
        topic -> brief (book-idea) -> outline (index) -> chapters (map(chapters, write)) -> final (concat)
    book-idea(topic):
        We write about [topic].
    index:
        Make an index.
    write(chapter):
        Write [chapter].
    concat:
        Put it all together.
    """)


def test_a_file_that_invokes_a_pipeline_is_an_agent_with_its_name() -> None:
    (agent,) = agents(parse(BOOK + "\n@concise\nIn English.\n@book(trees)\n", "texts/book.p"))
    assert agent.name == "book"
    assert steps(agent) == [
        {"call": "book-idea", "label": "brief", "arguments": ["trees"]},
        {"call": "index", "label": "outline"},
        {"map": "write", "label": "chapters", "over": "outline"},
        {"call": "concat", "label": "final"},
    ]
    assert agent.method("book-idea").body.startswith("Be brief.")
    assert agent.method("book-idea").body.endswith("In English.\n\nWe write about [topic].")


def test_a_file_that_invokes_prompts_is_one_prompt() -> None:
    (agent,) = read("@conversational\nhow do trees grow? @listify(n=10) Thanks!\n", name="y.p")
    (method,) = agent.methods
    lines = method.body.split("\n")
    assert lines[1:] == [
        "how do trees grow?",
        "Give the answer as a numbered list of 10 items, one item a line, and nothing beside the list.",
        "Thanks!",
    ]


@pytest.mark.parametrize("call", ["@book(trees)", "@book(topic=trees)", '@book("trees")'])
def test_an_agent_can_invoke_a_pipeline(call: str) -> None:
    (agent,) = agents(parse(f"{BOOK}\nagent-author:\n\t{call}\n"))
    assert agent.name == "author"
    assert agent.pipeline[0].arguments == ("trees",)
    assert form(agent).startswith('(defagent "author"\n  "@book(')


def test_a_line_gives_the_parameters_of_an_agent() -> None:
    text = "m(goal):\n    Reach [goal].\nagent-x(goal):\n    goal -> m\n"
    assert only(f'{text}@agent-x("peace, and quiet")\n').pipeline[0].arguments == ("peace, and quiet",)
    with pytest.raises(InvalidInput, match=r'agents.p:3:1: agent "x": nothing gives parameter "goal"; add a line'):
        only(text)


def test_the_first_input_reaches_the_first_method_whatever_its_parameter_is_called() -> None:
    assert only("m(aim):\n    Reach [aim].\nagent-x(goal):\n    goal -> m\n@agent-x(peace)\n").pipeline[
        0
    ].arguments == ("peace",)
    agent = only("m:\n    Reach it.\nagent-x(goal):\n    goal -> m\n@agent-x(peace)\n")
    assert agent.method("m").body == "Reach it.\n\npeace"
    agent = only("m:\n    Go.\nn(goal):\n    Reach [goal].\nagent-x(goal):\n    goal -> m -> n\n@agent-x(peace)\n")
    assert agent.method("m").body == "Go."
    assert agent.pipeline[1].arguments == ("peace",)


def test_a_method_that_later_steps_use_as_it_is_gets_a_second_name_with_the_preamble() -> None:
    (agent,) = read("m:\n    Work.\np:\n    m -> again (m)\nBe nice.\n@p\n", name="x.p")
    assert [(step.method, step.label) for step in agent.pipeline] == [("m-first", "m"), ("m", "again")]
    assert agent.method("m-first").body == "Be nice.\n\nWork."
    assert agent.method("m").body == "Work."


def test_a_pipeline_may_begin_with_a_method() -> None:
    assert steps(only("a:\n    x\nb:\n    y\nagent-x:\n    a -> b -> map([one, two], review)\n")) == [
        {"call": "a"},
        {"call": "b"},
        {"map": "review", "items": ["one", "two"]},
    ]


def test_inline_pipelines() -> None:
    assert steps(only("a:\n    x\nagent-x:\n    @loop(a)\n")) == [{"loop": "a"}]
    (agent,) = read("a:\n    x\n@map([one, two], a)\n", name="x.p")
    assert steps(agent) == [{"map": "a", "items": ["one", "two"]}]


def test_an_arrow_in_a_prompt_is_text() -> None:
    agent = only("agent-x:\n    Turn a -> b into b -> a.\n    loop(x) too.\n")
    assert agent.methods[0].body == "Turn a -> b into b -> a.\nloop(x) too."
    assert steps(agent) == [{"call": "agent-x"}]


def test_a_mention_of_a_file_is_text() -> None:
    parsed = parse("Study @PLAN.md and me@example.org (see @plan)\n")
    assert [type(item) for item in parsed.program] == [PlainText, Invocation]
    assert parsed.program[0] == PlainText("Study @PLAN.md and me@example.org (see", parsed.program[0].place)


IMPORTS = {
    "lib/common.p": "@more/extra.p\nbuild:\n    From common.\nagent-z:\n    loop(build)\n@ignored\n",
    "lib/more/extra.p": "build:\n    From extra.\ntest:\n    From extra.\n",
}


def test_imports_give_methods_and_no_agents() -> None:
    first, second = read("@lib/common.p\nagent-x:\n    loop(build)\nagent-y:\n    loop(test)\n", IMPORTS)
    assert first.methods[0].body == "From common."
    assert second.methods[0].body == "From extra."


def test_an_import_overrides_what_stands_before_it() -> None:
    agent = only("build:\n    Mine.\nagent-x:\n    loop(build)\n@lib/common.p\n", IMPORTS)
    assert agent.methods[0].body == "From common."


def test_the_library_needs_no_import_and_can_be_imported() -> None:
    first = only("agent-x:\n    loop(conversational)\n")
    assert only("@stdlib.p\nagent-x:\n    loop(conversational)\n").id == first.id
    own = only("@stdlib.p\nagent-x:\n    loop(conversational)\n", {"stdlib.p": "conversational:\n    Mine.\n"})
    assert own.methods[0].body == "Mine."


def test_what_no_agent_uses_is_told() -> None:
    parsed = parse("agent-x:\n\tWork.\n\n@conversational\n")
    assert unused(parsed) == ("<text>:4: stands outside the agents of the file and is not used",)
    assert unused(parse("@conversational\n")) == ()
    assert agents(parse("a:\n\tx\n")) == ()


WRONG: list[tuple[str, str]] = [
    ("agent-x:\n  loop(a)\n", "p:2:1: expected a tab at the beginning of a body's line, found a space"),
    ("agent-x:\n\tone\n  two\n", "p:3:1: expected a tab at the beginning of a body's line, found a space"),
    ("\tone\n", "p:1:1: expected a method header above an indented line, such as `name:`"),
    (" one\n", "p:1:1: expected a tab or no indentation, found a space"),
    ("Do this:\n\tx\n", 'p:1:1: expected `name:` or `name(parameter, …):`, found "Do this:"'),
    ("a(:\n\tx\n", "p:1:1: expected `name:` or `name(parameter, …):`"),
    ("a(b c):\n\tx\n", 'p:1:1: method "a": expected names of letters, digits, "-" and "_", found "b c"'),
    ("a(b, b):\n\tx\n", 'p:1:1: method "a": parameter "b" stands twice'),
    ("a:\nb:\n\tx\n", 'p:1:1: method "a": expected a body, indented by a tab, found nothing'),
    ("agent-x:\n\tloop(a\na:\n\tx\n", 'p:2:2: method "agent-x": expected METHOD, LABEL (METHOD), loop(METHOD) or map'),
    ("agent-x:\n\tloop (a)\na:\n\tx\n", 'p:2:2: method "agent-x": expected "loop(" without a space, found "loop (a)"'),
    ("agent-x:\n\ta -> b c -> d\n", 'p:2:7: method "agent-x": expected METHOD, LABEL (METHOD)'),
    ("agent-x:\n\ta -> b -> map(c)\n", 'p:2:16: method "agent-x": expected map(LIST, METHOD), found "map(c)"'),
    ("agent-x:\n\ta -> b (c d)\n", 'p:2:10: method "agent-x": expected METHOD, loop(METHOD) or map(LIST, METHOD) in'),
    ("agent-x:\n\ta -> \n", 'p:2:2: method "agent-x": expected'),
    ("agent-x:\n\tmap([], a)\n", "expected at least one item in the list"),
    ("agent-x:\n\tloop(biuld)\nbuild:\n\tx\n", 'p:2:2: method "biuld": not defined, did you mean "build"?'),
    ("agent-x:\n\t@biuld\nbuild:\n\tx\n", 'p:2:2: method "biuld": not defined, did you mean "build"?'),
    (
        "agent-x:\n\tgaol -> build\nbuild:\n\tx\n",
        'p:2:2: expected a parameter or a method at the beginning, found "gaol"',
    ),
    ("agent-x:\n\tloop(p)\np:\n\tloop(a)\na:\n\tx\n", 'step "p": expected a prompt, found the pipeline "p"'),
    ("agent-x:\n\tmap(a, b)\nb:\n\tx\n", 'step "b": expected map([ITEM, …], b), for no step before it gives a list'),
    ("agent-x:\n\tloop(a)\na(n):\n\t[n]\n", 'p:1:1: agent "x": step "a": method "a" takes 1 argument (n), found no'),
    ("agent-x:\n\ta -> b -> c\na:\n\tx\nb:\n\tx\nc(a):\n\t[a]\n", 'parameter "a" is the result of an earlier step'),
    ("agent-x:\n\tloop(a) -> b\na:\n\tx\nb:\n\tx\n", 'without them step "b" is never reached'),
    ("agent-.:\n\tx\n", "p:1:1: expected `name:`"),
    ("agent--x:\n\tx\n", 'p:1:1: expected a name after "agent-"'),
    ("@listify(m=3)\n", 'p:1:1: method "listify": unknown parameter "m"'),
    ("@listify(3, 4)\n", 'p:1:1: method "listify" takes 1 (n): expected no further argument, found "4"'),
    ("@listify(3, n=4)\n", 'p:1:1: method "listify": parameter "n" is given twice'),
    ("Hello @listify\n", 'p:1:7: method "listify": expected a value for "n", found none'),
    ("Hello @listify(3\n", 'p:1:7: expected a closing bracket, found "(3"'),
    ("@concize\n", 'p:1:1: method "concize": not defined, did you mean "concise"?'),
    ("@loop(concise) @loop(concise)\n", "p:1:16: expected one pipeline, found a second one"),
    ("@other.p\nagent-x:\n\tx\n", "p:1:1: other.p: No such file or directory"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_errors_name_the_place_and_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as error:
        agents(parse(text, "p", loader({})))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_errors_in_imports_name_the_imported_file() -> None:
    files = {"lib/a.p": "@b.p\n", "lib/b.p": "@a.p\n", "bad.p": "a:\n\n"}
    with pytest.raises(InvalidInput, match=r"lib/b.p:1:1: expected files that .* found lib/a.p -> lib/b.p -> lib/a.p"):
        read("@lib/a.p\n", files)
    with pytest.raises(InvalidInput, match=r"agents.p:1:1: .* in a circle, found agents.p -> agents.p"):
        read("@agents.p\n", files)
    with pytest.raises(InvalidInput, match=r'bad.p:1:1: method "a": expected a body'):
        read("@bad.p\n", files)
    with pytest.raises(InvalidInput, match=r'1:1: import "a.p": only files that lie in a folder can import others'):
        parse("@a.p\n")


def test_many_imports_of_one_file_read_it_once() -> None:
    files = {f"{number}.p": f"@{number + 1}.p\n@{number + 1}.p\n" for number in range(40)} | {"40.p": "a:\n    x\n"}
    assert only("@0.p\nagent-x:\n    loop(a)\n", files).methods[0].body == "x"


@pytest.mark.parametrize("key", ["name", "methods", "pipeline"])
def test_what_the_file_says_cannot_be_given_beside_it(key: str) -> None:
    with pytest.raises(InvalidInput, match=f'agents.p: "{key}" comes from the file'):
        agents(parse("agent-x:\n\tWork.\n", "agents.p"), {key: "x"})


def test_arguments_with_many_quotes_are_read_in_time_that_grows_with_their_length() -> None:
    def seconds(count: int) -> float:
        begun = time.process_time()
        parse("@a(" + ' "' * count + ")\n")
        return time.process_time() - begun

    assert seconds(400_000) < 40 * max(seconds(40_000), 0.01)
