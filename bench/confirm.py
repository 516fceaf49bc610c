"""The simulator and the default policy against the real engine on this CPU, by the clock.

    python bench/confirm.py [--only simulator default] [--rate 2] [--requests 60] [--rounds 5]

SmolLM2-135M. `simulator`: one workload on the engine, and simulated with step times profiled on the
same engine just before, times what the machine's speed was meanwhile: its steps over their prices.
`default`: the default order beside first come, first served where no queue
forms, in rounds that alternate.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import math
import time
from dataclasses import dataclass
from statistics import fmean, median, pstdev

import scheduling_sets as sets
from scheduling import table

from weir import build
from weir.config import Config
from weir.core import Plan
from weir.cost import profile
from weir.cost.hardware import find
from weir.cost.target import Cost
from weir.cost.work import Work
from weir.llm import AsyncLLM
from weir.params import SamplingParams
from weir.sim.flags import Scene, Vocabulary
from weir.sim.replay import Replica, replay
from weir.sim.report import Record, Report, measure
from weir.sim.shapes import shape
from weir.sim.workload import Item, Words, Workload, poisson, random

MODEL = "smollm2-135m"


class Wall:
    """A clock for `replay` that nobody moves: what lies ahead is waited for."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    @property
    def time(self) -> float:
        return time.monotonic() - self.began

    def __call__(self) -> float:
        return self.time

    def advance(self, to: float) -> None:
        time.sleep(max(0.0, to - self.time))


@dataclass(slots=True)
class Speed:
    """Prices steps, and notes what the engine's took over their prices."""

    costs: Cost
    seconds: float = math.inf  # it aims at nothing
    priced: float = 0.0
    taken: float = 0.0

    def observe(self, plan: Plan, seconds: float) -> float:
        price = self.costs.seconds(Work.of(plan))
        self.priced += price
        self.taken += seconds
        return price


@dataclass(slots=True, frozen=True)
class Scaled:
    costs: Cost
    factor: float

    def seconds(self, work: Work) -> float:
        return self.factor * self.costs.seconds(work)


def cells(report: Report) -> list[object]:
    m = report.metrics
    found: list[object] = [m[name].median for name in ("ttft", "itl", "e2el")]
    found[1:1] = [m["ttft"].percentile(90)]
    found[3:3] = [m["itl"].percentile(99)]
    return [*found, m["e2el"].percentile(90), report.duration]


def simulator(options: argparse.Namespace) -> None:
    config = Config(model=MODEL, scheduling_policy="fcfs", threads=1)
    engine = build.engine(config)
    try:
        costs, _ = profile.profile(engine.executor, "", repeats=2)
        words = Words(Vocabulary(shape(MODEL).vocab), 1)
        load = random(words, options.requests, 384, 64, 0.75)
        rows: list[list[object]] = []
        for rate in (options.rate, 2 * options.rate):
            timed = poisson(load, rate, 1.0, 1)
            engine.flush()
            engine.clock = clock = Wall()
            engine.target = speed = Speed(costs)
            real = measure(*replay(timed, [Replica(engine, clock)]))
            scaled = Scaled(costs, speed.taken / speed.priced)
            scene = Scene(config, shape(MODEL), engine.capacity, scaled, find("cpu"))
            virtual = measure(*replay(timed, scene.fleet()))
            both = cells(real), cells(virtual)
            rows += [[f"{rate:g}/s, engine", *both[0]], ["simulated", *both[1]]]
            off = (100 * (there / here - 1) for here, there in zip(*both, strict=True))
            rows.append([f"off by, %; steps took {scaled.factor:.2f} of the profile", *off])
    finally:
        engine.close()
    head = ["ms", "TTFT P50", "P90", "TBT P50", "P99", "E2E P50", "P90", "all, s"]
    table(f"{options.requests} requests, engine and simulator", head, rows)


def default(options: argparse.Namespace) -> None:
    items = [Item(prompt[:600], 32) for prompt in sets.asked(options.requests, 1)]
    load = poisson(Workload("chats", items), options.rate, 1.0, 1)
    asyncio.run(_default(load, options))


async def _default(load: Workload, options: argparse.Namespace) -> None:
    rounds: dict[str, list[Report]] = {"fcfs": [], "auto": []}
    async with (
        AsyncLLM(MODEL, device="cpu", scheduling_policy="fcfs") as plain,
        AsyncLLM(MODEL, device="cpu") as ours,
    ):
        for _ in range(options.rounds + 1):
            for name, llm in (("fcfs", plain), ("auto", ours)):
                rounds[name].append(await _asked(llm, load))
    rows = []
    for name, reports in rounds.items():
        row: list[object] = [name]
        for metric in ("ttft", "itl", "ptl", "e2el"):
            means = [report.metrics[metric].mean for report in reports[1:]]  # the first warms up
            row += [median(means), pstdev(means) / fmean(means) * 100]
        rows.append(row)
    head = ["mean, ms; spread, %", "TTFT", "", "TBT", "", "PTL", "", "E2E", ""]
    table(f"{options.rounds} rounds at {options.rate:g} requests/s", head, rows)


async def _asked(llm: AsyncLLM, load: Workload) -> Report:
    began, records = time.perf_counter(), []

    async def ask(prompt: str, output: int, arrival: float) -> None:
        await asyncio.sleep(arrival - (time.perf_counter() - began))
        record = Record(time.perf_counter())
        params = SamplingParams(temperature=0, max_tokens=output, ignore_eos=True)
        async for answer in llm.generate(prompt, params):
            new = len(answer.outputs[0].token_ids) - record.output_tokens
            if new:
                record.arrivals.append(time.perf_counter())
                record.output_tokens += new
        records.append(record)

    await asyncio.gather(*(ask(item.prompt, item.output, item.arrival) for item in load.items))
    return measure(records, time.perf_counter() - began)


ALL = (simulator, default)
FIGURES = {figure.__name__: figure for figure in ALL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    gc.freeze()
    for name in options.only:
        FIGURES[name](options)


if __name__ == "__main__":
    main()
