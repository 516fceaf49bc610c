"""FlexGen's published throughputs beside what Weir's cost model says of the same placements.

    python bench/plan.py

Placements, machine and figures are those of the paper (tables 2, 5, 6 and appendix A.4); nothing is
run. Needs the extra `plan`.
"""

from __future__ import annotations

import statistics

from msgspec.structs import replace

from weir.cost.machine import T4
from weir.cost.offload import Job, Offload, Shares, predict
from weir.cost.search import CPU, DISK, GPU, search
from weir.sim.shapes import shape


def placed(
    size: int, count: int, weights: Shares, cache: Shares, hidden: Shares, bits: int = 16
) -> Offload:
    return Offload(
        batch=size,
        batches=count,
        weights=weights,
        cache=cache,
        hidden=hidden,
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


def rank_correlation(pairs: list[tuple[float, float]]) -> float:
    """Spearman's, of values without ties."""
    ranks = [[sorted(side).index(value) for value in side] for side in zip(*pairs, strict=True)]
    return statistics.correlation(*ranks)


def main() -> None:
    print("| model | prompt | bits | paper, tok/s | predicted | found by the search |")
    print("|---|---|---|---|---|---|")
    pairs = []
    for name, prompt, offload, paper in TABLE:
        spec, job = shape(name), Job(prompt=prompt, output=32)
        said = predict(spec, job, T4, offload).throughput
        best = search(spec, job, T4, offload).predicted.throughput
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


if __name__ == "__main__":
    main()
