"""No request of any kind makes a 5xx, and each refusal says what is wrong."""

import gzip
import json
import socket
from codecs import BOM_UTF8
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import json as msgjson

from tests.server.conftest import CHAT, Running, events
from tests.waiting import CEILING
from weir.server.app import ENDPOINTS
from weir.server.completions import CompletionRequest
from weir.server.embeddings import EmbeddingRequest
from weir.server.openai import ChatRequest

POSTS = [endpoint for endpoint in ENDPOINTS if "POST" in endpoint.methods and endpoint.body]
LIMIT = 2**20

MALFORMED = {
    "nothing": b"",
    "half an object": b'{"prompt": "a"',
    "an array": b"[]",
    "a number": b"1",
    "null": b"null",
    "no JSON": b"prompt=a",
    "two values": b"{} {}",
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "Infinity": b'{"prompt": "a", "temperature": Infinity}',
    "1e999": b'{"prompt": "a", "temperature": 1e999}',
    "invalid UTF-8": b'{"prompt": "\xff\xfe"}',
    "invalid UTF-8 in a key": b'{"\xff": 1}',
    "UTF-16": '{"prompt": "a"}'.encode("utf-16"),
    "a lone surrogate": b'{"prompt": "\\ud800"}',
    "depth": b'{"tools": ' + b"[" * 100_000,
    "closed depth": b'{"metadata": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "zero bytes": b"\0" * 100,
    "a huge integer": b'{"prompt": "a", "seed": 1' + b"0" * 5000 + b"}",
}


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED.keys())
@pytest.mark.parametrize("endpoint", POSTS, ids=lambda endpoint: endpoint.path)
def test_malformed_bodies(http, endpoint, content):
    answer = http.post(endpoint.path, content=content)
    if not content and "GET" in endpoint.methods:
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "rid"
        return
    assert answer.status_code == 400, answer.text
    said = answer.json()["error"]["message"]
    assert said and said.count("JSON") <= 1


ABSURD = {
    "temperature": [-0.1, 1e308, "hot", True],
    "top_p": [0, 1.1],
    "top_k": [-2, 2**40],
    "min_p": [2],
    "n": [0, 10**9],
    "max_tokens": [-1, 2**63, 10**30, 1.5],
    "presence_penalty": [3],
    "repetition_penalty": [0, 1e-300],
    "logit_bias": [{"a": 1}, {"-1": 1}, {"257": 1}, {"1": "x"}, {"1": 1e300}, [1]],
    "allowed_token_ids": [[], [257]],
    "seed": [2**63, 0.5],
    "stop": [["x"] * 65, ["x"] * 100_000, [""], "", 5, "x" * 1025],
    "stop_token_ids": [[10**9], list(range(100))],
    "priority": [2**40],
    "request_id": ["a\nb", ""],
    "user": ["x" * 5000],
    "truncate_prompt_tokens": [-2],
    "prompt_logprobs": [1000],
    "stream": ["yes"],
    "stream_options": [1],
    "model": [1],
    "guided_regex": ["(a", 1],
    "regex": ["(a", 1],
    "ebnf": ["start: (", 1],
    "guided_choice": [[]],
    "guided_json": ["{", {"type": "object", "patternProperties": 1}],
    "guided_grammar": ["start: ("],
    "structured_outputs": [
        {}, {"regex": "a", "choice": ["a"]}, {"regex": r"(a)\1"}, {"colour": "red"}
    ],
    "response_format": [
        {"type": "json_schema"}, {"type": "xml"},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "x"}}},
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in ABSURD.items() for value in values],
    ids=lambda part: json.dumps(part)[:40],
)
@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "a"})]
)
def test_absurd_values_name_their_field(http, path, body, field, value):
    answer = http.post(path, json=body | {field: value})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].startswith(field), answer.text


