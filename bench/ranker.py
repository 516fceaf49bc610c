"""What the shipped ranker is worth: served by it, by the true lengths, and in order of arrival.

    python bench/ranker.py [--ranker FILE] [--engine N | --served N ... | --running N ...]

Llama-3.1-8B on the simulated H100 of bench/scheduling.py. Prompts are those the ranker was not
trained on, drawn again and again; lengths are what one family of models answered to them. Four
characters of a prompt are a token. With --served the ranker has learned from that many answers to
other prompts of the same mixture; with --running so many requests run at a time.
"""

import argparse
import asyncio
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import fmean

import scheduling_sets as sets
from scheduling import WIDE, Arm, table

from weir.core import Request
from weir.llm.online import AsyncLLM
from weir.params import SamplingParams
from weir.ranker import files, lengths
from weir.ranker.adapt import Adapted
from weir.ranker.files import Ranker
from weir.ranker.kendall import tau_b
from weir.ranker.lengths import Lengths
from weir.ranker.log import Answered
from weir.rows import read_rows
from weir.sched.aging import Aging, Queued
from weir.sched.ranking import FCFS, Ranking
from weir.sched.shortest import Learned, Shortest
from weir.sim.report import Record, measure
from weir.sim.workload import Item, Workload, poisson

CHAT = (*sets.CHAT, "gpteacher-codegen")
SEEDS = 5


@dataclass(slots=True)
class Known:
    """A scorer that has the answer at once. expected: by the order of arrival."""

    expected: Sequence[float]

    def __call__(self, new: Sequence[Request]) -> list[tuple[int, float]]:
        return [(r.uid, self.expected[r.uid]) for r in new]


@dataclass(slots=True)
class Blind(Learned):
    """Does not look at `max_tokens`, which is the true length in a simulation."""

    def expected(self, r: Request) -> float:
        return self.neutral if r.score is None else r.score


@dataclass(slots=True)
class Burst:
    load: Workload
    texts: list[str]
    expected: list[float]
    tau: float

    def arms(self, running: int = 256) -> list[Arm]:
        """`auto` is what `weir.sched.names.AUTO` says, without the sight of `max_tokens`."""
        base = replace(WIDE, requests=running)
        orders: dict[str, Callable[[], Ranking]] = {
            "FCFS": FCFS,
            "learned": self.learned,
            "auto": lambda: Queued(Aging(self.learned(), threshold=400, patience=1)),
            "aging(learned)": lambda: Aging(self.learned()),
            "learned, preemptive": lambda: self.learned(preempt=True),
            "oracle": Shortest,
            "auto(oracle)": lambda: Queued(Aging(Shortest(), threshold=400, patience=1)),
            "aging(oracle)": lambda: Aging(Shortest()),
        }
        return [
            replace(base, name=name, ranking=lambda cache, new=new: new())
            for name, new in orders.items()
        ]

    def learned(self, preempt: bool = False) -> Blind:
        return Blind(scorer=Known(self.expected), preempt=preempt)


def answered(data: Lengths, family: str, sources: Collection[str] = ()) -> list[Answered]:
    """What models of one family answered to the prompts of some sources, or all."""
    return [
        Answered(data.prompts[answer.prompt], answer.tokens)
        for answer in data.families()[family]
        if (not sources or data.sources[answer.prompt] in sources) and answer.tokens >= 1
    ]


