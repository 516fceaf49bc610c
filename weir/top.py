"""A live view of a server, made from nothing but its /metrics and /server_info.

Two scrapes make a frame: rates are differences of counters, percentiles come from what was added to
the histograms in between (so they describe the last interval, not the server's whole life).
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from weir.bench.http import Http, HttpError, bearer

SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
BLOCKS = " ▁▂▃▄▅▆▇█"
REMEMBERED = 60  # frames in the small graph


@dataclass(slots=True)
class Scrape:
    """The samples of one look, summed over labels; histograms as upper bound → count so far."""

    when: float
    values: dict[str, float] = field(default_factory=dict)
    buckets: dict[str, dict[float, float]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        """A gauge or counter of Weir's; 0 if the server does not publish it."""
        return self.values.get(f"weir_{name}", self.values.get(f"weir_{name}_total", 0.0))


def parse(text: str, when: float) -> Scrape:
    """Read the Prometheus text format."""
    scrape = Scrape(when)
    for line in text.splitlines():
        if line.startswith("#") or (match := SAMPLE.match(line)) is None:
            continue
        name, labels, value = match[1], dict(LABEL.findall(match[2] or "")), float(match[3])
        if name.endswith("_bucket"):
            bounds = scrape.buckets.setdefault(name.removesuffix("_bucket"), {})
            bound = float(labels["le"])
            bounds[bound] = bounds.get(bound, 0.0) + value
        else:
            scrape.values[name] = scrape.values.get(name, 0.0) + value
    return scrape


def percentile(before: Mapping[float, float], after: Mapping[float, float], share: float) -> float:
    """The `share` quantile of what came between two looks at a histogram; NaN if nothing did.

    Linear inside a bucket, as Prometheus's histogram_quantile; the last finite bound at most.
    """
    bounds = sorted(after)
    counts = [after[bound] - before.get(bound, 0.0) for bound in bounds]
    if not counts or counts[-1] <= 0:
        return math.nan
    wanted, low, seen = share * counts[-1], 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if count >= wanted and count > seen:
            return (
                low if bound == math.inf else low + (bound - low) * (wanted - seen) / (count - seen)
            )
        low, seen = (low if bound == math.inf else bound), count
    return low


@dataclass(slots=True)
class View:
    """Everything a frame shows. Latencies are seconds, NaN where nothing finished."""

    running: float
    waiting: float
    tokens_in: float  # a second
    tokens_out: float
    ttft: tuple[float, float]  # p50, p99
    itl: tuple[float, float]
    cache: float  # share of the pages that requests hold
    cached: float  # share that only the prefix cache holds
    hit_rate: float  # of the interval; NaN without prompts
    preemptions: float  # in all
    rejections: float
    step: tuple[float, float]  # p50, p99 of the device's time for a step
    host: float  # p50 of the scheduler's
    step_requests: float  # mean a step; NaN without steps
    step_prefill: float
    step_decode: float


def view(before: Scrape, after: Scrape) -> View:
    """What happened between two looks. Counters that fell (a restart) count from zero."""
    seconds = max(after.when - before.when, 1e-9)

    def grown(name: str) -> float:
        change = after[name] - before[name]
        return change if change >= 0 else after[name]

    def quantiles(name: str) -> tuple[float, float]:
        old, new = before.buckets.get(name, {}), after.buckets.get(name, {})
        if any(new.get(bound, 0.0) < count for bound, count in old.items()):
            old = {}
        return percentile(old, new, 0.5), percentile(old, new, 0.99)

    def mean(name: str) -> float:
        count = grown(f"{name}_count")
        return grown(f"{name}_sum") / count if count else math.nan

    asked = grown("prefix_cache_query_tokens")
    return View(
        running=after["requests_running"],
        waiting=after["requests_waiting"],
        tokens_in=grown("prompt_tokens") / seconds,
        tokens_out=grown("generation_tokens") / seconds,
        ttft=quantiles("weir_time_to_first_token_seconds"),
        itl=quantiles("weir_inter_token_latency_seconds"),
        cache=after["cache_usage_ratio"],
        cached=after["cache_cached_ratio"],
        hit_rate=grown("prefix_cache_hit_tokens") / asked if asked else math.nan,
        preemptions=after["preemptions"],
        rejections=after["admission_rejections"],
        step=quantiles("weir_step_seconds"),
        host=quantiles("weir_step_host_seconds")[0],
        step_requests=mean("step_requests"),
        step_prefill=mean("step_prefill_tokens"),
        step_decode=mean("step_decode_tokens"),
    )


