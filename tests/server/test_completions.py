"""What clients other than OpenAI's rely on: echo, logprobs, token ids, truncation, raw frames."""

import json

import httpx
import pytest

from tests.server.conftest import CHAT, events, serving
from weir.params import SamplingParams


def complete(http, **body):
    answer = http.post("/v1/completions", json={"temperature": 0} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_echo_scores_as_lm_eval_reads_them(http):
    """lm-eval sends context + continuation as ids, with echo, logprobs=1 and max_tokens=1, and
    drops the last position."""
    ids = list(b"question answer")
    body = {"prompt": [ids, ids[:5]], "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234}
    answer = complete(http, model="fake", **body)
    for choice, length in zip(answer["choices"], (15, 5), strict=True):
        scores = choice["logprobs"]
        assert choice["text"] == bytes(ids[:length]).decode() + "q"
        assert scores["tokens"] == [chr(one) for one in ids[:length]] + ["q"]
        assert scores["token_logprobs"] == [None] + [-0.5] * length
        assert scores["top_logprobs"][0] is None
        assert scores["text_offset"] == list(range(length + 1))
        continuation = zip(
            scores["token_logprobs"][2:-1], scores["top_logprobs"][2:-1], strict=True
        )
        assert all(one == max(top.values()) for one, top in continuation), "greedy"


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_what_is_not_asked_is_as_the_model_has_it(http, server, monkeypatch, route):
    monkeypatch.setattr(server.client.model, "sampling", SamplingParams(temperature=0.6, top_k=20))
    given, submit = [], server.client.submit
    monkeypatch.setattr(
        server.client, "submit", lambda *a, **k: given.append(a[1]) or submit(*a, **k)
    )
    asked = {"prompt": "abc"} if route == "completions" else CHAT
    for more in ({}, {"temperature": 0, "min_p": 0.5}):
        assert http.post(f"/v1/{route}", json=asked | more).status_code == 200
    said = [(one.temperature, one.top_k, one.top_p, one.min_p) for one in given]
    assert said == [(0.6, 20, 1.0, 0.0), (0.0, 20, 1.0, 0.5)]
    assert http.get("/server_info").json()["sampling"]["top_k"] == 20


def test_echo_without_generating(http):
    answer = complete(http, prompt="abc", max_tokens=0, logprobs=0, echo=True)
    choice = answer["choices"][0]
    assert choice["text"] == "abc" and choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"] == ["a", "b", "c"]
    assert choice["logprobs"]["top_logprobs"] == [None, {"b": -0.5}, {"c": -0.5}]
    assert answer["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_ends_at_once_has_one_logprob_and_no_text(http, stream):
    """The first token is EOS: it is scored as any other, and shown to nobody."""
    body = {"prompt": "abc", "logprobs": 2, "stream": stream, "user": "end:1"}
    (choice,) = ended(http.post("/v1/completions", json=body), stream)
    assert choice["text"] == "" and choice["finish_reason"] == "stop"
    assert choice["logprobs"]["tokens"] == ["<end>"]
    assert choice["logprobs"]["token_logprobs"] == [-0.5]
    assert choice["logprobs"]["text_offset"] == [0]
    assert len(choice["logprobs"]["top_logprobs"][0]) == 2

    body = CHAT | {"logprobs": True, "top_logprobs": 2, "stream": stream, "user": "end:1"}
    (choice,) = ended(http.post("/v1/chat/completions", json=body), stream)
    assert choice["delta" if stream else "message"]["content"] == ""
    assert choice["finish_reason"] == "stop"
    (only,) = choice["logprobs"]["content"]
    assert only["token"] == "<end>" and len(only["top_logprobs"]) == 2


def ended(answer, stream: bool) -> list[dict]:
    """The choices of an answer that came in one piece."""
    assert answer.status_code == 200, answer.text
    if not stream:
        return answer.json()["choices"]
    *frames, last = events(answer.text)
    assert last == "[DONE]" and len(frames) == 1
    return json.loads(frames[0])["choices"]


def test_logprobs_without_echo_begin_at_the_answer(http):
    scores = complete(http, prompt="abc", max_tokens=2, logprobs=2)["choices"][0]["logprobs"]
    assert scores["tokens"] == ["a", "b"] and scores["text_offset"] == [0, 1]
    assert [sorted(top) for top in scores["top_logprobs"]] == [["a", "b"], ["b", "c"]]


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_is_the_whole_answer_in_pieces(http, n):
    body = {"prompt": ["abc", "defg"], "max_tokens": 6, "logprobs": 1, "echo": True, "n": n}
    whole = complete(http, **body)["choices"]
    pieces: dict[int, dict] = {}
    frames = events(
        http.post("/v1/completions", json={"temperature": 0, "stream": True} | body).text
    )
    assert frames.pop() == "[DONE]"
    for data in frames:
        (choice,) = json.loads(data)["choices"]
        known = pieces.setdefault(
            choice["index"], {"text": "", "finish_reason": None, "logprobs": {}}
        )
        known["text"] += choice["text"]
        known["finish_reason"] = choice["finish_reason"]
        for name, values in choice["logprobs"].items():
            known["logprobs"].setdefault(name, []).extend(values)
    for choice in whole:
        assert pieces[choice["index"]] == {name: choice[name] for name in pieces[choice["index"]]}


def test_prompt_logprobs_and_token_ids(http):
    answer = complete(http, prompt="abc", max_tokens=2, prompt_logprobs=1, return_token_ids=True)
    choice = answer["choices"][0]
    assert choice["prompt_token_ids"] == [97, 98, 99] and choice["token_ids"] == [97, 98]
    assert choice["prompt_logprobs"] == [
        None,
        {"98": {"logprob": -0.5, "rank": 1, "decoded_token": "b"}},
        {"99": {"logprob": -0.5, "rank": 1, "decoded_token": "c"}},
    ]
    body = CHAT | {
        "max_tokens": 2,
        "temperature": 0,
        "prompt_logprobs": 0,
        "return_token_ids": True,
    }
    chat = http.post("/v1/chat/completions", json=body).json()
    assert len(chat["prompt_logprobs"]) == len(chat["prompt_token_ids"]) == 12
    assert chat["choices"][0]["token_ids"] == list(b"us")


@pytest.mark.parametrize(("keep", "text"), [(3, "hij"), (-1, "x" * 252), (900, "x" * 200 + "hij")])
def test_truncation_keeps_the_end(http, keep, text):
    prompt = {3: "abcdefghij", -1: "y" * 100 + "x" * 252, 900: "x" * 200 + "hij"}[keep]
    body = {"prompt": prompt, "truncate_prompt_tokens": keep, "max_tokens": 4, "echo": True}
    assert complete(http, **body)["choices"][0]["text"] == text + (text * 2)[:4]


def test_usage_in_every_chunk_where_asked_for(http):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "abc", "max_tokens": 3, "stream": True, "stream_options": options}
    *chunks, last = map(json.loads, events(http.post("/v1/completions", json=body).text)[:-1])
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 3
    assert last["usage"]["total_tokens"] == 6 and last["choices"] == []
    chunks = events(http.post("/v1/completions", json=body | {"stream_options": None}).text)[:-1]
    assert all("usage" not in json.loads(chunk) for chunk in chunks)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"best_of": 2}, "best_of"),
        ({"best_of": 3, "n": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": [97, 257]}, "prompt"),
        ({"prompt": ["a"] * 2049}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"logprobs": 101}, "logprobs"),
        ({"model": "other"}, "model"),
    ],
)
def test_refusals(http, body, param):
    answer = http.post("/v1/completions", json={"prompt": "abc"} | body)
    assert answer.status_code == (404 if param == "model" else 400)
    assert answer.json()["error"]["param"] == param, answer.text


