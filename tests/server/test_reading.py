"""What was thought is told from what is said, however an answer is cut and wherever it begins."""

import json

import httpx
import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import fakes
from tests.grammar.test_engine import engine
from tests.server.conftest import Running, events, serving
from tests.waiting import CEILING
from weir.client import Output
from weir.core import Thought
from weir.grammar.library import Library
from weir.grammar.tokens import Tokens
from weir.server.items import ResponsesRequest
from weir.server.jobs import Job
from weir.server.openai import ChatRequest
from weir.server.prompts import render, thought
from weir.server.reading import Reader
from weir.server.tools import Function, Tool, Toolbox, ToolCall, merged
from weir.text import Text
from weir.text.thoughts import Thoughts, inside, thinks

TOOLS = [Tool("function", Function("f"))]
CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
THINKS = fakes.CHAT + "{% if add_generation_prompt %}<think>\n{% endif %}{# </think> #}"


def read(parts: list[str], within: bool, tools: bool = True) -> tuple[str, str, list[ToolCall]]:
    """An answer that comes in `parts`, its last event without text."""
    toolbox = Toolbox(TOOLS if tools else None, None, several=True)
    reader, thought, text, calls = (
        Reader(Job("x", 1), toolbox, Thoughts(within)),
        "",
        "",
        list[ToolCall](),
    )
    for part in [*parts, None]:
        output = Output(text=part or "", finish_reason="stop" if part is None else None)
        more = reader.push(output)
        thought, text, calls = thought + more[0], text + more[1], calls + more[2]
    return thought, text, merged(calls)


PIECES = ["<think>", "</think>", "</thi", "<thi", "<", ">", "\n", " ", "so", "é", CALL, CALL[:9]]
ANSWERS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


@given(ANSWERS, st.booleans(), st.data())
def test_a_stream_reads_as_the_whole_does(answer: str, within: bool, data: st.DataObject):
    whole = read([answer], within)
    for cut in range(len(answer)):  # every way to cut it in two, and into characters
        again = read([answer[:cut], answer[cut:]], within)
        assert again[:2] == whole[:2] and len(again[2]) == len(whole[2])
    assert read(list(answer), within)[:2] == whole[:2]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(answer)), max_size=6)))
    parts = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert read(parts, within)[:2] == whole[:2]


@given(ANSWERS, st.booleans())
def test_nothing_is_lost_but_tags_and_newlines(answer: str, within: bool):
    thought, text, _ = read([answer], within, tools=False)
    begun = answer.lstrip()
    if not (within or begun.startswith("<think>")):
        assert (thought, text) == ("", answer)
        return
    body = begun.removeprefix("<think>") if begun.startswith("<think>") else answer
    before, closed, after = body.partition("</think>")
    assert thought == before.strip("\n") and text == after.lstrip("\n")
    assert closed or not text


@pytest.mark.parametrize(
    ("answer", "within", "thought", "text"),
    [
        ("<think>\nhm\n</think>\n\nYes.", False, "hm", "Yes."),
        ("hm\n\nso\n</think>\n\nYes.\n", True, "hm\n\nso", "Yes.\n"),
        ("<think>\nhm</think>Yes.", True, "hm", "Yes."),  # opened twice
        ("<think>\n\n</think>\n\nYes.", False, "", "Yes."),
        ("<think>\nhm", False, "hm", ""),  # cut short
        ("hm </thin", True, "hm </thin", ""),
        (" 1 < 2 <think>", False, "", " 1 < 2 <think>"),  # only an answer's beginning is a thought
        ("<thi", False, "", "<thi"),
        ("</think>Yes.</think>", True, "", "Yes.</think>"),
        ("", True, "", ""),
    ],
)
def test_answers(answer: str, within: bool, thought: str, text: str):
    assert read([answer], within) == (thought, text, [])