@pytest.mark.parametrize(
    ("path", "field", "close"),
    [
        ("/v1/chat/completions", "maxTokens", "max_tokens"),
        ("/v1/chat/completions", "repeat_penalty", "repetition_penalty"),
        ("/v1/chat/completions", "colour", None),
        ("/v1/responses", "max_outputs_tokens", "max_output_tokens"),
        ("/generate", "streams", "stream"),
    ],
)
def test_an_unknown_field_brings_the_nearest_to_mind(http, path, field, close):
    said = http.post(path, json={field: 1}).json()["error"]
    assert (said["param"], said["code"]) == (field, "unknown_field")
    hint = f"; did you mean {close}?" if close else "."
    assert said["message"] == f"{field} is not a field of this request{hint}"


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "bot"}]},
            "messages[0].role: invalid enum value 'bot', expected one of "
            "assistant, developer, system, tool, user.",
        ),
        (
            "/v1/chat/completions",
            CHAT | {"tool_choice": {"type": "x"}},
            "tool_choice.type: invalid value 'x', expected one of function, allowed_tools.",
        ),
        (
            "/v1/messages",
            {"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "x"}]}]},
            "messages[0].content[0].type: expected text, not images or other parts: "
            "this server reads no others.",
        ),
        ("/v1/embeddings", {"input": 1}, "input: expected `str | array`, got `int`."),
    ],
)
def test_what_a_field_may_be_is_said(http, path, body, said):
    assert http.post(path, json=body).json()["error"]["message"] == said


LONG = 10**6
TURNS = {"messages": CHAT["messages"], "max_tokens": 1}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/completions", {"prompt": "a", "max_tokens": LONG}, "max_tokens"),
        ("/v1/chat/completions", CHAT | {"max_tokens": LONG}, "max_tokens"),
        ("/v1/chat/completions", CHAT | {"min_tokens": LONG}, "min_tokens"),
        ("/v1/chat/completions", CHAT | {"max_completion_tokens": LONG}, "max_completion_tokens"),
        ("/v1/responses", {"input": "a", "max_output_tokens": LONG}, "max_output_tokens"),
        (
            "/generate",
            {"text": "a", "sampling_params": {"max_new_tokens": LONG}},
            "sampling_params.max_new_tokens",
        ),
        (
            "/generate",
            {"text": "a", "sampling_params": {"max_new_tokens": 2, "min_new_tokens": 3}},
            "sampling_params.min_new_tokens",
        ),
        ("/v1/messages", TURNS | {"stop_sequences": [""]}, "stop_sequences[0]"),
        ("/v1/messages", TURNS | {"top_p": 7}, "top_p"),
        ("/v1/messages", TURNS | {"metadata": {"user_id": "x" * 5000}}, "metadata.user_id"),
    ],
)
def test_a_field_is_named_as_its_route_calls_it(http, path, body, param):
    answer = http.post(path, json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("role", ["system", "developer", "user", "tool", "assistant"])
@pytest.mark.parametrize("rest", [{}, {"content": None}])
def test_only_an_assistant_that_says_something_else_has_no_content(http, role, rest):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    last = {"role": role, **rest}
    for extra in ({}, {"tool_calls": [call]}):
        body = {"messages": [*CHAT["messages"], last | extra], "max_tokens": 1}
        answer = http.post("/v1/chat/completions", json=body)
        if role == "assistant" and extra:
            assert answer.status_code == 200
        else:
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "messages[1].content"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stream_options": {"include_usages": True}}, "include_usages {}; did you mean include_"),
        ({"stream_options": {"colour": 1}}, "stream_options.colour {}."),
        ({"response_format": {"tipe": "text"}}, "response_format.tipe {}; did you mean type?"),
        ({"messages": [{"contents": "x"}]}, "messages[0].contents {}; did you mean content?"),
        (
            {"messages": [{"role": "user", "content": [{"texts": "x"}]}]},
            "messages[0].content[0].texts {}; did you mean text?",
        ),
        ({"tools": [{"function": {"nme": "x"}}]}, "tools[0].function.nme {}; did you mean name?"),
    ],
)
def test_an_unknown_field_of_a_part_is_named_with_its_place(http, change, said):
    found = http.post("/v1/chat/completions", json=CHAT | change).json()["error"]["message"]
    assert said.format("is not a field of this request") in found


def _bytes(total: int) -> Iterator[bytes]:
    yield b'{"prompt": "'
    for _ in range(total // 65536):
        yield b"x" * 65536


def test_a_body_of_100_mb_is_refused_as_it_comes(server: Running):
    """Chunked, so that no Content-Length tells: the server must count."""
    sent = 0

    def content() -> Iterator[bytes]:
        nonlocal sent
        for part in _bytes(100 * 2**20):
            sent += len(part)
            yield part

    try:
        answer = httpx.post(server.url + "/v1/completions", content=content(), timeout=CEILING)
    except (httpx.WriteError, httpx.RemoteProtocolError, httpx.ReadError):
        pass  # the server had answered and hung up before everything was written
    else:
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    assert httpx.get(server.url + "/health", timeout=CEILING).status_code == 200


@pytest.mark.parametrize("length", ["1048577", "99999999999", "9" * 400])
def test_a_declared_length_is_refused_before_the_body_comes(server: Running, length):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=CEILING) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode() + b"{")
        answer = connection.recv(65536).decode()
    assert " 413 " in answer.split("\r\n")[0] or " 400 " in answer.split("\r\n")[0]


