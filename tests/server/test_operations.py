"""Health, information, orders, ids, CORS, keys, overload: what operators and proxies meet."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from tests.fakes import FakeEngine
from tests.server.conftest import CHAT, Running, events, serving
from tests.waiting import CEILING, until
from weir.client import Limits
from weir.server.operations import probe


@pytest.mark.parametrize("path", ["/health", "/ping", "/ready", "/readyz", "/livez"])
def test_a_healthy_server_answers_nothing_but_200(http, path):
    answer = http.get(path)
    assert answer.status_code == 200 and answer.content == b""


def test_deep_health_generates_a_token(http, server):
    before = server.engine.counters.generated_tokens
    assert http.get("/health", params={"deep": "1"}).status_code == 200
    assert server.engine.counters.generated_tokens == before + 1
    assert http.get("/health?deep=perhaps").status_code == 400
    assert http.get("/health?timeout=nan&deep=1").status_code == 400


def test_a_dead_engine_is_said_so_everywhere():
    with serving() as running, client(running) as http:
        stream = http.post("/v1/chat/completions", json=CHAT | {"user": "raise", "stream": True})
        assert stream.status_code == 503, "nothing was streamed yet, so the status can still tell"
        for path in ("/health", "/ping", "/ready", "/livez", "/health?deep=1"):
            answer = http.get(path)
            assert (
                answer.status_code == 503 and "device is lost" in answer.json()["error"]["message"]
            )
        answer = http.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 503 and "retry-after" not in answer.headers
        assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("path", ["/ready", "/health", "/v1/chat/completions"])
def test_who_asks_meanwhile_hears_why_the_engine_is_restarted_and_when_to_ask_again(path):
    with serving() as running, client(running) as http:
        running.client._health = "restarting: the engine process was killed by SIGKILL"
        running.client._start_seconds = 2.5
        answer = http.post(path, json=CHAT) if "chat" in path else http.get(path)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "3"
        message = answer.json()["error"]["message"]
        assert "restarting" in message and "SIGKILL" in message and "try again in 3 s" in message
        assert http.get("/livez").status_code == 200


def test_an_engine_that_hangs_fails_the_deep_check():
    with halted() as (running, _), client(running) as http:
        answer = http.get("/health?deep=1&timeout=0.2")
        assert answer.status_code == 503
        assert "no step" in answer.json()["error"]["message"]
        assert http.get("/health").status_code == 200


def test_deep_checks_share_one_probe():
    path = "/health?deep=1&timeout=60"
    with halted() as (running, go), client(running) as http, ThreadPoolExecutor(30) as threads:
        answers = threads.map(http.get, [path] * 30)
        until(lambda: running.app.state.service.open == 30)
        go.set()
        assert [answer.status_code for answer in answers] == [200] * 30
        assert running.engine.counters.generated_tokens == 1


@contextmanager
def halted() -> Iterator[tuple[Running, threading.Event]]:
    """A server whose engine makes no step until the event is set, or until the end."""
    go = threading.Event()

    class Halted(FakeEngine):
        def step(self):
            go.wait(CEILING)
            return super().step()

    with serving(engine=Halted()) as running:
        try:
            yield running, go
        finally:
            go.set()


def client(running: Running) -> httpx.Client:
    return httpx.Client(base_url=running.url, timeout=CEILING)


def test_a_busy_engine_is_not_a_sick_one():
    """The queue is full, so the probe is refused; but steps go on."""
    engine = FakeEngine(step_seconds=0.01, requests=1, context=100_000)
    with serving(engine=engine, limits=Limits(requests=1)) as running, client(running) as http:
        with ThreadPoolExecutor(2) as threads:
            try:
                for busy in ({"running": 1, "waiting": 0}, {"running": 1, "waiting": 1}):
                    threads.submit(http.post, "/v1/chat/completions", json=CHAT)
                    until(lambda busy=busy: http.get("/load").json().items() >= busy.items())
                refused = http.post("/v1/chat/completions", json=CHAT)
                assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
                assert refused.json()["error"]["code"] == "overloaded"
                future = asyncio.run_coroutine_threadsafe(probe(running.client, 60), running.loop)
                assert future.result(CEILING) is None
            finally:
                http.post("/abort_request", json={"abort_all": True})


def test_information(http, server):
    assert http.get("/version").json()["version"]
    info = http.get("/server_info").json()
    assert info["engine"] == {"device": "none"} and info["config"]["model"] == "fake"
    assert info == http.get("/get_server_info").json() | {"stats": info["stats"]}
    facts = http.get("/model_info").json()
    assert facts == http.get("/get_model_info").json()
    assert facts["max_model_len"] == 256 and facts["vocab_size"] == 257
    assert http.get("/load").json() == {"server_load": 0, "running": 0, "waiting": 0}
    models = http.get("/v1/models").json()
    assert models["object"] == "list" and models["data"][0]["max_model_len"] == 256


def test_secrets_stay_secret():
    with serving(api_key=["sesame"], served_model_name=["a", "b/c"]) as running:
        with client(running) as http:
            key = {"Authorization": "Bearer sesame"}
            assert "sesame" not in http.get("/server_info", headers=key).text
            assert http.get("/v1/models/b/c", headers=key).json()["root"] == "a"
            for path in ("/health", "/ready", "/livez", "/ping"):
                assert http.get(path).status_code == 200
            for path in ("/metrics", "/v1/models", "/openapi.json", "/flush_cache", "/docs"):
                answer = http.get(path)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
            for given, says in (
                ("sesame", "needs an API key"),
                ("Basic sesame", "needs an API key"),
                ("Bearer", "needs an API key"),
                ("Bearer \xff\xfe", "is none of the server's"),
                ("bearer sesame x", "is none of the server's"),
            ):
                headers = [(b"authorization", given.encode("latin-1"))]
                answer = http.get("/v1/models", headers=headers)
                assert answer.status_code == 401 and says in answer.json()["error"]["message"]
            assert http.get("/v1/models", headers={"Authorization": "bearer sesame"}).is_success
            preflight = http.options(
                "/v1/models", headers={"Origin": "http://a", "Access-Control-Request-Method": "GET"}
            )
            assert preflight.status_code == 200, "a browser sends no key with it"


def test_a_key_says_whose_share_a_request_takes():
    """The fake engine ends an answer as the request's `user` says."""
    named = ["end:3=three", "end:5=five"]
    body = {"prompt": "abcdefghij", "max_tokens": 8, "temperature": 0}
    with serving(tenant_keys=named, api_key=["any"]) as running:
        with client(running) as http:

            def tokens(key: str, user: str) -> int:
                headers = {"Authorization": f"Bearer {key}"}
                answer = http.post("/v1/completions", json=body | {"user": user}, headers=headers)
                return answer.json()["usage"]["completion_tokens"]

            assert [tokens("three", ""), tokens("five", "")] == [3, 5]
            assert tokens("three", "end:2") == 3, "a user cannot leave its tenant"
            assert tokens("any", "end:2") == 2, "a key without a name leaves it to the user"
            assert tokens("any", "end:3") == 8, "but nobody else may speak for a tenant"
            assert http.post("/v1/completions", json=body).status_code == 401
            told = http.get("/server_info", headers={"Authorization": "Bearer any"}).text
            assert "end:3=***" in told and "three" not in told


