"""Attention in main memory beside a GPU's, measured: `auto` against a GPU that has its KV alone.

    python bench/neo.py [--room 7500MiB] [--host 40GiB] [--seconds 240 --alone 90] [RUN ...]

A RUN is the lengths of a trace and how requests come: `conv:full`, more than can be served;
`conv:3.0`, so many a second, Poisson; or `conv:95%`, of what the GPU alone ended a second in a full
run before, and `auto` gets 1.14 times as many. Both arms are schedulers over the same loaded
engine, which take the same requests. Of a full run what counts is the time after the first part, in
which memory fills; of a stream, what a request takes for each token of its answer, waiting
included.
"""

import argparse
import csv
import gzip
import os
import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from msgspec.structs import replace
from offload import shortened

from weir import build, policies
from weir.config import Config, load
from weir.core import Plan, Request, Sampling, Tier
from weir.cost.lanes import Lanes
from weir.cost.target import Target
from weir.engine import Engine

TRACES = Path(os.environ.get("WEIR_DATA", ".")) / "traces"
UIDS = count()
MORE = 1.14
"""Times the requests a second, at which a token is to take no longer."""


@dataclass(slots=True)
class Seen:
    """What one arm did."""

    arrived: dict[int, float] = field(default_factory=dict)
    first: dict[int, float] = field(default_factory=dict)
    ended: dict[int, float] = field(default_factory=dict)
    answers: dict[int, int] = field(default_factory=dict)
    plans: list[tuple[float, Plan]] = field(default_factory=list)  # and when they were made
    tokens: list[tuple[float, int]] = field(default_factory=list)  # of answers

    def text(self, begin: float, end: float) -> list[str]:
        """Within these times, of which seconds count."""
        plans = [plan for at, plan in self.plans if begin <= at < end]
        chunks = [chunk for plan in plans for chunk in plan.chunks]
        decodes = [chunk for chunk in chunks if chunk.length == 1]
        away = sum(chunk.home == Tier.CPU for chunk in decodes)
        prompts = sum(chunk.length for chunk in chunks) - len(decodes)
        slow = sum(plan.segment is not None for plan in plans)
        ended = [uid for uid, at in self.ended.items() if begin <= at < end]
        each = [1e3 * (self.ended[u] - self.arrived[u]) / self.answers[u] for u in ended]
        tail = [
            1e3 * (self.ended[u] - self.first[u]) / (self.answers[u] - 1)
            for u in ended
            if self.answers[u] > 1
        ]
        waited = [1e3 * (self.first[u] - self.arrived[u]) for u in ended]
        seconds = end - begin
        answered = sum(n for at, n in self.tokens if begin <= at < end)
        return [
            f"{answered / seconds:.0f}",
            f"{prompts / seconds:.0f}",
            f"{len(ended) / seconds:.2f}",
            *(f"{statistics.median(x):.0f}" if x else "-" for x in (each, tail, waited)),
            f"{statistics.mean(each):.0f}" if each else "-",
            f"{100 * away / max(1, len(decodes)):.0f} %",
            f"{1e3 * seconds / max(1, len(plans)):.1f}",
            f"{100 * slow / max(1, len(plans)):.0f} %",
        ]


COLUMNS = (
    "tokens/s, prompt tokens/s, requests/s, ms a token (p50), between tokens, first token, "
    "ms a token (mean), decoded on the host, ms a step, steps with a pass of several"
)


def lengths(trace: str, longest: int) -> list[tuple[int, int]]:
    """Tokens in and out of the requests of a trace that fit, shuffled: a longer run has the same
    mixture."""
    with gzip.open(TRACES / f"azure2023_{trace}.csv.gz", "rt") as lines:
        rows = [(int(row[1]), int(row[2])) for row in list(csv.reader(lines))[1:]]
    fitting = [(a, b) for a, b in rows if a + b <= longest and b > 1]
    random.Random(5).shuffle(fitting)
    return fitting


def arm(made: Engine, config: Config, lanes: Lanes | None) -> Engine:
    """An engine with a scheduler of its own over the same executor."""
    capacity = made.executor.capacity
    if lanes is None:
        config = replace(config, cpu_attention="off")
        capacity = replace(capacity, pages={int(Tier.GPU): capacity.pages[Tier.GPU]}, loads={})
    device = made.scheduler.placement.balance.lanes.device
    pace = policies.pace(config, policies.DEFAULTS["cuda"], capacity.tokens, lambda: device)
    below = made.fetch if lanes is not None else None
    scheduler = policies.scheduler(config, capacity, pace, below=below, lanes=lanes)
    return Engine(scheduler, made.executor, target=pace if isinstance(pace, Target) else None)


