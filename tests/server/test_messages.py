"""Anthropic's requests as OpenAI's, and answers in its words, whole and in events."""

import json

import httpx
import msgspec
import pytest
from msgspec.structs import replace

from tests.server.conftest import serving
from tests.waiting import CEILING
from weir.server import chat, messages
from weir.server.anthropic import Counted
from weir.server.chat import sampling
from weir.server.openai import TextPart

PATH = "/v1/messages"
ASKED = {"max_tokens": 8, "temperature": 0, "messages": [{"role": "user", "content": "hello"}]}
PROMPT = "user: hello\n"  # greedy answers repeat it
TOOL = {"name": "f", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}
CALL = '<tool_call>\n{"name": "f", "arguments": {"city": "Zürich"}}\n</tool_call>'


def post(http: httpx.Client, **more) -> dict:
    answer = http.post(PATH, json=ASKED | more)
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(http: httpx.Client, **more) -> list[dict]:
    answer = http.post(PATH, json=ASKED | {"stream": True} | more)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for one in answer.text.removesuffix("\n\n").split("\n\n"):
        name, data = one.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_an_answer_and_why_it_ended(http):
    answer = post(http)
    assert answer["content"] == [{"type": "text", "text": PROMPT[:8]}]
    assert (answer["type"], answer["role"], answer["model"]) == ("message", "assistant", "fake")
    assert answer["usage"]["input_tokens"] + answer["usage"]["cache_read_input_tokens"] == 12
    assert answer["usage"]["output_tokens"] == 8 and answer["stop_reason"] == "max_tokens"
    assert post(http, max_tokens=100000)["stop_reason"] == "model_context_window_exceeded"
    answer = post(http, stop_sequences=["zz", ": h"])
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", ": h")
    assert answer["content"] == [{"type": "text", "text": "user"}]
    assert post(http, metadata={"user_id": "end:4"})["stop_reason"] == "end_turn"
    counted = http.post(PATH + "/count_tokens", json={"messages": ASKED["messages"]})
    assert counted.json() == {"input_tokens": len(PROMPT)}


def test_events_say_what_the_whole_answer_does(http):
    begin, opened, *deltas, closed, ended, last = streamed(http)
    assert begin["type"] == "message_start" and begin["message"]["content"] == []
    assert opened["content_block"] == {"type": "text", "text": ""}
    assert "".join(one["delta"]["text"] for one in deltas) == PROMPT[:8]
    assert closed == {"type": "content_block_stop", "index": 0}
    assert ended["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert ended["usage"]["output_tokens"] == 8 and last == {"type": "message_stop"}


def test_calls(http, monkeypatch):
    """The fake model repeats its prompt, which is a call here."""
    said = f"So:\n{CALL}"
    monkeypatch.setattr(messages, "rendered", lambda *_: said)

    def free(asked, default):
        return replace(sampling(asked, default), structured_outputs=None)

    monkeypatch.setattr(chat, "sampling", free)
    size = len(said.encode())
    asked = {"tools": [TOOL], "max_tokens": 120, "metadata": {"user_id": f"end:{size + 1}"}}
    answer = post(http, **asked)
    shown = [{name: one[name] for name in one if name != "id"} for one in answer["content"]]
    called = {"type": "tool_use", "name": "f", "input": {"city": "Zürich"}}
    assert shown == [{"type": "text", "text": "So:\n"}, called]
    assert answer["stop_reason"] == "tool_use"
    made = list[dict]()
    for event in streamed(http, **asked):
        if event["type"] == "content_block_start":
            assert event["index"] == len(made)
            made.append(event["content_block"] | {"json": ""})
        elif event["type"] == "content_block_delta":
            made[-1]["json"] += event["delta"].get("partial_json", "")
    assert [one["type"] for one in made] == ["text", "tool_use"]
    assert json.loads(made[1]["json"]) == called["input"]
    cut = post(http, **asked | {"max_tokens": size - 20})
    assert cut["stop_reason"] == "max_tokens" and cut["content"][1]["input"] == {}
    again = f"{CALL}\n"
    monkeypatch.setattr(messages, "rendered", lambda *_: again)
    cut = post(http, tools=[TOOL], max_tokens=len(again.encode()) + 20)
    assert [one["input"] for one in cut["content"]] == [called["input"]], "another had no name yet"


def test_a_conversation_with_calls_as_openai_has_it():
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "so"},
                {"type": "tool_use", "id": "1", "name": "f", "input": {"city": "Bern"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "1", "content": "sun", "is_error": False},
                {"type": "tool_result", "tool_use_id": "2"},
                {"type": "text", "text": "and?"},
            ],
        },
    ]
    said = {"messages": turns, "system": [{"type": "text", "text": "s"}], "tools": [TOOL]}
    choice = {"type": "any", "disable_parallel_tool_use": True}
    said |= {"thinking": {"type": "disabled"}, "tool_choice": choice}
    asked = msgspec.convert(said, Counted).chat()
    roles = [(one.role, one.content, one.tool_call_id) for one in asked.messages]
    assert roles == [
        ("system", [TextPart("text", "s")], None),
        ("user", "a\nb", None),
        ("assistant", "so", None),
        ("tool", "sun", "1"),
        ("tool", "", "2"),
        ("user", "and?", None),
    ]
    thinking = asked.messages[2]
    assert thinking.reasoning_content == "hm" and thinking.tool_calls is not None
    assert json.loads(thinking.tool_calls[0]["function"]["arguments"]) == {"city": "Bern"}
    assert asked.reasoning_effort == "none" and not asked.continue_final_message
    toolbox = asked.toolbox
    assert toolbox.must and not toolbox.several and toolbox.tools[0].function.name == "f"
    said |= {"messages": [turns[0], {"role": "assistant", "content": "It"}]}
    said |= {"tool_choice": {"type": "tool", "name": "f"}, "output_config": {"effort": "high"}}
    asked = msgspec.convert(said | {"thinking": None}, Counted).chat()
    assert asked.continue_final_message and asked.reasoning_effort == "high"
    assert asked.toolbox.must and asked.toolbox.several


@pytest.mark.parametrize(
    ("field", "more"),
    [
        (
            "messages[0].content[0].type",
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
        ),
        ("messages", {"messages": []}),
        ("messages", {"messages": [{"role": "user", "content": "x" * 300}]}),
        ("tools[0].type", {"tools": [TOOL | {"type": "web_search_20250305"}]}),
        ("tool_choice", {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}),
        ("container", {"container": "x"}),
        (
            "output_config.format",
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "no"}}}},
        ),
        ("model", {"model": "claude"}),
    ],
)
def test_what_is_refused_is_named(http, field, more):
    answer = http.post(PATH, json=ASKED | more)
    assert answer.status_code == (404 if field == "model" else 400)
    said = answer.json()
    assert said["type"] == "error" and said["error"]["param"] == field


def test_a_key_may_come_as_anthropics_clients_send_it():
    with serving(api_key=["secret"]) as running:
        headers = [{}, {"x-api-key": "wrong"}, {"x-api-key": "secret"}]
        with httpx.Client(base_url=running.url, timeout=CEILING) as client:
            codes = [client.post(PATH, json=ASKED, headers=h).status_code for h in headers]
    assert codes == [401, 401, 200]