def test_cors(http):
    headers = {
        "Origin": "http://page.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    preflight = http.options("/v1/chat/completions", headers=headers)
    assert preflight.status_code == 200
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    for answer in (
        http.get("/v1/models", headers={"Origin": "http://page.example"}),
        http.post("/v1/completions", json={}, headers={"Origin": "http://page.example"}),
    ):
        assert answer.headers["access-control-allow-origin"] == "*", "errors too"


@pytest.mark.parametrize(
    ("given", "kept"),
    [("abc-1.2_3:4/5@6", True), ("", False), ("a b", False), ("x" * 129, False), ("é", False)],
)
def test_request_ids(http, given, kept):
    headers = [(b"x-request-id", given.encode())]
    for path in ("/version", "/nowhere"):
        answer = http.get(path, headers=headers)
        assert (answer.headers["x-request-id"] == given) == kept
        assert len(answer.headers.get_list("x-request-id")) == 1
    answer = http.post("/v1/completions", json={"prompt": "a"}, headers=headers)
    assert answer.json()["id"] == "cmpl-" + answer.headers["x-request-id"]


def test_errors_have_one_shape(http):
    for answer, status in (
        (http.get("/nowhere"), 404),
        (http.delete("/v1/models"), 405),
        (http.get("/v1/chat/completions"), 405),
        (http.post("/v1/chat/completions", content=b"{"), 400),
        (http.get("/v1/models/x"), 404),
    ):
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("path", ["/chat/completions", "/v1/v1/chat/completions"])
def test_a_client_with_a_wrong_address_is_told_the_right_one(http, path):
    answer = http.post(path, json=CHAT)
    assert answer.status_code == 404 and "ends with /v1" in answer.json()["error"]["message"]


def test_pinning_a_prefix(http, server):
    server.engine.pinned.clear()  # of what hostile requests have pinned
    prompt = "You are a helpful assistant."
    answer = http.post("/pin_prefix", json={"name": "system", "prompt": prompt})
    assert answer.status_code == 200
    assert answer.json() == {"name": "system", "prompt_tokens": len(prompt)}
    assert server.engine.pinned == {"system": len(prompt)}
    body = {"prompt": [65] * 9, "max_tokens": 1, "pin": "other"}
    assert http.post("/v1/completions", json=body).status_code == 200
    assert server.engine.pinned["other"] == 9
    for name in ("system", "other", "nobody"):
        assert http.post("/unpin_prefix", json={"name": name}).status_code == 200
    assert http.post("/v1/completions", json=body | {"pin": None}).status_code == 200
    assert server.engine.pinned == {}
    refused = http.post("/pin_prefix", json={"name": "long", "prompt": "x" * 80})
    assert refused.status_code == 400 and "no room" in refused.json()["error"]["message"]
    refused = http.post("/v1/completions", json=body | {"prompt": "x" * 80})
    assert refused.status_code == 400 and "no room" in refused.json()["error"]["message"]
    assert http.post("/pin_prefix", json={"name": "", "prompt": "x"}).status_code == 400


def test_an_echo_that_is_aborted_before_it_is_scored_is_an_answer():
    idle = FakeEngine(requests=0)
    body = {"prompt": "abc", "echo": True, "logprobs": 1}
    with serving(engine=idle) as running, client(running) as http, ThreadPoolExecutor() as pool:
        asked = pool.submit(http.post, "/v1/completions", json=body)
        until(lambda: idle.live)
        assert http.post("/abort_request", json={"abort_all": True}).json() == {"aborted": 1}
        [choice] = asked.result(CEILING).json()["choices"]
    assert choice["finish_reason"] == "abort" and choice["logprobs"]["tokens"] == ["a"]


def test_a_prefix_whose_request_was_aborted_is_not_said_to_be_pinned():
    idle = FakeEngine(requests=0)
    with serving(engine=idle) as running, client(running) as http, ThreadPoolExecutor() as pool:
        asked = pool.submit(http.post, "/pin_prefix", json={"name": "system", "prompt": "x"})
        until(lambda: idle.live)
        assert http.post("/abort_request", json={"abort_all": True}).json() == {"aborted": 1}
        answer = asked.result(CEILING)
    assert answer.status_code == 400 and "aborted" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/flush_cache", "/reset_prefix_cache"])
def test_flushing(http, server, path):
    before = server.engine.flushed
    assert http.get(path).status_code == http.post(path).status_code == 200
    http.post("/v1/completions", json={"prompt": "a"})  # orders are taken in turn
    assert server.engine.flushed == before + 2


@pytest.fixture(scope="module")
def slow():
    with serving(engine=FakeEngine(step_seconds=0.005, context=100_000)) as running:
        with client(running) as http:
            yield http


@pytest.mark.parametrize("how", ["rid", "answer id", "query", "request_ids", "all"])
@pytest.mark.parametrize("prompt", ["abc", ["abc", "de"]])
def test_aborting(slow, how, prompt):
    body = {"prompt": prompt, "max_tokens": 90_000, "stream": True, "request_id": "one"}
    with slow.stream("POST", "/v1/completions", json=body) as answer:
        chunks = answer.iter_text()
        text = next(chunks)
        url = "/abort_request"
        number = len(prompt) if isinstance(prompt, list) else 1
        aborted = {
            "rid": lambda: slow.post(url, json={"rid": "one"}),
            "answer id": lambda: slow.post(url, json={"rid": "cmpl-one"}),
            "query": lambda: slow.get(url, params={"rid": "one"}),
            "request_ids": lambda: slow.post("/abort_requests", json={"request_ids": ["one", "x"]}),
            "all": lambda: slow.post(url, json={"abort_all": True}),
        }[how]()
        assert aborted.json() == {"aborted": number}
        text += "".join(chunks)
    frames = events(text)
    assert frames.pop() == "[DONE]"
    reasons = [json.loads(frame)["choices"][0]["finish_reason"] for frame in frames]
    assert reasons.count("abort") == number
    assert slow.post(url, json={"rid": "one"}).json() == {"aborted": 0}


def test_a_duplicate_id_in_the_body_is_refused_but_not_one_in_the_header(slow):
    body = {"prompt": "a", "max_tokens": 90_000, "stream": True, "request_id": "twice"}
    with slow.stream("POST", "/v1/completions", json=body) as answer:
        chunks = answer.iter_text()
        next(chunks)
        short = {"prompt": "a", "max_tokens": 1}
        again = slow.post("/v1/completions", json=short | {"request_id": "twice"})
        assert again.status_code == 400 and again.json()["error"]["param"] == "request_id"
        proxied = slow.post("/v1/completions", json=short, headers={"X-Request-Id": "twice"})
        assert proxied.status_code == 200
        assert proxied.headers["x-request-id"] == "twice"
        assert proxied.json()["id"].startswith("cmpl-twice-")


def test_docs_need_nothing_from_outside(http):
    page = http.get("/docs").text
    assert page == http.get("/").text
    assert "/v1/chat/completions" in page and "http" not in page.replace("HTTP", "")
    links = re.findall(r'href="\.(/[^"]*)"', page)
    assert "/metrics" in links and all(http.get(path).status_code == 200 for path in links)
