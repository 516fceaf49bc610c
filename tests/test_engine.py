"""What the engine reports of its steps is what its plans were."""

import random
from bisect import bisect_left

import pytest
from msgspec.structs import replace

from tests.audit import audit
from tests.sched.test_policies import engine, finish, submit, words
from weir.core import Request, Sampling
from weir.wire import Sizes


@pytest.mark.parametrize("depth", [1, 2])
def test_the_spreads_describe_every_plan(depth):
    rng = random.Random(0)
    it = engine(tokens=16, requests=8, depth=depth)
    for uid in range(12):
        submit(it, uid, words(rng, rng.randrange(1, 40)), rng.randrange(1, 10))
    finish(it)
    plans = [plan for plan in it.executor.plans if plan.tokens]
    assert len(plans) < len(it.executor.plans), "the last only forgets"
    chunks = [[chunk for lane in plan.lanes for chunk in lane] for plan in plans]
    prefill = [sum(c.length for c in step if c.start < c.prompt) for step in chunks]
    decode = [sum(c.length for c in step if c.start >= c.prompt) for step in chunks]
    stats = it.stats()
    for spread, values in (
        (stats.step_requests, [len(step) for step in chunks]),
        (stats.step_tokens, [plan.tokens for plan in plans]),
        (stats.step_prefill, prefill),
        (stats.step_decode, decode),
    ):
        counted = [0] * (len(Sizes.bounds) + 1)
        for value in values:
            counted[bisect_left(Sizes.bounds, value)] += 1
        assert spread.counts == counted and spread.sum == sum(values)
    assert sum(stats.step_seconds.counts) == len(plans)
    assert sum(stats.host_seconds.counts) >= len(plans) and stats.host_seconds.sum > 0


def test_a_bound_belongs_to_the_bucket_below():
    spread = Sizes()
    for value in (0, 1, 2, 3, 4, 10**9):
        spread.add(value)
    assert spread.counts[:4] == [1, 1, 1, 2] and spread.counts[-1] == 1
    assert (spread + spread).counts == [2 * count for count in spread.counts]
    assert Sizes().counts == [0] * len(spread.counts), "nothing is shared between two"


def test_a_pinned_prompt_outlasts_others_and_one_too_many_is_refused():
    it = engine(pages=60, page=2)
    it.capacity = replace(it.capacity, context=60)
    system = [5] * 21
    deltas = []
    for uid, (prompt, name) in enumerate(((system, "system"), ([6] * 42, "more"))):
        r = Request(uid, list(prompt), Sampling(max_tokens=2, pin=name), float(uid))
        it.executor.requests[uid] = r.tokens
        it.add(r)
        while it.busy:
            deltas += it.step()
    errors = [delta.error for delta in deltas if delta.done == "error"]
    assert len(errors) == 1 and "'more': there is room for 40;" in errors[0]
    assert it.stats().pages_pinned == 10
    for uid in range(2, 12):
        submit(it, uid, [uid] * 50, 4)
    finish(it)
    it.flush()
    last = submit(it, 99, [*system, 1], 1)
    finish(it)
    assert last.cached == 20
    it.unpin("system")
    it.flush()
    audit(it.scheduler.cache)
    assert it.stats().pages_pinned == 0 and it.scheduler.cache.known(last) == 0


def test_pins_under_way_count_and_one_takes_the_place_of_its_namesake():
    it = engine(pages=60, page=2)
    it.capacity = replace(it.capacity, context=60)
    deltas = []

    def pin(uid, name, token):
        r = Request(uid, [token] * 41, Sampling(max_tokens=2, pin=name), float(uid))
        it.executor.requests[uid] = r.tokens
        it.add(r)

    def settle():
        while it.busy:
            deltas.extend(it.step())

    for uid, name in enumerate("abb"):  # together: there is room for one of 21 pages
        pin(uid, name, uid)
    settle()
    refused = [delta.uid for delta in deltas if delta.done == "error" and delta.refused]
    assert refused == [1, 2] and it.stats().pages_pinned == 20
    pin(3, "a", 3), pin(4, "a", 4)  # in the place of the first
    settle()
    assert it.stats().pages_pinned == 20 and sum(delta.refused for delta in deltas) == 2
    it.unpin("a")
    audit(it.scheduler.cache)
