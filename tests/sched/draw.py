"""Random policies for property tests, and the invariants that hold under every one of them."""

import random
import sys
from typing import Any

from tests.audit import audit
from tests.whim import Whim
from weir.core import Capacity, Tier
from weir.cost.hardware import PRESETS
from weir.cost.lanes import Host, Lanes
from weir.cost.roofline import Roofline
from weir.cost.target import Target
from weir.cost.work import Work
from weir.kv.cache import Cache
from weir.sched.composer import Beside, Chunked, Composer, Least, PrefillFirst, Static, Taper, Whole
from weir.sched.hybrid import Balance, Hybrid
from weir.sched.names import Knowledge, ranking
from weir.sched.placement import Estimate, OnDemand, Reserve
from weir.sched.ranking import Ranking, order
from weir.sched.scheduler import Scheduler
from weir.sim.shapes import shape

SPEC = shape("llama-3.1-8b")
LEAVES = [
    *("fcfs", "fcfs", "lpm", "lpm(limit=3)", "dfs-weight", "dfs-weight(limit=5)", "learned"),
    *("shortest", "shortest(preempt=true)", "learned(preempt=true, limit=4)", "mlfq(quantum=2)"),
]
AROUND = [
    *("programs({})", "fair({})", "queued({})", "queued({}, least=1)", "queued({}, least=5)"),
    *("aging({}, threshold=20)", "aging({}, threshold=60, quantum=3)"),
]


class Oracle:
    """A scorer that answers late, out of order and not always; it may fail."""

    def __init__(self, rng: random.Random, fails: float = 0.0):
        self.rng, self.fails = rng, fails
        self.asked: list[int] = []

    def __call__(self, new):
        self.asked += [r.uid for r in new]
        if self.rng.random() < self.fails:
            raise RuntimeError("out of ideas")
        if self.rng.random() < 0.5 or not self.asked:
            return []
        self.rng.shuffle(self.asked)
        uid = self.asked.pop()
        return [(uid, self.rng.choice([float("nan"), *map(float, range(30))]))]


def a_ranking(rng: random.Random, cache: Cache) -> Ranking:
    text = rng.choice(LEAVES)
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        text = rng.choice(AROUND).format(text)
    scorer = Oracle(rng, rng.choice([0.0, 0.05]))
    weights = {"a": 2.0, "b": 0.5}
    return ranking(text, cache, Knowledge(scorer=scorer, weights=weights))


class Tokens:
    """A step takes a second a token."""

    def seconds(self, work: Work) -> float:
        return float(work.tokens)


def a_composer(rng: random.Random) -> Composer:
    paces = [None, Beside(1), Beside(5), Beside(30), Taper(20, 3, reach=40, stages=3)]
    paces.append(Least((Beside(9), Taper(30, 2, reach=30))))
    paces.append(Target(Tokens(), rng.choice([2.0, 9.0]), 64, least=2, firm=False))
    chunked = Chunked(rng.choice(paces), tile=rng.choice([1, 1, 4, 16]))
    return rng.choice([chunked, chunked, chunked, Whole(), PrefillFirst(), Static()])


def a_balance(rng: random.Random) -> Balance | None:
    """Costs under which decodes away pay always, never, or depending on the step."""
    if rng.random() < 0.3:
        return None
    device = Roofline(SPEC, PRESETS[rng.choice(["t4", "h200"])])
    host = Host(10 ** rng.uniform(8, 14), 1e5, 4, rng.choice([0.0, 1e-4]))
    return Balance(Lanes(device, host, Tier.CPU), patience=rng.choice([1, 5, 30]))


def a_placement(rng: random.Random, sizes: dict[Tier, int]) -> OnDemand:
    home = min(sizes)
    if home == Tier.GPU and Tier.CPU in sizes and rng.random() < 0.6:
        return Hybrid(home, **a_share(rng), balance=a_balance(rng))
    kinds = [OnDemand, OnDemand, Reserve, Estimate]
    return rng.choice(kinds)(home, **a_share(rng))


def a_share(rng: random.Random) -> dict[str, Any]:
    """What a newcomer leaves to others."""
    return {"spare": rng.choice([0.0, 0.1]), "ahead": rng.choice([0, 0, 5, 40])}


def a_scheduler(rng: random.Random, page: int, chains: bool, longest: int) -> Scheduler:
    """Random policies over a pool that forces preemption; `longest`: tokens of a request."""
    hot = rng.choice([Tier.GPU, Tier.CPU])
    need = -(-longest // page)
    sizes = {hot: need + rng.randrange(0, 3 * need)}
    if hot == Tier.GPU and rng.random() < 0.6:
        sizes[Tier.CPU] = rng.randrange(1, 4 * need)
        if rng.random() < 0.5:
            sizes[Tier.DISK] = rng.randrange(1, 4 * need)
    elif rng.random() < 0.5:
        sizes[Tier.DISK] = rng.randrange(1, 4 * need)
    worth = rng.random()
    loads = {tier: rng.randrange(1, 6) for tier in (Tier.CPU, Tier.DISK) if rng.random() < 0.7}
    cache = Cache(
        page,
        sizes,
        reuse=rng.random() < 0.8,
        below=Whim(rng, worth, rng.random(), rng.random()),
        loads=loads,
    )
    composer = a_composer(rng)
    tokens = max(longest, 64) if composer.whole else rng.choice([1, 3, 16, 64])
    pages = {int(tier): count for tier, count in sizes.items()}
    lane = rng.choice([sys.maxsize, sys.maxsize, tokens, 1 + tokens // 3])
    capacity = Capacity(page, pages, tokens, rng.choice([1, 4, 64]), longest, loads, lane)
    placement = a_placement(rng, sizes)
    return Scheduler(cache, a_ranking(rng, cache), composer, placement, capacity, chains=chains)


def check(scheduler: Scheduler) -> None:
    """What must hold between any two steps."""
    live, running = scheduler.live, {r.uid: r for r in scheduler.running}
    audit(scheduler.cache, live.values())
    waiting = {r.uid for r in scheduler.waiting}
    assert waiting | set(running) == set(live) and not waiting & set(running)
    assert all(r.running for r in running.values())
    assert scheduler.waiting.todo == sum(r.todo for r in scheduler.waiting)
    if waiting:
        first = scheduler.waiting.first()
        assert first is not None
        assert first[0] == min(order(scheduler.ranking, list(scheduler.waiting)))
