"""What grammars do to the steps of others: bench/isolation.py [--steps N] [--arm A] [field=value]

The real engine, scheduler and library, with the vocabulary of a real model; an executor that takes
5 ms a step and draws any token that is allowed stands in for the model. Eight free requests decode
all the time. Arms: beside 24 free ones; the same with busy processes of low priority, one more than
there are cores, that rest for 3 ms every 20 or so, as what compiles does between two grammars;
beside 24 with grammars as people write them; beside 24 with hostile ones. Who ends is replaced by
another, whose grammar is opened as if it were new; another process asks for more to be compiled
meanwhile, as a server would.

Prints percentiles of the time from when the device has a step's tokens to when the engine tells
them, and that the device then stands idle; and of its parts: until the operating system has the
engine's thread run again, what that thread computes, and what else it waits for. Last comes how
long the machine's cores, or this container, were not allowed to run meanwhile, by other machines of
the host or a limit.

`--realtime` gives the engine's thread a real-time priority, so that what is left is what Weir adds.
`--spin` has it wait as CUDA's events do, which keeps its core, where else it sleeps.
With `--real` the model itself is served, whose settings follow the options, on its device. Then
what is printed is the time from one token of the free requests to the next.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
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
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.grammar import hostile
from weir import build, connect
from weir.config import load
from weir.core import Capacity, Chunk, Delta, Grammar, Plan, Request, Result, Sampling, Tier
from weir.engine import Engine
from weir.errors import BadRequest
from weir.grammar.compiler import Compiler
from weir.grammar.library import Library
from weir.host import tidily
from weir.kv.cache import Cache
from weir.linux import cores
from weir.ops import native
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


SPUN = np.ones(1 << 17, np.float32)  # takes some 20 µs to read


def spin(until: float) -> None:
    """Compute until then, without the interpreter's lock."""
    native.set_threads(1)
    while time.perf_counter() < until:
        native.library().read(SPUN.ctypes.data, len(SPUN))


class Handle:
    spins = False

    def __init__(self, executor: Drawing, result: Result, lands: float, idle: float):
        self.executor, self._result, self.lands, self.idle = executor, result, lands, idle

    def result(self) -> Result:
        if self.spins:
            spin(self.lands)
        else:
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
    server = os.getppid()
    for one in asked(kind):
        if os.getppid() != server:
            os._exit(0)
        compiling.append(compiler.submit(one))
        while len(compiling) == 32:
            time.sleep(0.05)
            compiling = [one for one in compiling if not one.done()]


@contextlib.contextmanager
def company(kind: str) -> Iterator[None]:
    """Processes that compute beside the engine."""
    busy = "import os, time\nos.nice(19)\nwhile True:\n sum(range(10**6))\n time.sleep(3e-3)"
    own = (__file__, "--compile", kind)
    commands = {"free": [], "busy": [("-c", busy)] * (cores() + 1)}
    started = [
        subprocess.Popen((sys.executable, *command), process_group=0)
        for command in commands.get(kind, [own])
    ]
    yield
    for process in started:
        process.kill()
        process.wait()


def drawing(library: Library, pieces: list[bytes]) -> Engine:
    """An engine without a model, whose garbage is collected as in a server."""
    gc.collect()
    gc.freeze()
    executor = Drawing(pieces)
    cache = Cache(PAGE, {Tier.CPU: PAGES})
    scheduler = Scheduler(cache, FCFS(), Chunked(), OnDemand(Tier.CPU), executor.capacity)
    return Engine(scheduler, executor, library=library)


def served(engine: Engine, kind: str, compiler: Compiler) -> Iterator[list[Delta]]:
    """Steps beside requests of a kind, for ever, and what each has brought."""
    longest = engine.capacity.context - 3
    for uid in range(FREE):
        engine.add(Request(uid, [1, 2, 3], Sampling(max_tokens=longest), 0.0))
    grammars = compiled(kind, compiler)
    uid = 100
    tidy = tidily(lambda wait: [])
    while True:
        while len(engine.scheduler.live) + len(engine.opening) < FREE + BESIDE:
            uid += 1
            request = Request(uid, [5, 6, 7], Sampling(max_tokens=64), 0.0)
            if grammars:
                request.grammar = msgspec.structs.replace(grammars[uid % BESIDE], key=str(uid))
            engine.add(request)
        tidy(False)
        yield engine.step()


