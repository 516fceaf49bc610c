"""The real `openai` client against the server."""

import asyncio
import math

import openai
import pytest

from tests.server.conftest import CHAT, Running, serving

PROMPT = "user: hello\n"  # what the fake template makes of CHAT; greedy answers repeat it


@pytest.fixture(scope="module")
def sdk(server: Running):
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(sdk):
    assert [model.id for model in sdk.models.list()] == ["fake"]
    assert sdk.models.retrieve("fake").owned_by == "weir"
    with pytest.raises(openai.NotFoundError) as error:
        sdk.models.retrieve("gpt/5")
    assert error.value.code == "model_not_found"


def test_chat(sdk):
    answer = sdk.chat.completions.create(model="fake", **CHAT, max_tokens=8, temperature=0)
    assert answer.choices[0].message.content == PROMPT[:8]
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == len(PROMPT)
    assert answer.usage.completion_tokens == 8
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_chat_without_a_limit_fills_the_context(sdk):
    answer = sdk.chat.completions.create(model="fake", **CHAT, temperature=0)
    assert answer.usage.total_tokens == 256


def test_chat_stream(sdk):
    stream = sdk.chat.completions.create(
        model="fake",
        **CHAT,
        max_completion_tokens=20,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, last = list(stream)
    text = "".join(chunk.choices[0].delta.content for chunk in chunks)
    assert text == (PROMPT * 2)[:20]
    assert len(chunks) == 20, "one event a token"
    assert [c.choices[0].delta.role for c in chunks] == ["assistant"] + [None] * 19
    assert [c.choices[0].finish_reason for c in chunks] == [None] * 19 + ["length"]
    assert last.choices == [] and last.usage.completion_tokens == 20


def test_choices_and_seed(sdk):
    def sample(seed: int):
        answer = sdk.chat.completions.create(model="fake", **CHAT, n=3, max_tokens=12, seed=seed)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    first = sample(1)
    assert len(set(first)) == 3
    assert sample(1) == first != sample(2)


def test_streamed_choices_are_those_of_a_whole_answer(sdk):
    options = {"model": "fake", **CHAT, "n": 3, "max_tokens": 9, "seed": 5}
    whole = sdk.chat.completions.create(**options)
    parts = ["", "", ""]
    for chunk in sdk.chat.completions.create(**options, stream=True):
        parts[chunk.choices[0].index] += chunk.choices[0].delta.content
    assert parts == [choice.message.content for choice in whole.choices]


def test_chat_logprobs(sdk):
    answer = sdk.chat.completions.create(
        model="fake", **CHAT, max_tokens=3, temperature=0, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    assert [one.token for one in content] == list(PROMPT[:3])
    assert [one.logprob for one in content] == [-0.5] * 3
    assert [top.token for top in content[0].top_logprobs] == ["u", "v"]
    assert content[0].bytes == [ord("u")]


def test_stop(sdk):
    options = {"model": "fake", **CHAT, "max_tokens": 50, "temperature": 0, "stop": ["hel", "zz"]}
    choice = sdk.chat.completions.create(**options).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("user: ", "stop")
    assert choice.stop_reason == "hel"
    extra = {"include_stop_str_in_output": True}
    choice = sdk.chat.completions.create(**options, extra_body=extra).choices[0]
    assert choice.message.content == "user: hel"


def test_end_of_sequence_and_ignore_eos(sdk):
    options = {"model": "fake", **CHAT, "max_tokens": 9, "temperature": 0, "user": "end:4"}
    choice = sdk.chat.completions.create(**options).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("use", "stop")
    choice = sdk.chat.completions.create(**options, extra_body={"ignore_eos": True}).choices[0]
    assert choice.finish_reason == "length"


def test_parts_roles_and_harmless_fields(sdk):
    answer = sdk.chat.completions.create(
        model="fake",
        messages=[
            {"role": "system", "content": "s"},
            {"role": "developer", "content": "d"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}],
            },
            {"role": "assistant", "content": "a", "refusal": None, "reasoning": "r"},
            {"role": "user", "name": "me", "content": "y"},
        ],
        max_tokens=1,
        temperature=0,
        tools=[],
        tool_choice="auto",
        response_format={"type": "text"},
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        reasoning_effort="low",
        logit_bias={"5": 1.5},
        parallel_tool_calls=True,
        extra_body={"priority": -3, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1},
    )
    assert answer.choices[0].finish_reason == "length"


