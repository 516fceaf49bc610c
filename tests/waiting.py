"""Waiting for what must come, however slow the machine: for the event, never for a time."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

CEILING = 60.0
"""Seconds after which what has not come is taken for lost."""


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + CEILING
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.005)


async def eventually(condition: Callable[[], object]) -> None:
    """`until`, while the event loop goes on."""
    async with asyncio.timeout(CEILING):
        while not condition():
            await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    """Is there such a process, not merely a corpse whose parent has not looked?"""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
