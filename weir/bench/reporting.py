"""Command-line flags for arrivals and reports, shared by benchmarks and simulation."""

import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from weir.errors import ConfigError
from weir.sim.report import METRICS, Record
from weir.sim.workload import Workload, paced, poisson


@dataclass(slots=True, frozen=True)
class Wanted:
    """What a report shows. limits: of goodput, metric → milliseconds."""

    limits: dict[str, float]
    metrics: list[str]
    percentiles: list[float]


def add_arrivals(parser: ArgumentParser) -> None:
    add = parser.add_argument_group("arrivals").add_argument
    add(
        "--request-rate", type=float, metavar="R",
        help="requests a second, or inf for all at once; default: inf, or a trace's own times",
    )  # fmt: skip
    add(
        "--burstiness", type=float, default=1.0, metavar="SHAPE",
        help="of gamma-distributed intervals: 1 is Poisson, below is burstier (1)",
    )  # fmt: skip
    add("--trace-speed", type=float, default=1.0, metavar="X", help="replay a trace so fast (1)")


def add_report(parser: ArgumentParser) -> Any:
    group = parser.add_argument_group("result")
    add = group.add_argument
    add(
        "--goodput", nargs="+", default=[], metavar="METRIC:MS",
        help="limits such as ttft:500 tpot:50; goodput is the rate of requests within all",
    )  # fmt: skip
    add("--percentile-metrics", default="ttft,tpot,itl", metavar="M,M", help="(ttft,tpot,itl)")
    add("--metric-percentiles", default="99", metavar="P,P", help="(99)")
    return group


def add_output(parser: Any) -> None:
    """Add the flag whose value `write` takes."""
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="write the result as JSON")


def write(path: Path | None, result: Any) -> None:
    """Write a result as JSON, if a file was given. Raises `ConfigError`."""
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(result) + b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


def failures(records: Sequence[Record]) -> None:
    """Print on standard error why requests failed, if any did."""
    for reason in sorted({record.error for record in records if record.error})[:5]:
        print(f"weir: some requests failed: {reason}", file=sys.stderr)


def read(options: Namespace) -> Wanted:
    """Read the flags of a report. Raises `ConfigError` for an invalid value."""
    return Wanted(
        _limits(options.goodput),
        _metrics(options.percentile_metrics),
        _percentiles(options.metric_percentiles),
    )


def timed(options: Namespace, workload: Workload, seed: int) -> Workload:
    """The workload with the arrivals that the flags describe. Raises `ConfigError`."""
    rate = options.request_rate
    if rate is None and workload.timed:
        return paced(workload, options.trace_speed)
    rate = math.inf if rate is None else rate
    if not rate > 0 or not 0 < options.burstiness < math.inf:
        raise ConfigError("--request-rate and --burstiness must be above 0")
    return poisson(workload, rate, options.burstiness, seed)


def _limits(words: list[str]) -> dict[str, float]:
    limits = {}
    for word in words:
        metric, _, limit = word.partition(":")
        try:
            value = float(limit)
        except ValueError:
            value = math.nan
        if metric not in ("ttft", "tpot", "e2el") or not value >= 0:
            raise ConfigError(f"--goodput takes ttft:MS, tpot:MS and e2el:MS, got {word!r}")
        limits[metric] = value
    return limits


def _metrics(text: str) -> list[str]:
    metrics = [word.strip() for word in text.split(",") if word.strip()]
    if unknown := [metric for metric in metrics if metric not in METRICS]:
        raise ConfigError(f"--percentile-metrics are {','.join(METRICS)}, got {unknown[0]!r}")
    return metrics


def _percentiles(text: str) -> list[float]:
    try:
        percentiles = [float(word) for word in text.split(",")]
    except ValueError:
        percentiles = [math.nan]
    if not all(0 <= percentile <= 100 for percentile in percentiles):
        raise ConfigError(f"--metric-percentiles must be numbers from 0 to 100, got {text!r}")
    return percentiles