def late(engine: Engine, kind: str, steps: int, compiler: Compiler) -> dict[str, NDArray]:
    """Milliseconds that steps without a model took, and of what."""
    executor, took = engine.executor, []
    for _ in served(engine, kind, compiler):
        if (one := executor.landed) is not None:
            told, computed = time.perf_counter() - executor.drawing, time.thread_time()
            computed -= one.computed + executor.drawing
            late = told - one.woken
            took.append((late, one.woken - one.lands, computed, late - computed, one.idle))
        executor.landed = None
        if len(took) == steps:
            break
    late, woken, computed, waited, idle = np.array(took[20:]).T * 1e3
    return {
        kind: late + woken + idle, "  woken": woken, "  computed": computed, "  waited": waited,
        "  idle": idle,
    }  # fmt: skip


def gaps(engine: Engine, kind: str, steps: int, compiler: Compiler) -> dict[str, NDArray]:
    """Milliseconds from one token of the free requests to the next."""
    told = []
    for deltas in served(engine, kind, compiler):
        if any(delta.uid < FREE and delta.tokens for delta in deltas):
            told.append(time.perf_counter())
        if len(told) == steps:
            break
    return {kind: np.diff(told[20:]) * 1e3}


@contextlib.contextmanager
def urgent(really: bool) -> Iterator[None]:
    """This thread runs as soon as it can, before all others but the kernel's."""
    if really:
        policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(1))
    yield
    if really:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def held() -> NDArray:
    """Seconds until now that all cores together were held by the host, and this container by its
    limit."""
    ticks = int(Path("/proc/stat").read_text().split(maxsplit=9)[8])
    stat = Path("/sys/fs/cgroup/cpu.stat")
    words = stat.read_text().split() if stat.exists() else []
    known = dict(zip(words[::2], words[1::2], strict=True))
    limited = int(known.get("throttled_usec", 0)) / 1e6
    return np.array([ticks / os.sysconf("SC_CLK_TCK"), limited])


def run(kind: str, steps: int, compiler: Compiler, engine: Engine, real: bool) -> None:
    """Serve for so many steps, and say what they took."""
    before, held_before = engine.stats().generated_tokens, held()
    rows = (gaps if real else late)(engine, kind, steps, compiler)
    told = f"   {engine.stats().generated_tokens - before - FREE * steps:6} tokens of others"
    for name, values in rows.items():
        shown = " ".join(f"{v:7.2f}" for v in np.percentile(values, [50, 90, 99, 99.9, 100]))
        print(f"{name:10} {shown}{told}", flush=True)
        told = ""
    print("  held by the host {:.2f} s, by a limit {:.2f} s".format(*(held() - held_before)))
    for uid in list(engine.scheduler.live):
        engine.abort(uid)
    while engine.busy:
        engine.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--arm", choices=("free", "busy", "usual", "hostile"), action="append")
    parser.add_argument("--real", action="store_true", help="with the model itself")
    parser.add_argument("--realtime", action="store_true", help="needs the right to (CAP_SYS_NICE)")
    parser.add_argument("--spin", action="store_true", help="wait without sleeping")
    parser.add_argument("--compile", choices=("usual", "hostile"), help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", metavar="field=value")
    options = parser.parse_args()
    if options.compile:
        return compile_for_ever(options.compile)
    Handle.spins = options.spin
    settings = dict(setting.split("=", 1) for setting in options.settings)
    config = load({"model": options.model} | settings, {})
    compiler = Compiler(seconds=2.0)
    if options.real:
        engine = build.engine(config)
    else:
        text = connect.text(config)
        library = Library(partial(connect.tokens, config), text.vocab)
        engine = drawing(library, text.pieces(True))
    for first in USUAL[:2]:  # the vocabulary is read
        opened = engine.library.open(compiler.compile(first), [], 0, True)
        while not opened.done():
            engine.library.renew()
            time.sleep(1e-3)
    print(f"{'ms':10} " + " ".join(f"{n:>7}" for n in ("p50", "p90", "p99", "p99.9", "most")))
    for kind in options.arm or ("free", "busy", "usual", "hostile"):
        with company(kind), urgent(options.realtime):
            run(kind, options.steps, compiler, engine, options.real)
    compiler.close()
    engine.close()


if __name__ == "__main__":
    main()
