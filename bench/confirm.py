"""The simulator and the default policy against the real engine on this CPU, by the clock.

    python bench/confirm.py [--only NAME ...] [--rate 2] [--requests 60]

SmolLM2-135M. `simulator`: one workload on the engine, and simulated with step times profiled on the
same engine just before, times what the machine's speed was meanwhile: its steps over their prices.
`default`: the default order beside first come, first served where no queue
forms, in rounds that alternate. `policies`, `capacity` and `aging`: claims of docs/scheduling.md on
this engine, with workloads of its size.
"""

import argparse
import asyncio
import gc
import math
import time
from dataclasses import dataclass, replace
from random import Random
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
from weir.llm.online import AsyncLLM
from weir.params import SamplingParams
from weir.sim.flags import Scene, Vocabulary
from weir.sim.replay import Replica, replay
from weir.sim.report import Record, Report, measure
from weir.sim.search import Limits, Trial, search
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
        costs, _ = profile.profile(engine.executor, {}, repeats=2)
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


def policies(options: argparse.Namespace) -> None:
    count = options.requests
    spread = poisson(here(sets.uniform(count, 1)), options.rate, 1.0, 1)
    long = poisson(here(sets.uniform(count // 2, 1), 3), options.rate / 2, 1.0, 1)
    shots = here(sets.fewshot(count, 1))
    heads = {tuple(item.prompt[:64]): item for item in shots.items[:8]}.values()
    few = [Item(head.prompt[:512] + item.prompt[-64:], 8) for item in shots.items for head in heads]
    asked = Workload("few-shot", Random(1).choices(few, k=3 * count))
    chats = here(sets.chats(3 * count, 1), cut=4)
    plain = {"enable_prefix_caching": False, "max_num_seqs": 16}
    claims: list[tuple[str, Workload, list[dict[str, object]]]] = [
        ("iteration-level", spread, [
            plain | {"composer": "static", "memory_policy": "reserve"},
            plain | {"composer": "whole", "memory_policy": "reserve"},
        ]),
        ("stall-free", long, [plain | {"composer": "prefill-first"}, plain]),
        ("cache-aware", asked, [
            {"kv_cache_memory": 48 << 20, "max_num_seqs": 2, "max_model_len": 1024} | order
            for order in ({"scheduling_policy": "fcfs"}, {"scheduling_policy": "lpm(limit=1000)"})
        ]),
        ("shortest, aged", chats, [
            plain | {"scheduling_policy": order}
            for order in ("fcfs", "shortest", "aging(shortest)", "aging(shortest, threshold=100)")
        ]),
    ]  # fmt: skip
    rows: list[list[object]] = []
    for claim, load, arms in claims:
        for arm in arms:
            config = Config(model=MODEL, threads=1, **{"scheduling_policy": "fcfs", **arm})
            report = served(config, load)
            m, first = report.metrics, (len(load.items) - 1) // 10
            named = [str(arm[key]) for key in ("composer", "scheduling_policy") if key in arm]
            rows.append([f"{claim}: {', '.join(named) or 'chunked'}", m["ptl"].median])
            rows[-1] += [m["ptl"].mean, m["itl"].percentile(99), m["ttft"].median]
            rows[-1] += [m["wait"].percentile(100), m["e2el"].sorted[first]]
            rows[-1] += [100 * report.hit_rate, report.duration]
    head = ["ms", "PTL P50", "PTL mean", "TBT P99", "TTFT P50", "longest wait", "first tenth"]
    table(f"policies, {count} requests", [*head, "found, %", "all, s"], rows)


def capacity(options: argparse.Namespace) -> None:
    """The highest rate, to a fifth, with P99 between tokens of five decode steps of 8 requests."""
    plain = {"scheduling_policy": "fcfs", "enable_prefix_caching": False, "threads": 1}
    engine = build.engine(Config(model=MODEL, **plain))
    costs, _ = profile.profile(engine.executor, {}, repeats=2)
    engine.close()
    limit = Limits(5 * costs.seconds(Work(8, [512] * 8)))
    load = here(sets.uniform(options.requests, 1), 3)
    rows: list[list[object]] = []
    for name, arm in {
        "prefill first": {"composer": "prefill-first"},
        "stall-free, a target of 0.9 of it": {"target_tbt": 0.9 * limit.tbt},
    }.items():
        config = Config(model=MODEL, **plain, **arm)

        def attempt(rate: float, config: Config = config) -> Trial:
            return limit.trial(rate, served(config, poisson(load, rate, 1.0, 1)))

        kept, trials = search(attempt, options.rate, 0.2)
        tried = ", ".join(f"{trial.rate:g}: {1000 * trial.tbt:.0f}" for trial in trials)
        rows.append([name, kept, tried])
    title = f"requests/s with P99 between tokens within {1000 * limit.tbt:.0f} ms"
    table(title, ["", "kept", "requests/s tried: P99, ms"], rows)


def aging(options: argparse.Namespace) -> None:
    """A stream of chats, faster than they can be served."""
    load = poisson(here(sets.chats(3 * options.requests, 1), cut=4), 3 * options.rate, 1.0, 1)
    rows: list[list[object]] = []
    for order in ("fcfs", "shortest", "aging(shortest)"):
        config = Config(model=MODEL, scheduling_policy=order, max_num_seqs=16, threads=1)
        m = served(config, load).metrics
        rows.append([order, m["ptl"].mean, m["wait"].mean, m["wait"].percentile(100)])
    head = ["ms", "PTL mean", "wait mean", "longest wait"]
    table(f"{len(load.items)} chats at {3 * options.rate:g}/s", head, rows)


def here(load: Workload, times: int = 1, cut: int = 1) -> Workload:
    """With tokens of this model, prompts so many times as long, and answers of a part."""
    vocab = shape(MODEL).vocab
    items = [
        Item([token % vocab for token in item.prompt] * times, max(1, item.output // cut))
        for item in load.items
        if len(item.prompt) <= 2000
    ]
    return replace(load, items=items)


def served(config: Config, load: Workload) -> Report:
    engine = build.engine(config)
    try:
        engine.clock = clock = Wall()
        return measure(*replay(load, [Replica(engine, clock)]))
    finally:
        engine.close()


ALL = (simulator, default, policies, capacity, aging)
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
