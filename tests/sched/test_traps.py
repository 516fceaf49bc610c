"""Traps that published schedulers fell into, one test each; docs/scheduling.md lists those that are
tested elsewhere."""

import random
from dataclasses import dataclass

from tests.sched.draw import check
from tests.shadow import Shadow, expected
from weir.core import Capacity, Request, Sampling, Tier
from weir.engine import Engine
from weir.executor.sim import VirtualClock
from weir.kv.cache import Cache
from weir.sched.composer import Chunked
from weir.sched.names import Knowledge, ranking
from weir.sched.placement import OnDemand
from weir.sched.ranking import Ranking
from weir.sched.scheduler import Scheduler
from weir.sched.shortest import Shortest


def engine(
    policy: str | Ranking = "fcfs", *, pages=1000, tokens=64, requests=8, page=1, depth=1
) -> Engine:
    cache = Cache(page, {Tier.CPU: pages})
    capacity = Capacity(page, {int(Tier.CPU): pages}, tokens, requests, pages * page)
    order = ranking(policy, cache, Knowledge()) if isinstance(policy, str) else policy
    scheduler = Scheduler(cache, order, Chunked(), OnDemand(Tier.CPU, spare=0.0), capacity)
    return Engine(scheduler, Shadow(capacity, depth=depth), VirtualClock())


def words(uid: int, count: int) -> list[int]:
    rng = random.Random(uid)
    return [rng.randrange(1, 50) for _ in range(count)]


def submit(it: Engine, uid: int, prompt: int, wanted: int, stops=(), **fields) -> Request:
    sampling = Sampling(max_tokens=wanted, stops=list(stops))
    r = Request(uid, words(uid, prompt), sampling, float(uid), **fields)
    it.executor.requests[uid] = r.tokens
    it.add(r)
    return r


def finish(it: Engine, steps: int = 3000) -> dict[int, list[int]]:
    got: dict[int, list[int]] = {}
    for _ in range(steps):
        for delta in it.step():
            got.setdefault(delta.uid, []).extend(delta.tokens)
        check(it.scheduler)
        if not it.busy:
            return got
    raise AssertionError("never finished")


def test_a_victim_in_flight_keeps_the_token_that_lands_later():
    """Sarathi-Serve drops the stale result of a victim that is still in another batch."""
    it = engine(pages=60, depth=3)
    requests = [submit(it, uid, 10, 30) for uid in range(3)]
    prompts = [list(r.tokens) for r in requests]
    late, got = 0, {}
    while it.busy:
        before = it.scheduler.running.preemptions
        for delta in it.step():
            got.setdefault(delta.uid, []).extend(delta.tokens)
        if it.scheduler.running.preemptions > before:
            late += any(r.flying and not r.running for r in requests)
        check(it.scheduler)
    assert late
    assert all(got[uid] == expected(prompt, 30) for uid, prompt in enumerate(prompts))


def test_the_first_without_room_keeps_later_ones_out():
    """Sarathi-Serve and LTR do so as well, unsaid: else a large request would wait for ever."""
    it = engine(pages=60)
    submit(it, 0, 20, 20)
    large, small = submit(it, 1, 45, 2), submit(it, 2, 3, 2)
    it.step()
    while not large.running:
        assert not small.running and small.done is None
        it.step()
    finish(it)


def test_prompts_in_part_computed_do_not_fill_the_memory_that_decodes_need():
    """Sarathi-Serve's prompts in hand pin memory; decodes that lack it are thrown out and computed
    again, for ever."""
    it = engine(pages=260, tokens=12, requests=32)
    prompts = [60] * 12
    for uid, prompt in enumerate(prompts):
        submit(it, uid, prompt, 40)
    partial = 0
    for _ in range(2000):
        it.step()
        running = it.scheduler.running
        partial = max(partial, sum(0 < r.computed < r.prompt for r in running))
        if not it.busy:
            break
    assert not it.busy
    assert partial <= 2  # one a step, and the next with what its budget leaves
    assert it.scheduler.running.recomputed <= 0.25 * sum(prompts)


def test_a_turn_is_used_up_only_by_steps_that_ran():
    """In LTR's code a promoted request that finds no place keeps its quantum."""
    it = engine("aging(shortest, threshold=3, quantum=8)", requests=1)
    submit(it, 0, 2, 4)
    waiting = [submit(it, uid, 2, 40) for uid in (1, 2)]
    promoted = it.scheduler.ranking.promoted
    while not all(r.uid in promoted for r in waiting):
        it.step()
    second = max(waiting, key=lambda r: promoted[r.uid].turn)
    steps = 0
    while not second.running:
        assert promoted[second.uid].upto == len(second.tokens) + 8
        it.step()
        steps += 1
    assert steps >= 8  # the first one's turn
    finish(it)


@dataclass(slots=True)
class Counted(Shortest):
    looks: int = 0

    def key(self, r: Request):
        self.looks += 1
        return Shortest.key(self, r)


def test_those_who_wait_are_not_looked_at_in_every_step():
    """LTR's code tests membership in lists: a burst of 2,000 costs it 4,000,000 looks a step."""
    order = Counted()
    it = engine(order, requests=4, pages=4000)
    for uid in range(2000):
        submit(it, uid, 3, 60)
    it.step()
    before = order.looks
    for _ in range(50):
        it.step()
    assert order.looks - before <= 50 * (4 + 2)


def test_a_prompt_computed_in_part_goes_on_where_it_stopped():
    """LTR loses the position of a chunk when it preempts in the middle of a prompt."""
    it = engine(pages=400, tokens=16, requests=1, page=4)
    long = submit(it, 0, 200, 3, priority=1)
    for _ in range(5):
        it.step()
    assert long.computed == 80
    submit(it, 1, 10, 3)
    finish(it)
    assert long.preempted == 1
    assert it.scheduler.running.recomputed == 0
    chunks = [c for p in it.executor.plans for lane in p.lanes for c in lane if c.uid == 0]
    assert sum(c.length for c in chunks if c.start < 200) == 200


def test_what_a_stop_leaves_in_flight_is_dropped_and_pages_wait_for_it():
    """SGLang's overlap loop: one that has ended is in the next batch once more."""
    it = engine(pages=100, depth=2)
    answer = expected(words(0, 6), 20)
    r = submit(it, 0, 6, 20, stops=[answer[7]])
    end, got = answer.index(answer[7]) + 1, []
    while r.done is None:
        got += [token for delta in it.step() for token in delta.tokens]
    assert r.flying == 1 and r.pages and r.uid in it.scheduler.live
    check(it.scheduler)
    got += [token for delta in it.step() for token in delta.tokens]
    assert got == answer[:end] and not it.scheduler.live
    cache = it.scheduler.cache
    assert cache.room(cache.hot) == cache.pools[cache.hot].size
