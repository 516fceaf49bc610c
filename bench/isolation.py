"""What grammars do to the steps of others: python bench/isolation.py [--steps 2000] [ARM ...]

The real engine, scheduler and library, with the vocabulary of a real model; an executor that takes
5 ms a step and draws any token that is allowed stands in for the model. Eight free requests decode
all the time. Arms: beside 24 free ones; the same with as many busy processes of low priority as
there are cores; beside 24 with grammars as people write them; beside 24 with hostile ones. Who
ends is replaced by another, whose grammar is opened as if it were new; another process asks for
more to be compiled meanwhile, as a server would.

Prints percentiles of the time from when the device has a step's tokens to when the engine tells
them, and that the device then stands idle; and of its parts: until the operating system has the
engine's thread run again, what that thread computes, and what else it waits for.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.grammar import hostile
from weir import connect
from weir.config import load
from weir.core import Capacity, Chunk, Grammar, Plan, Request, Result, Sampling, Tier
from weir.engine import Engine
from weir.errors import BadRequest
from weir.grammar.compiler import Compiler
from weir.grammar.library import Library
from weir.kv.cache import Cache
from weir.params import StructuredOutputs
from weir.sched.composer import Chunked
from weir.sched.placement import OnDemand
from weir.sched.ranking import FCFS
from weir.sched.scheduler import Scheduler

SECONDS = 5e-3
PAGES, PAGE = 20_000, 16
FREE, BESIDE = 8, 24
USUAL = [
    StructuredOutputs(regex=r'\{"name": "[A-Z][a-z]{1,15}", "age": [1-9][0-9]?\}'),
    StructuredOutputs(json={"type": "object", "properties": {"a": {"type": "string"}}}),
    StructuredOutputs(choice=["yes", "no", "perhaps"]),
]


class Drawing:
    """An executor and its handle at once: plans land in order, 5 ms after each other."""

    chains, depth = True, 2
    capacity = Capacity(PAGE, {Tier.CPU: PAGES}, tokens=512, requests=64, context=4096)

    def __init__(self, pieces: list[bytes]) -> None:
        self.words = [token for token, piece in enumerate(pieces) if piece]
        self.random = random.Random(0)
        self.lands = 0.0
        self.drawing = 0.0  # seconds of its own since a plan landed
        self.landed: Handle | None = None
        self.late: list[Chunk] = []

    def submit(self, plan: Plan) -> Handle:
        now = time.perf_counter()
        idle = max(0.0, now - self.lands) if self.lands else 0.0
        self.lands = max(self.lands, now) + SECONDS
        self.result = Result({}, seconds=SECONDS)
        chunks = [chunk for lane in plan.lanes for chunk in lane if chunk.sample is not None]
        self._draw([chunk for chunk in chunks if not chunk.late], {c.uid: c.mask for c in chunks})
        self.late = [chunk for chunk in chunks if chunk.late]
        return Handle(self, self.result, self.lands, idle)

    def choose(self, masks: dict[int, bytes]) -> None:
        self._draw(self.late, masks)

    def _draw(self, chunks: list[Chunk], masks: dict[int, bytes | None]) -> None:
        began = time.perf_counter()
        for chunk in chunks:
            self.result.tokens[chunk.uid] = self._drawn(masks.get(chunk.uid))
        self.drawing += time.perf_counter() - began

    def _drawn(self, mask: bytes | None) -> int:
        """Any token, or any that is allowed, quickly: this is not what is measured."""
        if mask is None:
            return self.random.choice(self.words)
        for token in (self.random.randrange(8 * len(mask)) for _ in range(50)):
            if mask[token // 8] >> token % 8 & 1:
                return token
        at = int(np.flatnonzero(np.frombuffer(mask, np.uint8))[0])
        return 8 * at + (mask[at] & -mask[at]).bit_length() - 1

    def close(self) -> None:
        pass


class Handle:
    def __init__(self, executor: Drawing, result: Result, lands: float, idle: float):
        self.executor, self._result, self.lands, self.idle = executor, result, lands, idle

    def result(self) -> Result:
        time.sleep(max(0.0, self.lands - time.perf_counter()))
        executor = self.executor
        executor.landed = self
        executor.drawing = 0.0
        self.woken, self.computed = time.perf_counter(), time.thread_time()
        return self._result


def asked(kind: str) -> Iterator[StructuredOutputs]:
    number = 0
    while kind in ("usual", "hostile"):
        number += 1
        if kind == "usual":
            yield USUAL[number % len(USUAL)]
        else:
            yield list(hostile.drawn(number, 1 + number % 7))[-1][1]


def compiled(kind: str, compiler: Compiler) -> list[Grammar]:
    """Grammars of a kind, as many as are followed at once."""
    found: list[Grammar] = []
    for one in asked(kind):
        if len(found) == BESIDE:
            break
        with contextlib.suppress(BadRequest):
            found.append(compiler.compile(one))
    return found


def compile_for_ever(kind: str) -> None:
    """As a server does in whose place this process stands."""
    compiler = Compiler(seconds=2.0)
    compiling: list[Future[Grammar]] = []
    for one in asked(kind):
        compiling.append(compiler.submit(one))
        while len(compiling) == 32:
            time.sleep(0.05)
            compiling = [one for one in compiling if not one.done()]


@contextlib.contextmanager
def company(kind: str) -> Iterator[None]:
    """Processes that compute beside the engine."""
    busy = "import os\nos.nice(19)\nwhile True: pass"
    own = (__file__, "--compile", kind)
    commands = {"free": [], "busy": [("-c", busy)] * len(os.sched_getaffinity(0))}
    started = [
        subprocess.Popen((sys.executable, *command), start_new_session=True)
        for command in commands.get(kind, [own])
    ]
    yield
    for process in started:
        process.kill()
        process.wait()


def run(kind: str, steps: int, compiler: Compiler, library: Library, pieces: list[bytes]) -> None:
    """Serve for so many steps, and say what they took."""
    executor = Drawing(pieces)
    cache = Cache(PAGE, {Tier.CPU: PAGES})
    scheduler = Scheduler(cache, FCFS(), Chunked(), OnDemand(Tier.CPU), executor.capacity)
    engine = Engine(scheduler, executor, library=library)
    for uid in range(FREE):
        engine.add(Request(uid, [1, 2, 3], Sampling(max_tokens=4000), 0.0))
    grammars = compiled(kind, compiler)
    uid, took = 100, []
    while len(took) < steps:
        while len(scheduler.live) + len(engine.opening) < FREE + BESIDE:
            uid += 1
            request = Request(uid, [5, 6, 7], Sampling(max_tokens=64), 0.0)
            if grammars:
                request.grammar = msgspec.structs.replace(grammars[uid % BESIDE], key=str(uid))
            engine.add(request)
        executor.landed = None
        engine.step()
        if (one := executor.landed) is not None:
            told, computed = time.perf_counter() - executor.drawing, time.thread_time()
            computed -= one.computed + executor.drawing
            late = told - one.woken
            took.append((late, one.woken - one.lands, computed, late - computed, one.idle))
    for uid in list(scheduler.live):
        engine.abort(uid)
    late, woken, computed, waited, idle = np.array(took[20:]).T * 1e3
    masked = engine.stats().generated_tokens - FREE * steps
    rows = {
        kind: late + woken + idle, "  woken": woken, "  computed": computed, "  waited": waited,
        "  idle": idle,
    }  # fmt: skip
    told = f"   {uid - 100:4} others, {masked:6} tokens of theirs"
    for name, values in rows.items():
        shown = " ".join(f"{v:7.2f}" for v in np.percentile(values, [50, 90, 99, 99.9, 100]))
        print(f"{name:10} {shown}{told}", flush=True)
        told = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--compile", choices=("usual", "hostile"), help=argparse.SUPPRESS)
    parser.add_argument("arms", nargs="*", metavar="ARM")
    options = parser.parse_args()
    if options.compile:
        return compile_for_ever(options.compile)
    config = load({"model": options.model}, {})
    text = connect.text(config)
    pieces = text.pieces(True)
    library = Library(partial(connect.tokens, config), text.vocab)
    compiler = Compiler(seconds=2.0)
    for first in USUAL[:2]:  # the vocabulary is read
        opened = library.open(compiler.compile(first), [], 0, True)
        while not opened.done():
            library.renew()
            time.sleep(1e-3)
    print(f"{'ms':10} " + " ".join(f"{n:>7}" for n in ("p50", "p90", "p99", "p99.9", "most")))
    for kind in options.arms or ("free", "busy", "usual", "hostile"):
        with company(kind):
            run(kind, options.steps, compiler, library, pieces)
    compiler.close()
    library.close()


if __name__ == "__main__":
    main()
