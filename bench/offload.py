"""Predicted and measured throughput of a model larger than the memory it may use.

    python bench/offload.py opt-30b --gpu-memory 16GiB [--layers 12] [--plan auto 0.2/0.8/0:0:64x4]
    python bench/offload.py smollm2-135m --offload-dir FOLDER --plan 1/0/0:1:4 0.5/0/0.5:1:16x4+

A well-known shape has random weights, any other model its own; every request at once, temperature
0. A plan is `auto`; `here`, the best with all attention on the GPU; `hand`, the best of those one
would make by hand; or shares of weights on GPU, CPU and disk, the share of KV on the GPU, how many
requests and, after an x, batches that their prompts make; +: these are lanes of one step. Settings
of one plan follow it: `auto,quantization=int4,kv_cache_dtype=int4`; `auto,serial`: computing waits
for every copy of weights and copies for computing, as FlexGen's ablation has it.
The machine is measured before each plan, which is an engine of its own; both count what they found
at their best, as others may use the machine besides. Without a GPU main memory stands
for its memory. The bound is what moving and reading all bytes once would take, if nothing else did.
"""

import argparse
import gc
import json
import math
import random
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import torch
from msgspec.structs import replace
from plan import rank_correlation

from weir import build, hub, offload
from weir.config import Config, load
from weir.core import Request, Sampling
from weir.cost.machine import Machine
from weir.cost.offload import Costs, Job, Offload, predict
from weir.cost.search import Planned, Report, naive, runnable, search
from weir.models.shape import read_spec
from weir.runtime import streamed
from weir.runtime.parked import Copies, Parked, Slot
from weir.sim.shapes import SHAPES
from weir.spec import Spec

COMPUTING = ("computing", "the GPU", "attention on the CPU")


def shortened(name: str, layers: int, folder: Path) -> Path:
    """A folder with the configuration of a well-known shape, of so many layers (0: all)."""
    content = dict(SHAPES[name])
    content["num_hidden_layers"] = layers or content["num_hidden_layers"]
    made = folder / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(content))
    return made


def parse(text: str, base: Offload) -> Offload:
    shares, here, sizes = text.split(":")
    count, _, batches = sizes.rstrip("+").partition("x")
    parts, kept = int(batches or 1), float(here)
    return replace(
        base,
        weights=tuple(float(share) for share in shares.split("/")),
        cache=(kept, 1 - kept, 0.0),
        cpu_attention=kept < 1,
        batch=-(-int(count) // parts),
        batches=parts,
        lanes=parts if text.endswith("+") else 1,
    )


class Serial(Copies):
    """Copies that nothing overlaps."""

    def bring(self, parked: Parked, slot: Slot) -> None:
        torch.cuda.synchronize()
        super().bring(parked, slot)
        torch.cuda.synchronize()


def run(engine, job: Job, requests: int, vocab: int) -> tuple[float, float]:
    """Seconds until the last first token, and until the end."""
    rng = random.Random(0)
    prompts = [[rng.randrange(vocab) for _ in range(job.prompt)] for _ in range(requests)]
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    for uid, prompt in enumerate(prompts):
        sampling = Sampling(temperature=0.0, max_tokens=job.output)
        engine.add(Request(uid, prompt, sampling, arrival=began))
    waiting, first, count = set(range(requests)), 0.0, 0
    while engine.busy:
        for delta in engine.step():
            count += len(delta.tokens)
            assert delta.done in (None, "length"), delta
            if delta.tokens and delta.uid in waiting:
                waiting.discard(delta.uid)
                first = time.perf_counter() - began
    assert count == requests * job.output
    return first, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--gpu-memory", default="16GiB")
    parser.add_argument("--cpu-memory", default="0")
    parser.add_argument("--offload-dir", default="")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--output", type=int, default=32)
    parser.add_argument("--plan", nargs="+", default=["auto"])
    parser.add_argument("--requests", type=int, default=0, help="in turn (those of one block)")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no plan after these")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    job = Job(prompt=options.prompt, output=options.output, requests=options.requests)
    more = dict(item.split("=", 1) for item in options.set)
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "model": options.model,
            "cpu_memory": options.cpu_memory,
            "enable_prefix_caching": "false",
            "grammar_backend": "none",
        }
        if options.model in SHAPES:
            model = shortened(options.model, options.layers, Path(folder))
            flags |= {"model": str(model), "load_format": "dummy"}
        if torch.cuda.is_available():
            flags["gpu_memory"] = options.gpu_memory
        flags |= {"offload_dir": options.offload_dir} if options.offload_dir else {}
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        bench = Bench(flags | more, job, options.repeats, Path(folder), device)
        measured(bench, options.plan, time.perf_counter() + options.seconds)


@dataclass(frozen=True, slots=True)
class Bench:
    """What all plans have in common."""

    flags: dict[str, str]
    job: Job
    repeats: int
    folder: Path
    device: torch.device