def test_best_of_n_itself_is_n(http):
    assert len(complete(http, prompt="a", n=2, best_of=2)["choices"]) == 2


def test_chat_template_kwargs_do_not_reach_beyond_the_template(http):
    for name in ("messages", "template", "self", "add_generation_prompt"):
        body = CHAT | {"chat_template_kwargs": {name: 1}}
        answer = http.post("/v1/chat/completions", json=body)
        assert answer.status_code == 400 and name in answer.json()["error"]["message"]
    body = CHAT | {"chat_template_kwargs": {"enable_thinking": False}, "max_tokens": 1}
    assert http.post("/v1/chat/completions", json=body).status_code == 200


def test_continuing_the_last_message(http):
    messages = [*CHAT["messages"], {"role": "assistant", "content": "well"}]
    body = {"messages": messages, "continue_final_message": True, "max_tokens": 1}
    answer = http.post("/v1/chat/completions", json=body).json()
    assert answer["usage"]["prompt_tokens"] == len("user: hello\nassistant: well")
    both = body | {"add_generation_prompt": True}
    assert http.post("/v1/chat/completions", json=both).status_code == 400


def test_more_answers_than_may_ever_wait_are_no_case_for_trying_again():
    with serving(max_num_queued_reqs=4) as running, httpx.Client(base_url=running.url) as http:
        for path, field in (("/v1/completions", "prompt"), ("/v1/embeddings", "input")):
            answer = http.post(path, json={field: ["a"] * 5})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
        body = {"prompt": ["a"] * 2, "max_tokens": 1}
        assert http.post("/v1/completions", json=body | {"n": 3}).status_code == 400
        assert http.post("/v1/completions", json=body | {"n": 2}).status_code == 200
