"""Layers from memory and disk, KV on two tiers and steps in lanes, under a real scheduler."""

import random
from pathlib import Path

import pytest
import torch

from tests.reference import Tiny, generate
from tests.runtime.drive import CPU
from tests.runtime.test_relay import GPU
from tests.sched.draw import check
from weir.core import Plan, Request, Sampling, Tier
from weir.engine import Engine
from weir.executor.local import Local
from weir.kv.cache import Cache
from weir.ops import native
from weir.runtime.relay import Relay
from weir.runtime.runner import Runner
from weir.runtime.store import Store
from weir.runtime.streamed import Streamed
from weir.runtime.warmup import warm_up
from weir.sched import placement
from weir.sched.composer import Chunked
from weir.sched.hybrid import Hybrid
from weir.sched.placement import OnDemand
from weir.sched.ranking import FCFS
from weir.sched.scheduler import Scheduler

WHOLE = Tiny(layers=5)
IN_MEMORY, FROM_DISK = (0.3, 0.7, 0.0), (0.2, 0.2, 0.6)
MIXED, AWAY, HERE = {Tier.GPU: 16, Tier.CPU: 30}, {Tier.CPU: 40}, {Tier.GPU: 40}
"""Pages of each tier, too few for all requests, so that some are preempted."""


def engine(
    device: torch.device, folder: Path, shares, sizes: dict[Tier, int], lane: int, depth: int
) -> Engine:
    """The model streamed; KV of main memory is attended to by a relay."""
    model = WHOLE.to(device)
    layer_store = Streamed(5, shares, device, folder)
    for layer in model.layers:
        layer_store.add(layer)
    model.layers = layer_store.done()
    devices = {tier: CPU if tier == Tier.CPU else device for tier in sizes}
    pinned = device.type == "cuda"
    store = Store(model.spec.attention, 4, sizes, devices, torch.float32, pinned=pinned)
    away = store.kv.get(Tier.CPU)
    relay = Relay(Tier.CPU, away, device) if away is not None else None
    runner = Runner(model, store, 100, device, 16, relay=relay)
    warm_up(runner, 32, 8, lane)
    executor = Local(runner, tokens=32, requests=8, context=100, depth=depth, lane=lane, threads=1)
    home = OnDemand(min(sizes), away=Tier.CPU if relay is not None else None)
    chosen = Hybrid(Tier.GPU) if len(sizes) == 2 else home
    return Engine(
        Scheduler(Cache(4, sizes), FCFS(), Chunked(), chosen, executor.capacity), executor
    )


def serve(it: Engine, texts, wanted, late: int) -> tuple[dict[int, list[int]], list[Plan]]:
    """The tokens of all requests, the last of which come once `late` steps have been made and the
    first have ended; one is aborted."""
    got: dict[int, list[int]] = {uid: [] for uid in range(len(texts))}
    plans: list[Plan] = []
    submit = it.executor.submit
    it.executor.submit = lambda plan: plans.append(plan) or submit(plan)
    requests = [
        Request(uid, list(text), Sampling(temperature=0.0, max_tokens=most), float(uid))
        for uid, (text, most) in enumerate(zip(texts, wanted, strict=True))
    ]
    for step in range(3000):
        for r in requests[:-3] if step == 0 else requests[-3:] if step == late else ():
            it.add(r)
        if step == late:
            it.abort(2)
        for delta in it.step():
            got[delta.uid] += delta.tokens
        check(it.scheduler)
        if step > late and not it.busy:
            return got, plans
    raise AssertionError("never finished")


@pytest.mark.skipif(native.library() is None, reason=native.status())
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("lane", [5, 32], ids=["lanes", "one lane"])
@pytest.mark.parametrize("sizes", [MIXED, AWAY, HERE], ids=["mixed", "away", "here"])
@pytest.mark.parametrize("shares", [IN_MEMORY, FROM_DISK], ids=["memory", "disk"])
@pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "gpu"])
def test_tokens_are_those_of_a_model_in_one_place(
    tmp_path, monkeypatch, device, shares, sizes, lane, depth
):
    monkeypatch.setattr(placement, "MANY", 4)
    rng = random.Random(2)
    texts = [[rng.randrange(61) for _ in range(rng.randrange(2, 40))] for _ in range(9)]
    wanted = [rng.randrange(1, 14) for _ in texts]
    it = engine(device, tmp_path, shares, sizes, lane, depth)
    try:
        got, plans = serve(it, texts, wanted, late=8)
    finally:
        it.close()
        it.executor.runner.model.layers.close()
    for uid, (text, most) in enumerate(zip(texts, wanted, strict=True)):
        want = generate(WHOLE, text, most)
        assert got[uid] == want or (uid == 2 and got[uid] == want[: len(got[uid])])
    cache = it.scheduler.cache
    assert all(cache.room(tier) == cache.pools[tier].size for tier in cache.tiers)
    lanes = [part for plan in plans for part in plan.lanes]
    assert all(sum(chunk.length for chunk in part) <= lane for part in lanes)
    assert max(len(plan.lanes) for plan in plans) > (2 if lane == 5 else 0)
    if Tier.CPU in sizes:  # decodes away have a lane of their own
        kinds = [{chunk.home == Tier.CPU and chunk.length == 1 for chunk in part} for part in lanes]
        assert all(len(kind) == 1 for kind in kinds)
    if sizes == AWAY and lane == 32:  # and two where they are many
        alone = [all(chunk.length == 1 for part in plan.lanes for chunk in part) for plan in plans]
        assert any(
            len(plan.lanes) > 1 for plan, decodes in zip(plans, alone, strict=True) if decodes
        )
    homes = {chunk.home for part in lanes for chunk in part if chunk.length == 1}
    assert homes == set(sizes)
    assert not list(tmp_path.iterdir())