def burst(name: str, answers: list[Answered], ranker: Adapted, count: int, seed: int) -> Burst:
    """`count` requests for some of the answers, again and again."""
    drawn = Random(seed).choices(answers, k=count)
    words = sets.words(seed)
    prompts = [answer.prompt for answer in drawn]
    items = [Item(words.draw(max(1, len(a.prompt) // 4)), round(a.tokens)) for a in drawn]
    asked = sorted({*prompts})
    known = dict(zip(asked, ranker.predict(asked), strict=True))
    expected = [known[prompt] for prompt in prompts]
    tau = tau_b(expected, [answer.tokens for answer in drawn])
    return Burst(Workload(name, items), prompts, expected, tau)


COMPARED = "FCFS", "learned", "auto", "oracle"
HEAD = ["FCFS", "learned", "auto", "oracle", "times better", "auto", "oracle", "of its gain"]


def compared(bursts: Sequence[Burst], running: int = 256) -> list[object]:
    """Tau, and mean latencies a token and their ratios under the names of HEAD, over bursts."""
    found: dict[str, list[float]] = defaultdict(list)
    for one in bursts:
        for arm in [arm for arm in one.arms(running) if arm.name in COMPARED]:
            found[arm.name].append(arm.run(one.load).metrics["ptl"].mean)
    means = [fmean(found[name]) for name in COMPARED]
    ratios = [means[0] / mean for mean in means[1:]]
    gain = (means[0] - means[1]) / (means[0] - means[-1])
    return [fmean(one.tau for one in bursts), *means, *ratios, f"{gain:.0%}"]


def learning(
    name: str, halves: Sequence[list[Answered]], base: Ranker, served: list[int], options: Namespace
) -> None:
    """Bursts of either half of some answers, after so many of the other half were served."""
    rows = []
    for count in served:
        bursts = []
        for asked, told in (halves, halves[::-1]):
            ranker = Adapted(base)
            ranker.learn(Random(options.seed).sample(told, min(count, len(told))))
            bursts.append(burst(name, asked, ranker, options.requests, options.seed))
        rows.append([min(count, *map(len, halves)), *compared(bursts)])
    title = f"{name}: {options.requests:,} at once, mean latency a token"
    table(title, ["served", "tau", *HEAD], rows)


def crowds(name: str, asked: list[Answered], ranker: Adapted, options: Namespace) -> None:
    """Bursts of several seeds, by how many requests run at a time."""
    seeds = range(options.seed, options.seed + SEEDS)
    bursts = [burst(name, asked, ranker, options.requests, seed) for seed in seeds]
    rows = [[running, *compared(bursts, running)] for running in options.running]
    title = f"{name}: {options.requests:,} at once, mean latency a token, {SEEDS} seeds"
    table(title, ["running", "tau", *HEAD], rows)


def dialogues(seed: int) -> list[list[Answered]]:
    """What GPT-4 wrote in MT-Bench-101, which no ranker was trained on, half of it each."""
    rows = list(read_rows(sets.DATA / "prefix/mt_bench_101.jsonl.gz"))
    Random(seed).shuffle(rows)
    return [
        [Answered(turn["user"], turn["bot_tokens"]) for row in half for turn in row["turns"]]
        for half in (rows[::2], rows[1::2])
    ]


def halved(answers: list[Answered], seed: int) -> list[list[Answered]]:
    """By prompt: the same one is not on both sides."""
    prompts = sorted({answer.prompt for answer in answers})
    Random(seed).shuffle(prompts)
    first = {*prompts[::2]}
    return [[a for a in answers if (a.prompt in first) == side] for side in (True, False)]


def latencies(one: Burst, rate: float, seed: int) -> None:
    rows, means = [], {}
    load = poisson(one.load, rate, 1.0, seed)
    for arm in one.arms():
        m = (report := arm.run(load)).metrics
        means[arm.name] = m["ptl"].mean
        rows.append([arm.name, m["ptl"].mean, means["FCFS"] / m["ptl"].mean])
        rows[-1] += [m["ptl"].percentile(90), m["ttft"].median, m["ttft"].percentile(99)]
        rows[-1] += [m["tpot"].percentile(99), m["wait"].percentile(100), report.preemptions]
    when = "at once" if rate == float("inf") else f"at {rate:g} requests/s"
    title = f"{one.load.name}: {len(one.load.items):,} requests {when}, tau {one.tau:.2f}"
    head = ["ms", "PTL mean", "times better", "PTL P90", "TTFT P50", "TTFT P99", "TPOT P99"]
    table(title, [*head, "longest wait", "preempted"], rows)
    if (most := means["FCFS"] - means["oracle"]) > 0.01 * means["FCFS"]:
        gains = ((name, (means["FCFS"] - means[name]) / most) for name in ("learned", "auto"))
        print("\nOf the oracle's gain:", ", ".join(f"{name} {gain:.0%}" for name, gain in gains))


def samples(one: Burst) -> None:
    """Learning to Rank section 5.4: seconds until the first tenth is there."""
    rows: list[list[object]] = []
    for arm in [arm for arm in one.arms() if arm.name in ("FCFS", "learned", "oracle")]:
        report = arm.run(one.load)
        rows.append([arm.name, report.metrics["e2el"].sorted[len(one.load.items) // 10 - 1] / 1000])
        rows[-1] += [rows[0][1] / rows[-1][1], report.duration]
    title = f"{one.load.name}: the first {len(one.load.items) // 10:,} of {len(one.load.items):,}"
    table(title, ["s", "first tenth", "times sooner", "all"], rows)


SHARE = 4
"""Answers on the real engine are so many times shorter: it is a small CPU's."""


async def engine(one: Burst, policy: str) -> list[Record]:
    """The burst on the embedded model of this machine, each answer ended at its length by its
    reader, as a stop string would; only `shortest` is told the length."""
    records = []

    async def ask(llm: AsyncLLM, place: int, began: float) -> None:
        most = max(1, one.load.items[place].output // SHARE)
        told = most if policy == "shortest" else 1024
        params = SamplingParams(temperature=0, max_tokens=told, ignore_eos=True)
        record = Record(began)
        async for output in llm.generate(one.texts[place][:2000], params):
            new = len(output.outputs[0].token_ids) - record.output_tokens
            if new:
                record.arrivals.append(time.perf_counter())
                record.output_tokens += new
            if record.output_tokens >= most:
                break
        records.append(record)

    settings = {"scheduling_policy": policy, "max_num_seqs": 16, "enable_prefix_caching": False}
    async with AsyncLLM("smollm2-135m", device="cpu", **settings) as llm:
        began = time.perf_counter()
        await asyncio.gather(*(ask(llm, place, began) for place in range(len(one.load.items))))
    return records


def engines(one: Burst) -> None:
    rows: list[list[object]] = []
    for policy in ("fcfs", "learned", "shortest"):
        records = asyncio.run(engine(one, policy))
        duration = max(record.arrivals[-1] for record in records) - records[0].start
        m = measure(records, duration).metrics
        rows.append([policy, m["ptl"].mean, m["ptl"].percentile(90), m["ttft"].median])
        rows[-1] += [m["ttft"].percentile(99), m["wait"].percentile(100)]
        rows[-1] += [m["e2el"].sorted[len(records) // 10 - 1], duration]
    head = ["ms", "PTL mean", "PTL P90", "TTFT P50", "TTFT P99", "longest wait", "first tenth"]
    head.append("all, s")
    table(f"{len(one.load.items)} requests at once on this CPU, tau {one.tau:.2f}", head, rows)


def cost(data: Lengths, ranker: Adapted, count: int, seed: int) -> None:
    """Milliseconds a prompt on one core, the median and the worst of five rounds."""
    prompts = Random(seed).sample(data.prompts, count)
    rounds = []
    for _ in range(5):
        began = time.perf_counter()
        ranker.predict(prompts)
        rounds.append(time.perf_counter() - began)
    size = fmean(map(len, prompts))
    print(f"\n{sorted(rounds)[2]:.3f} ms a prompt of {size:.0f} characters ({max(rounds):.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranker", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--families", nargs="*", default=["gpt-4", "gpt-3.5-turbo"])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--timed", type=int, default=1000, help="prompts that it is timed on")
    parser.add_argument("--engine", type=int, metavar="N", help="N requests on this CPU instead")
    parser.add_argument(
        "--served", type=int, nargs="+", metavar="N", help="N answers later instead"
    )
    parser.add_argument("--running", type=int, nargs="+", metavar="N", help="bursts alone")
    options = parser.parse_args()
    base = files.load(options.ranker) if options.ranker else files.shipped()
    ranker = Adapted(base)
    data = lengths.read(sets.DATA / "lengths", ["bbh"])
    cost(data, ranker, options.timed, options.seed)
    _, unseen = data.split()
    if options.served:
        learning("MT-Bench-101", dialogues(options.seed), base, options.served, options)
        for family in options.families:
            found = answered(unseen, family, CHAT if family == "gpt-4" else ())
            learning(family, halved(found, options.seed), base, options.served, options)
        return
    for family in options.families:
        asked = answered(unseen, family, CHAT)
        if options.running:
            crowds(family, asked, ranker, options)
            continue
        if options.engine:
            return engines(burst(family, asked, ranker, options.engine, options.seed))
        one = burst(family, asked, ranker, options.requests, options.seed)
        for rate in (float("inf"), 200.0, 120.0):
            latencies(one, rate, options.seed)
        samples(burst(family, asked, ranker, 5 * options.requests, options.seed))


if __name__ == "__main__":
    main()
