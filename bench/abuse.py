"""What a hostile day does to a real server: hang-ups, a killed engine, hours of mixed load.

    python bench/abuse.py [--aborts 10000] [--kills 20] [--soak 1800]

Every request must be answered: with its tokens, with a 503 (it is sent again then), or with an
error event once tokens had been streamed. Afterwards no page is held and no file, process or memory
is lost.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from weir.bench.private import private, ready
from weir.http import Http, HttpError, run

MODEL = "smollm2-135m"


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def resources(pid: int) -> dict[str, int]:
    """Of the server process and its engine: files open, processes, resident MiB."""
    pids = [pid, *children(pid)]
    pages = [int(Path(f"/proc/{p}/statm").read_text().split()[1]) for p in pids]
    return {
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "processes": len(pids),
        "server MiB": pages[0] * os.sysconf("SC_PAGE_SIZE") >> 20,
        "engine MiB": sum(pages[1:]) * os.sysconf("SC_PAGE_SIZE") >> 20,
    }


async def state(http: Http) -> dict:
    return json.loads(await http.get("/server_info"))["stats"]


async def idle(http: Http) -> dict:
    """The engine's counters once it has nothing to do."""
    for _ in range(300):
        stats = await state(http)
        if not (stats["running"] or stats["waiting"] or stats["pages_used"]):
            return stats
        await asyncio.sleep(0.1)
    raise SystemExit(f"pages or requests are still held: {stats}")


def body(rng: random.Random, tokens: int) -> dict:
    prompt = [rng.randrange(100, 49000) for _ in range(rng.randrange(1, 200))]
    if rng.random() < 0.5:
        prompt = list(range(1000, 1000 + rng.randrange(1, 120))) + prompt
    kind = rng.random()
    extra = {"temperature": 0} if kind < 0.3 else {"top_p": 0.9, "seed": rng.randrange(1 << 30)}
    if kind > 0.8:
        extra |= {"n": 2, "logprobs": 2, "stop": ["\n\n"], "presence_penalty": 0.5}
    return {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": tokens,
        "stream": True,
        "ignore_eos": True,
        **extra,
    }


async def ask(http: Http, request: dict, patience: float | None) -> str:
    """How one request ended: "whole", "left" by us after `patience`, or as the server said."""
    events = http.stream("/v1/completions", request)
    whole = 0

    async def read() -> str:
        nonlocal whole
        async for event in events:
            if event.data.startswith(b'{"error"'):
                return "error event"
            whole += event.data.count(b'"finish_reason":"')
        return "whole" if whole == request.get("n", 1) else "cut short"

    try:
        return await asyncio.wait_for(read(), patience)
    except TimeoutError:
        return "left"
    except HttpError as error:
        return f"status {error.status}" if error.status else f"lost: {error}"
    finally:
        await events.aclose()


async def crowd(
    http: Http, work: Iterable[int], width: int, rng: random.Random, hurried: bool
) -> Counter:
    """A request for each of `work`, `width` at a time; hurried clients hang up at random."""
    ends: Counter[str] = Counter()
    left = iter(work)

    async def client() -> None:
        for _ in left:
            patience = rng.expovariate(1 / 0.5) if hurried else None
            request = body(rng, rng.randrange(1, 48))
            while (end := await ask(http, request, patience)) == "status 503":
                ends[end] += 1
                await asyncio.sleep(0.25)
            ends[end] += 1

    await asyncio.gather(*(client() for _ in range(width)))
    return ends


async def aborts(http: Http, pid: int, count: int) -> None:
    rng = random.Random(0)
    await crowd(http, range(64), 32, rng, hurried=False)
    await idle(http)
    before, began = resources(pid), time.monotonic()
    ends = await crowd(http, range(count), 48, rng, hurried=True)
    await idle(http)
    print(f"{count} requests, hung up at random: {dict(ends)} in {time.monotonic() - began:.0f} s")
    print(f"  before {before}\n  after  {resources(pid)}", flush=True)


async def kills(http: Http, pid: int, count: int) -> None:
    rng = random.Random(1)
    before = resources(pid)
    back: list[float] = []
    work = itertools.takewhile(lambda _: len(back) < count, itertools.count())
    load = asyncio.create_task(crowd(http, work, 24, rng, hurried=False))
    for _ in range(count):
        await asyncio.sleep(rng.uniform(0.3, 1.5))
        for engine in children(pid):
            os.kill(engine, signal.SIGKILL)
        began = time.monotonic()
        await asyncio.sleep(0.1)
        while not await ready(http):
            await asyncio.sleep(0.05)
        back.append(time.monotonic() - began)
    ends = await load
    await idle(http)
    print(f"kill -9 of the engine {count} times under load: {dict(ends)}")
    print(f"  back after {min(back):.1f} to {max(back):.1f} s")
    print(f"  before {before}\n  after  {resources(pid)}", flush=True)


async def soak(http: Http, pid: int, seconds: float) -> None:
    rng = random.Random(2)
    began = last = time.monotonic()
    ends: Counter[str] = Counter()
    while time.monotonic() - began < seconds:
        ends += await crowd(
            http, range(200), rng.choice([1, 8, 32]), rng, hurried=rng.random() < 0.5
        )
        if time.monotonic() - last > seconds / 8 or not last > began:
            last = time.monotonic()
            print(f"  {last - began:6.0f} s {resources(pid)} {dict(ends)}", flush=True)
    stats = await idle(http)
    print(f"soak of {seconds:.0f} s: {dict(ends)}; step {stats['step']}, pages held 0")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--aborts", type=int, default=10000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--soak", type=float, default=0)
    args = parser.parse_args()
    with private(MODEL, ["--kv-cache-memory", "64MiB"]) as server:
        http = Http(server.url, server.headers, timeout=120.0)
        pid = server.process.pid
        if args.aborts:
            run(aborts(http, pid, args.aborts))
        if args.kills:
            run(kills(http, pid, args.kills))
        if args.soak:
            run(soak(http, pid, args.soak))
    return 0


if __name__ == "__main__":
    sys.exit(main())
