"""Cache-aware order however many wait: few are looked up in a plan, and none is forgotten."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shadow import Shadow
from weir.core import Capacity, Request, Sampling, Tier
from weir.engine import Engine
from weir.executor.sim import VirtualClock
from weir.kv.cache import Cache
from weir.sched.composer import Chunked
from weir.sched.placement import OnDemand
from weir.sched.prefix import AGAIN, LongestPrefix, Matches
from weir.sched.ranking import FCFS
from weir.sched.scheduler import Scheduler

GROUPS, EACH, PREFIX, TAIL = 24, 10, 40, 4


def serve(limit: int | None) -> tuple[int, Cache, Matches]:
    """Tokens found in the cache, of requests in groups with a prefix each, all at once and mixed;
    three prefixes fit. limit None: first come, first served."""
    cache = Cache(4, {Tier.CPU: 40})
    capacity = Capacity(4, {int(Tier.CPU): 40}, 64, 3, 160)
    matches = Matches(cache, limit or 1)
    ranking = FCFS() if limit is None else LongestPrefix(matches)
    scheduler = Scheduler(cache, ranking, Chunked(), OnDemand(Tier.CPU, spare=0.0), capacity)
    it = Engine(scheduler, Shadow(capacity, depth=1), VirtualClock())
    order = [group for group in range(GROUPS) for _ in range(EACH)]
    random.Random(3).shuffle(order)
    for uid, group in enumerate(order):
        prompt = [100 + group] * PREFIX + [1000 + uid] * TAIL
        r = Request(uid, prompt, Sampling(max_tokens=2), float(uid))
        it.executor.requests[uid] = r.tokens
        it.add(r)
    while it.busy:
        it.step()
    return scheduler.running.hits, cache, matches


def test_many_who_wait_are_found_as_few_are():
    best = GROUPS * (EACH - 1) * PREFIX
    assert serve(GROUPS * EACH)[0] == best
    assert serve(None)[0] < best / 2
    for limit in (16, 64):
        found, cache, matches = serve(limit)
        assert found == best
        assert not cache.watch and not (matches.due or matches.found or matches.known)


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_what_is_known_of_many_becomes_true_in_turns(seed, limit):
    """Whatever came and went before, and with so many lookups a plan at most."""
    rng = random.Random(seed)
    cache = Cache(2, {Tier.CPU: 64})
    matches = Matches(cache, limit)
    looked: list[int] = []
    expect = cache.expect
    cache.expect = lambda r: looked.append(r.uid) or expect(r)
    waiting: dict[int, Request] = {}
    for uid in range(30):
        tokens = [rng.randrange(2) for _ in range(rng.randrange(1, 20))]
        waiting[uid] = Request(uid, tokens, Sampling(max_tokens=1), 0.0)
        matches.enter(waiting[uid])
        act = rng.randrange(3)
        if act == 0:  # somebody computes a prompt and ends
            runs = Request(1000 + uid, [rng.randrange(2) for _ in range(12)], Sampling(), 0.0)
            cache.attach(runs, Tier.CPU, [])
            if cache.grow(runs, 12, Tier.CPU, []):
                runs.computed = runs.settled = 12
            cache.release(runs)
        elif act == 1:
            gone = waiting.pop(rng.choice([*waiting]))
            matches.leave(gone)
        elif rng.random() < 0.2:
            cache.flush()
        looked.clear()
        matches.refresh(waiting.values())
        assert len(looked) <= max(limit + AGAIN, len(waiting) if len(waiting) <= limit else 0)
    for _ in range(2 * len(waiting)):
        matches.refresh(waiting.values())
    assert {uid: matches.of(r) for uid, r in waiting.items()} == {
        uid: cache.known(r) for uid, r in waiting.items()
    }
    for r in [*waiting.values()]:
        matches.leave(r)
    assert not cache.watch and not (matches.due or matches.found or matches.known)