def test_a_call_that_is_only_thought_of_is_none():
    thought, text, calls = read([f"<think>\n{CALL}?\n</think>\n\nDone: {CALL}"], within=False)
    assert thought == f"{CALL}?" and text == "Done: " and len(calls) == 1


@given(
    st.lists(st.sampled_from(["hm", "\n", "</think>", "so"]), min_size=1, max_size=8),
    st.booleans(),
    st.integers(0, 3),
)
def test_tokens_of_thoughts_are_counted(tokens: list[str], within: bool, lag: int):
    """The text of a token may come some events later than the token, as before a stop string."""
    job, close = Job("x", 1), 7
    reader = Reader(job, Toolbox(None, None, several=False), Thoughts(within), close)
    texts = [*[""] * lag, *tokens]
    for at, text in enumerate(texts):
        ids = [close if one == "</think>" else 1 for one in tokens[at : at + 1]]
        ended = "stop" if at == len(texts) - 1 else None
        reader.push(Output(text=text, token_ids=ids, finish_reason=ended))
    end = tokens.index("</think>") + 1 if "</think>" in tokens else len(tokens)
    assert job.reasoning_tokens == (end if within else 0)


def asked(**fields: object) -> ChatRequest:
    return msgspec.convert({"messages": [{"role": "user", "content": "?"}]} | fields, ChatRequest)


def test_what_must_follow_a_form_is_not_thought_about():
    text = fakes.text(THINKS)
    assert thinks(text) and not thinks(fakes.text())
    opened, closed = "user: ?\n<think>\n", "user: ?\n<think>\n\n</think>\n\n"
    assert render(text, asked()) == opened and inside(opened) and not inside(closed)
    form = {"type": "json_object"}
    assert render(text, asked(response_format={"type": "text"})) == opened
    assert render(text, asked(response_format=form)) == closed
    for name in ("guided_regex", "regex", "ebnf"):
        assert render(text, asked(**{name: "x+"})) == closed
    tools = msgspec.to_builtins(TOOLS)
    for more, end in (
        ({}, opened),
        ({"tool_choice": "none"}, opened),
        ({"response_format": form}, closed),
        ({"tool_choice": "required"}, closed + "<tool_call>\n"),
    ):
        assert render(text, asked(tools=tools, **more)).endswith(end.removeprefix("user: ?"))


def test_where_the_end_of_a_thought_is_a_token_a_form_comes_after_it():
    text = fakes.text(THINKS)
    text.tokenizer.add_tokens(["</think>", "<think>"])
    close, begin = map(text.tokenizer.token_to_id, ("</think>", "<think>"))
    opened, after = "user: ?\n<think>\n", [10, 10]
    form = {"response_format": {"type": "json_object"}}
    called = {"tools": msgspec.to_builtins(TOOLS), "tool_choice": "required"}
    for more, then in ((form, after), (called, [*after, *b"<tool_call>\n"])):
        body = asked(**more)
        prompt = render(text, body, close)
        assert prompt.endswith(opened.removeprefix("user: ?"))
        assert thought(text, body, prompt, close) == Thought(close, then)
    for more in (
        {"reasoning_effort": "none"},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ):
        body = asked(**form, **more)
        prompt = render(text, body, close)
        assert prompt == opened + "\n</think>\n\n" and not thought(text, body, prompt, close)
    assert thought(text, asked(), opened, close) is None
    # a template that leaves it to the model whether to think
    assert thought(text, asked(**form), "assistant: ", close) == Thought(close, after, begin)
    assert thought(text, asked(**called), "assistant: <tool_call>\n", close) is None
    assert thought(text, asked(**form), "<think>\n\n</think>\n\n", close) is None


def test_a_tag_that_answers_do_not_show_is_none():
    text = fakes.text(THINKS)
    text.tokenizer.add_special_tokens(["</think>"])
    text.special |= {text.tokenizer.token_to_id("</think>")}
    assert not thinks(text)


