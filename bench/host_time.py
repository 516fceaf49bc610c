"""Host time of one step: plan, submit and commit over a simulated executor.

    python bench/host_time.py [--running 256] [--waiting 10000] [--steps 400] [--policies NAME ...]

The bound is 1.5 ms with 256 running and 10,000 waiting requests, whatever the policy. Every running
request decodes; the waiting ones cannot be admitted because as many run as may.
"""

import argparse
import gc
import random
import statistics
import time
from collections.abc import Sequence

from weir.core import Capacity, Request, Sampling, Tier
from weir.engine import Engine
from weir.executor.sim import Sim, VirtualClock
from weir.kv.cache import Cache
from weir.sched.composer import Chunked
from weir.sched.names import Knowledge, placement, ranking
from weir.sched.scheduler import Scheduler

POLICIES = [
    *("fcfs", "lpm", "dfs-weight", "shortest", "learned", "mlfq", "fair(fcfs)", "aging(fcfs)"),
    "auto",
    "queued(aging(fair(learned), threshold=400, patience=1))",
]


class Lengths:
    """A scorer that knows, and answers a few requests a step."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, new: Sequence[Request]) -> list[tuple[int, float]]:
        self.asked += [r.uid for r in new]
        some, self.asked = self.asked[:16], self.asked[16:]
        return [(uid, uid * 7919 % 997) for uid in some]


def engine(policy: str, memory: str, running: int, page: int = 16) -> Engine:
    pages = running * 80
    capacity = Capacity(page, {int(Tier.GPU): pages}, 2048, running, 8192)
    clock = VirtualClock()
    cache = Cache(page, {Tier.GPU: pages})
    scheduler = Scheduler(
        cache,
        ranking(policy, cache, Knowledge(scorer=Lengths())),
        Chunked(),
        placement(memory, Tier.GPU),
        capacity,
    )
    return Engine(scheduler, Sim(capacity, clock, lambda plan: 0.01, lambda u, p: 5), clock)


def measure(policy: str, memory: str, running: int, waiting: int, steps: int) -> list[float]:
    """Milliseconds of each step, sorted."""
    rng = random.Random(0)
    it = engine(policy, memory, running)
    sampling = Sampling(max_tokens=800)
    for uid in range(running + waiting):
        prompt = [rng.randrange(30000) for _ in range(rng.randrange(60, 180))]
        user = f"tenant {uid % 1000}"
        it.add(Request(uid, prompt, sampling, arrival=uid * 1e-3, user=user))
    while len(it.scheduler.running) < running or any(
        r.computed < r.prompt for r in it.scheduler.running
    ):
        it.step()
    gc.collect()
    gc.disable()  # as in the engine's process, which collects between steps
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        it.step()
        times.append((time.perf_counter() - began) * 1e3)
    gc.enable()
    return sorted(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--waiting", type=int, default=10000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--policies", nargs="+", default=POLICIES)
    parser.add_argument("--memory-policy", default="on-demand")
    args = parser.parse_args()
    print(f"{args.running} running, {args.waiting} waiting, {args.steps} steps, ms a step:")
    print(f"{'':30} median    p99    max")
    for policy in args.policies:
        times = measure(policy, args.memory_policy, args.running, args.waiting, args.steps)
        p99 = times[int(len(times) * 0.99)]
        print(f"{policy:30} {statistics.median(times):6.3f} {p99:6.3f} {times[-1]:6.3f}")


if __name__ == "__main__":
    main()
