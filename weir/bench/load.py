"""Sends a workload's requests to a server at their times, with an optional cap on concurrency."""

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from weir.bench.client import Target
from weir.sim.report import Record
from weir.sim.workload import Item, Workload

LATE = 0.1  # seconds behind the schedule that are worth a warning


async def load(
    target: Target,
    workload: Workload,
    concurrency: int | None = None,
    on_done: Callable[[int, int, int], None] = lambda done, read, written: None,
) -> tuple[list[Record], float]:
    """Send every item when it is due; returns the records and the seconds taken.

    on_done: called when a conversation ends, with 1, its prompt tokens and its output tokens. Under
    a cap a request's time starts when it is sent, not when it was due. Warns on standard error if
    this client was late, because its own delay then affects the results.
    """
    cap = asyncio.Semaphore(concurrency) if concurrency else None

    async def one(item: Item) -> list[Record]:
        async with AsyncExitStack() as stack:
            if cap is not None:
                await stack.enter_async_context(cap)
            records = await target.converse(item)
        on_done(1, sum(r.prompt_tokens for r in records), sum(r.output_tokens for r in records))
        return records

    begin, late = time.perf_counter(), 0.0
    async with asyncio.TaskGroup() as group:
        tasks = []
        for item in workload.items:
            wait = begin + item.arrival - time.perf_counter()
            late = max(late, -wait if item.arrival else 0.0)
            if wait > 0:
                await asyncio.sleep(wait)
            tasks.append(group.create_task(one(item)))
    seconds = time.perf_counter() - begin
    if late > LATE:
        print(f"weir: this client was up to {late:.2f} s late", file=sys.stderr)
    return [record for task in tasks for record in task.result()], seconds
