"""A client that goes takes its request with it, whatever it was waiting for."""

import json
import socket
import time

import pytest

from tests.fakes import FakeEngine
from tests.server.conftest import CHAT, Running, serving
from tests.waiting import CEILING, until


@pytest.fixture(scope="module")
def slow():
    with serving(engine=FakeEngine(step_seconds=0.005, context=100_000, requests=4)) as running:
        yield running


def send(server: Running, path: str, body: dict) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=CEILING)
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def idle(server: Running) -> bool:
    service = server.app.state.service
    return not (server.engine.live or service.jobs or service.open)


LONG = {"max_tokens": 90_000}  # minutes


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT | LONG),
        ("/v1/chat/completions", CHAT | LONG | {"stream": True, "n": 3}),
        ("/v1/completions", {"prompt": "abc"} | LONG),
        ("/v1/completions", {"prompt": ["abc", "de", "f"]} | LONG),
        ("/v1/completions", {"prompt": ["abc", "de", "f"], "stream": True} | LONG),
        ("/v1/completions", {"prompt": ["x"] * 20, "n": 2} | LONG),
        ("/generate", {"text": "abc", "sampling_params": {"max_new_tokens": 90_000}}),
    ],
    ids=lambda value: value if isinstance(value, str) else "stream" * value.get("stream", False),
)
@pytest.mark.parametrize("reset", [False, True])
def test_leaving_aborts(slow: Running, path: str, body: dict, reset: bool):
    connection = send(slow, path, body)
    until(lambda: slow.engine.live)
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    until(lambda: idle(slow))


def test_a_client_that_leaves_while_it_sends(slow: Running):
    host, port = slow.url.removeprefix("http://").split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port)), timeout=CEILING) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
            )
    until(lambda: idle(slow))


def test_one_of_many_leaves_the_others_alone(slow: Running, monkeypatch):
    body = {"prompt": "abc", "max_tokens": 60, "stream": True, "temperature": 0}
    with monkeypatch.context() as paused:
        paused.setattr(slow.engine, "requests", 0)
        connections = [send(slow, "/v1/completions", body) for _ in range(8)]
        until(lambda: len(slow.engine.live) == 8)
        for connection in connections[::2]:
            connection.close()
        until(lambda: len(slow.engine.live) == 4)
    for connection in connections[1::2]:
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            part = connection.recv(65536)
            assert part, "the server must not hang up in the middle"
            answer += part
        assert answer.count(b'"text"') == 60 and b"[DONE]" in answer
        connection.close()
    until(lambda: idle(slow))


def test_a_storm_of_aborts_leaves_nothing(slow: Running):
    for round_ in range(60):
        connection = send(slow, "/v1/completions", {"prompt": "ab", "stream": True} | LONG)
        if round_ % 3:
            time.sleep(0.001 * (round_ % 7))
        if round_ % 2:
            connection.recv(100)
        connection.close()
    until(lambda: idle(slow))


def test_a_slow_reader_gets_everything(slow: Running):
    """While the client does not read, events wait together; nothing is lost."""
    body = {"prompt": "abc", "max_tokens": 300, "stream": True, "temperature": 0}
    connection = send(slow, "/v1/completions", body)
    time.sleep(0.5)
    answer = b""
    while b"[DONE]" not in answer:
        answer += connection.recv(65536)
    connection.close()
    assert answer.count(b'"text"') == 300
