"""What was thought is told from what is said, however an answer is cut and wherever it begins."""

import json

import httpx
import msgspec
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import fakes
from tests.server.conftest import Running, events, serving
from tests.waiting import CEILING
from weir.client import Output
from weir.server.items import ResponsesRequest
from weir.server.jobs import Job
from weir.server.openai import ChatRequest
from weir.server.prompts import render
from weir.server.reading import Reader, Thoughts, inside, thinks
from weir.server.tools import Function, Tool, Toolbox, ToolCall, merged
from weir.text import Text

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
    assert render(text, asked(guided_regex="x+")) == closed
    tools = msgspec.to_builtins(TOOLS)
    for more, end in (
        ({}, opened),
        ({"tool_choice": "none"}, opened),
        ({"response_format": form}, closed),
        ({"tool_choice": "required"}, closed + "<tool_call>\n"),
    ):
        assert render(text, asked(tools=tools, **more)).endswith(end.removeprefix("user: ?"))


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


def thinking() -> Text:
    text = fakes.text("{{ messages[-1].content }}")
    text.tokenizer.add_tokens(["</think>"])
    return text


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


def test_it_can_be_left_in_the_text():
    with serving(separate_reasoning=False, text=thinking()) as running:
        answer = httpx.post(running.url + "/v1/chat/completions", json=CHAT, timeout=CEILING)
    message = answer.json()["choices"][0]["message"]
    assert message["content"] == SAID and "reasoning" not in message
