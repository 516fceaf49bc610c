"""Servers behind one address: what passes, who is asked, and who is asked instead."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import uvicorn

from tests.fakes import FakeEngine
from tests.server.conftest import CHAT, Running, serving
from tests.waiting import CEILING, until
from weir import router as routing
from weir.balance import ROUTERS
from weir.client import Limits
from weir.http import Http
from weir.router import BLOCK, UNKNOWN, Router, prompt
from weir.server.main import listen, settings


class Routed:
    """A router that is up, on a loopback port and a thread of its own."""

    def __init__(self, urls: list[str], policy: str):
        self.socket = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.router = Router(urls, ROUTERS[policy](1000, BLOCK), 2**20, CEILING)
        self.server = uvicorn.Server(settings(self.router, timeout_graceful_shutdown=2))
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        watching = asyncio.create_task(self.router.watch())
        await self.server.serve([self.socket])
        watching.cancel()

    def ready(self) -> list[bool]:
        return [not one.trouble for one in self.router.replicas]


@contextlib.contextmanager
def routed(*urls: str, policy: str = "round-robin", ready: int | None = None) -> Iterator[Routed]:
    routed = Routed([*urls], policy)
    routed.thread.start()
    try:
        until(lambda: sum(routed.ready()) == (len(urls) if ready is None else ready))
        yield routed
    finally:
        routed.server.should_exit = True
        routed.thread.join(CEILING)
        routed.socket.close()
        assert not routed.thread.is_alive()


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(routing, "EVERY", 0.02)


@pytest.fixture
def pair() -> Iterator[list[Running]]:
    with serving() as first, serving() as second:
        yield [first, second]


def client(routed: Routed) -> httpx.Client:
    return httpx.Client(base_url=routed.url, timeout=CEILING)


def test_requests_and_answers_pass_as_they_are(pair):
    greedy = CHAT | {"temperature": 0, "max_tokens": 8}
    with routed(*(one.url for one in pair)) as made, client(made) as http:
        asked = [http.post("/v1/chat/completions", json=greedy) for _ in range(2)]
        said = {one.json()["choices"][0]["message"]["content"] for one in asked}
        assert len(said) == 1 and [len(one.finished) for one in pair] == [1, 1]
        named = {"x-request-id": "mine"}
        whole = http.post("/v1/chat/completions", json=greedy | {"stream": True}, headers=named)
        assert whole.headers["x-request-id"] == "mine" and whole.text.endswith("data: [DONE]\n\n")
        assert whole.headers["content-type"].startswith("text/event-stream")
        wrong = http.post("/v1/chat/completions", json=greedy | {"n": "x"})
        assert wrong.status_code == 400 and wrong.json()["error"]["param"] == "n"
        assert http.get("/v1/models").json()["data"][0]["id"] == "fake"
        assert http.head("/v1/models").status_code == 200
        assert http.get("/no/such?x=1").status_code == 404
        assert http.post("/v1/completions", content=b"x" * 2**21).status_code == 413
        assert http.post("/v1/completions", content=b"no json").status_code == 400
        metrics = http.get("/metrics").text
        assert f'weir_router_answers_total{{replica="{pair[0].url}",status="200"}}' in metrics
        assert f'weir_router_requests{{replica="{pair[0].url}"}} 0.0' in metrics
        until(lambda: all(one.http.idle for one in made.router.replicas))  # for the next requests
    until(lambda: not any(one.http.idle for one in made.router.replicas))


def test_keys_are_the_servers(pair):
    with serving(api_key=["secret"]) as closed, routed(closed.url) as made, client(made) as http:
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 401
        key = {"authorization": "Bearer secret"}
        assert http.post("/v1/chat/completions", json=CHAT, headers=key).status_code == 200


def test_a_conversation_stays_where_its_prefix_is(pair):
    urls = [one.url for one in pair]
    with routed(*urls, policy="cache-aware") as made, client(made) as http:
        talks = {letter: [{"role": "user", "content": letter * 128}] for letter in "ab"}
        for turn in range(3):
            for letter, talk in talks.items():
                body = {"messages": talk, "max_tokens": 1, "program": letter}
                assert http.post("/v1/chat/completions", json=body).status_code == 200
                talk.append({"role": "user", "content": f"go on {turn}"})
        assert sorted("".join(end.program for end in one.finished) for one in pair) == [
            "aaa",
            "bbb",
        ]


def test_what_a_prompt_is_made_of():
    chat = {"model": "m", "messages": [{"role": "user", "content": "hé"}], "temperature": 0}
    begun, more = (prompt(json.dumps(chat).encode()) for _ in range(2))
    assert begun == more == b'[{"role": "user", "content": "h\\u00e9"}]'
    assert prompt(b'{"prompt": [1, 2], "system": "x"}') == b'"x"[1, 2]'
    for odd in (b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"prompt": null}'):
        assert prompt(odd) in (b"", b"null")


@pytest.mark.parametrize("url", ["http://a..b:1", "http://127.0.0.1:9", "http://[::1]:9"])
def test_what_cannot_be_looked_at_is_no_end_of_looking(url):
    assert asyncio.run(routing.trouble(Http(url)))


def test_a_server_that_was_never_there_is_told_of_once(caplog):
    router = Router(["http://127.0.0.1:1"], ROUTERS["round-robin"](1000, BLOCK))
    assert router.replicas[0].trouble == UNKNOWN
    for why in ("refused", "refused"):
        router._found(router.replicas[0], why)
    assert caplog.text.count("gets no requests") == 1


def test_who_is_full_is_passed_over_until_all_are(tmp_path):
    stuck = CHAT | {"max_tokens": 2, "user": f"hang:{tmp_path / 'go'}"}
    with contextlib.ExitStack() as stack:
        limits = Limits(requests=1)
        pair = [stack.enter_context(serving(limits=limits)) for _ in range(2)]
        made = stack.enter_context(routed(*(running.url for running in pair)))
        http = stack.enter_context(client(made))
        pool = stack.enter_context(ThreadPoolExecutor(2))
        stack.callback((tmp_path / "go").touch)
        asked = []
        for count in (1, 2):
            asked.append(pool.submit(http.post, "/v1/chat/completions", json=stuck))
            held = [running.client._ledger.live for running in pair]
            until(lambda held=held, count=count: sum(map(len, held)) == count)
        full = http.post("/v1/chat/completions", json=CHAT)
        assert full.status_code == 503 and int(full.headers["retry-after"]) >= 1
        assert "are waiting" in full.json()["error"]["message"]
        assert made.ready() == [True, True]
        (tmp_path / "go").touch()
        assert [one.result(CEILING).status_code for one in asked] == [200, 200]
        assert [len(running.finished) for running in pair] == [1, 1]


def test_servers_that_leave_and_return(pair):
    urls = [one.url for one in pair]
    with routed(*urls, "http://127.0.0.1:9", ready=2) as made, client(made) as http:
        pair[0].client._health = "restarting: it died"
        for _ in range(4):
            assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
        assert [len(one.finished) for one in pair] == [0, 4]
        until(lambda: made.ready() == [False, True, False])
        pair[1].client._health = "dead: no GPU"
        until(lambda: not any(made.ready()))
        nobody = http.post("/v1/chat/completions", json=CHAT)
        assert nobody.status_code == 503 and nobody.headers["retry-after"] == "1"
        says = nobody.json()["error"]["message"]
        assert "it died" in says and "no GPU" in says and "no server answers" in says
        assert http.get("/health").status_code == 503 and http.get("/livez").status_code == 200
        pair[0].client._health = "ready"
        until(lambda: made.ready() == [True, False, False])
        assert http.get("/ready").status_code == 200
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
        assert len(pair[0].finished) == 1


def test_a_client_that_leaves_ends_its_request():
    engine = FakeEngine(step_seconds=0.005, context=100_000)
    with serving(engine=engine) as slow, routed(slow.url) as made, client(made) as http:
        for stream in (True, False):
            body = CHAT | {"max_tokens": 90_000, "stream": stream}
            content = json.dumps(body).encode()
            connection = socket.create_connection(("127.0.0.1", http.base_url.port))
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}"
            )
            connection.sendall(head.encode() + b"\r\n\r\n" + content)
            until(lambda: engine.live)
            assert made.router.replicas[0].load == 1
            connection.close()
            until(lambda: not engine.live and made.router.replicas[0].load == 0)


def test_everybody_is_told(pair):
    with routed(*(one.url for one in pair)) as made, client(made) as http:
        told = http.post("/flush_cache")
        assert told.status_code == 200 and set(told.json()) == {one.url for one in pair}
        until(lambda: [one.engine.flushed for one in pair] == [1, 1])
        wrong = http.post("/abort_request", json={})
        assert wrong.status_code == 400


READY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


@contextlib.contextmanager
def breaking(answer: bytes) -> Iterator[tuple[str, list[int]]]:
    """A server that is ready and hangs up on whoever asks for more, after `answer`."""
    asked = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection:
                    if connection.recv(2**16).startswith(b"GET /ready"):
                        connection.sendall(READY)
                    else:
                        asked.append(1)
                        connection.sendall(answer)

    with listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", asked
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(CEILING)


def test_a_request_that_two_servers_hang_up_on_is_given_to_no_third(pair):
    with breaking(b"") as (first, one), breaking(b"") as (second, two):
        with routed(first, second, pair[0].url) as made, client(made) as http:
            answer = http.post("/v1/chat/completions", json=CHAT)
            assert answer.status_code == 503 and "closed the connection" in answer.text
            assert (one, two, pair[0].finished) == ([1], [1], [])


def test_a_request_that_one_server_hangs_up_on_is_given_to_another(pair):
    with breaking(b"") as (first, _), routed(first, pair[0].url) as made, client(made) as http:
        assert http.post("/v1/chat/completions", json=CHAT).status_code == 200
        assert f'weir_router_moved_total{{replica="{first}"}} 1.0' in http.get("/metrics").text


def test_an_answer_that_breaks_off_does_not_look_whole():
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
    part = b"a\r\ndata: {}\n\n\r\n"
    with breaking(head % b"text/event-stream" + part) as (url, _):
        with routed(url) as made, client(made) as http:
            found = http.post("/v1/completions", json={}).text
            assert found.startswith("data: {}") and re.search(
                r"event: error\ndata: .*engine_", found
            )
    with breaking(head % b"application/json" + part) as (url, _):
        with routed(url) as made, client(made) as http, pytest.raises(httpx.RemoteProtocolError):
            http.post("/v1/completions", json={})


def test_the_command(pair):
    words = [sys.executable, "-m", "weir.cli", "route", *(one.url for one in pair), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        lines = iter(process.stderr.readline, "")
        url = next(line.split()[-1] for line in lines if "routing to 2 servers" in line)
        for _ in pair:
            assert "gets requests" in next(lines)
        assert httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=CEILING).is_success
        process.send_signal(signal.SIGTERM)
        assert process.wait(CEILING) == 0
    wrong = subprocess.run([*words[:4], "localhost:8000"], capture_output=True, text=True)
    assert wrong.returncode == 1 and "is no address" in wrong.stderr
