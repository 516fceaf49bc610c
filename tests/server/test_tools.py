"""Tool calls: the grammar they follow, and how answers are read, however they are cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher
from msgspec import UNSET

from weir.errors import BadRequest
from weir.grammar.compile import _bytes, guidance
from weir.server.tools import (
    BEGIN,
    END,
    Calls,
    ChosenFunction,
    ChosenTool,
    Function,
    Tool,
    Toolbox,
    ToolCall,
    whole,
)

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"city": {"type": "string"}},
}
TOOLS = [Tool("function", Function("weather", "…", PARAMETERS)), Tool("function", Function("now"))]


def call(name: str, arguments: object) -> str:
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False) + END


WEATHER, NOW = call("weather", {"city": 'Zürich "}\n</tool_call>'}), call("now", {})


def fits(toolbox: Toolbox, text: str) -> bool:
    """Whether a whole answer may be `text`."""
    assert toolbox.structured is not None
    matcher = LLMatcher(_bytes(), guidance(toolbox.structured), log_level=0)
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def test_what_may_be_answered():
    several, one = Toolbox(TOOLS, None, several=True), Toolbox(TOOLS, "auto", several=False)
    for toolbox in (several, one):
        assert fits(toolbox, "just < text") and fits(toolbox, "so:\n" + BEGIN + WEATHER)
        assert not fits(toolbox, BEGIN + call("weather", {"town": "x"}))
        assert not fits(toolbox, BEGIN + call("nothing", {}))
    assert fits(several, BEGIN + WEATHER + "\n" + BEGIN + NOW)
    assert not fits(one, BEGIN + WEATHER + "\n" + BEGIN + NOW)


def test_a_call_that_must_be_made():
    toolbox = Toolbox(TOOLS, "required", several=True)
    assert fits(toolbox, WEATHER) and fits(toolbox, NOW + "\n" + BEGIN + WEATHER)
    assert not fits(toolbox, "text")
    toolbox = Toolbox(TOOLS, ChosenTool("function", ChosenFunction("now")), several=False)
    assert fits(toolbox, NOW) and not fits(toolbox, WEATHER)


def test_choices_that_are_not_there():
    with pytest.raises(BadRequest, match="needs tools"):
        Toolbox([], "required", several=True)
    with pytest.raises(BadRequest, match="'later'"):
        Toolbox(TOOLS, ChosenTool("function", ChosenFunction("later")), several=True)
    assert Toolbox(TOOLS, "none", several=True).structured is None


TEXTS = st.lists(st.sampled_from(["so", " <", "<tool_call", "\n", "}", WEATHER[:5]]), max_size=4)


@given(TEXTS.map("".join), st.lists(st.sampled_from([WEATHER, NOW]), max_size=3), st.data())
def test_a_stream_reads_as_the_whole_does(text: str, made: list[str], data: st.DataObject):
    answer = text + "\n".join(BEGIN + one for one in made)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=12)))
    parts = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    calls, content, found = Calls(inside=False), "", list[ToolCall]()
    for n, part in enumerate(parts):
        more, new = calls.push(part, last=n == len(parts) - 1)
        content, found = content + more, found + new
    assert content == text
    begun = [one for one in found if one.id is not UNSET]
    assert [one.index for one in begun] == list(range(len(made)))
    for index, expected in enumerate(made):
        arguments = "".join(one.function.arguments for one in found if one.index == index)
        wanted = json.loads(expected.removesuffix(END))
        assert begun[index].function.name == wanted["name"]
        assert json.loads(arguments) == wanted["arguments"]
    shown, together = whole(answer, inside=False)
    assert (shown or "") == text and len(together) == len(made)


def test_an_answer_that_was_cut_short():
    content, calls = whole(BEGIN.join(["", WEATHER[:40]]), inside=False)
    assert content is None and calls[0].function.arguments == WEATHER[WEATHER.index(": {") + 2 : 40]
    assert whole('{"name": "wea', inside=True) == ("", [])
