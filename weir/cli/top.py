"""Watch a running server: requests, tokens a second, latencies, cache, steps."""

# Reads only /metrics and, for the title, /server_info and /v1/models. Two scrapes make a frame:
# rates are differences of counters and percentiles come from differences of histograms, so they
# describe the last interval, not all time since the server's start.

import asyncio
import math
import re
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Column, Table
from rich.text import Text

from weir.http import Http, HttpError, bearer

USAGE = "weir top [--url URL]"
SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
BLOCKS = " ▁▂▃▄▅▆▇█"
REMEMBERED = 60  # frames in the small graph


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8000", metavar="URL", help="(http://127.0.0.1:8000)")
    add("--api-key", metavar="KEY", help="sent as a bearer token")
    add("--interval", type=float, default=1.0, metavar="S", help="seconds between looks (1)")
    add("--once", action="store_true", help="print one frame and leave")


def run(options: Namespace) -> int:
    http = Http(options.url.rstrip("/"), bearer(options.api_key), timeout=10.0)
    asyncio.run(watch(http, max(0.1, options.interval), options.once))
    return 0


@dataclass(slots=True)
class Scrape:
    """The samples of one scrape, summed over labels. buckets: upper bound → cumulative count."""

    when: float
    values: dict[str, float] = field(default_factory=dict)
    buckets: dict[str, dict[float, float]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        """A gauge or counter of Weir; 0 if the server does not publish it."""
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
    """The `share` quantile of the samples between two scrapes of a histogram; NaN if there are
    none. Linear within a bucket, as Prometheus's histogram_quantile; at most the last finite
    bound."""
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


@dataclass(frozen=True, slots=True)
class View:
    """What happened between two scrapes. Counters that fell (a restart) count from zero. Values
    that are undefined because nothing happened are NaN."""

    before: Scrape
    after: Scrape

    def grown(self, name: str) -> float:
        change = self.after[name] - self.before[name]
        return change if change >= 0 else self.after[name]

    def rate(self, name: str) -> float:
        """Growth per second."""
        return self.grown(name) / max(self.after.when - self.before.when, 1e-9)

    def ratio(self, name: str, whole: str) -> float:
        return self.grown(name) / grown if (grown := self.grown(whole)) else math.nan

    def quantile(self, name: str, share: float) -> float:
        """A quantile of a histogram of seconds."""
        old, new = (look.buckets.get(f"weir_{name}", {}) for look in (self.before, self.after))
        if any(new.get(bound, 0.0) < count for bound, count in old.items()):
            old = {}
        return percentile(old, new, share)


def frame(now: View, title: str, history: list[float]) -> Panel:
    """One frame."""

    def seconds(name: str, share: float) -> str:
        found = now.quantile(name, share)
        return said(found, f"{1000 * found:.1f} ms" if found < 1 else f"{found:.2f} s")

    def both(name: str) -> tuple[str, str]:
        return f"p50 {seconds(name, 0.5)}", f"p99 {seconds(name, 0.99)}"

    def mean(name: str) -> str:
        return said(found := now.ratio(f"{name}_sum", f"{name}_count"), f"{found:.1f}")

    hits = now.ratio("prefix_cache_hit_tokens", "prefix_cache_query_tokens")
    after, hit_rate = now.after, said(hits, f"{hits:.0%}")
    rows = [
        ("requests", f"{after['requests_running']:.0f} running",
         f"{after['requests_waiting']:.0f} waiting"),
        ("tokens/s", f"{now.rate('prompt_tokens'):,.0f} in",
         f"{now.rate('generation_tokens'):,.0f} out"),
        ("first token", *both("time_to_first_token_seconds")),
        ("next token", *both("inter_token_latency_seconds")),
        ("KV pages", f"{after['cache_usage_ratio']:.0%} in use",
         f"{after['cache_cached_ratio']:.0%} cached", f"hit rate {hit_rate}"),
        ("step", *both("step_seconds"), f"host {seconds('step_host_seconds', 0.5)}"),
        ("mean step", f"{mean('step_requests')} requests", f"{mean('step_prefill_tokens')} prompt",
         f"{mean('step_decode_tokens')} output"),
        ("since start", f"{after['preemptions']:.0f} preempted",
         f"{after['admission_rejections']:.0f} rejected"),
    ]  # fmt: skip
    table = Table.grid(*(Column(no_wrap=True) for _ in range(4)), padding=(0, 2))
    for name, *cells in rows:
        table.add_row(Text(name, style="dim"), *cells)
    return Panel(Group(table, Text(graph(history), style="green")), title=title, title_align="left")


def graph(history: list[float]) -> str:
    """Output tokens per second of the last frames, as a line of blocks."""
    top = max(history, default=0.0) or 1.0
    return "".join(BLOCKS[math.ceil(value / top * (len(BLOCKS) - 1))] for value in history)


def said(value: float, text: str) -> str:
    return "-" if math.isnan(value) else text


async def look(http: Http) -> Scrape:
    text = (await http.get("/metrics")).decode()
    return parse(text, time.monotonic())


async def title_of(http: Http) -> str:
    """The model, its device and dtype, and the server, as far as they are known."""
    try:
        info: dict[str, Any] = msgspec.json.decode(await http.get("/server_info"))
        listed = msgspec.json.decode(await http.get("/v1/models"))
        name = listed["data"][0]["id"]
    except (HttpError, msgspec.DecodeError, LookupError, TypeError):
        return http.base
    engine = info.get("engine", info)
    details = [str(engine[key]) for key in ("device", "dtype") if engine.get(key)]
    return " · ".join([str(name), *details, http.base])


async def watch(http: Http, interval: float, once: bool) -> None:
    """Draw frames until interrupted, or `once`. Raises `HttpError`."""
    console = Console()
    title, before, history = await title_of(http), await look(http), list[float]()
    await asyncio.sleep(interval)
    after = await look(http)
    if once:
        now = View(before, after)
        console.print(frame(now, title, [now.rate("generation_tokens")]))
        return
    with Live(console=console, screen=False, auto_refresh=False) as live:
        while True:
            now = View(before, after)
            history = [*history, now.rate("generation_tokens")][-REMEMBERED:]
            live.update(frame(now, title, history), refresh=True)
            before = after
            await asyncio.sleep(interval)
            after = await look(http)
