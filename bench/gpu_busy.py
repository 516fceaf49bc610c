"""How much of the time a GPU is busy while it decodes, and what a step costs on either side.

    python bench/gpu_busy.py CONFIG [--batches 1 32 256] [--steps 200] [--top 10]

CONFIG is the config.json of a model, which gets random weights. Requests of random tokens and
lengths of nano-vllm's benchmark (100 to 1024 in and out), temperature 1. Busy is the union of what
ran on the device, kernels and copies, as PyTorch's profiler saw it, over the time from the first to
the last. The profiler itself costs time, a microsecond or two a kernel, so steps are timed before
it is used. With `nvidia-ml-py`, on Hopper and later, the device's own counters are read as well,
which cost nothing: the share of the time that anything ran, and of multiprocessors that were busy.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from weir import build
from weir.config import load
from weir.core import Request, Sampling
from weir.engine import Engine

try:
    import pynvml as nvml
except ImportError:
    nvml = None


def fill(engine: Engine, count: int, vocab: int) -> None:
    """Start `count` requests, and run until all of them decode."""
    pick = random.Random(1)
    first = engine.scheduler.step
    for uid in range(count):
        prompt = pick.choices(range(vocab), k=pick.randint(100, 1024))
        sampling = Sampling(seed=uid, max_tokens=3000)
        engine.add(Request(first + uid, prompt, sampling, arrival=0.0))
    while any(r.computed <= r.prompt for r in engine.scheduler.live.values()):
        engine.step()


def steps(engine: Engine, count: int) -> tuple[float, float, float]:
    """Seconds of a step: from one to the next, on the device, and of the host's own work."""
    stats = engine.stats()
    device, host = stats.step_seconds.sum, stats.host_seconds.sum
    began = time.perf_counter()
    for _ in range(count):
        engine.step()
    wall = time.perf_counter() - began
    return tuple(
        total / count
        for total in (wall, stats.step_seconds.sum - device, stats.host_seconds.sum - host)
    )


def busy(engine: Engine, count: int, top: int) -> tuple[float, list[str]]:
    """Share of the time that the device was busy over `count` steps, and what it was busy with:
    the `top` kernels by time, with the microseconds that each takes of a step."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(count):
            engine.step()
        torch.cuda.synchronize()
    spans, kernels = [], Counter[str]()
    for event in seen.profiler.kineto_results.events():
        if event.device_type() == torch.autograd.DeviceType.CUDA:
            spans.append((event.start_ns(), event.start_ns() + event.duration_ns()))
            kernels[event.name()] += event.duration_ns()
    spans.sort()
    total, end = 0, spans[0][0]
    for start, stop in spans:
        total += max(0, stop - max(start, end))
        end = max(end, stop)
    lines = [f"{ns / count / 1e3:9.1f} µs  {name[:90]}" for name, ns in kernels.most_common(top)]
    return total / (end - spans[0][0]), lines


def counted(engine: Engine, count: int) -> tuple[float, float] | None:
    """Over `count` steps, the shares of the time that anything ran on the device and that a
    multiprocessor was busy, by the device's counters; None: they cannot be read."""
    if nvml is None:
        return None
    try:
        nvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
        device = nvml.nvmlDeviceGetHandleByUUID(uuid)
        samples = [nvml.nvmlGpmSampleAlloc() for _ in range(2)]
        torch.cuda.synchronize()
        nvml.nvmlGpmSampleGet(device, samples[0])
        for _ in range(count):
            engine.step()
        nvml.nvmlGpmSampleGet(device, samples[1])
        wanted = nvml.NVML_GPM_METRIC_GRAPHICS_UTIL, nvml.NVML_GPM_METRIC_SM_UTIL
        asked = nvml.c_nvmlGpmMetricsGet_t()
        asked.version, asked.numMetrics = nvml.NVML_GPM_METRICS_GET_VERSION, len(wanted)
        asked.sample1, asked.sample2 = samples
        for i, metric in enumerate(wanted):
            asked.metrics[i].metricId = metric
        nvml.nvmlGpmMetricsGet(asked)
        return asked.metrics[0].value / 100, asked.metrics[1].value / 100
    except nvml.NVMLError as error:
        print(f"no counters: {error}", file=sys.stderr)
        return None


def make(shape: Path, settings: dict[str, Any]) -> Engine:
    """An engine over random weights."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(shape, Path(folder) / "config.json")
        settings = {"model": folder, "load_format": "dummy", "device": "cuda", **settings}
        return build.engine(load(settings, {}))


def empty(engine: Engine) -> None:
    for uid in list(engine.scheduler.live):
        engine.abort(uid)
    while engine.busy:
        engine.step()


def measure(options: argparse.Namespace) -> None:
    """Times first: once the profiler has run, every launch costs the host several times as much."""
    began = time.perf_counter()
    engine = make(options.shape, {"enforce_eager": options.enforce_eager})
    phases = ", ".join(f"{k} {v:.2f}" for k, v in engine.info["start_seconds"].items())
    print(f"{options.shape.stem}: engine made in {time.perf_counter() - began:.2f} s ({phases})")
    print("batch  ms/step    device      host  between  tokens/s")
    for batch in options.batches:
        fill(engine, batch, engine.info["vocab"])
        steps(engine, 20)
        wall, device, host = steps(engine, options.steps)
        times = f"{wall * 1e3:9.3f} {device * 1e3:9.3f} {host * 1e3:9.3f}"
        print(f"{batch:5} {times} {device / wall:8.1%} {batch / wall:9,.0f}", flush=True)
        if (shares := counted(engine, options.steps)) is not None:
            print("      by its counters busy {:.1%}, its multiprocessors {:.1%}".format(*shares))
        empty(engine)
    for batch in options.batches if options.traced else []:
        fill(engine, batch, engine.info["vocab"])
        steps(engine, 20)
        share, lines = busy(engine, options.traced, options.top)
        print(f"{batch:5} busy {share:.1%}", *lines, sep="\n", flush=True)
        empty(engine)
    engine.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("shape", type=Path, metavar="CONFIG")
    add("--batches", nargs="+", type=int, default=[1, 32, 256])
    add("--steps", type=int, default=200, help="that are timed (200)")
    add("--traced", type=int, default=50, help="that are profiled (50)")
    add("--top", type=int, default=0, metavar="N", help="show the N kernels that take longest")
    add("--enforce-eager", action="store_true", help="without CUDA graphs")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("this needs a CUDA device", file=sys.stderr)
        return 1
    measure(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
