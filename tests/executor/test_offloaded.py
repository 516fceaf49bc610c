"""Layers from disk and attention away from the device together, under a real scheduler."""

from __future__ import annotations

import random

import pytest
import torch

from tests.executor.test_disk_cache import run
from tests.reference import Tiny, generate
from tests.runtime.drive import CPU
from weir.core import Request, Sampling, Tier
from weir.engine import Engine
from weir.executor.local import Local
from weir.kv.cache import Cache
from weir.ops import native
from weir.runtime.relay import Relay
from weir.runtime.runner import Runner
from weir.runtime.store import Store
from weir.runtime.streamed import Streamed
from weir.runtime.warmup import warm_up
from weir.sched.composer import Chunked
from weir.sched.placement import OnDemand
from weir.sched.ranking import FCFS
from weir.sched.scheduler import Scheduler


@pytest.mark.skipif(native.library() is None, reason=native.status())
@pytest.mark.parametrize("depth", [1, 2])
def test_tokens_are_those_of_a_model_in_one_place(tmp_path, depth):
    rng, whole, model = random.Random(2), Tiny(layers=5), Tiny(layers=5)
    shelf = Streamed(5, (0.3, 0.3, 0.4), CPU, tmp_path)
    for layer in model.layers:
        shelf.add(layer)
    model.layers = shelf.done()
    sizes = {Tier.CPU: 40}  # too few for all, so that some are preempted
    store = Store(model.spec.attention, 4, sizes, {Tier.CPU: CPU}, torch.float32)
    relay = Relay(Tier.CPU, store.kv[Tier.CPU], CPU)
    runner = Runner(model, store, 100, CPU, 16, relay=relay)
    warm_up(runner, 32, 8)
    executor = Local(runner, tokens=16, requests=8, context=100, depth=depth, threads=1)
    scheduler = Scheduler(Cache(4, sizes), FCFS(), Chunked(), OnDemand(Tier.CPU), executor.capacity)
    texts = [[rng.randrange(61) for _ in range(rng.randrange(2, 40))] for _ in range(7)]
    greedy = Sampling(temperature=0.0, max_tokens=12)
    try:
        requests = [Request(uid, list(text), greedy, float(uid)) for uid, text in enumerate(texts)]
        got = run(Engine(scheduler, executor), requests)
    finally:
        executor.close()
        relay.close()
    assert got == {uid: generate(whole, text, 12) for uid, text in enumerate(texts)}
    assert scheduler.preemptions > 0
