"""The server as a process: its start, its signals, its way out."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import events
from tests.waiting import CEILING, until
from weir.errors import ConfigError
from weir.server.main import listen

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def process(engine: dict, factory: str = "tests.fakes:engine", **config) -> Iterator[tuple]:
    settings = json.dumps({"engine": engine, "config": config, "factory": factory})
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.server.serve_fake", settings],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = f"http://127.0.0.1:{running.stdout.readline().strip()}"
        with httpx.Client(base_url=url, timeout=CEILING) as http:
            yield running, http
    finally:
        running.kill()
        running.communicate()


def wait_ready(http: httpx.Client) -> list[int]:
    """Status codes of /health until it says 200."""
    codes = []
    until(lambda: codes.append(http.get("/health").status_code) or codes[-1] == 200)
    return codes


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def test_start_and_a_quiet_end():
    with process({"context": 64}) as (running, http):
        codes = wait_ready(http)
        assert set(codes[:-1]) <= {503}, "not ready is said, not hidden"
        assert http.post("/v1/completions", json={"prompt": "a"}).status_code == 200
        (engine,) = children(running.pid)
        running.send_signal(signal.SIGTERM)
        assert running.wait(CEILING) == 0
        assert not Path(f"/proc/{engine}").exists()
        lines = [json.loads(line) for line in running.stderr]
        assert "starting fake on http://127.0.0.1:" in lines[0]["message"]
        assert any("ready after" in line["message"] for line in lines)
        assert all(line["level"] == "info" for line in lines), lines


def test_sigterm_lets_streams_finish_and_refuses_new_requests(tmp_path):
    with process({"context": 400, "step_seconds": 0.001}) as (running, http):
        wait_ready(http)
        free = tmp_path / "free"
        body = {"prompt": "abc", "max_tokens": 80, "stream": True, "user": f"hold:{free}"}
        with http.stream("POST", "/v1/completions", json=body) as answer:
            chunks = answer.iter_text()
            text = next(chunks)
            running.send_signal(signal.SIGTERM)
            until(lambda: http.get("/ready").status_code == 503)
            assert http.get("/health").status_code == 200
            refused = http.post("/v1/completions", json={"prompt": "a"})
            assert refused.status_code == 503 and "retry-after" in refused.headers
            free.touch()
            text += "".join(chunks)
        assert len(events(text)) == 81 and "[DONE]" in text
        assert running.wait(CEILING) == 0


def test_the_drain_has_a_bound():
    engine = {"context": 100_000, "step_seconds": 0.01}
    with process(engine, shutdown_timeout=0.5) as (running, http):
        wait_ready(http)
        body = {"prompt": "abc", "max_tokens": 90_000, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as answer:
            chunks = answer.iter_text()
            text = next(chunks)
            signalled = time.monotonic()
            running.send_signal(signal.SIGTERM)
            text += "".join(chunks)
        error = json.loads(events(text)[-1])["error"]
        assert error["code"] == "engine_error" and "shut down" in error["message"]
        assert running.wait(CEILING) == 0
        assert time.monotonic() - signalled > 0.4


def test_a_second_signal_ends_it_now():
    with process({"context": 100_000, "step_seconds": 0.01}) as (running, http):
        wait_ready(http)
        body = {"prompt": "abc", "max_tokens": 90_000, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as answer:
            next(chunks := answer.iter_text())
            running.send_signal(signal.SIGINT)
            until(lambda: http.get("/ready").status_code == 503)
            assert running.poll() is None, "the first signal waits"
            running.send_signal(signal.SIGINT)
            with contextlib.suppress(httpx.RemoteProtocolError):
                list(chunks)
        assert running.wait(CEILING) == 0


def test_a_stream_outlives_one_engine_and_says_why_it_ends_with_the_next():
    with process({"context": 100_000, "step_seconds": 0.01}) as (running, http):
        wait_ready(http)
        body = {"prompt": "abc", "max_tokens": 90_000, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as answer:
            chunks = answer.iter_text()
            text = next(chunks)
            (first,) = children(running.pid)
            os.kill(first, signal.SIGKILL)
            until(lambda: children(running.pid) not in ([], [first]))
            wait_ready(http)
            text += next(chunks)
            os.kill(children(running.pid)[0], signal.SIGKILL)
            text += "".join(chunks)
        last = json.loads(events(text)[-1])
        assert last["error"]["code"] == "engine_error" and last["error"]["message"]
        wait_ready(http)
        assert http.post("/v1/completions", json={"prompt": "a"}).status_code == 200


def test_an_engine_that_cannot_start_ends_the_server_saying_why():
    with process({"how": "raise"}, factory="tests.fakes:broken_engine") as (running, _):
        assert running.wait(CEILING) != 0
        assert "the weights are not there" in running.stderr.read()


def test_an_address_in_use_is_said_before_anything_slow(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ConfigError, match="--port"):
            listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(ConfigError, match="--port must be 0 to 65535, not 65536"):
        listen("127.0.0.1", 65536)

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConfigError, match=r"cannot listen on no\.such\.host:0 \(Name or service"):
        listen("no.such.host", 0)


def test_the_server_does_not_import_torch():
    code = "import sys, weir.server.main; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
