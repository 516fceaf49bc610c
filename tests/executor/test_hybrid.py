"""Decodes whose KV is in main memory, under the real scheduler and engine: the same tokens."""

import random

import pytest
import torch

from tests.executor.test_local import local
from tests.reference import Tiny, generate, logprobs
from tests.runtime.drive import CPU, runner
from tests.runtime.test_relay import GPU
from tests.sched.draw import SPEC, check
from weir.core import Plan, Request, Sampling, Tier
from weir.cost.hardware import PRESETS
from weir.cost.lanes import Host, Lanes
from weir.cost.roofline import Roofline
from weir.engine import Engine
from weir.kv.cache import Cache
from weir.ops import native
from weir.ops.coded import BYTES
from weir.runtime.graphs import Graphs
from weir.sched.composer import Chunked
from weir.sched.hybrid import Balance, Hybrid
from weir.sched.ranking import FCFS
from weir.sched.scheduler import Scheduler

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.status())
LAYERS = 5
MODEL = Tiny(layers=LAYERS, size=64)  # a group of codes
RATES = {"all": None, "slow host": 1e6, "steady host": 2e7, "fast host": 1e15}
POOLS = [(16, 400), (20, 24), (400, 400)]
CASES = [(pools, rate, None) for pools in POOLS for rate in RATES]
CASES += [(pools, "all", kind) for pools in POOLS[:2] for kind in BYTES]
WORSE = {torch.int8: 0.1, torch.int4: 1.0}
"""Than that of the best, how much the logarithm of a token may be."""


@pytest.fixture(params=[CPU, GPU], ids=["cpu", "gpu"])
def device(request):
    return request.param


class Deaf(Hybrid):
    """What steps take depends on the machine, and may not decide what is tested."""

    def landed(self, plan: Plan, seconds: float, host: float) -> None:
        pass


def engine(
    device: torch.device,
    home: int,
    away: int,
    rate: float | None,
    kind: torch.dtype | None = None,
    graphs: Graphs | None = None,
) -> Engine:
    """Pools of so many pages; `rate` at which the host is thought to read, None: not asked; KV away
    of a kind. Lanes of `graphs` are recorded."""
    sizes = {Tier.GPU: home, Tier.CPU: away}
    run = runner(MODEL.to(device), 4, {int(t): n for t, n in sizes.items()}, 128, device, 64,
                 graphs, relayed=True, cold=kind)  # fmt: skip
    executor = local(run)
    lanes = None
    if rate is not None:
        lanes = Lanes(Roofline(SPEC, PRESETS["t4"]), Host(rate, 1e5, LAYERS, 0.0), Tier.CPU)
    balance = Balance(lanes, patience=5) if lanes is not None else None
    placement = Deaf(Tier.GPU, balance=balance)
    cache = Cache(4, sizes)
    scheduler = Scheduler(cache, FCFS(), Chunked(), placement, executor.capacity)
    return Engine(scheduler, executor)


def prompts(rng: random.Random, count: int) -> list[list[int]]:
    """Half of them begin alike."""
    head = [rng.randrange(61) for _ in range(12)]
    tails = [[rng.randrange(61) for _ in range(rng.randrange(1, 25))] for _ in range(count)]
    return [head * (rng.random() < 0.5) + tail for tail in tails]


def away(plan) -> list[int]:
    return [c.uid for c in plan.chunks if c.home == Tier.CPU and c.length == 1]


@pytest.mark.parametrize("recorded", [False, True], ids=["launched", "recorded"])
@pytest.mark.parametrize(("pools", "rate", "kind"), CASES, ids=str)
def test_tokens_do_not_depend_on_where_kv_is(device, pools, rate, kind, recorded):
    """But for what codes make of it."""
    rng = random.Random(1)
    graphs = Graphs([1, 2, 4, 8, 16]) if recorded else None
    it, texts, got = engine(device, *pools, RATES[rate], kind, graphs), prompts(rng, 24), {}
    replayed, replay = [], it.executor.runner._replay
    it.executor.runner._replay = lambda *some: replayed.append(some[-1]) or replay(*some)
    wanted = [rng.randrange(1, 16) for _ in texts]
    plans, submit = [], it.executor.submit
    it.executor.submit = lambda plan: plans.append(plan) or submit(plan)
    aborted = {3, 8}
    try:
        for uid, text in enumerate(texts):
            sampling = Sampling(temperature=0.0, max_tokens=wanted[uid])
            it.add(Request(uid, list(text), sampling, float(uid)))
        for step in range(2000):
            if step == 6:
                for uid in aborted:
                    it.abort(uid)
            for delta in it.step():
                got.setdefault(delta.uid, []).extend(delta.tokens)
            check(it.scheduler)
            if not it.busy:
                break
        assert not it.busy
    finally:
        it.close()
    for uid, text in enumerate(texts):
        assert uid in aborted or len(got[uid]) == wanted[uid]
        if kind is None:
            assert got[uid] == generate(MODEL, text, wanted[uid])[: len(got[uid])]
            continue
        if not got[uid]:
            continue  # aborted before its first token
        said = logprobs(MODEL, text + got[uid])[len(text) - 1 : -1]
        worse = said.amax(1) - said.gather(1, torch.tensor(got[uid])[:, None])[:, 0]
        assert worse.max() < WORSE[kind]
    slowly = any(plan.segment for plan in plans)
    assert (
        slowly if (rate, pools) == ("steady host", POOLS[0]) else rate != "fast host" or not slowly
    )
    beside = any(passing is not None for passing in replayed)
    assert beside == (recorded and slowly) and (recorded or not replayed)
    used = {uid for plan in plans for uid in away(plan)}
    assert bool(used) == (pools[0] < 400) or rate in ("slow host", "steady host")
    cache = it.scheduler.cache
    assert all(cache.room(tier) == cache.pools[tier].size for tier in cache.tiers)


def test_requests_come_home_when_there_is_room(device):
    it = engine(device, 24, 400, None)
    texts = [random.Random(uid).choices(range(61), k=20) for uid in range(6)]
    last = []
    submit = it.executor.submit
    it.executor.submit = lambda plan: last.append(plan) or submit(plan)
    try:
        for uid, text in enumerate(texts):
            length = 60 if uid == 5 else 4
            it.add(
                Request(uid, list(text), Sampling(temperature=0.0, max_tokens=length), float(uid))
            )
        tokens = []
        while it.busy:
            tokens += [t for delta in it.step() if delta.uid == 5 for t in delta.tokens]
    finally:
        it.close()
    assert any(5 in away(plan) for plan in last)
    homes = [c.home for plan in last for c in plan.chunks if c.uid == 5]
    assert Tier.GPU in homes[homes.index(Tier.CPU) :], "it never came back"
    assert tokens == generate(MODEL, texts[5], 60)
