"""Predicted and measured throughput of a model larger than the memory it may use.

    python bench/offload.py opt-30b --gpu-memory 16GiB [--layers 12] [--plan auto 0.2/0.8/0:0:64x4]
    python bench/offload.py smollm2-135m --offload-dir FOLDER --plan 1/0/0:1:4 0.5/0/0.5:1:16x4+

A well-known shape has random weights, any other model its own; every request at once, temperature
0. A plan is `auto`, or shares of weights on GPU, CPU and disk, the share of KV on the GPU, how many
requests and, after an x, batches that their prompts make; +: these are lanes of one step.
The machine is measured before each plan, which is an engine of its own; both count what they found
at their best, as others may use the machine besides. Without a GPU main memory stands
for its memory. Two --slots instead of three: no copy beside computing.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import msgspec
import torch
from msgspec.structs import replace
from plan import rank_correlation

from weir import build, hub, offload
from weir.config import load
from weir.core import Request, Sampling
from weir.cost.offload import Job, Offload, predict
from weir.cost.search import Planned, Report, runnable, search
from weir.models.shape import read_spec
from weir.runtime import streamed
from weir.sim.shapes import SHAPES


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
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--slots", type=int, default=streamed.SLOTS)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    options = parser.parse_args()
    job = Job(prompt=options.prompt, output=options.output)
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
        streamed.SLOTS = options.slots
        measure(flags | more, options.plan, job, options.repeats, Path(folder))


def measure(flags: dict[str, str], plans: list[str], job: Job, repeats: int, folder: Path) -> None:
    config = load(flags, {})
    path = hub.resolve(config.model, None, None).path
    spec = read_spec(path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bits = offload.weight_bits(config, path, spec, torch.bfloat16)
    print(
        f"{'plan':24}{'requests':>9}{'prompts, s':>14}{'answers, s':>14}{'tok/s':>15}{'start':>7}"
    )
    pairs = []
    for text in plans:
        machine = offload.this_machine(config, path, config.gpu_memory, device, torch.bfloat16)
        bases = runnable(machine, weight_bits=bits, cache_bits=offload.cache_bits(config))
        print(machine, flush=True)
        if text == "auto":
            found = search(spec, job, machine, bases)
        else:
            placed = parse(text, bases[0])
            said = predict(spec, job, machine, placed)
            found = Planned(name=text, offload=placed, predicted=said)
        file = folder / "plan.json"
        report = Report(model=flags["model"], machine=machine, job=job, planned=found)
        file.write_bytes(msgspec.json.encode(report))
        began = time.perf_counter()
        try:
            engine = build.engine(load(flags | {"offload": str(file)}, {}))
            started = time.perf_counter() - began
            print(engine.info, flush=True)
            block = found.offload.block
            run(engine, replace(job, output=2), 1, spec.vocab)
            runs = [run(engine, job, block, spec.vocab) for _ in range(repeats)]
            first = min(first for first, _ in runs)
            total = first + min(total - first for first, total in runs)
            engine.close()
        except Exception as error:  # the others still count
            print(f"{text}: {error}", flush=True)
            continue
        finally:
            engine = None
            gc.unfreeze()
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        said, speed = found.predicted, block * job.output / total
        pairs.append((said.throughput, speed))
        print(
            f"{text:24}{block:>9}{said.prefill:>7.2f}{first:>7.2f}{said.decode:>7.2f}"
            f"{total - first:>7.2f}{said.throughput:>8.2f}{speed:>7.2f}{started:>7.1f}",
            flush=True,
        )
    if len(pairs) > 1:
        errors = [abs(said / speed - 1) for said, speed in pairs]
        print(
            f"error: median {statistics.median(errors):.0%}, largest {max(errors):.0%}; "
            f"rank correlation {rank_correlation(pairs):.2f}"
        )


if __name__ == "__main__":
    main()
