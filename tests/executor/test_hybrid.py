"""Decodes whose KV is in main memory, under the real scheduler and engine: the same tokens."""

from __future__ import annotations

import random

import pytest
import torch

from tests.executor.test_local import local
from tests.reference import Tiny, generate
from tests.runtime.drive import CPU, runner
from tests.runtime.test_relay import GPU
from tests.sched.draw import SPEC, check
from weir.core import Request, Sampling, Tier
from weir.cost.hardware import PRESETS
from weir.cost.lanes import Host, Lanes
from weir.cost.roofline import Roofline
from weir.engine import Engine
from weir.kv.cache import Cache
from weir.ops import native
from weir.sched.composer import Chunked
from weir.sched.hybrid import Balance, Hybrid
from weir.sched.ranking import FCFS
from weir.sched.scheduler import Scheduler

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.status())
MODEL = Tiny()
RATES = [None, 1e9, 1e15]


@pytest.fixture(params=[CPU, GPU], ids=["cpu", "gpu"])
def device(request):
    return request.param


def engine(device: torch.device, home: int, away: int, rate: float | None) -> Engine:
    """Pools of so many pages; `rate` at which the host is thought to read, None: not asked."""
    sizes = {Tier.GPU: home, Tier.CPU: away}
    run = runner(MODEL.to(device), 4, {int(t): n for t, n in sizes.items()}, 128, device, 64,
                 relayed=True)  # fmt: skip
    executor = local(run)
    lanes = None
    if rate is not None:
        lanes = Lanes(Roofline(SPEC, PRESETS["t4"]), Host(rate, 1e5, 2), Tier.CPU)
    balance = Balance(lanes, patience=5) if lanes is not None else None
    placement = Hybrid(Tier.GPU, balance=balance)
    cache = Cache(4, sizes)
    scheduler = Scheduler(cache, FCFS(), Chunked(), placement, executor.capacity)
    return Engine(scheduler, executor)


def prompts(rng: random.Random, count: int) -> list[list[int]]:
    """Half of them begin alike."""
    head = [rng.randrange(61) for _ in range(12)]
    tails = [[rng.randrange(61) for _ in range(rng.randrange(1, 25))] for _ in range(count)]
    return [head * (rng.random() < 0.5) + tail for tail in tails]


def away(plan) -> list[int]:
    return [c.uid for lane in plan.lanes for c in lane if c.home == Tier.CPU and c.length == 1]


@pytest.mark.parametrize("rate", RATES, ids=["all", "slow host", "fast host"])
@pytest.mark.parametrize("pools", [(16, 400), (20, 24), (400, 400)], ids=str)
def test_tokens_do_not_depend_on_where_kv_is(device, pools, rate):
    rng = random.Random(1)
    it, texts, got = engine(device, *pools, rate), prompts(rng, 12), {}
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
        want = generate(MODEL, text, wanted[uid])
        assert got[uid] == want[: len(got[uid])]
        assert uid in aborted or got[uid] == want
    used = {uid for plan in plans for uid in away(plan)}
    assert bool(used) == (pools[0] < 400) or rate == 1e9
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
    homes = [c.home for plan in last for lane in plan.lanes for c in lane if c.uid == 5]
    assert Tier.GPU in homes[homes.index(Tier.CPU) :], "it never came back"
    assert tokens == generate(MODEL, texts[5], 60)
