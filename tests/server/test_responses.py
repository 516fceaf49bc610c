"""The real `openai` client's `responses`, and requests as chats."""

import msgspec
import openai
import pytest
from msgspec.structs import replace

from tests.server.conftest import Running
from weir.errors import BadRequest
from weir.server import chat, responses
from weir.server.chat import sampling
from weir.server.items import ResponsesRequest
from weir.server.openai import TextPart

ASKED = {"model": "fake", "input": "hello", "temperature": 0}
PROMPT = "user: hello\n"  # greedy answers repeat it
TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
CALL = '<tool_call>\n{"name": "f", "arguments": {"city": "Zürich"}}\n</tool_call>'


@pytest.fixture(scope="module")
def sdk(server: Running):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client.responses


def test_an_answer_and_why_it_ended(sdk):
    answer = sdk.create(**ASKED, max_output_tokens=8, metadata={"a": "b"}, store=False)
    assert answer.output_text == PROMPT[:8] and answer.output[0].status == "incomplete"
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (12, 8)
    assert answer.usage.total_tokens == 20 and answer.metadata == {"a": "b"}
    answer = sdk.create(**ASKED, user="end:4", instructions="Be brief.")
    assert answer.output_text == "sys" and answer.status == "completed"
    assert answer.incomplete_details is None and answer.instructions == "Be brief."


def test_events_make_the_same_answer(sdk):
    events = list(sdk.create(**ASKED, user="end:6", stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[4:-4] == ["output_text.delta"] * 5
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert events[0].response.output == [] and events[2].item.content == []
    assert "".join(event.delta for event in events[4:-4]) == events[-4].text == "user:"
    with sdk.stream(**ASKED, user="end:6") as stream:  # which puts the events together
        assert stream.until_done().get_final_response().output_text == "user:"


def test_calls(sdk, monkeypatch):
    """The fake model repeats its prompt, which is a call here."""
    said = f"So:\n{CALL}"

    def free(asked, default):
        return replace(sampling(asked, default), structured_outputs=None)

    monkeypatch.setattr(responses, "rendered", lambda *_: said)
    monkeypatch.setattr(chat, "sampling", free)
    asked = ASKED | {"tools": [TOOL], "user": f"end:{len(said.encode()) + 1}"}
    answer = sdk.create(**asked)
    assert [item.type for item in answer.output] == ["message", "function_call"]
    assert answer.output_text == "So:\n" and answer.status == "completed"
    call = answer.output[1]
    assert (call.name, call.arguments, call.status) == ("f", '{"city": "Zürich"}', "completed")
    with sdk.stream(**asked) as stream:
        streamed = stream.until_done().get_final_response()
    assert (streamed.output[1].name, streamed.output[1].arguments) == (call.name, call.arguments)
    cut = sdk.create(**asked | {"max_output_tokens": len(said) - 20})
    assert (cut.status, cut.output[1].status) == ("incomplete", "incomplete")
    cut = sdk.create(**asked | {"max_output_tokens": len(said.encode()), "user": "never"})
    assert (cut.status, cut.output[1].status) == ("incomplete", "completed")
    monkeypatch.undo()
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    again = sdk.create(**ASKED | {"input": [*answer.output, result]}, max_output_tokens=1)
    assert again.usage.input_tokens == len(f"assistant: So:\n\n{CALL}\ntool: sun\n".encode())


def test_items_as_messages():
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call", "call_id": "2", "name": "f", "arguments": ""},
        {"type": "function_call_output", "call_id": "1", "output": "sun"},
        {"type": "message", "role": "assistant", "content": "so"},
    ]
    said = {"input": items, "instructions": "s", "tools": [TOOL], "max_output_tokens": 5}
    said |= {"tool_choice": {"type": "function", "name": "f"}, "reasoning": {"effort": "low"}}
    asked = msgspec.convert(said, ResponsesRequest).chat()
    assert [(one.role, one.content) for one in asked.messages] == [
        ("developer", "s"),
        ("user", [TextPart("text", "a")]),
        ("assistant", None),
        ("tool", "sun"),
        ("assistant", "so"),
    ]
    assert [one["id"] for one in asked.messages[2].tool_calls or ()] == ["1", "2"]
    assert asked.toolbox.must and asked.reasoning_effort == "low" and asked.max_tokens == 5
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    asked = msgspec.convert({"input": "x", "text": {"format": form}}, ResponsesRequest).chat()
    assert asked.response_format is not None and asked.response_format.structured is not None
    assert asked.response_format.structured.json == {"type": "object"}


@pytest.mark.parametrize(
    ("item", "missing"),
    [
        ({"content": "x"}, "role"),
        ({"role": "user"}, "content"),
        ({"type": "function_call", "call_id": "1", "arguments": "{}"}, "name"),
        ({"type": "function_call", "call_id": "1", "name": "f"}, "arguments"),
        ({"type": "function_call", "name": "f", "arguments": "{}"}, "call_id"),
        ({"type": "function_call_output", "call_id": "1"}, "output"),
        ({"type": "function_call_output", "output": "x"}, "call_id"),
    ],
)
def test_what_an_item_lacks_is_named(item, missing):
    asked = msgspec.convert({"input": [{"role": "user", "content": "a"}, item]}, ResponsesRequest)
    with pytest.raises(BadRequest, match="is required") as error:
        asked.chat()
    assert error.value.param == f"input[1].{missing}"


@pytest.mark.parametrize(
    ("field", "more"),
    [
        ("previous_response_id", {"previous_response_id": "resp_1"}),
        ("tools[0].type", {"tools": [{"type": "web_search"}]}),
        ("background", {"background": True}),
        ("input", {"input": "x" * 300}),
        (
            "text.format",
            {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "no"}}}},
        ),
        (
            "input[0].content[0].type",
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "x"}]}]},
        ),
    ],
)
def test_what_is_refused_is_named(sdk, field, more):
    with pytest.raises(openai.BadRequestError) as error:
        sdk.create(**ASKED | more)
    assert error.value.param == field
