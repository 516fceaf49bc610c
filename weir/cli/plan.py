"""Find where weights, KV cache and activations of a model should lie: GPU, CPU memory or disk.

For many requests of one length, shows the placement and batch sizes that generate most tokens per
second (or, for latency, finish one request soonest), the predicted times and what limits them, and
for comparison choices made by hand. No model is loaded; only its shape is read.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from weir.bench.datasets import positive
from weir.cost import machine
from weir.cost.offload import Job
from weir.cost.search import Planned, Report, naive, runnable, search
from weir.errors import ConfigError
from weir.fields import parse_size
from weir.sim.shapes import shape

USAGE = "weir plan MODEL [--hardware NAME] [--gpu-memory 16GiB] [OPTIONS]"
SIZES = {"gpu_memory": "memory of the GPU", "cpu_memory": "main memory", "disk": "disk"}
CACHE_BITS = (4, 8, 16)


def add_arguments(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="what weir serve takes, or a well-known shape")
    names = ", ".join(machine.MACHINES)
    add("--hardware", default="h100", metavar="NAME", help=f"{names} or cpu: this machine's (h100)")
    add(
        "--measure", type=Path, metavar="FOLDER",
        help="measure this host's memory, and the disk of that folder, instead of the preset's",
    )  # fmt: skip
    for name, help in SIZES.items():
        flag = "--" + name.replace("_", "-")
        add(flag, metavar="SIZE", help=f"{help} to be used, such as 16GiB; 0: none")
    add("--prompt", type=positive, default=512, metavar="N", help="tokens of a prompt (512)")
    add("--output", type=positive, default=32, metavar="N", help="tokens of an answer (32)")
    add(
        "--requests", type=positive, default=0, metavar="N",
        help="of the whole job, in which another takes the place of each that ends (one block)",
    )  # fmt: skip
    add("--target", choices=("throughput", "latency"), default="throughput", help="(throughput)")
    add("--weight-bits", type=int, choices=(16, 4), default=16, help="of a weight (16)")
    add(
        "--cache-bits", type=int, choices=CACHE_BITS, default=16,
        help="of a number of KV off the GPU, more where that is faster (16)",
    )  # fmt: skip
    add(
        "--overlap", choices=("none", "copies", "lanes"), default="copies",
        help="what runs beside what: nothing, copies, or attention on the CPU too (copies)",
    )  # fmt: skip
    add("--json", action="store_true", help="print JSON")


def run(options: Namespace) -> int:
    found = machine.find(options.hardware)
    if options.measure:
        found = machine.measured(found, options.measure)
    caps = sizes(options)
    if found.alone and "cpu_memory" in caps:
        caps["gpu_memory"] = caps["cpu_memory"]  # the machine has only this memory
    found = replace(found, **caps)
    spec = shape(options.model)
    job = Job(prompt=options.prompt, output=options.output, requests=options.requests)
    if job.prompt + job.output > spec.context:
        raise ConfigError(f"--prompt and --output exceed the model's {spec.context} tokens")
    kind = {name: getattr(options, name) for name in ("weight_bits", "overlap")}
    wide = [bits for bits in CACHE_BITS if bits >= options.cache_bits]  # codes take time to unpack
    bases = [base for bits in wide for base in runnable(found, cache_bits=bits, **kind)]
    planned = search(spec, job, found, bases, options.target)
    others = naive(spec, job, found, bases[0]) if options.target == "throughput" else []
    if options.json:
        said = Report(model=options.model, machine=found, job=job, planned=planned, by_hand=others)
        print(msgspec.json.format(msgspec.json.encode(said), indent=2).decode())
    else:
        print("\n".join(report(planned, others, found, job.requests)))
    return 0


def sizes(options: Namespace) -> dict[str, int]:
    """The sizes that flags give, in bytes. Raises `ConfigError`."""
    found = {}
    for name in SIZES:
        if (text := getattr(options, name)) is not None:
            try:
                found[name] = parse_size(text)
            except ValueError as error:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag}: {error}, got {text!r}") from None
    return found


def report(
    planned: Planned, others: list[Planned], found: machine.Machine, requests: int = 0
) -> list[str]:
    offload, predicted = planned.offload, planned.predicted
    places = {0: "memory", 2: "disk"} if found.alone else {0: "GPU", 1: "CPU", 2: "disk"}
    steps = "one step" if offload.lanes > 1 else "steps of their own"
    lines = [
        f"{found.name}: {offload.block} requests, prompts in {steps}, {offload.batch} at once",
        f"{'':12}" + "".join(f"{place:>8}" for place in places.values()),
    ]
    parts: dict[str, Any] = {
        "weights": offload.weights,
        "KV cache": offload.cache,
        "activations": offload.hidden,
    }
    for name, shares in parts.items():
        lines.append(f"{name:12}" + "".join(f"{shares[at]:8.1%}" for at in places))
    if offload.cache_bits < 16 and (found.alone or offload.cache[0] < 1):
        lines[3] += f"  in {offload.cache_bits} bits" + (" off the GPU" * (not found.alone))
    used = ", ".join(
        f"{name} {size / 1e9:.1f} GB" for name, size in predicted.memory.items() if size
    )
    in_turn = f" in turn, a block in {predicted.cycle:.1f} s" if requests else ""
    lines += [
        f"{predicted.throughput:.2f} tokens/s{in_turn}: prompts {predicted.prefill:.1f} s, "
        f"waiting for {predicted.prompt_limit}; answers {predicted.decode:.1f} s, waiting for "
        f"{predicted.decode_limit}",
        f"peak: {used}",
    ]
    if others:
        lines.append("by hand:")
    for other in others:
        what = f"{other.name}, {other.offload.block} requests"
        lines.append(f"{other.predicted.throughput:10.2f} tokens/s  {what}")
    return lines
