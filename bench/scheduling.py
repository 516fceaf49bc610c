"""What policies are worth: the papers' comparisons on the simulator, one engine, same kernels.

    python bench/scheduling.py [--only NAME ...] [--seed 1] [--images docs/img]

Llama-3.1-8B on the H100 of weir/cost/hardware.py; tables on standard output, figures as PNG files.
"""

import argparse
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import scheduling_sets as sets

from weir.config import Config
from weir.core import Capacity, Tier
from weir.cost.hardware import H100, find
from weir.cost.roofline import Roofline
from weir.cost.target import Target
from weir.cost.work import Work
from weir.kv.cache import Cache
from weir.sched.aging import Aging
from weir.sched.composer import Chunked, Composer, PrefillFirst, Static, Whole
from weir.sched.placement import OnDemand, Reserve
from weir.sched.prefix import DepthFirst, LongestPrefix, Matches
from weir.sched.ranking import FCFS, Ranking
from weir.sched.scheduler import Scheduler
from weir.sched.shortest import Shortest
from weir.sim import plot
from weir.sim.fleet import capacity, replica
from weir.sim.replay import replay
from weir.sim.report import Report, measure
from weir.sim.search import Limits, Trial, search
from weir.sim.shapes import shape
from weir.sim.workload import Workload, poisson

