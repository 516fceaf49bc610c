"""What Weir's cost model says: of FlexGen's placements, beside the paper's figures (tables 2, 5, 6
and appendix A.4), and of what each way to place something is worth on machines of today.

    python bench/plan.py

Nothing is run. Needs the extra `plan`.
"""

import argparse
import statistics

from msgspec.structs import replace

from weir.cost.hardware import GB, TB, TERA, scaled
from weir.cost.machine import MACHINES, T4, Machine, hosted
from weir.cost.offload import Costs, Job, Offload, Phase, Shares, predict
from weir.cost.search import ANYWHERE, CPU, DISK, GPU, runnable, search
from weir.sim.shapes import shape
from weir.spec import Spec


def placed(
    size: int, count: int, weights: Shares, cache: Shares, hidden: Shares, bits: int = 16
) -> Offload:
    return Offload(
        batch=size,
        batches=count,
        weights=weights,
        cache=cache,
        hidden=hidden,
        lanes=count,
        decode_lanes=count,
        cpu_attention=bits == 16,  # the paper's engine turns it off for codes
        weight_bits=bits,
        cache_bits=bits,
    )


HALF = (0.0, 0.5, 0.5)
FIFTH = (0.2, 0.8, 0.0)
TABLE = [
    ("opt-6.7b", 512, placed(2, 1, GPU, GPU, GPU), 25.26),
    ("opt-30b", 512, placed(48, 3, FIFTH, CPU, CPU), 7.32),
    ("opt-175b", 512, placed(32, 8, HALF, DISK, CPU), 0.69),
    ("opt-30b", 1024, placed(20, 4, (0.04, 0.96, 0.0), CPU, CPU), 3.50),
    ("opt-175b", 1024, placed(12, 12, HALF, DISK, CPU), 0.35),
    ("opt-30b", 512, placed(64, 8, FIFTH, CPU, CPU, 4), 8.38),
    ("opt-175b", 512, placed(48, 3, CPU, CPU, CPU, 4), 1.12),
]
"""Model, prompt, placement, tokens/s that the paper measured."""

ABLATION = {
    "all": (7.32, 0.69),
    "no overlap": (5.86, 0.59),
    "no CPU attention": (4.03, 0.62),
}
"""Tokens/s of OPT-30B and OPT-175B, prompt 512."""


BREAKDOWN = {
    "prompts: computing": 2220,
    "prompts: reading weights": 768,
    "prompts: writing KV": 261,
    "answers: computing": 1498,
    "answers: reading weights": 3047,
    "answers: reading KV": 7046,
    "answers: writing KV": 124,
}
"""Seconds of OPT-175B, prompt 512."""
SLOW = 0.30
"""Tokens/s of the same with a disk that reads 0.5 GB/s."""


def rank_correlation(pairs: list[tuple[float, float]]) -> float:
    """Spearman's, of values without ties."""
    ranks = [[sorted(side).index(value) for value in side] for side in zip(*pairs, strict=True)]
    return statistics.correlation(*ranks)


LAPTOP = hosted(
    scaled("laptop", 8 * 2**30, 0.26 * TB, 45 * TERA, 0.6),
    48 * GB,
    60 * GB,
    (12.5 * GB, 12.5 * GB, 21 * GB),
)
"""8 GiB on PCIe 4 x8, two channels of DDR5."""
GIB16, GIB24 = {"gpu_memory": 16 * 2**30}, {"gpu_memory": 24 * 2**30}
SETTINGS = [
    ("opt-30b", 16, 512, 32, replace(MACHINES["h100"], disk=0, **GIB16)),
    ("opt-30b", 16, 512, 32, replace(MACHINES["h200"], disk=0, **GIB16)),
    ("opt-30b", 4, 512, 32, replace(MACHINES["h100"], disk=0, **GIB16)),
    ("opt-30b", 4, 512, 32, replace(MACHINES["h200"], disk=0, **GIB16)),
    ("opt-175b", 4, 512, 32, replace(MACHINES["h200"], **GIB16)),
    ("llama-3.1-70b", 4, 512, 32, replace(MACHINES["h200"], **GIB24)),
    ("llama-3.1-70b", 4, 512, 256, replace(MACHINES["h200"], **GIB24)),
    ("llama-3.1-8b", 16, 512, 32, LAPTOP),
    ("llama-3.1-8b", 16, 512, 32, replace(LAPTOP, cpu_memory=12 * GB)),
    ("opt-30b", 16, 512, 32, replace(MACHINES["h200"], cpu_memory=32 * GB, **GIB16)),
    ("llama-3.1-70b", 16, 2000, 32, replace(MACHINES["h200"], **GIB24)),
]
"""Model, bits of a weight, prompt, output, machine."""


