"""Coroutines with a time limit, and proof that nothing was left behind."""

import asyncio
import contextlib
import gc
import os
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import uvloop
import zmq
import zmq.asyncio

from tests import fakes
from tests.waiting import CEILING
from weir.client import ModelInfo
from weir.client.ledger import Ledger, Limits
from weir.text import Text

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as once:
    once.run(asyncio.sleep(0))  # uvloop's first loop keeps two descriptors for all later ones
zmq.asyncio.Context.instance().socket(zmq.PAIR).close()  # and ZeroMQ's first socket its threads


@pytest.fixture(scope="session")
def text() -> Text:
    return fakes.text()


@pytest.fixture
def ledger(text: Text) -> Ledger:
    return make_ledger(text)


def make_ledger(text: Text, limits: Limits | None = None, context: int = 256) -> Ledger:
    return Ledger(text, ModelInfo("m", ["m"], context, text.vocab, text.eos), limits, seed=1)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable:
    """Runs a coroutine function on either event loop, until the test's own limit is near."""

    def runner(function: Callable[..., Awaitable], *arguments):
        async def limited():
            async with asyncio.timeout(100):
                return await function(*arguments)

        factory = uvloop.new_event_loop if request.param == "uvloop" else None
        with asyncio.Runner(loop_factory=factory) as loop:
            return loop.run(limited())

    return runner


def left_behind() -> tuple[int, list[int], int, list[str]]:
    """What this process holds: descriptors, children, threads, and folders of engines."""
    children: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread just ended
            children += map(int, (task / "children").read_text().split())
    folders = [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("weir-")]
    return len(os.listdir("/proc/self/fd")), children, threading.active_count(), folders


def more(before: tuple[int, list[int], int, list[str]]) -> dict[str, object]:
    """What there is now that was not there before; it may also have become less."""
    files, children, threads, folders = left_behind()
    found = {
        "descriptors": max(0, files - before[0]),
        "children": {*children} - {*before[1]},
        "threads": max(0, threads - before[2]),
        "folders": {*folders} - {*before[3]},
    }
    return {name: what for name, what in found.items() if what}


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails if the test leaves descriptors, processes, threads or files behind."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gc.collect()  # what earlier tests left to the collector is not this test's
    before = left_behind()
    yield
    deadline = time.monotonic() + CEILING
    while more(before) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not more(before)
