"""The metrics of a run of a workload: takes one record per request, makes one report.

Benchmarks and simulator share it, so their figures are comparable. Times are seconds of the clock
that made the records. TTFT is the wait for the first token, ITL each gap between two arrivals of
tokens, E2EL the wait for the last token, TPOT a request's (E2EL - TTFT) / (output tokens - 1).
Papers also use PTL, which is E2EL / output tokens ("normalised latency": Orca section 6, Learning
to Rank section 5), the longest wait for any token, and the delay until a request is first
scheduled. Knows no network, no engine.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

METRICS = {
    "ttft": ("TTFT", "Time to First Token"),
    "tpot": ("TPOT", "Time per Output Token (excl. 1st token)"),
    "itl": ("ITL", "Inter-token Latency"),
    "e2el": ("E2EL", "End-to-end Latency"),
    "ptl": ("PTL", "Per-token Latency (E2EL / tokens)"),
    "wait": ("wait", "Longest Wait for a Token"),
    "delay": ("delay", "Scheduling Delay"),
}


@dataclass(slots=True)
class Record:
    """One request as its sender saw it. It succeeded if `error` is empty."""

    start: float
    arrivals: list[float] = field(default_factory=list)  # times of the events with tokens
    end: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    started: float = -1.0  # first scheduled; -1: the sender does not know
    preempted: int = 0
    text: str = ""
    error: str = ""

    @property
    def ttft(self) -> float:
        return (self.arrivals[0] if self.arrivals else self.end) - self.start

    @property
    def e2el(self) -> float:
        return (self.arrivals[-1] if self.arrivals else self.end) - self.start

    @property
    def itl(self) -> list[float]:
        return [later - sooner for sooner, later in pairwise(self.arrivals)]

    @property
    def tpot(self) -> float:
        return (self.e2el - self.ttft) / max(1, self.output_tokens - 1)

    @property
    def ptl(self) -> float:
        return self.e2el / max(1, self.output_tokens)

    @property
    def wait(self) -> float:
        return max(self.ttft, *self.itl, 0.0)

    @property
    def delay(self) -> float:
        return self.started - self.start


@dataclass(slots=True, frozen=True)
class Distribution:
    """A metric over all requests, in milliseconds. `sorted` ascends."""

    mean: float
    std: float
    sorted: list[float]

    @staticmethod
    def of(seconds: Sequence[float]) -> Distribution:
        values = sorted(1000 * value for value in seconds)
        if not values:
            return Distribution(0.0, 0.0, [])
        return Distribution(statistics.fmean(values), statistics.pstdev(values), values)

    def percentile(self, percent: float) -> float:
        """Linear interpolation between the two nearest ranks; 0 if there are no values."""
        if not self.sorted:
            return 0.0
        place = (len(self.sorted) - 1) * percent / 100
        low = math.floor(place)
        high = min(low + 1, len(self.sorted) - 1)
        return self.sorted[low] + (self.sorted[high] - self.sorted[low]) * (place - low)

    @property
    def median(self) -> float:
        return self.percentile(50)


@dataclass(slots=True, frozen=True)
class Report:
    completed: int
    failed: int
    duration: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    goodput: float | None  # requests per second that met all limits; None: no limits
    peak_output: float  # most output tokens in one second
    peak_concurrent: int
    preemptions: int
    metrics: dict[str, Distribution]

    @property
    def request_throughput(self) -> float:
        return self.completed / self.duration

    @property
    def output_throughput(self) -> float:
        return self.output_tokens / self.duration

    @property
    def total_throughput(self) -> float:
        return (self.input_tokens + self.output_tokens) / self.duration

    @property
    def hit_rate(self) -> float:
        """Share of prompt tokens that were found in the prefix cache."""
        return self.cached_tokens / max(1, self.input_tokens)


def measure(
    records: Sequence[Record], duration: float, limits: Mapping[str, float] | None = None
) -> Report:
    """The report of a run of `duration` seconds. limits: of goodput, metric → milliseconds."""
    good = [record for record in records if not record.error]
    duration = max(duration, 1e-9)
    met = sum(meets(record, limits) for record in good) if limits else None
    return Report(
        completed=len(good),
        failed=len(records) - len(good),
        duration=duration,
        input_tokens=sum(record.prompt_tokens for record in good),
        output_tokens=sum(record.output_tokens for record in good),
        cached_tokens=sum(record.cached_tokens for record in good),
        goodput=None if met is None else met / duration,
        peak_output=peak_output(good),
        peak_concurrent=peak_concurrent(records),
        preemptions=sum(record.preempted for record in good),
        metrics={
            "ttft": Distribution.of([record.ttft for record in good]),
            "tpot": Distribution.of([r.tpot for r in good if r.output_tokens > 1]),
            "itl": Distribution.of([gap for record in good for gap in record.itl]),
            "e2el": Distribution.of([record.e2el for record in good]),
            "ptl": Distribution.of([record.ptl for record in good]),
            "wait": Distribution.of([record.wait for record in good]),
            "delay": Distribution.of([record.delay for record in good if record.started >= 0]),
        },
    )


def meets(record: Record, limits: Mapping[str, float]) -> bool:
    return all(1000 * getattr(record, metric) <= limit for metric, limit in limits.items())


def peak_output(records: Sequence[Record]) -> float:
    """Most output tokens in one second of the run. A request's events count as equally large."""
    if not records:
        return 0.0
    first = min(record.start for record in records)
    seconds: dict[int, float] = {}
    for record in records:
        share = record.output_tokens / max(1, len(record.arrivals))
        for arrival in record.arrivals:
            second = int(arrival - first)
            seconds[second] = seconds.get(second, 0.0) + share
    return max(seconds.values(), default=0.0)