def test_completions(sdk):
    answer = sdk.completions.create(model="fake", prompt=["abc", "de"], max_tokens=4, temperature=0)
    assert [choice.text for choice in answer.choices] == ["abca", "dede"]
    assert answer.usage.prompt_tokens == 5 and answer.usage.completion_tokens == 8
    answer = sdk.completions.create(model="fake", prompt=[97, 98], max_tokens=3, temperature=0)
    assert answer.choices[0].text == "aba"
    answer = sdk.completions.create(
        model="fake", prompt=[[97], [98, 99]], max_tokens=2, temperature=0, n=2
    )
    assert [(c.index, c.text) for c in answer.choices] == [
        (0, "aa"),
        (1, "aa"),
        (2, "bc"),
        (3, "bc"),
    ]


def test_completions_default_to_sixteen_tokens(sdk):
    assert sdk.completions.create(model="fake", prompt="a").usage.completion_tokens == 16


def test_completions_stream_several_prompts(sdk):
    parts, ends = ["", "", ""], []
    for chunk in sdk.completions.create(
        model="fake", prompt=["abc", "de", "f"], max_tokens=5, temperature=0, stream=True
    ):
        choice = chunk.choices[0]
        parts[choice.index] += choice.text
        ends += [choice.index] if choice.finish_reason else []
    assert parts == ["abcab", "deded", "fffff"]
    assert sorted(ends) == [0, 1, 2]


def test_embeddings(sdk):
    answer = sdk.embeddings.create(model="fake", input=["abc", "de"])  # base64 on the wire
    assert [one.embedding for one in answer.data] == [[1.0, 3.0], [1.0, 2.0]]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == 5
    plain = sdk.embeddings.create(
        model="fake", input=[1, 2, 3, 4], encoding_format="float", extra_body={"pooling": "last"}
    )
    assert plain.data[0].embedding == [1.0, 4.0]
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        sdk.embeddings.create(model="fake", input="a", dimensions=3)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f g"}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json"}}, "response_format.type"),
        ({"extra_body": {"guided_json": 5}}, "guided_json"),
        ({"extra_body": {"nonsense": 1}}, "nonsense"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"temperature": -1}, "temperature"),
        ({"n": 0}, "n"),
        ({"logit_bias": {"9999": 1}}, "logit_bias"),
        ({"max_tokens": 9999}, "max_tokens"),
        ({"min_tokens": 9, "max_tokens": 2}, None),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
    ],
)
def test_refusals_name_the_field(sdk, change, param):
    change = dict(change)
    if "min_tokens" in change:
        change, param = {"max_tokens": 2, "extra_body": {"min_tokens": 9}}, "min_tokens"
    with pytest.raises(openai.BadRequestError) as error:
        sdk.chat.completions.create(**({"model": "fake"} | CHAT | change))
    assert error.value.param == param
    assert error.value.type == "invalid_request_error"


def test_a_prompt_too_long_says_by_how_much(sdk):
    with pytest.raises(openai.BadRequestError, match="256") as error:
        sdk.completions.create(model="fake", prompt="x" * 257)
    assert error.value.code == "context_length_exceeded"


def test_a_failure_of_one_request_is_an_error_of_that_request(sdk):
    with pytest.raises(openai.InternalServerError, match="not a number") as error:
        sdk.chat.completions.create(model="fake", **CHAT, user="fail")
    assert error.value.status_code == 503
    with pytest.raises(openai.InternalServerError, match="not a number"):
        list(sdk.chat.completions.create(model="fake", **CHAT, user="fail", stream=True))


def test_api_key():
    with serving(api_key=["first", "second"]) as running:
        for key, well in (("first", True), ("second", True), ("firs", False), ("firstt", False)):
            url = running.url + "/v1"
            with openai.OpenAI(base_url=url, api_key=key, max_retries=0) as client:
                if well:
                    assert client.models.list().data
                    continue
                with pytest.raises(openai.AuthenticationError) as error:
                    client.models.list()
                assert error.value.code == "invalid_api_key"


def test_many_async_streams(server: Running):
    async def one(client: openai.AsyncOpenAI, length: int) -> tuple[str, str]:
        prompt = "abcdefgh"[: 1 + length % 8]
        text = ""
        stream = await client.completions.create(
            model="fake", prompt=prompt, max_tokens=length, temperature=0, stream=True
        )
        async for chunk in stream:
            text += chunk.choices[0].text
        return text, (prompt * math.ceil(length / len(prompt)))[:length]

    async def main():
        async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="x") as client:
            return await asyncio.gather(*(one(client, 1 + i % 30) for i in range(64)))

    assert all(got == wanted for got, wanted in asyncio.run(main()))