def frame(now: View, title: str, history: list[float]) -> Panel:
    """One frame, for any width of terminal."""
    table = Table.grid(padding=(0, 2))
    for _ in range(4):
        table.add_column(no_wrap=True)
    rows = [
        ("requests", f"{now.running:.0f} running", f"{now.waiting:.0f} waiting", ""),
        ("tokens/s", f"{now.tokens_in:,.0f} in", f"{now.tokens_out:,.0f} out", ""),
        ("first token", f"p50 {duration(now.ttft[0])}", f"p99 {duration(now.ttft[1])}", ""),
        ("next token", f"p50 {duration(now.itl[0])}", f"p99 {duration(now.itl[1])}", ""),
        (
            "KV pages",
            f"{now.cache:.0%} in use",
            f"{now.cached:.0%} cached",
            f"hit rate {share(now.hit_rate)}",
        ),
        (
            "step",
            f"p50 {duration(now.step[0])}",
            f"p99 {duration(now.step[1])}",
            f"host {duration(now.host)}",
        ),
        (
            "mean step",
            f"{number(now.step_requests)} requests",
            f"{number(now.step_prefill)} prompt",
            f"{number(now.step_decode)} output",
        ),
        ("since start", f"{now.preemptions:.0f} preempted", f"{now.rejections:.0f} rejected", ""),
    ]
    for name, *cells in rows:
        table.add_row(Text(name, style="dim"), *cells)
    return Panel(Group(table, Text(graph(history), style="green")), title=title, title_align="left")


def graph(history: list[float]) -> str:
    """Output tokens a second of the last frames as a line of blocks."""
    top = max(history, default=0.0) or 1.0
    return "".join(BLOCKS[math.ceil(value / top * (len(BLOCKS) - 1))] for value in history)


def duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def number(count: float) -> str:
    return "-" if math.isnan(count) else f"{count:.1f}"


def share(part: float) -> str:
    return "-" if math.isnan(part) else f"{part:.0%}"


async def look(http: Http) -> Scrape:
    text = (await http.get("/metrics")).decode()
    return parse(text, time.monotonic())


async def title_of(http: Http) -> str:
    """The model and where it runs, as far as the server tells."""
    try:
        info: dict[str, Any] = msgspec.json.decode(await http.get("/server_info"))
        listed = msgspec.json.decode(await http.get("/v1/models"))
        name = listed["data"][0]["id"]
    except (HttpError, msgspec.DecodeError, LookupError, TypeError):
        return http.base
    engine = info.get("engine", info)
    details = [str(engine[key]) for key in ("device", "dtype") if engine.get(key)]
    return " · ".join([str(name), *details, http.base])


def watch(url: str, api_key: str | None, interval: float, once: bool) -> None:
    """Draw until interrupted, or one frame. Raises `HttpError` if the server cannot be reached."""
    http = Http(url, bearer(api_key), timeout=10.0)
    asyncio.run(_watch(http, interval, once))


async def _watch(http: Http, interval: float, once: bool) -> None:
    console = Console()
    title, before, history = await title_of(http), await look(http), list[float]()
    await asyncio.sleep(interval)
    after = await look(http)
    if once:
        now = view(before, after)
        console.print(frame(now, title, [now.tokens_out]))
        return
    with Live(console=console, screen=False, auto_refresh=False) as live:
        while True:
            now = view(before, after)
            history = [*history, now.tokens_out][-REMEMBERED:]
            live.update(frame(now, title, history), refresh=True)
            before = after
            await asyncio.sleep(interval)
            after = await look(http)