def planned(bench: Bench, text: str, config: Config, machine: Machine, spec: Spec) -> Planned:
    bits = offload.weight_bits(config, Path(config.model), spec, torch.bfloat16)
    bases = runnable(machine, weight_bits=bits, cache_bits=offload.cache_bits(config))
    if text == "hand":
        found = naive(spec, bench.job, machine, bases[0])
        return max(found, key=lambda one: one.predicted.throughput)
    if text in ("auto", "here"):
        return search(spec, bench.job, machine, bases if text == "auto" else bases[:1])
    placed = parse(text, bases[0])
    return Planned(name=text, offload=placed, predicted=predict(spec, bench.job, machine, placed))


def bound(spec: Spec, job: Job, machine: Machine, placed: Offload) -> float:
    """Tokens/s if computing took no time, of a GPU."""
    costs = Costs(spec, job, machine, placed)
    phases = [
        max(float(part @ placed.shares) for name, part in phase.items() if name not in COMPUTING)
        for phase in (costs.prompt, costs.decode, costs.mixed)
    ]
    seconds = spec.layers * float(np.dot(costs.counts, phases))
    return costs.requests * job.output / seconds if seconds else math.inf


def measure(bench: Bench, text: str) -> tuple[float, float]:
    """→ tokens/s, predicted and measured."""
    plan, *settings = text.split(",")
    streamed.Copies = Serial if "serial" in settings else Copies
    more = dict(item.split("=", 1) for item in settings if item != "serial")
    flags, job = bench.flags | more, bench.job
    config = load(flags, {})
    path = hub.resolve(config.model, None, None).path
    spec = read_spec(path)
    room = config.gpu_memory
    machine = offload.this_machine(config, path, room, bench.device, torch.bfloat16)
    found = planned(bench, plan, replace(config, model=str(path)), machine, spec)
    file = bench.folder / "plan.json"
    report = Report(model=config.model, machine=machine, job=job, planned=found)
    file.write_bytes(msgspec.json.encode(report))
    print(machine, found.offload, flush=True)
    began = time.perf_counter()
    engine = build.engine(load(flags | {"offload": str(file)}, {}))
    started, count = time.perf_counter() - began, job.requests or found.offload.block
    print(engine.info, flush=True)
    try:
        if bench.repeats == 1:
            run(engine, replace(job, output=2), 1, spec.vocab)
        runs = [run(engine, job, count, spec.vocab) for _ in range(bench.repeats)]
    finally:
        engine.close()
    first = min(first for first, _ in runs)
    total = first + min(total - first for first, total in runs)
    said, speed = found.predicted, count * job.output / total
    share = speed / bound(spec, job, machine, found.offload)
    print(", ".join(f"{first:.2f} + {total - first:.2f} s" for first, total in runs))
    if bench.device.type == "cuda":
        most = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        again = torch.cuda.memory_stats()["num_alloc_retries"]
        print(
            f"GPU memory: {said.memory} predicted, {most} allocated and reserved at most; "
            f"{again} times all free blocks were given back to find room"
        )
    print(
        f"{text:24}{count:>9}{said.prefill:>7.2f}{first:>7.2f}{said.decode:>7.2f}"
        f"{total - first:>7.2f}{said.throughput:>8.2f}{speed:>7.2f}{share:>6.0%}{started:>7.1f}",
        flush=True,
    )
    return said.throughput, speed


def measured(bench: Bench, plans: list[str], until: float) -> None:
    print(
        f"{'plan':24}{'requests':>9}{'prompts, s':>14}{'answers, s':>14}{'tok/s':>15}"
        f"{'bound':>6}{'start':>7}"
    )
    found: dict[str, tuple[float, float]] = {}
    for text in plans:
        if time.perf_counter() > until:
            print(f"{text}: not begun, the time is over")
            continue
        try:
            found[text] = measure(bench, text)
        except Exception as error:  # the others still count
            print(f"{text}: {error}", flush=True)
        gc.unfreeze()
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    summarised(found)


def special(text: str) -> bool:
    """Whether the prediction is of something else."""
    return "slots" in text or "serial" in text


def summarised(found: dict[str, tuple[float, float]]) -> None:
    """How far predictions are off, of what the planner may choose, and its choice beside the best
    that was tried."""
    pairs = [pair for text, pair in found.items() if not special(text)]
    if len(pairs) < 2:
        return
    errors = [abs(said / speed - 1) for said, speed in pairs]
    print(
        f"{len(pairs)} plans, error: median {statistics.median(errors):.0%}, largest "
        f"{max(errors):.0%}; rank correlation {rank_correlation(pairs):.2f}"
    )
    speeds = {text: speed for text, (_, speed) in found.items()}
    chosen = [text for text in speeds if text.startswith("auto") and not special(text)]
    if chosen:
        best, mine = max(speeds, key=speeds.__getitem__), max(chosen, key=lambda t: found[t][0])
        print(f"chosen: {mine}, {speeds[mine]:.2f}; best tried: {best}, {speeds[best]:.2f}")


if __name__ == "__main__":
    main()
