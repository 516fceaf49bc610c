"""Host time of one step: plan, submit and commit over a simulated executor.

    python bench/host_time.py [--running 256] [--waiting 10000] [--steps 400]

The issue's bound is 1.5 ms with 256 running and 10,000 waiting requests. Every running request
decodes; the waiting ones cannot be admitted because as many run as may.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time

from weir.core import Capacity, Request, Sampling, Tier
from weir.engine import Engine
from weir.executor.sim import Sim, VirtualClock
from weir.kv.cache import Cache
from weir.sched.composer import Chunked
from weir.sched.placement import OnDemand
from weir.sched.ranking import FCFS
from weir.sched.scheduler import Scheduler


def engine(running: int, page: int = 16) -> Engine:
    pages = running * 80
    capacity = Capacity(page, {int(Tier.GPU): pages}, 2048, running, 8192)
    clock = VirtualClock()
    scheduler = Scheduler(
        Cache(page, {Tier.GPU: pages}), FCFS(), Chunked(), OnDemand(Tier.GPU), capacity
    )
    return Engine(scheduler, Sim(capacity, clock, lambda plan: 0.01, lambda u, p: 5), clock)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--waiting", type=int, default=10000)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    rng = random.Random(0)
    it = engine(args.running)
    sampling = Sampling(max_tokens=800)
    for uid in range(args.running + args.waiting):
        prompt = [rng.randrange(30000) for _ in range(rng.randrange(60, 180))]
        it.add(Request(uid, prompt, sampling, arrival=uid * 1e-3))
    while len(it.scheduler.running) < args.running or any(
        r.computed < r.prompt for r in it.scheduler.running.values()
    ):
        it.step()
    gc.collect()
    gc.disable()  # as in the engine's process, which collects between steps
    times = []
    for _ in range(args.steps):
        began = time.perf_counter()
        it.step()
        times.append((time.perf_counter() - began) * 1e3)
    times.sort()
    print(f"{args.running} running, {args.waiting} waiting, {args.steps} steps, ms a step:")
    print(f"median {statistics.median(times):.3f}  p99 {times[int(len(times) * 0.99)]:.3f}")


if __name__ == "__main__":
    main()
