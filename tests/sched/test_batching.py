"""What each composer and each placement promises."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sched.draw import a_ranking
from tests.shadow import Shadow
from weir.core import Capacity, Load, Plan, Request, Sampling, Tier
from weir.engine import Engine
from weir.executor.sim import VirtualClock
from weir.kv.cache import Cache
from weir.sched.composer import Beside, Chunked, PrefillFirst, Static, Taper, Whole
from weir.sched.placement import Estimate, OnDemand, Reserve
from weir.sched.ranking import FCFS
from weir.sched.scheduler import Scheduler


def engine(composer, placement=None, *, pages=4000, tokens=64, requests=8, page=1) -> Engine:
    cache = Cache(page, {Tier.CPU: pages}, reuse=False)
    capacity = Capacity(page, {int(Tier.CPU): pages}, tokens, requests, pages * page)
    placement = placement or OnDemand(Tier.CPU, spare=0.0)
    return Engine(
        Scheduler(cache, FCFS(), composer, placement, capacity), Shadow(capacity), VirtualClock()
    )


def submit(it: Engine, uid: int, prompt: int, wanted: int, **fields) -> Request:
    rng = random.Random(uid)
    tokens = [rng.randrange(1, 50) for _ in range(prompt)]
    r = Request(uid, tokens, Sampling(max_tokens=wanted), float(uid), **fields)
    it.executor.requests[uid] = r.tokens
    it.add(r)
    return r


def finish(it: Engine, steps: int = 5000) -> None:
    for _ in range(steps):
        it.step()
        if not it.busy:
            return
    raise AssertionError("never finished")


def shares(plan: Plan) -> dict[int, int]:
    return {chunk.uid: chunk.length for lane in plan.lanes for chunk in lane}


def test_static_lets_nobody_join_until_the_whole_batch_has_ended():
    it = engine(Static(), requests=3)
    for uid, wanted in enumerate((2, 9, 5, 4, 4, 4, 4)):
        submit(it, uid, 5, wanted)
    finish(it)
    batches = [frozenset(shares(plan)) for plan in it.executor.plans if plan.tokens]
    firsts = [uids for uids in batches if len(uids) == 3 or 6 in uids]
    assert [*dict.fromkeys(firsts)] == [{0, 1, 2}, {3, 4, 5}, {6}]
    assert len(batches) == 9 + 4 + 4  # each as long as its longest


def test_prefill_first_stalls_every_decode_while_a_prompt_can_start():
    it = engine(PrefillFirst(), tokens=40)
    early = [submit(it, uid, 4, 20) for uid in range(3)]
    for _ in range(3):
        it.step()
    for uid in range(10, 13):
        submit(it, uid, 30, 3)  # one a step: two do not fit
    before = len(it.executor.plans)
    finish(it)
    assert [shares(plan) for plan in it.executor.plans[before : before + 3]] == [
        {10: 30},
        {11: 30},
        {12: 30},
    ]
    assert all(r.done == "length" for r in early)
    assert len(shares(it.executor.plans[before + 3])) == 6


def test_whole_prompts_wait_in_line():
    """The first that does not fit keeps those behind it out, though they would fit."""
    it = engine(Whole(), tokens=40)
    for uid, prompt in enumerate((30, 20, 5)):
        submit(it, uid, prompt, 2)
    finish(it)
    assert [shares(plan) for plan in it.executor.plans[:2]] == [{0: 30}, {0: 1, 1: 20, 2: 5}]


def test_a_cut_prompt_fills_whole_tiles():
    it = engine(Chunked(Beside(50), tile=16), tokens=200)
    for uid in range(5):
        submit(it, uid, 2, 60)
    it.step()
    long = submit(it, 9, 300, 1)
    totals = []
    while long.done is None:
        it.step()
        totals.append(it.executor.plans[-1].tokens)
    assert totals[:-1] == [48] * (len(totals) - 1) and len(totals) == 7  # 43 of 50 beside 5
    it = engine(Chunked(Beside(3), tile=16), tokens=200)
    submit(it, 0, 2, 60)
    it.step()
    submit(it, 9, 30, 1)
    it.step()
    assert shares(it.executor.plans[-1]) == {0: 1, 9: 3}  # less than a tile is left: go on


def test_prompts_beside_decodes_get_more_where_streams_are_many_or_prompts_wait():
    pace = Beside(48, most=128)
    for decodes, backlog, want in ((8, 128, 48), (16, 128, 96), (8, 800, 100), (99, 9000, 128)):
        assert pace.prompts(Load(decodes=decodes, backlog=backlog), 0) == want
        assert Beside(48).prompts(Load(decodes=decodes, backlog=backlog), 0) == 48
    it = engine(Chunked(Beside(8, most=12)), tokens=200)
    submit(it, 0, 2, 60)
    it.step()
    submit(it, 1, 120, 1)
    finish(it)
    beside = [shares(plan)[1] for plan in it.executor.plans if shares(plan).keys() == {0, 1}]
    assert sum(beside) == 120 and beside[0] == 12 and beside == sorted(beside, reverse=True)
    assert beside.count(8) >= 3


def test_chunks_shrink_as_the_context_grows():
    it = engine(Chunked(Taper(64, 16, reach=192, stages=3)), tokens=100)
    long = submit(it, 0, 400, 1)
    finish(it)
    chunks = [length for plan in it.executor.plans for length in shares(plan).values()]
    assert chunks[:5] == [64, 48, 48, 32, 16] and set(chunks[5:]) == {16}
    assert long.done == "length"


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_no_decode_is_ever_left_out_of_a_step(seed):
    """Sarathi-Serve, Algorithm 3, whatever the order, pace, depth and arrivals: with memory for all
    and a token a request, every step has a token of everyone who can have one."""
    rng = random.Random(seed)
    cache = Cache(1, {Tier.CPU: 20000})
    requests = rng.randrange(1, 12)
    capacity = Capacity(1, {int(Tier.CPU): 20000}, rng.randrange(requests, 40), requests, 400)
    paces = [None, Beside(1), Beside(9), Taper(20, 3, reach=40, stages=3)]
    composer = Chunked(rng.choice(paces), tile=rng.choice([1, 8]))
    placement = OnDemand(Tier.CPU, spare=0.0)
    s = Scheduler(cache, a_ranking(rng, cache), composer, placement, capacity)
    it = Engine(s, Shadow(capacity, depth=rng.choice([1, 2, 3])), VirtualClock())
    arrivals = sorted(rng.randrange(0, 60) for _ in range(40))
    step = came = 0
    while it.busy or came < 40:
        while came < 40 and arrivals[came] <= step:
            submit(it, came, rng.randrange(1, 80), rng.randrange(1, 30), user="ab"[came % 2])
            came += 1
        ready = [r for r in s.running if r.decoding and s._ready(r)]
        made = len(it.executor.plans)
        it.step()
        for plan in it.executor.plans[made:]:
            assert {r.uid for r in ready if r.running or r.done} <= set(shares(plan))
        step += 1
        assert step < 5000


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_reserving_never_preempts_and_keeps_iteration_level_fcfs(seed):
    """Orca, Algorithm 1 and section 4.2: whoever came earlier has run at least as often, though
    memory is short and arrivals are spread."""
    rng = random.Random(seed)
    it = engine(Whole(), Reserve(Tier.CPU), pages=90, tokens=90, requests=rng.randrange(1, 6))
    arrivals = sorted(rng.randrange(0, 30) for _ in range(12))
    live = []
    ran = dict.fromkeys(range(12), 0)
    step = 0
    while it.busy or len(live) < 12:
        while len(live) < 12 and arrivals[len(live)] <= step:
            live.append(submit(it, len(live), rng.randrange(1, 40), rng.randrange(1, 50)))
        plans = len(it.executor.plans)
        it.step()
        for plan in it.executor.plans[plans:]:
            for uid in shares(plan):
                ran[uid] += 1
        counts = [ran[r.uid] for r in live if r.done is None]
        assert counts == sorted(counts, reverse=True)
        held = sum(r.prompt + r.sampling.max_tokens for r in it.scheduler.running)
        assert held <= 90
        step += 1
        assert step < 2000
    assert it.scheduler.running.preemptions == 0


def load(placement, seed: int) -> Engine:
    it = engine(Chunked(), placement, pages=300, tokens=64, requests=64)
    rng = random.Random(seed)
    for uid in range(60):
        submit(it, uid, rng.randrange(5, 20), 40)  # every answer as long as it may be
    finish(it)
    return it


@pytest.mark.parametrize("seed", range(4))
def test_an_estimate_preempts_less_than_none_and_admits_more_than_a_reservation(seed):
    steps, preempted = {}, {}
    kinds = {"reserve": Reserve, "estimate": Estimate, "on-demand": OnDemand}
    for name, kind in kinds.items():
        it = load(kind(Tier.CPU, spare=0.0), seed)
        steps[name], preempted[name] = len(it.executor.plans), it.scheduler.running.preemptions
    assert preempted["reserve"] == 0
    assert preempted["estimate"] < preempted["on-demand"]


def test_the_estimate_falls_with_time_and_rises_at_a_preemption():
    placement = Estimate(Tier.CPU, initial=0.7, least=0.1, steps=10)
    it = engine(Chunked(), placement, pages=60, requests=4)
    submit(it, 0, 4, 15)
    for _ in range(12):
        it.step()
    assert placement.ratio == pytest.approx(0.1)
    for uid in range(1, 4):
        submit(it, uid, 4, 40)
    while not it.scheduler.running.preemptions:
        it.step()
    assert placement.ratio > 0.4
    finish(it)
