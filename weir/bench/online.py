"""Measure latency under load on a server of this command's own, beside what others reached.

Requests of azure_conv_1000 arrive in order, Poisson at each rate; everything else is at its
default, temperature 1, EOS ignored. The server starts once; its prefix cache is emptied before each
run.
"""

import shlex
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

from msgspec import Struct

from weir.bench import datasets, named, reporting
from weir.bench.client import Target
from weir.bench.load import load
from weir.bench.private import Private, private
from weir.bench.serve import raise_file_limit
from weir.errors import ConfigError
from weir.http import Http
from weir.http import run as run_loop
from weir.progress import progress
from weir.sim.report import measure
from weir.sim.workload import Workload, poisson

USAGE = "weir bench online [MODEL] [OPTIONS]"


class Run(Struct):
    """One run at one rate."""

    rate: float  # requests/s
    requests: int
    failed: int
    seconds: float
    output_rate: float  # tokens/s
    latency: named.Latency

    def line(self, reached: named.Latency | None) -> str:
        return f"{self.rate:<8g}{self.requests:>6}{self.output_rate:>8,.0f}  " + "".join(
            f"{own:>9.1f}" + (f" ({other:g})" if reached else "").ljust(9)
            for own, other in zip(self.latency, reached or self.latency, strict=True)
        )


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", default="smollm2-135m", metavar="MODEL", help="(smollm2-135m)")
    add("--rate", type=float, nargs="+", default=[8.0, 12.0, 16.0], help="requests/s (8 12 16)")
    add("--seconds", type=float, default=30.0, metavar="S", help="of arrivals (30)")
    add("--repeat", type=datasets.positive, default=1, metavar="N", help="of each rate (1)")
    add("--seed", type=int, default=0, metavar="SEED", help="of the arrivals (0)")
    add("--serve-args", type=shlex.split, default=[], metavar="ARGS", help="more for weir serve")
    reporting.add_output(parser)
    add("--quiet", action="store_true", help="no progress bar")


def run(options: Namespace) -> int:
    if not all(rate > 0 for rate in options.rate) or not options.seconds > 0:
        raise ConfigError("--rate and --seconds must be above 0")
    workload = named.make("azure_conv_1000", datasets.tokenizer(options.model).vocab)
    raise_file_limit()
    with private(options.model, options.serve_args) as server:
        runs = [
            run_loop(measured(server, workload, rate, options))
            for rate in options.rate
            for _ in range(options.repeat)
        ]
    stem = Path(options.model).name.removesuffix(".json")
    print(f"{stem}, server ready in {server.seconds:.1f} s; in brackets vLLM 0.26.0 on one H100")
    columns = ("TTFT p50", "TTFT p99", "ITL p50", "ITL p99", "ITL max")
    print(f"{'req/s':<8}{'count':>6}{'out/s':>8}  " + "".join(f"{c:>9}{'':9}" for c in columns))
    for one in runs:
        print(one.line(named.REACHED_ONLINE.get(stem, {}).get(one.rate)).rstrip())
    reporting.write(options.output_json, {"model": stem, "start": server.seconds, "runs": runs})
    return 1 if any(one.failed for one in runs) else 0


async def measured(server: Private, workload: Workload, rate: float, options: Namespace) -> Run:
    """One run at one rate. Raises `HttpError` if the server does not answer at all."""
    http = Http(server.url, server.headers, timeout=600.0)
    target = Target(http, "openai", options.model, ignore_eos=True, temperature=1.0)
    await target.warm_up()
    await http.post("/flush_cache", {})
    items = workload.items[: max(1, round(rate * options.seconds))]
    timed = poisson(replace(workload, items=items), rate, 1.0, options.seed)
    with progress(len(items), f"{rate:g} requests/s", hidden=options.quiet) as bar:
        records, seconds = await load(target, timed, on_done=bar.advance)
    report = measure(records, seconds, {})
    first, gaps = report.metrics["ttft"], report.metrics["itl"]
    return Run(
        rate,
        len(records),
        report.failed,
        seconds,
        report.output_tokens / seconds,
        named.Latency(*map(first.percentile, (50, 99)), *map(gaps.percentile, (50, 99, 100))),
    )