YES = "Yes."
SAID = "<think>\nhm\n</think>\n\nYes."  # the fake model repeats its prompt
THOUGHT = len("<think>\nhm\n") + 1  # tokens: the tag that ends it is one
ASKED = {"temperature": 0, "user": f"end:{THOUGHT + len(YES) + 3}"}
CHAT = ASKED | {"messages": [{"role": "user", "content": SAID}]}


def thinking(template: str = "{{ messages[-1].content }}") -> Text:
    text = fakes.text(template)
    text.tokenizer.add_tokens(["</think>"])
    return text


def tokens() -> Tokens:
    text = thinking()
    return Tokens(text.pieces(True), text.eos, lambda said: text.encode(said, False))


@pytest.fixture(scope="module")
def thinker():
    """A server with a model that repeats what the user says, and may think."""
    with serving(text=thinking()) as running:
        yield running


@pytest.fixture
def http(thinker: Running):
    with httpx.Client(base_url=thinker.url, timeout=CEILING) as client:
        yield client


def test_a_chat(http):
    answer = http.post("/v1/chat/completions", json=CHAT).json()
    message = answer["choices"][0]["message"]
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": THOUGHT}
    assert message["reasoning"] == message["reasoning_content"] == "hm"
    assert message["content"] == "Yes."
    body = http.post("/v1/chat/completions", json=CHAT | {"stream": True, "n": 2}).text
    for index in range(2):
        choices = [json.loads(one)["choices"][0] for one in events(body) if one != "[DONE]"]
        deltas = [one["delta"] for one in choices if one["index"] == index]
        assert deltas[0]["role"] == "assistant"
        for name, said in (("reasoning", "hm"), ("reasoning_content", "hm"), ("content", "Yes.")):
            assert "".join(delta.get(name, "") for delta in deltas) == said
    cut = http.post("/v1/chat/completions", json=CHAT | {"max_tokens": 9}).json()["choices"][0]
    assert (cut["message"]["content"], cut["message"]["reasoning"]) == (None, "h")
    assert cut["finish_reason"] == "length"


def test_messages(http):
    said = {"max_tokens": 99, "temperature": 0, "messages": CHAT["messages"]}
    said |= {"metadata": {"user_id": ASKED["user"]}}
    answer = http.post("/v1/messages", json=said).json()
    thought, text = answer["content"]
    assert thought == {"type": "thinking", "thinking": "hm", "signature": ""}
    assert text == {"type": "text", "text": "Yes."} and answer["stop_reason"] == "end_turn"
    body = http.post("/v1/messages", json=said | {"stream": True}).text
    found = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: ")]
    deltas = [(one["index"], one["delta"]) for one in found if one["type"].endswith("block_delta")]
    assert "".join(one["thinking"] for at, one in deltas if at == 0) == "hm"
    assert "".join(one["text"] for at, one in deltas if at == 1) == "Yes."
    turns = [*CHAT["messages"], {"role": "assistant", "content": answer["content"]}]
    again = http.post("/v1/messages", json=said | {"messages": [*turns, *CHAT["messages"]]})
    assert again.status_code == 200


def test_responses(thinker: Running):
    said = ASKED | {"model": "fake", "input": SAID}
    with openai.OpenAI(base_url=thinker.url + "/v1", api_key="none", max_retries=0) as client:
        answer = client.responses.create(**said)
        kinds = [event.type for event in client.responses.create(**said, stream=True)]
        with client.responses.stream(**said) as stream:
            streamed = stream.until_done().get_final_response()
    assert answer.output_text == streamed.output_text == "Yes."
    assert answer.usage.output_tokens_details.reasoning_tokens == THOUGHT
    for whole in (answer, streamed):
        thought = whole.output[0]
        assert (thought.type, thought.content[0].text, thought.status) == (
            "reasoning",
            "hm",
            "completed",
        )
    assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta")
    items = [*(item.model_dump(exclude_none=True) for item in answer.output)]
    messages = msgspec.convert({"input": items}, ResponsesRequest).chat().messages
    assert [(one.role, one.reasoning_content) for one in messages] == [("assistant", "hm")]


