"""A client that goes takes its request with it, whatever it was waiting for."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable

import pytest

from tests.fakes import FakeEngine
from tests.server.conftest import CHAT, Running, serving


@pytest.fixture(scope="module")
def slow():
    with serving(engine=FakeEngine(step_seconds=0.005, context=100_000, requests=4)) as running:
        yield running


def send(server: Running, path: str, body: dict) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)
    return connection


def becomes(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.002)
    return False


LONG = {"max_tokens": 90_000}


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
    assert becomes(lambda: len(slow.engine.live) > 0)
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()
    assert becomes(lambda: not slow.engine.live and not slow.app.state.service.jobs)
    assert becomes(lambda: slow.app.state.service.open == 0)


def test_a_client_that_leaves_while_it_sends(slow: Running):
    host, port = slow.url.removeprefix("http://").split(":")
    for _ in range(20):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
            )
    assert becomes(lambda: slow.app.state.service.open == 0)
    assert slow.app.state.service.jobs == {}


def test_one_of_many_leaves_the_others_alone(slow: Running):
    body = {"prompt": "abc", "max_tokens": 60, "stream": True, "temperature": 0}
    connections = [send(slow, "/v1/completions", body) for _ in range(8)]
    assert becomes(lambda: len(slow.engine.live) == 8)
    for connection in connections[::2]:
        connection.close()
    for connection in connections[1::2]:
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            part = connection.recv(65536)
            assert part, "the server must not hang up in the middle"
            answer += part
        assert answer.count(b'"text"') == 60 and b"[DONE]" in answer
        connection.close()
    assert becomes(lambda: not slow.app.state.service.jobs)


def test_a_storm_of_aborts_leaves_nothing(slow: Running):
    for round_ in range(60):
        connection = send(slow, "/v1/completions", {"prompt": "ab", "stream": True} | LONG)
        if round_ % 3:
            time.sleep(0.001 * (round_ % 7))
        if round_ % 2:
            connection.recv(100)
        connection.close()
    assert becomes(lambda: not slow.engine.live and not slow.app.state.service.jobs)
    assert becomes(lambda: slow.app.state.service.open == 0)


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
