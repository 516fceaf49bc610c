"""Measure the time until a server is ready and answers, cold and warm.

Cold means that the model's files are not in the page cache and no kernel is compiled: the first
start after an installation. Warm is every start after it.
"""

import asyncio
import os
import shlex
import statistics
import sys
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import NamedTuple

from weir import hub
from weir.bench import reporting
from weir.bench.client import Target
from weir.bench.datasets import positive
from weir.bench.private import private
from weir.http import Http

USAGE = "weir bench startup [MODEL] [OPTIONS]"


class Start(NamedTuple):
    ready: float  # seconds from the start of the process
    first: float  # seconds from ready to the first token


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", default="smollm2-135m", metavar="MODEL", help="(smollm2-135m)")
    add("--num-iters", type=positive, default=3, metavar="N", help="warm starts (3)")
    add("--no-cold", action="store_true", help="warm starts only")
    reporting.add_output(parser)
    add("--serve-args", type=shlex.split, default=[], metavar="ARGS", help="more for weir serve")


def run(options: Namespace) -> int:
    source = hub.resolve(options.model, progress=sys.stderr.isatty())
    result: dict[str, list[float]] = {}
    if not options.no_cold:
        forget(Path(source.path))
        with tempfile.TemporaryDirectory() as cache:
            note(result, "cold", start(str(source.path), options.serve_args, {"WEIR_CACHE": cache}))
    for _ in range(options.num_iters):
        note(result, "warm", start(str(source.path), options.serve_args, {}))
    for name, seconds in result.items():
        print(f"{name.replace('_', ' ') + ' (s):':<32}{statistics.median(seconds):>8.2f}")
    reporting.write(options.output_json, result)
    return 0


def start(model: str, flags: list[str], environ: dict[str, str]) -> Start:
    """One start, timed up to the first token of a request. Raises `ConfigError`, `HttpError`."""
    with private(model, flags, environ) as server:
        target = Target(Http(server.url, server.headers, timeout=120.0), "openai", model)
        return Start(server.seconds, asyncio.run(target.warm_up(1)).ttft)


def note(result: dict[str, list[float]], kind: str, seconds: Start) -> None:
    result.setdefault(f"{kind}_ready", []).append(seconds.ready)
    result.setdefault(f"{kind}_first_token", []).append(seconds.first)
    result.setdefault(f"{kind}_total", []).append(seconds.ready + seconds.first)


def forget(model: Path) -> None:
    """Drop a model's files from the page cache, as far as the system allows."""
    files = [path for path in model.rglob("*") if path.is_file()] if model.is_dir() else [model]
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