def test_one_output_may_end_a_call_and_go_on(http, monkeypatch):
    """As where a grammar forces several tokens."""
    parts = ['<tool_call>\n{"name": "f", "arguments": {"city": "Zü', 'rich"}}\n</tool_call>so']
    parts[1] += f"\n{CALL}"

    async def bursts(_: Job):
        for part in parts:
            yield [(0, Output(text=part))]
        yield [(0, Output(finish_reason="stop"))]

    monkeypatch.setattr(Job, "bursts", bursts)
    said = {"max_tokens": 99, "messages": CHAT["messages"]}
    tool = {"name": "f", "input_schema": {"type": "object"}}
    answer = http.post("/v1/messages", json=said | {"tools": [tool]}).json()
    kinds = [one["type"] for one in answer["content"]]
    assert kinds == ["tool_use", "text", "tool_use"]
    first, text, second = answer["content"]
    assert (first["input"], text["text"], second["input"]) == ({"city": "Zürich"}, "so\n", {})
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    answer = http.post("/v1/responses", json={"input": "?", "tools": [tool]}).json()
    kinds = [one["type"] for one in answer["output"]]
    assert kinds == ["function_call", "message", "function_call"]
    first, text, second = answer["output"]
    assert (first["arguments"], second["arguments"]) == ('{"city": "Zürich"}', "{}")
    assert text["content"][0]["text"] == "so\n"


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_may_say_how_thoughts_are_told(http, stream: bool):
    def told(**fields: bool) -> list[tuple[str, str]]:
        """What is new, event by event."""
        answer = http.post("/v1/chat/completions", json=CHAT | {"stream": stream} | fields)
        if not stream:
            found = [answer.json()["choices"][0]["message"]]
        else:
            chunks = [json.loads(one) for one in events(answer.text) if one != "[DONE]"]
            found = [chunk["choices"][0]["delta"] for chunk in chunks]
        parts = [(one.get("reasoning", ""), one.get("content") or "") for one in found]
        return [part for part in parts if any(part)]

    def whole(parts: list[tuple[str, str]]) -> list[str]:
        return ["".join(column) for column in zip(*parts, strict=True)]

    assert whole(told(include_reasoning=False)) == ["", "Yes."]
    assert whole(told(separate_reasoning=False)) == ["", SAID]
    late = told(stream_reasoning=False)
    assert whole(late) == ["hm", "Yes."] and sum(bool(one) for one, _ in late) == 1


def test_a_form_is_thought_about_first():
    """Through all of it: the prompt opens a thought, and what follows it is of the form."""
    text = thinking(THINKS)
    library = Library(tokens, text.vocab)
    made = engine(library, likes=[text.tokenizer.token_to_id("</think>")])
    schema = {"type": "object", "properties": {"yes": {"enum": ["so", "not"]}}, "required": ["yes"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    asked = {"messages": CHAT["messages"], "response_format": form, "max_tokens": 150}
    with serving(engine=made, text=text) as running:
        url = running.url + "/v1/chat/completions"
        answers = [httpx.post(url, json=asked, timeout=CEILING).json() for _ in range(8)]
    ended = [one for one in answers if one["choices"][0]["finish_reason"] == "stop"]
    assert ended
    for one in ended:
        said = json.loads(one["choices"][0]["message"]["content"])
        assert said["yes"] in ("so", "not")
        assert one["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_it_can_be_left_in_the_text():
    with serving(separate_reasoning=False, text=thinking()) as running:
        answer = httpx.post(running.url + "/v1/chat/completions", json=CHAT, timeout=CEILING)
    message = answer.json()["choices"][0]["message"]
    assert message["content"] == SAID and "reasoning" not in message