def peak_concurrent(records: Sequence[Record]) -> int:
    edges = [(record.start, 1) for record in records] + [(record.end, -1) for record in records]
    level = peak = 0
    for _, change in sorted(edges):
        level += change
        peak = max(peak, level)
    return peak


def block(
    report: Report,
    *,
    rate: float = math.inf,
    concurrency: int | None = None,
    metrics: Sequence[str] = ("ttft", "tpot", "itl"),
    percentiles: Sequence[float] = (99,),
) -> str:
    """The conventional block of text; its labels are kept because scripts parse them."""
    rows: list[tuple[str, float | int]] = [
        ("Successful requests", report.completed),
        ("Failed requests", report.failed),
    ]
    if concurrency is not None:
        rows.append(("Maximum request concurrency", concurrency))
    if rate != math.inf:
        rows.append(("Request rate configured (RPS)", rate))
    rows += [
        ("Benchmark duration (s)", report.duration),
        ("Total input tokens", report.input_tokens),
        ("Total generated tokens", report.output_tokens),
        ("Request throughput (req/s)", report.request_throughput),
    ]
    if report.goodput is not None:
        rows.append(("Request goodput (req/s)", report.goodput))
    rows += [
        ("Output token throughput (tok/s)", report.output_throughput),
        ("Peak output token throughput (tok/s)", report.peak_output),
        ("Peak concurrent requests", float(report.peak_concurrent)),
        ("Total token throughput (tok/s)", report.total_throughput),
    ]
    lines = [f"{' Serving Benchmark Result ':=^50}", *map(_row, rows)]
    for metric in metrics:
        name, title = METRICS[metric]
        values = report.metrics[metric]
        lines.append(f"{title:-^50}")
        lines += [
            _row((f"Mean {name} (ms)", values.mean)),
            _row((f"Median {name} (ms)", values.median)),
        ]
        lines += [_row((f"P{p:g} {name} (ms)", values.percentile(p))) for p in percentiles]
    lines.append(f"{'Prefix Cache':-^50}")
    lines.append(_row(("Prefix cache hit rate (%)", 100 * report.hit_rate)))
    if report.preemptions:
        lines.append(_row(("Preemptions", report.preemptions)))
    lines.append("=" * 50)
    return "\n".join(lines)


def flat(
    report: Report,
    metrics: Sequence[str] = ("ttft", "tpot", "itl"),
    percentiles: Sequence[float] = (99,),
) -> dict[str, float | int | None]:
    """The report under the JSON keys of `vllm bench serve`."""
    result: dict[str, float | int | None] = {
        "duration": report.duration,
        "completed": report.completed,
        "failed": report.failed,
        "total_input_tokens": report.input_tokens,
        "total_output_tokens": report.output_tokens,
        "total_cached_tokens": report.cached_tokens,
        "prefix_cache_hit_rate": report.hit_rate,
        "request_throughput": report.request_throughput,
        "request_goodput": report.goodput,
        "output_throughput": report.output_throughput,
        "total_token_throughput": report.total_throughput,
        "max_output_tokens_per_s": report.peak_output,
        "max_concurrent_requests": report.peak_concurrent,
        "preemptions": report.preemptions,
    }
    for metric in metrics:
        values = report.metrics[metric]
        result |= {
            f"mean_{metric}_ms": values.mean,
            f"median_{metric}_ms": values.median,
            f"std_{metric}_ms": values.std,
        }
        result |= {f"p{p:g}_{metric}_ms": values.percentile(p) for p in percentiles}
    return result


def _row(row: tuple[str, float | int]) -> str:
    label, value = row[0] + ":", row[1]
    return f"{label:<40} {value:<10}" if isinstance(value, int) else f"{label:<40} {value:<10.2f}"
