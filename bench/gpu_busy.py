"""How much of the time a GPU is busy while it decodes, and what a step costs on either side.

    python bench/gpu_busy.py CONFIG... [--batches 1 32 256] [--steps 200]

Each CONFIG is the config.json of a model, which gets random weights. Requests of random tokens and
lengths of nano-vllm's benchmark (100 to 1024 in and out), temperature 1. Busy is the union of what
ran on the device, kernels and copies, as PyTorch's profiler saw it, over the time from the first to
the last; the profiler itself costs time, so the steps without it are timed as well.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from weir import build
from weir.config import load
from weir.core import Request, Sampling
from weir.engine import Engine


def fill(engine: Engine, count: int, vocab: int) -> None:
    """Start `count` requests, and run until all of them decode."""
    pick = random.Random(1)
    first = engine.scheduler.step
    for uid in range(count):
        prompt = pick.choices(range(vocab), k=pick.randint(100, 1024))
        sampling = Sampling(seed=uid, max_tokens=3000)
        engine.add(Request(first + uid, prompt, sampling, arrival=0.0))
    while engine.stats().step_prefill or engine.stats().running < count:
        engine.step()


def steps(engine: Engine, count: int) -> tuple[float, float, float]:
    """Seconds of a step: from one to the next, on the device, and of the host's own work."""
    device, host = [], []
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        engine.step()
        device.append(engine.stats().step_seconds)
        host.append(engine.stats().host_seconds)
    return (time.perf_counter() - began) / count, statistics.median(device), statistics.median(host)


def busy(engine: Engine, count: int) -> float:
    """Share of the time that the device was busy over `count` steps."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(count):
            engine.step()
        torch.cuda.synchronize()
    spans = sorted(
        (event.start_ns(), event.start_ns() + event.duration_ns())
        for event in seen.profiler.kineto_results.events()
        if event.device_type() == torch.autograd.DeviceType.CUDA
    )
    total, end = 0, spans[0][0]
    for start, stop in spans:
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    return total / (end - spans[0][0])


def make(shape: Path, settings: dict[str, Any]) -> Engine:
    """An engine over random weights."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(shape, Path(folder) / "config.json")
        settings = {"model": folder, "load_format": "dummy", "device": "cuda", **settings}
        return build.engine(load(settings, {}))


def measure(
    table: Table, shape: Path, settings: dict[str, Any], batches: list[int], n: int
) -> None:
    name, began = shape.stem, time.perf_counter()
    engine = make(shape, settings)
    phases = ", ".join(f"{k} {v:.2f}" for k, v in engine.info["start_seconds"].items())
    print(f"{name}: engine made in {time.perf_counter() - began:.2f} s ({phases})")
    print({k: v for k, v in engine.info.items() if k != "start_seconds"})
    for batch in batches:
        fill(engine, batch, engine.info["vocab"])
        steps(engine, 20)
        wall, device, host = steps(engine, n)
        table.add_row(
            name,
            str(batch),
            f"{wall * 1e3:.2f}",
            f"{device * 1e3:.2f}",
            f"{host * 1e3:.2f}",
            f"{device / wall:.1%}",
            f"{busy(engine, n):.1%}",
            f"{batch / wall:,.0f}",
        )
        for uid in list(engine.scheduler.live):
            engine.abort(uid)
        while engine.busy:
            engine.step()
    engine.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="+", type=Path, metavar="CONFIG")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32, 256])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--enforce-eager", action="store_true", help="without CUDA graphs")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("this needs a CUDA device", file=sys.stderr)
        return 1
    table = Table("model", "batch", "ms a step", "device", "host", "between", "busy", "tokens/s")
    for shape in options.shapes:
        settings = {"enforce_eager": options.enforce_eager}
        measure(table, shape, settings, options.batches, options.steps)
    table.title = torch.cuda.get_device_name()
    Console(width=110).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
