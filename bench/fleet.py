"""What a router is worth, and how large a fleet can be simulated.

    python bench/fleet.py [--only NAME ...] [--seed 1]

Llama-3.1-8B on simulated H100s; the traces are those of the folder WEIR_DATA.
"""

import argparse
import gc
import resource
import time

import scheduling_sets as sets
from scheduling import COST, SPEC, table

from weir.balance import ROUTERS
from weir.config import Config
from weir.cost.hardware import H100
from weir.sim.flags import Scene
from weir.sim.fleet import capacity
from weir.sim.replay import replay
from weir.sim.report import Report, measure
from weir.sim.servegen import servegen
from weir.sim.workload import Workload, mooncake, paced, poisson

CONFIG = Config(
    max_model_len=131_072, max_num_seqs=256, scheduling_policy="fcfs", max_num_batched_tokens=2048
)


def run(load: Workload, replicas: int, routing: str, config: Config = CONFIG) -> Report:
    size = capacity(config, SPEC, H100)
    scene = Scene(config, SPEC, size, COST, H100, replicas, routing)
    gc.collect()
    return measure(*replay(load, scene.fleet(), scene.router()))


HEAD = ["", "hit rate %", "TTFT mean", "P50", "P99", "TBT P99", "E2E mean", "finished, s"]


def row(name: str, report: Report) -> list[object]:
    ttft, itl, e2el = (report.metrics[metric] for metric in ("ttft", "itl", "e2el"))
    found = [100 * report.hit_rate, ttft.mean, ttft.median, ttft.percentile(99)]
    return [name, *found, itl.percentile(99), e2el.mean, report.duration]


def compare(title: str, load: Workload, replicas: int) -> None:
    rows = [row(name, run(load, replicas, name)) for name in ROUTERS]
    table(f"{title}, {len(load.items):,} requests, {replicas} replicas, ms", HEAD, rows)


def conversations(seed: int) -> None:
    """Mooncake's conversations: prompts of 12,000 tokens that share what users said before."""
    file = sets.DATA / "traces/mooncake_conversation.jsonl.gz"
    load = mooncake(file, sets.words(seed), 1500)
    for speed in (1.5, 3.0):
        compare(f"Mooncake conversations, {speed:g} times as fast", paced(load, speed), 8)


def clients(seed: int) -> None:
    """ServeGen's clients, each with bursts of its own; nothing is shared."""
    load = servegen(sets.DATA / "traces/servegen_clients.jsonl.gz", sets.words(seed), 3000)
    for rate in (60.0, 80.0):
        speed = rate * load.items[-1].arrival / len(load.items)
        compare(f"ServeGen {load.name} at {rate:g} requests/s", paced(load, speed), 8)


def large(seed: int) -> None:
    """Time and memory of a fleet of 256, at 10 requests/s of Azure conversations each."""
    load = sets.lengths("traces/azure2023_conv.csv.gz", 25_600, seed)
    config = Config(max_model_len=8192, max_num_seqs=256, scheduling_policy="fcfs")
    rows = []
    for name in ROUTERS:
        began = time.perf_counter()
        report = run(poisson(load, 2560.0, 1.0, seed), 256, name, config)
        rows.append([*row(name, report), time.perf_counter() - began])
        rows[-1].append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    table("256 replicas, 2,560 requests/s", [*HEAD, "simulated in, s", "most memory, GiB"], rows)


ALL = (conversations, clients, large)
FIGURES = {figure.__name__: figure for figure in ALL}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    gc.freeze()
    gc.set_threshold(500_000, 20, 100)
    for name in options.only:
        FIGURES[name](options.seed)


if __name__ == "__main__":
    main()
