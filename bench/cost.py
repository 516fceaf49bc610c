"""The H100's roofline against an engine measured on one, over whole workloads.

    python bench/cost.py

Simulates Llama-3.1-8B with the settings of vLLM 0.26.0 (stall-free; 8,192 tokens a step offline,
2,048 online; 256 requests) on the workloads of WEIR_DATA/bench/workloads.json, and compares with
what vLLM took there. The two engines schedule alike; the kernels are those the preset is fitted to.
`weir profile MODEL --check 60` does the same for single steps on this machine.
"""

import argparse
import gc
import json
import statistics

import scheduling_sets as sets

from weir.config import Config
from weir.cost.hardware import H100
from weir.cost.roofline import Roofline
from weir.sim.flags import Scene
from weir.sim.fleet import capacity
from weir.sim.replay import replay
from weir.sim.report import measure
from weir.sim.shapes import shape
from weir.sim.workload import Workload, poisson, shared

SPEC = shape("llama-3.1-8b")
TOTALS = {"nano_256": 16.91, "azure_conv_1000": 50.74, "fixed 256": 7.21, "fixed 1": 1.68}
"""Workload → seconds that vLLM took for all of it, asked at once."""
ONLINE = {8: (56, 7.9, 50.1), 12: (66, 8.9, 52.9), 16: (97, 11.3, 73.7)}
"""Requests/s → ms that vLLM took: median TTFT, median and P99 between tokens."""


def simulated(load: Workload, tokens: int):
    config = Config(
        max_num_batched_tokens=tokens,
        max_prefill_beside_decode=tokens,
        max_num_seqs=256,
        max_model_len=8192,
    )
    size, cost = capacity(config, SPEC, H100), Roofline(SPEC, H100)
    scene = Scene(config, SPEC, size, cost, H100)
    gc.collect()
    records, duration = replay(load, scene.fleet())
    return measure(records, duration)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    lengths = json.loads((sets.DATA / "bench" / "workloads.json").read_text())
    lengths |= {f"fixed {count}": [(512, 256)] * count for count in (1, 256)}
    errors = []
    print(f"{'all at once':18}{'measured s':>12}{'simulated s':>12}{'error':>8}")
    for name, measured in TOTALS.items():
        seconds = simulated(sets.drawn(name, lengths[name], 1), 8192).duration
        errors.append(abs(seconds / measured - 1))
        print(f"{name:18}{measured:12.2f}{seconds:12.2f}{seconds / measured - 1:8.1%}", flush=True)
    load = shared(sets.words(1), "gsp", 64, 16, 2048, 128, 64)
    print(f"{'gsp':18}{14.1:12.2f}{simulated(load, 8192).duration:12.2f}  (SGLang's; see docs)")
    print(f"{'median error':18}{statistics.median(errors):32.1%}\n")
    print(f"{'req/s':8}{'TTFT P50':>20}{'TBT P50':>20}{'TBT P99':>20}   measured, simulated ms")
    for rate, measured in ONLINE.items():
        load = sets.drawn("azure", lengths["azure_conv_1000"][: 30 * rate], 1)
        metrics = simulated(poisson(load, rate, 1.0, 1), 2048).metrics
        ours = [metrics["ttft"].median, metrics["itl"].median, metrics["itl"].percentile(99)]
        pairs = [f"{a:.1f}, {b:.1f}" for a, b in zip(measured, ours, strict=True)]
        print(f"{rate:<8}{pairs[0]:>20}{pairs[1]:>20}{pairs[2]:>20}", flush=True)


if __name__ == "__main__":
    main()
