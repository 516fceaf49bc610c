"""What grammars do to the steps of others: python bench/isolation.py [--steps 2000]

The real engine, scheduler and library, with the vocabulary of a real model; an executor that takes
5 ms a step and draws any token that is allowed stands in for the model. Eight free requests decode
all the time. Arms: beside 24 free ones; beside 24 with grammars as people write them; beside 24
with hostile ones. Who ends is replaced by another, whose grammar is opened as if it were new; more
are being compiled meanwhile. Prints the time that a step takes beyond the executor's, percentiles.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
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
from weir.grammar.library import Library, Tokens
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
        self.waited = 0.0  # seconds, by whoever asked for results
        self.drawing = 0.0  # seconds of its own
        self.late: list[Chunk] = []

    def submit(self, plan: Plan) -> Handle:
        self.result = Result({})
        chunks = [chunk for lane in plan.lanes for chunk in lane if chunk.sample is not None]
        self._draw([chunk for chunk in chunks if not chunk.late], {c.uid: c.mask for c in chunks})
        self.late = [chunk for chunk in chunks if chunk.late]
        self.lands = max(self.lands, time.perf_counter()) + SECONDS
        return Handle(self, self.result, self.lands)

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
    def __init__(self, executor: Drawing, result: Result, lands: float):
        self.executor, self._result, self.lands = executor, result, lands

    def result(self) -> Result:
        left = max(0.0, self.lands - time.perf_counter())
        time.sleep(left)
        self.executor.waited += left  # waking up late is a delay
        return self._result


def asked(kind: str) -> Iterator[StructuredOutputs]:
    number = 0
    while kind != "free":
        number += 1
        if kind == "usual":
            yield USUAL[number % len(USUAL)]
        else:
            yield list(hostile.drawn(number, 1 + number % 7))[-1][1]


def compiled(kind: str, compiler: Compiler) -> list[Grammar]:
    """Grammars of a kind, as many as are followed at once."""
    found: list[Grammar] = []
    wanted = asked(kind)
    while kind != "free" and len(found) < BESIDE:
        with contextlib.suppress(BadRequest):
            found.append(compiler.compile(next(wanted)))
    return found


def run(kind: str, steps: int, compiler: Compiler, library: Library, pieces: list[bytes]) -> str:
    """Serve for so many steps, and say what they took."""
    executor = Drawing(pieces)
    cache = Cache(PAGE, {Tier.CPU: PAGES})
    scheduler = Scheduler(cache, FCFS(), Chunked(), OnDemand(Tier.CPU), executor.capacity)
    engine = Engine(scheduler, executor, library=library)
    for uid in range(FREE):
        engine.add(Request(uid, [1, 2, 3], Sampling(max_tokens=4000), 0.0))
    grammars, wanted = compiled(kind, compiler), asked(kind)
    compiling: list[Future[Grammar]] = []
    uid, took = 100, []
    for step in range(steps):
        compiling = [one for one in compiling if not one.done()]
        if step % 10 == 0 and len(compiling) < 32 and (one := next(wanted, None)) is not None:
            compiling.append(compiler.submit(one))
        while len(scheduler.live) + len(engine.opening) < FREE + BESIDE:
            uid += 1
            request = Request(uid, [5, 6, 7], Sampling(max_tokens=64), 0.0)
            if grammars:
                request.grammar = msgspec.structs.replace(grammars[uid % BESIDE], key=str(uid))
            engine.add(request)
        began, waited, drawn = time.perf_counter(), executor.waited, executor.drawing
        engine.step()
        whole = time.perf_counter() - began
        took.append(whole - (executor.waited - waited) - (executor.drawing - drawn))
    for uid in list(scheduler.live):
        engine.abort(uid)
    shown = np.percentile(np.array(took[20:]) * 1e3, [50, 90, 99, 99.9, 100])
    masked = engine.stats().generated_tokens - FREE * steps
    row = " ".join(f"{one:7.2f}" for one in shown)
    return f"{kind:8} {row}   {uid - 100:4} others, {masked:6} tokens of theirs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--model", default="smollm2-135m")
    options = parser.parse_args()
    text = connect.text(load({"model": options.model}, {}))
    pieces = text.pieces(True)
    tokens = Tokens(pieces, text.eos, lambda one: text.encode(one, False))
    library = Library(lambda: tokens, text.vocab)
    compiler = Compiler(seconds=2.0)
    library.open(compiler.compile(USUAL[0]), [], 0, True).result()  # the vocabulary is read
    print("ms       " + " ".join(f"{name:>7}" for name in ("p50", "p90", "p99", "p99.9", "most")))
    for kind in ("free", "usual", "hostile"):
        print(run(kind, options.steps, compiler, library, pieces), flush=True)
    compiler.close()
    library.close()


if __name__ == "__main__":
    main()
