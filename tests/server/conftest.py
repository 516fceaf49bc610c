"""The server over the fake engine, on a loopback port and a thread of its own."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

from tests import fakes
from tests.waiting import CEILING, until
from weir.client import Limits, Local
from weir.config import Config
from weir.server.app import create_app
from weir.server.main import listen, settings
from weir.text import Text

TEXT = fakes.text()
CHAT = {"messages": [{"role": "user", "content": "hello"}]}


class Running:
    """A server that is up: where, around which client and engine, and its event loop."""

    def __init__(self, config: Config, engine: fakes.FakeEngine, limits: Limits | None, text: Text):
        self.config = config
        self.engine = engine
        self.limits = limits
        self.text = text
        self.socket = listen("127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.up = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.client = Local(self.engine, self.text, self.config.names, limits=self.limits)
        self.finished: list[Any] = []
        self.client.listeners.append(self.finished.append)
        await self.client.start()
        self.app = create_app(self.client, self.config)
        self.server = uvicorn.Server(settings(self.app, timeout_graceful_shutdown=2))
        serving = asyncio.create_task(self.server.serve([self.socket]))
        while not self.server.started:
            await asyncio.sleep(0.005)
        self.up.set()
        await serving
        await self.client.close()


@contextmanager
def serving(
    *,
    engine: fakes.FakeEngine | None = None,
    limits: Limits | None = None,
    text: Text = TEXT,
    **settings: Any,
) -> Iterator[Running]:
    config = Config(**({"model": "fake"} | settings))
    running = Running(config, engine or fakes.FakeEngine(), limits, text)
    running.thread.start()
    assert running.up.wait(CEILING)
    try:
        yield running
    finally:
        running.server.should_exit = True
        running.thread.join(CEILING)
        running.socket.close()
        assert not running.thread.is_alive()


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    with serving(max_body_bytes=2**20) as running:
        yield running
        service = running.app.state.service
        until(lambda: not (service.jobs or service.open or running.engine.live))


@pytest.fixture(scope="session")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=CEILING) as client:
        yield client


def events(body: str) -> list[str]:
    """The payloads of server-sent events."""
    frames = body.split("\n\n")
    assert frames.pop() == ""
    payloads = [frame.removeprefix("event: error\n") for frame in frames]
    assert all(payload.startswith("data: ") for payload in payloads)
    return [payload.removeprefix("data: ") for payload in payloads]