def drive(engine: Engine, requests: list[tuple[float, int, int]], until: float, vocab: int) -> Seen:
    """requests: when each comes, in seconds from now, and its tokens in and out."""
    rng, seen, waiting = random.Random(7), Seen(), list(reversed(requests))
    submit = engine.executor.submit

    def noted(plan: Plan):
        seen.plans.append((time.perf_counter() - began, plan))
        return submit(plan)

    engine.executor.submit = noted
    began = time.perf_counter()
    try:
        while (now := time.perf_counter() - began) < until and (waiting or engine.busy):
            while waiting and waiting[-1][0] <= now:
                at, prompt, output = waiting.pop()
                uid = next(UIDS)
                seen.arrived[uid], seen.answers[uid] = at, output
                ids = [rng.randrange(vocab) for _ in range(prompt)]
                sampling = Sampling(temperature=0.0, max_tokens=output)
                engine.add(Request(uid, ids, sampling, arrival=engine.clock()))
            if not engine.busy:
                continue
            for delta in engine.step():
                at = time.perf_counter() - began
                assert delta.done in (None, "length"), delta
                if delta.tokens:
                    seen.first.setdefault(delta.uid, at)
                    seen.tokens.append((at, len(delta.tokens)))
                if delta.done:
                    seen.ended[delta.uid] = at
        for uid in list(engine.scheduler.live):
            engine.abort(uid)
        while engine.busy:
            engine.step()
    finally:
        engine.executor.submit = submit
    return seen


def measure(
    made: Engine,
    config: Config,
    name: str,
    limits: dict[str, float],
    vocab: int,
    alone: dict[str, float],
) -> None:
    """limits: seconds of a run, by arm. alone: requests a second that the GPU alone ended, by
    trace, of full runs."""
    trace, _, how = name.partition(":")
    rows = lengths(trace, config.max_model_len or 8192)
    balance = made.scheduler.placement.balance
    for kind, seconds in limits.items():
        engine = arm(made, config, balance.lanes if kind == "auto" else None)
        if how == "full":
            requests = [(0.0, *row) for row in rows[: int(40 * seconds)]]
            seen, window = drive(engine, requests, seconds, vocab), (0.4 * seconds, seconds)
            if kind == "off":
                ended = sum(at >= window[0] for at in seen.ended.values())
                alone[trace] = ended / (window[1] - window[0])
        else:
            share = how.endswith("%")
            rate = float(how.rstrip("%")) / 100 * alone[trace] if share else float(how)
            rate *= MORE if share and kind == "auto" else 1.0
            rng, times, at = random.Random(3), [], 0.0
            while (at := at + rng.expovariate(rate)) < seconds:
                times.append(at)
            requests = [(t, *row) for t, row in zip(times, rows, strict=False)]
            seen = drive(engine, requests, 2 * seconds, vocab)
            window = 0.0, max([seconds, *seen.ended.values()]) + 1e-6
        done = f"{len(seen.ended)} of {len(seen.arrived)}"
        learned = getattr(engine.scheduler.placement, "balance", None)
        told = learned and f" (x {learned.device:.2f}, {learned.host:.2f}, {learned.both:.2f})"
        print(
            f"| {name} | {kind} | {done} | {' | '.join(seen.text(*window))} |{told or ''}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", default=["conv:full", "code:full"])
    parser.add_argument("--model", default="qwen3-32b", help="a well-known shape, random weights")
    parser.add_argument("--room", default="7500MiB", help="for KV on the GPU (7500MiB)")
    parser.add_argument("--host", default="40GiB", help="for KV in main memory (40GiB)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a run")
    parser.add_argument("--alone", type=float, help="of one without the host (as many)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "model": str(shortened(options.model, 0, Path(folder))),
            "load_format": "dummy",
            "kv_cache_memory": options.room,
            "cpu_cache": options.host,
            "cpu_attention": "auto",
            "max_model_len": "8192",
            "ranker": "none",
            "grammar_backend": "none",
            **dict(item.split("=", 1) for item in options.set),
        }
        config = load(flags, {})
        began = time.perf_counter()
        made = build.engine(config)
    limits = {"off": options.alone or options.seconds, "auto": options.seconds}
    compare(made, config, options.runs, limits, time.perf_counter() - began)
    made.close()


def compare(
    made: Engine, config: Config, runs: list[str], limits: dict[str, float], took: float
) -> None:
    lanes = made.scheduler.placement.balance.lanes
    print(
        f"engine made in {took:.0f} s; KV of {made.info.get('kv_tokens')} tokens on the GPU; "
        f"the host reads {lanes.host.rate / 1e9:.0f} GB/s, {lanes.host.token / 1e3:.0f} kB a token"
    )
    print(f"| run | arm | ended | {COLUMNS.replace(', ', ' | ')} |")
    alone: dict[str, float] = {}
    for name in runs:
        measure(made, config, name, limits, made.info["vocab"], alone)


if __name__ == "__main__":
    main()