def test_a_body_of_the_limit_is_read(http):
    body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
    padded = body + b" " * (LIMIT - len(body))
    assert http.post("/v1/completions", content=padded).status_code == 200
    assert http.post("/v1/completions", content=padded + b" ").status_code == 413


def test_stop_strings_until_the_body_is_full(http):
    content = b'{"prompt": "a", "stop": [' + b'"s",' * 250_000 + b'"s"]}'
    answer = http.post("/v1/completions", content=content)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "stop"


def test_a_prompt_far_beyond_the_context(http):
    answer = http.post("/v1/completions", json={"prompt": "x" * 1_000_000})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "context_length_exceeded"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = [
    (path, base, field)
    for path, base, kind in (
        ("/v1/chat/completions", CHAT | {"max_tokens": 1}, ChatRequest),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1}, CompletionRequest),
        ("/v1/embeddings", {"input": "a"}, EmbeddingRequest),
    )
    for field in kind.__struct_fields__
]


@settings(
    max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(st.sampled_from(FIELDS), anything)
def test_any_value_at_any_field(http, place, value):
    path, base, field = place
    content = json.dumps(base | {field: value}, default=str).encode("utf-8", "surrogatepass")
    answer = http.post(path, content=content)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        assert events(answer.text)[-1] == "[DONE]"
    elif answer.status_code != 200:
        error = answer.json()["error"]
        assert error["message"] and error["type"] == "invalid_request_error"


@settings(
    max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
@given(st.sampled_from(POSTS), st.binary(max_size=64) | anything.map(msgjson.encode))
def test_any_body_at_any_route(http, endpoint, content):
    answer = http.post(endpoint.path, content=content)
    assert answer.status_code in (200, 400), answer.text


@pytest.mark.parametrize(
    "begins",
    [
        "GET /health?",
        "GET /health HTTP/1.1\r\nHost: x\r\nX: ",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: ",
    ],
    ids=["url", "header", "extension", "trailer"],
)
def test_a_head_without_end_is_not_taken_in(server: Running, begins):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=CEILING) as connection:
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            connection.sendall(begins.encode())
            for _ in range(64):
                connection.sendall(b"a" * 2**20)


def test_heads_as_large_as_clients_send_them(http):
    cookies = {f"x-{at}": "a" * 7000 for at in range(8)}
    for _ in range(20):  # on one connection, a body after each
        answer = http.post("/tokenize", json={"prompt": "x" * 100_000}, headers=cookies)
        assert answer.status_code == 200


def test_bodies_as_some_clients_write_them(http):
    body = json.dumps({"prompt": "abc", "max_tokens": 1}).encode()
    assert http.post("/v1/completions", content=BOM_UTF8 + body).status_code == 200
    plain = {"content-encoding": "identity", "content-type": "text/plain"}
    assert http.post("/v1/completions", content=body, headers=plain).status_code == 200
    packed = gzip.compress(body)
    answer = http.post("/v1/completions", content=packed, headers={"content-encoding": "gzip"})
    assert answer.status_code == 415 and "gzip" in answer.json()["error"]["message"]


def test_what_is_no_http(server: Running):
    host, port = server.url.removeprefix("http://").split(":")
    for junk in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"\0" * 1000, b"POST / HTTP/9.9\r\n\r\n"):
        with socket.create_connection((host, int(port)), timeout=CEILING) as connection:
            connection.sendall(junk)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    assert httpx.get(server.url + "/health", timeout=CEILING).status_code == 200


def test_paths_and_queries(http):
    for path in ("//", "/v1//models", "/v1/models/%ff%00", "/health?%ff=%ff", "/%2e%2e/etc/passwd"):
        assert http.get(path).status_code in (200, 404)
    assert http.get("/abort_request?rid=%00%ff").json() == {"aborted": 0}
