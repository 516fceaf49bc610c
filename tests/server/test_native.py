"""POST /generate as SGLang's clients use it, /tokenize and /detokenize as vLLM's do."""

import json
from itertools import pairwise

import pytest
from jinja2 import Environment

from tests.server.conftest import CHAT, events


def generate(http, **body):
    params = {"temperature": 0, "max_new_tokens": 4} | body.pop("sampling_params", {})
    answer = http.post("/generate", json={"sampling_params": params} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_one_text(http):
    answer = generate(http, text="abc", rid="mine")
    assert answer["text"] == "abca" and answer["output_ids"] == [97, 98, 99, 97]
    meta = answer["meta_info"]
    assert meta["id"] == "mine"
    assert meta["finish_reason"] == {"type": "length", "length": 4}
    assert (meta["prompt_tokens"], meta["completion_tokens"], meta["cached_tokens"]) == (3, 4, 0)
    assert meta["e2e_latency"] > 0


def test_shapes_follow_the_question(http):
    assert generate(http, input_ids=[97, 98])["text"] == "abab"
    assert [one["text"] for one in generate(http, text=["ab", "c"])] == ["abab", "cccc"]
    assert [one["text"] for one in generate(http, text=["ab"])] == ["abab"]
    assert [one["text"] for one in generate(http, input_ids=[[97], [98, 99]])] == ["aaaa", "bcbc"]
    assert [one["text"] for one in generate(http, text="ab", sampling_params={"n": 2})] == [
        "abab"
    ] * 2


def test_sampling_params_for_each_prompt(http):
    params = [{"max_new_tokens": 1, "temperature": 0}, {"max_new_tokens": 2, "temperature": 0}]
    body = {"text": ["ab", "cd"], "sampling_params": params}
    assert [one["text"] for one in http.post("/generate", json=body).json()] == ["a", "cd"]
    body = {"text": ["ab"], "sampling_params": params}
    assert http.post("/generate", json=body).json()["error"]["param"] == "sampling_params"


def test_stop(http):
    params = {"stop": "ca", "max_new_tokens": 20}
    answer = generate(http, text="abc", sampling_params=params)
    assert answer["text"] == "ab"
    assert answer["meta_info"]["finish_reason"] == {"type": "stop", "matched": "ca"}
    kept = generate(http, text="abc", sampling_params=params | {"no_stop_trim": True})
    assert kept["text"] == "abca"
    token = generate(http, text="abc", sampling_params={"stop_token_ids": [99]})
    assert token["meta_info"]["finish_reason"] == {"type": "stop", "matched": 99}


def test_streamed_text_is_cumulative(http):
    body = {
        "text": "abc",
        "stream": True,
        "sampling_params": {"temperature": 0, "max_new_tokens": 3},
    }
    frames = events(http.post("/generate", json=body).text)
    assert frames.pop() == "[DONE]"
    answers = [json.loads(frame) for frame in frames]
    assert answers[-1]["text"] == "abc" and answers[-1]["output_ids"] == [97, 98, 99]
    for before, after in pairwise(answers):
        assert after["text"].startswith(before["text"]) and before["text"] != after["text"]
        assert before["meta_info"]["finish_reason"] is None
    assert answers[-1]["meta_info"]["finish_reason"]["type"] == "length"


def test_streamed_batch_says_whose_each_event_is(http):
    body = {"text": ["ab", "c"], "stream": True, "sampling_params": {"temperature": 0, "n": 2}}
    frames = events(http.post("/generate", json=body).text)[:-1]
    last = {}
    for answer in map(json.loads, frames):
        assert answer["text"].startswith(last.get(answer["index"], ""))
        last[answer["index"]] = answer["text"]
    assert last == {0: "ab" * 64, 1: "ab" * 64, 2: "c" * 128, 3: "c" * 128}


@pytest.mark.parametrize("start", [-1, 0, 2, 9])
def test_logprobs(http, start):
    meta = generate(
        http,
        text="abcd",
        return_logprob=True,
        logprob_start_len=start,
        top_logprobs_num=2,
        return_text_in_logprobs=True,
    )["meta_info"]
    expected = [[None if i == start else -0.5, ord(c), c] for i, c in enumerate("abcd")]
    expected = expected[start:] if start >= 0 else []
    assert meta["input_token_logprobs"] == expected
    assert meta["output_token_logprobs"] == [[-0.5, ord(c), c] for c in "abcd"]
    assert [len(top) for top in meta["output_top_logprobs"]] == [2] * 4
    assert [top is None for top in meta["input_top_logprobs"]] == [True, False, False, False][
        : len(expected)
    ]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "text"),
        ({"text": "a", "input_ids": [1]}, "text"),
        ({"text": []}, "text"),
        ({"text": "a", "sampling_params": {"regex": "a**"}}, "sampling_params"),
        ({"text": "a", "image_data": "x"}, "image_data"),
        ({"text": "a", "return_hidden_states": True}, "return_hidden_states"),
        ({"text": "a", "rid": "a b"}, "rid"),
        ({"text": ""}, "text"),
        ({"input_ids": [999]}, "input_ids"),
        (
            {"text": "a", "sampling_params": {"max_new_tokens": -1}},
            "sampling_params.max_new_tokens",
        ),
    ],
)
def test_refusals(http, body, param):
    answer = http.post("/generate", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_tokens_and_back(http, prefix):
    body = {"prompt": "héé", "return_token_strs": True}
    answer = http.post(prefix + "/tokenize", json=body).json()
    ids = list("héé".encode())
    assert answer["tokens"] == ids and answer["count"] == 5 and answer["max_model_len"] == 256
    assert len(answer["token_strs"]) == 5 and answer["token_strs"][0] == "h"
    assert http.post(prefix + "/detokenize", json={"tokens": ids}).json() == {"prompt": "héé"}


def test_tokens_of_a_conversation(http):
    answer = http.post("/tokenize", json=CHAT).json()
    assert bytes(answer["tokens"]) == b"user: hello\n" and answer["token_strs"] is None


def test_a_client_can_make_the_prompt_itself(http):
    """As lm-eval does with tokenizer_backend "remote": ends by name, the template as its source."""
    info = http.get("/tokenizer_info").json()
    assert info["eos_token"] == "<end>" and info["bos_token"] is None
    assert info["vocab_size"] == 257 and info["model_max_length"] == 256
    eos = {"prompt": info["eos_token"], "add_special_tokens": False}
    assert http.post("/tokenize", json=eos).json()["tokens"] == [256]
    rendered = Environment().from_string(info["chat_template"]).render(CHAT)
    tokens = http.post("/tokenize", json={"prompt": rendered}).json()["tokens"]
    assert tokens == http.post("/tokenize", json=CHAT).json()["tokens"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {}),
        ("/tokenize", CHAT | {"prompt": "a"}),
        ("/detokenize", {"tokens": [257]}),
        ("/detokenize", {"tokens": [-1]}),
        ("/detokenize", {"tokens": "a"}),
    ],
)
def test_token_refusals(http, path, body):
    assert http.post(path, json=body).status_code == 400