SPEC = shape("llama-3.1-8b")
COST = Roofline(SPEC, H100)
CONTEXT = 8192
BASE = capacity(Config(max_model_len=CONTEXT, max_num_seqs=256), SPEC, H100)


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to schedule. tokens: the budget of a step. together: nobody is answered before the
    whole batch has ended, as FasterTransformer does."""

    name: str
    composer: Composer
    ranking: Callable[[Cache], Ranking] = lambda cache: FCFS()
    placement: Callable[[Tier], OnDemand] = OnDemand
    tokens: int = CONTEXT
    requests: int = 128
    reuse: bool = True
    together: bool = False

    def run(self, load: Workload, size: Capacity = BASE, cost: Roofline = COST) -> Report:
        size = Capacity(size.page, size.pages, self.tokens, self.requests, size.context)
        cache = Cache(size.page, {Tier.GPU: size.pages[0]}, reuse=self.reuse)
        scheduler = Scheduler(
            cache, self.ranking(cache), self.composer, self.placement(Tier.GPU), size
        )
        gc.collect()
        records, duration = replay(load, [replica(scheduler, cost, SPEC.vocab)])
        if self.together:
            last: dict[float, float] = {}  # of a batch, which is all that started in one step
            for record in records:
                last[record.started] = max(record.end, last.get(record.started, 0.0))
            for record in records:
                record.end = record.arrivals[-1] = last[record.started]
        return measure(records, duration)


STATIC = Arm("request-level", Static(), placement=Reserve, reuse=False)
TOGETHER = replace(STATIC, name="request-level, answered together", together=True)
ORCA = Arm("Orca", Whole(), placement=Reserve, reuse=False)
FIRST = Arm("prefill first", PrefillFirst(), reuse=False)
WHOLE = Arm("whole prompts", Whole(), reuse=False)
SARATHI = Arm("stall-free 512", Chunked(), tokens=512, reuse=False)
WIDE = Arm("stall-free 2048", Chunked(), tokens=2048, reuse=False)


def aimed(seconds: float) -> Arm:
    """A latency target; made anew for each run, because it remembers."""
    pace = Target(COST, seconds, CONTEXT)
    return Arm(f"target {1000 * seconds:.0f} ms", Chunked(pace), reuse=False)


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print(f"\n### {title}\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        cells = [f"{cell:,.3g}" if isinstance(cell, float) else str(cell) for cell in row]
        print(f"| {' | '.join(cells)} |", flush=True)


def sweep(arms: Sequence[Arm], load: Workload, rates: Sequence[float], seed: int):
    """(arm, rate, report) of each."""
    for arm in arms:
        for rate in rates:
            yield arm, rate, arm.run(poisson(load, rate, 1.0, seed))


def iteration(seed: int, images: Path) -> None:
    """Orca figure 10: median normalised latency against rate, and rates at equal latency."""
    load = sets.uniform(2000, seed)
    idle = SARATHI.run(poisson(load, 0.2, 1.0, seed)).metrics["ptl"].median
    factors = (1.5, 2, 3, 4)
    figure, axis = plot.canvas()
    rows: list[list[object]] = []
    for arm in (TOGETHER, STATIC, ORCA, WIDE):
        points: list[tuple[float, float]] = []
        rates = [_within(arm, load, factor * idle, points, seed) for factor in factors]
        rows.append([arm.name, *rates])
        axis.plot(*zip(*sorted(points), strict=True), marker=".", label=arm.name)
    for base in rows[:2]:
        ratios = (orca / rate for orca, rate in zip(rows[2][1:], base[1:], strict=True))
        rows.append([f"Orca / {base[0]}", *ratios])
    axis.set(xlabel="requests/s", ylabel="median ms a token", xscale="log", yscale="log")
    axis.set_ylim(idle / 2, 20 * idle)
    axis.grid(alpha=0.3)
    axis.legend()
    plot.save(figure, images / "iteration-level.png")
    head = ["requests/s at", *(f"{factor * idle:.0f} ms" for factor in factors)]
    table("Iteration-level against request-level, U(32, 512) x U(1, 128)", head, rows)


def _within(
    arm: Arm, load: Workload, limit: float, points: list[tuple[float, float]], seed: int
) -> float:
    """The highest rate whose median latency a token is within `limit`; adds what was measured."""

    def attempt(rate: float) -> Trial:
        report = arm.run(poisson(load, rate, 1.0, seed))
        points.append((rate, report.metrics["ptl"].median))
        return replace(Limits(1e9, 1e9).trial(rate, report), kept=points[-1][1] <= limit)

    return search(attempt, 16.0, 0.05)[0]


def stalls(seed: int, images: Path) -> None:
    """Sarathi-Serve table 4: P99 between tokens and median TTFT at equal load."""
    figure, axes = plot.canvas(1, 2)
    files = {"Azure conversations": ("azure2023_conv", 12.0), "arXiv": ("arxiv_summarization", 6.0)}
    for axis, (title, (file, rate)) in zip(axes, files.items(), strict=True):
        suffix = "_lengths" if "arxiv" in file else ""
        load = poisson(sets.lengths(f"traces/{file}{suffix}.csv.gz", 800, seed), rate, 1.0, seed)
        rows = []
        for arm in (ORCA, FIRST, WHOLE, WIDE, SARATHI, aimed(0.05), aimed(0.025)):
            metrics = arm.run(load).metrics
            itl, ttft, e2el = metrics["itl"], metrics["ttft"], metrics["e2el"]
            rows.append([arm.name, itl.median, itl.percentile(99), itl.percentile(100)])
            rows[-1] += [ttft.median, ttft.percentile(99), e2el.median]
            if arm in (FIRST, WHOLE, WIDE, SARATHI):
                plot.cumulative(axis, {arm.name: itl.sorted})
        axis.set(title=f"{title}, {rate:g} req/s", ylim=(0.9, 1), xlabel="ms between tokens")
        head = ["ms", "TBT P50", "P99", "max", "TTFT P50", "P99", "E2E P50"]
        table(f"{title}, {rate:g} requests/s", head, rows)
    plot.save(figure, images / "stall-free.png")


def capacities(seed: int, images: Path) -> None:
    """Sarathi-Serve figures 10 and 12: the highest rate within a P99 target."""
    _capacity("azure2023_conv", 12.0, seed)


def papers(seed: int, images: Path) -> None:
    """The same for summaries of papers, whose prompts are longer."""
    _capacity("arxiv_summarization_lengths", 4.0, seed)


def _capacity(file: str, first: float, seed: int) -> None:
    step = COST.seconds(Work(32, [4096] * 32))
    load = sets.lengths(f"traces/{file}.csv.gz", 1500, seed)
    limits = [Limits(5 * step), Limits(25 * step)]
    fixed = [FIRST, WHOLE, SARATHI, WIDE]
    rows = []
    for limit in limits:
        arms = [*fixed, aimed(0.9 * limit.tbt)]
        held = [_held(arm, load, limit, first, seed) for arm in arms]
        rows.append([f"{1000 * limit.tbt:.0f} ms", *held, max(held[2:]) / held[0]])
    head = ["P99 TBT", "prefill first", "whole", "512", "2048", "target", "best / prefill first"]
    table(f"Capacity, requests/s: {file}", head, rows)


def _held(arm: Arm, load: Workload, limit: Limits, first: float, seed: int) -> float:
    """The highest rate that an arm keeps."""

    def attempt(rate: float) -> Trial:
        return limit.trial(rate, arm.run(poisson(load, rate, 1.0, seed)))

    return search(attempt, first, 0.05)[0]


def budgets(seed: int, images: Path) -> None:
    """The curve behind a budget: what it gives in throughput and takes in time between tokens."""
    load = sets.lengths("traces/azure2023_conv.csv.gz", 500, seed)
    rows = []
    for tokens in (256, 512, 1024, 2048, 4096, 8192):
        arm = replace(SARATHI, tokens=tokens, requests=256)
        full, part = arm.run(load), arm.run(poisson(load, 12.0, 1.0, seed))
        rows.append([tokens, full.total_throughput, part.metrics["itl"].percentile(99)])
        rows[-1].append(part.metrics["ttft"].median)
    sizes, rates, gaps, _ = zip(*rows, strict=True)
    figure, axis = plot.canvas()
    other = axis.twinx()
    axis.plot(sizes, rates, "o-")
    other.plot(sizes, gaps, "s--", c="C1")
    axis.set(xlabel="tokens a step", ylabel="tokens/s, all at once", xscale="log", ylim=(0, None))
    axis.set_xticks(sizes, labels=list(map(str, sizes)))
    axis.minorticks_off()
    other.set(ylabel="P99 ms between tokens, 12 req/s (dashed)", ylim=(0, None))
    plot.save(figure, images / "budget.png")
    head = ["tokens a step", "tokens/s, all at once", "P99 TBT at 12 req/s", "TTFT P50"]
    table("The budget of a step", head, rows)


def orders() -> list[Arm]:
    base = replace(WIDE, requests=256)
    return [
        replace(base, name="FCFS"),
        replace(base, name="shortest", ranking=lambda cache: Shortest()),
        replace(base, name="aging(shortest)", ranking=lambda cache: Aging(Shortest())),
        replace(base, name="preemptive", ranking=lambda cache: Shortest(preempt=True)),
        replace(base, name="aging(preemptive)",
                ranking=lambda cache: Aging(Shortest(preempt=True))),
    ]  # fmt: skip


def shortest(seed: int, images: Path) -> None:
    """Learning to Rank section 5.2, with the true lengths for a ranker."""
    load = sets.chats(2000, seed)
    figure, axes = plot.canvas(1, 2)
    head = ["ms", "PTL mean", "P90", "TTFT P50", "TPOT P99", "wait mean", "max", "preempted"]
    for axis, rate in zip(axes, (float("inf"), 120.0), strict=True):
        rows = []
        for arm in orders():
            report = arm.run(poisson(load, rate, 1.0, seed))
            m = report.metrics
            rows.append([arm.name, m["ptl"].mean, m["ptl"].percentile(90), m["ttft"].median])
            rows[-1] += [m["tpot"].percentile(99), m["wait"].mean, m["wait"].percentile(100)]
            rows[-1].append(report.preemptions)
            plot.cumulative(axis, {arm.name: m["ptl"].sorted})
        title = "burst of 2,000" if rate == float("inf") else f"{rate:g} requests/s"
        axis.set(title=title, xlabel="ms a token, end to end")
        table(f"Chat lengths, {title}", head, rows)
    plot.save(figure, images / "shortest-first.png")


def samples(seed: int, images: Path) -> None:
    """Learning to Rank section 5.4: the first 1,000 of 10,000 samples."""
    rows = []
    for arm in orders()[:2]:
        report = arm.run(sets.chats(10_000, seed))
        first = report.metrics["e2el"].sorted[999] / 1000
        rows.append([arm.name, first, report.duration])
    table("First 1,000 of 10,000 samples", ["", "first 1,000, s", "all, s"], rows)


def prefixes(seed: int, images: Path) -> None:
    """SGLang section 6: hit rates by order, where the cache is too small for all prefixes."""
    device = find("a10g")
    arms = [
        Arm("FCFS", Chunked(), tokens=512, requests=64),
        Arm("longest prefix", Chunked(), lambda cache: LongestPrefix(Matches(cache)),
            tokens=512, requests=64),
        Arm("depth first", Chunked(), lambda cache: DepthFirst(cache, 4096),
            tokens=512, requests=64),
    ]  # fmt: skip
    rows = []
    for load in (poisson(sets.fewshot(1200, seed), 1e4, 1.0, seed), sets.trees(60, seed)):
        for tokens in (16_384, 65_536):
            size = Capacity(16, {0: tokens // 16}, 512, 64, CONTEXT)
            best = 100 * sets.best_hits(load, size.page)
            reports = [arm.run(load, size, Roofline(SPEC, device)) for arm in arms]
            rates = [100 * report.hit_rate for report in reports]
            times = [report.duration for report in reports]
            rows.append([load.name, tokens, best, *rates, rates[1] / best, times[0] / times[1]])
    head = ["", "cache tokens", "best %", "FCFS %", "longest prefix %", "depth first %"]
    table("Hit rates, A10G", [*head, "longest / best", "time FCFS / longest"], rows)


ALL = (iteration, stalls, capacities, papers, budgets, shortest, samples, prefixes)
FIGURES = {figure.__name__: figure for figure in ALL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--images", type=Path, default=Path("docs/img"))
    options = parser.parse_args()
    options.images.mkdir(parents=True, exist_ok=True)
    gc.freeze()
    gc.set_threshold(500_000, 20, 100)
    for name in options.only:
        FIGURES[name](options.seed, options.images)


if __name__ == "__main__":
    main()