def worth(spec: Spec, job: Job, machine: Machine, bits: int) -> list[float]:
    """Tokens/s, with ever more allowed: KV all in one memory; in both; lanes of prompts that share
    weights; attention on the CPU beside the GPU's work; activations and KV anywhere."""
    here, there, both = runnable(machine, weight_bits=bits)
    bases = [
        [replace(base, lanes=1) for base in some] for some in ([here, there], [here, there, both])
    ]
    bases += [[here, there, both]]
    bases += [[replace(base, overlap="lanes") for base in bases[-1]]]
    bases += [[*bases[-1], replace(bases[-1][-1], hidden=ANYWHERE)]]
    bases += [[*bases[-1], replace(bases[-1][-1], cache=ANYWHERE)]]
    return [search(spec, job, machine, some).predicted.throughput for some in bases]


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n\n")[0]).parse_args()
    paper()
    print(
        "\n| model, bits | machine, GPU and CPU memory | prompt + output | KV in one memory "
        "| in two | prompts in lanes | decodes, too | activations anywhere | KV anywhere |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, bits, prompt, output, machine in SETTINGS:
        found = worth(shape(name), Job(prompt=prompt, output=output), machine, bits)
        sizes = f"{machine.gpu_memory / 2**30:.0f} GiB, {machine.cpu_memory / GB:.0f} GB"
        figures = " | ".join(f"{speed:.3g}" for speed in found)
        print(f"| {name}, {bits} | {machine.name}, {sizes} | {prompt} + {output} | {figures} |")


def paper() -> None:
    print("| model | prompt | bits | paper, tok/s | predicted | found by the search |")
    print("|---|---|---|---|---|---|")
    pairs = []
    for name, prompt, offload, paper in TABLE:
        spec, job = shape(name), Job(prompt=prompt, output=32)
        said = predict(spec, job, T4, offload).throughput
        free = replace(offload, weights=ANYWHERE, cache=ANYWHERE, hidden=ANYWHERE)
        both = [replace(free, cpu_attention=there) for there in (True, False)]
        best = search(spec, job, T4, both).predicted.throughput
        pairs.append((paper, said))
        bits = offload.weight_bits
        print(f"| {name} | {prompt} | {bits} | {paper:.2f} | {said:.2f} | {best:.2f} |")
    errors = sorted(abs(said / paper - 1) for paper, said in pairs)
    print(
        f"\nError: median {statistics.median(errors):.0%}, largest {errors[-1]:.0%}; "
        f"rank correlation {rank_correlation(pairs):.2f}"
    )
    print("\n| ablation | 30B: paper | predicted | 175B: paper | predicted |")
    print("|---|---|---|---|---|")
    for what, figures in ABLATION.items():
        cells = []
        for (name, prompt, offload, _), paper in zip(TABLE[1:3], figures, strict=True):
            changed = replace(
                offload,
                overlap="none" if what == "no overlap" else "copies",
                cpu_attention=what != "no CPU attention",
            )
            said = predict(shape(name), Job(prompt=prompt, output=32), T4, changed).throughput
            cells += [f"{paper:.2f}", f"{said:.2f}"]
        print(f"| {what} | {' | '.join(cells)} |")
    name, prompt, offload, _ = TABLE[2]
    spec, job = shape(name), Job(prompt=prompt, output=32)
    slow = replace(T4, disk_read=0.5 * GB, disk_write=0.25 * GB)
    said = predict(spec, job, slow, offload).throughput
    print(f"| disk of 0.5 GB/s | | | {SLOW:.2f} | {said:.2f} |")
    print("\n| OPT-175B, s | paper | predicted |\n|---|---|---|")
    for (what, paper), said in zip(BREAKDOWN.items(), breakdown(spec, job, offload), strict=True):
        print(f"| {what} | {paper} | {said:.0f} |")


def breakdown(spec: Spec, job: Job, placed: Offload) -> list[float]:
    """Seconds of a block: those that the slowest way takes to bring weights and KV, each alone."""
    costs, shares, found = Costs(spec, job, T4, placed), placed.shares, []
    kinds = {"weights": slice(0, 3), "KV": slice(3, 6)}
    reads, writes = ("copies to the GPU", "disk reads"), ("copies to the CPU", "disk writes")

    def longest(phase: Phase, ways: tuple[str, str], kind: str) -> float:
        some = kinds[kind]
        return max(float(phase[way][some] @ shares[some]) for way in ways)

    for phase, steps in ((costs.prompt, 1), (costs.decode, job.output - 1)):
        parts = [float(phase["computing"] @ shares), longest(phase, reads, "weights")]
        parts += [longest(phase, reads, "KV")] if steps > 1 else []
        parts += [longest(phase, writes, "KV")]
        found += [part * spec.layers * steps for part in parts]
    return found


if __name__ == "__main__":
    main()
