"""Tool calls: the grammar they follow, and how answers are read, however they are cut."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher
from msgspec import UNSET

from tests import fakes
from weir.errors import BadRequest
from weir.grammar.compile import bytewise, guidance
from weir.params import StructuredOutputs
from weir.server.openai import ChatRequest
from weir.server.prompts import render
from weir.server.tools import (
    BEGIN,
    END,
    Allowed,
    AllowedTools,
    Calls,
    ChosenFunction,
    ChosenTool,
    Function,
    Tool,
    Toolbox,
    ToolCall,
    merged,
)

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"$ref": "#/$defs/city"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"city": {"type": "string"}},
}
TOOLS = [Tool("function", Function("weather", "…", PARAMETERS)), Tool("function", Function("now"))]
NOW_ONLY, LATER = ChosenTool(ChosenFunction("now")), ChosenTool(ChosenFunction("later"))


def call(name: str, arguments: object) -> str:
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False) + END


WEATHER, NOW = call("weather", {"city": 'Zürich "}\n</tool_call>'}), call("now", {})


def fits(toolbox: Toolbox, text: str, form: StructuredOutputs | None = None) -> bool:
    """Whether a whole answer may be `text`."""
    asked = toolbox.structured(form)
    assert asked is not None
    matcher = LLMatcher(bytewise(), guidance(asked), log_level=0)
    data = list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def whole(text: str, inside: bool) -> tuple[str, list[ToolCall], bool]:
    reader = Calls(inside)
    content, parts = reader.push(text, last=True)
    return content, merged(parts), reader.complete


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
    toolbox = Toolbox(TOOLS, NOW_ONLY, several=False)
    assert fits(toolbox, NOW) and not fits(toolbox, WEATHER)
    assert not fits(toolbox, call("now", {"zone": "x"}))  # it has no parameters
    tree = {"$ref": "#/$defs/t", "$defs": {"t": {"properties": {"t": {"$ref": "#/$defs/t"}}}}}
    toolbox = Toolbox([Tool("function", Function("f", None, tree))], "required", several=False)
    assert fits(toolbox, call("f", {"t": {"t": {}}})) and not fits(toolbox, call("f", "x"))


def test_some_of_the_tools_may_be_called():
    toolbox = Toolbox(TOOLS, AllowedTools(Allowed("auto", [NOW_ONLY])), several=False)
    assert len(toolbox.plain() or ()) == 2 and not toolbox.must
    assert fits(toolbox, "text") and fits(toolbox, BEGIN + NOW)
    assert not fits(toolbox, BEGIN + WEATHER)
    toolbox = Toolbox(TOOLS, AllowedTools(Allowed("required", [NOW_ONLY])), several=False)
    assert toolbox.must and fits(toolbox, NOW) and not fits(toolbox, WEATHER)


def test_an_answer_of_a_form_or_calls():
    form = StructuredOutputs(json={"type": "object", "required": ["sum"]})
    for several in (True, False):
        toolbox = Toolbox(TOOLS, "auto", several=several)
        assert fits(toolbox, '{"sum": 3}', form) and fits(toolbox, BEGIN + WEATHER, form)
        assert not fits(toolbox, "text", form) and not fits(toolbox, '{"sum": 3}' + WEATHER, form)
    assert fits(Toolbox(TOOLS, "required", several=False), NOW, form)
    assert Toolbox(TOOLS, "none", several=False).structured(form) is form


def test_choices_that_are_not_there():
    with pytest.raises(BadRequest, match="needs tools"):
        Toolbox([], "required", several=True)
    with pytest.raises(BadRequest, match="'later'"):
        Toolbox(TOOLS, LATER, several=True)
    with pytest.raises(BadRequest, match="needs tools"):
        Toolbox(TOOLS, AllowedTools(Allowed("required", [])), several=True)
    with pytest.raises(BadRequest, match="same name"):
        Toolbox([*TOOLS, *TOOLS], None, several=True)
    with pytest.raises(BadRequest, match="'f' must be an object's"):
        Toolbox([Tool("function", Function("f", None, {"type": "string"}))], None, several=True)
    assert Toolbox(TOOLS, "none", several=True).structured() is None


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
    shown, together, complete = whole(answer, inside=False)
    assert shown == text and len(together) == len(made)
    assert complete == bool(made) == calls.complete


def test_an_answer_that_was_cut_short():
    content, calls, complete = whole(BEGIN.join(["", WEATHER[:40]]), inside=False)
    assert (
        content == ""
        and not complete
        and calls[0].function.arguments == WEATHER[WEATHER.index(": {") + 2 : 40]
    )
    assert whole('{"name": "wea', inside=True) == ("", [], False)
    begin, wanted = WEATHER.index(": {") + 2, WEATHER.removesuffix("}" + END)
    for end in range(begin, len(WEATHER)):  # also in the brace or the tag that ends a call
        _, calls, complete = whole(WEATHER[:end], inside=True)
        assert complete == (end > len(wanted))
        assert calls[0].function.arguments == wanted[begin:end]
    reader = Calls(inside=True)
    text = '{"name": "f", "arguments": {"a": {"b": {}}'
    parts = reader.push(text, last=False)[1] + reader.push("}", last=True)[1]
    assert merged(parts)[0].function.arguments == '{"a": {"b": {}}}' and not reader.complete


SHOWS_TOOLS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% for c in m.tool_calls or () %}{{ c.function.arguments.city }}{% endfor %}{{ '\n' }}"
    "{% endfor %}"
    "{% if tools %}{{ tools[0].function.name }}{{ '\n' }}{% endif %}"
)


def conversation(**fields: object) -> ChatRequest:
    asked = {"id": "c", "type": "function"}
    asked["function"] = {"name": "weather", "arguments": '{"city": "Rome"}'}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": None, "tool_calls": [asked]},
        {"role": "tool", "content": "dry", "tool_call_id": "c"},
    ]
    return msgspec.convert({"messages": messages, "tools": TOOLS} | fields, ChatRequest)


def test_a_template_that_says_nothing_of_tools_loses_nothing():
    """Calls of earlier answers stand in their content, and the tools in the system's turn."""
    text, body = fakes.text(), conversation()
    prompt = render(text, body)
    begin, system, rest = prompt.partition("\n\nBe brief.\n")
    assert begin.startswith("system: You may call") and '"name": "weather"' in begin and system
    assert rest == "user: Well?\nassistant: " + BEGIN + call("weather", {"city": "Rome"}) + (
        "\ntool: dry\n"
    )
    assert render(text, conversation(tools=None)).startswith("system: Be brief.\nuser: Well?\n")


def test_a_call_without_arguments_may_say_so_with_an_empty_text():
    asked = {"function": {"name": "now", "arguments": ""}}
    body = conversation(messages=[{"role": "assistant", "tool_calls": [asked]}], tools=None)
    assert render(fakes.text(), body) == "assistant: " + BEGIN + call("now", {}) + "\n"


def test_what_was_thought_and_the_effort_are_told_to_the_template():
    text = fakes.text(
        "{{ reasoning_effort }} {{ enable_thinking }} {{ messages[0].reasoning_content }}"
    )
    for name in ("reasoning", "reasoning_content"):
        messages = [{"role": "assistant", "content": "x", name: "hm"}]
        body = conversation(messages=messages, tools=None, reasoning_effort="low")
        assert render(text, body) == "low True hm"
    body.reasoning_effort = "none"
    assert render(text, body) == "none False hm"
    body.chat_template_kwargs = {"enable_thinking": True}
    assert render(text, body) == "none True hm"


def test_a_template_that_knows_tools_is_told_as_it_is():
    text = fakes.text(SHOWS_TOOLS)
    assert render(text, conversation(tool_choice="required")) == (
        "system: Be brief.\nuser: Well?\nassistant: Rome\ntool: dry\nweather\n" + BEGIN
    )
