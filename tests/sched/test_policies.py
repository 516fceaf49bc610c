"""What each policy promises, on the real scheduler over a checked executor."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shadow import Shadow, expected
from weir.core import Capacity, Load, Plan, Request, Sampling, Tier
from weir.engine import Engine
from weir.executor.sim import VirtualClock
from weir.kv.cache import Cache
from weir.sched.composer import Beside, Chunked, Whole
from weir.sched.placement import OnDemand
from weir.sched.prefix import LongestPrefix, Matches
from weir.sched.ranking import FCFS
from weir.sched.scheduler import Scheduler


def engine(
    *,
    pages: int = 1000,
    page: int = 1,
    tokens: int = 64,
    requests: int = 64,
    depth: int = 1,
    composer=None,
    longest_prefix: bool = False,
    reuse: bool = True,
) -> Engine:
    cache = Cache(page, {Tier.CPU: pages}, reuse=reuse)
    capacity = Capacity(page, {int(Tier.CPU): pages}, tokens, requests, pages * page)
    ranking = LongestPrefix(Matches(cache)) if longest_prefix else FCFS()
    placement = OnDemand(Tier.CPU, spare=0.0)
    scheduler = Scheduler(cache, ranking, composer or Chunked(), placement, capacity)
    return Engine(scheduler, Shadow(capacity, depth=depth), VirtualClock())


def submit(it: Engine, uid: int, prompt: list[int], wanted: int, **fields) -> Request:
    r = Request(uid, list(prompt), Sampling(max_tokens=wanted), float(uid), **fields)
    it.executor.requests[uid] = r.tokens
    it.add(r)
    return r


def finish(it: Engine, steps: int = 5000) -> dict[int, list[int]]:
    got: dict[int, list[int]] = {}
    for _ in range(steps):
        for delta in it.step():
            got.setdefault(delta.uid, []).extend(delta.tokens)
        if not it.busy:
            return got
    raise AssertionError("never finished")


def share(plan: Plan, uid: int) -> int:
    return sum(c.length for lane in plan.lanes for c in lane if c.uid == uid)


def words(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(1, 50) for _ in range(count)]


@pytest.mark.parametrize("tokens", [4, 8, 32])
def test_a_long_prompt_never_stalls_a_decode(tokens):
    rng = random.Random(0)
    it = engine(tokens=tokens)
    early = [submit(it, uid, words(rng, 3), 60) for uid in range(3)]
    while any(r.settled == r.prompt for r in early):
        it.step()
    long = submit(it, 9, words(rng, 200), 2)
    before = len(it.executor.plans)
    while long.computed < long.prompt and all(r.done is None for r in early):
        it.step()
    plans = it.executor.plans[before:]
    assert len(plans) > 5
    for plan in plans[:-1]:
        assert plan.tokens == tokens  # the chunk fills what the decodes leave
        assert all(share(plan, r.uid) == 1 for r in early)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_pace_bounds_prompts_beside_decodes_and_nothing_else(depth):
    rng = random.Random(0)
    it = engine(tokens=64, page=4, depth=depth, composer=Chunked(Beside(12)))
    submit(it, 0, words(rng, 200), 40)
    submit(it, 1, words(rng, 400), 2)
    finish(it)
    alone, beside = [], []
    for plan in it.executor.plans:
        chunks = [c for lane in plan.lanes for c in lane]
        prompts = sum(c.length for c in chunks if c.start < c.prompt)
        (beside if any(c.start >= c.prompt for c in chunks) else alone).append(prompts)
    assert alone[:3] == [64, 64, 64]
    assert max(beside) == 12
    assert beside.count(12) > 20  # the long prompt goes on in every one of them


@dataclass
class Paced:
    """Records what it is asked."""

    asked: list[tuple[Load, int]] = field(default_factory=list)

    def prompts(self, load: Load, start: int) -> int:
        self.asked.append((load, start))
        return 5


def test_a_pace_is_told_decodes_and_backlog_and_where_the_prompt_stands():
    rng = random.Random(0)
    pace = Paced()
    it = engine(tokens=64, composer=Chunked(pace))
    submit(it, 0, words(rng, 4), 40)
    submit(it, 1, words(rng, 30), 2)
    for _ in range(3):
        it.step()
    assert pace.asked[0] == (Load(backlog=34), 0)
    late = -1.0  # plans are made at 0, and the second request is said to arrive at 1
    assert (Load(1, 4, 29, late), 1) in pace.asked and (Load(1, 5, 24, late), 6) in pace.asked
    assert [share(plan, 1) for plan in it.executor.plans] == [1, 5, 5]


def test_more_decodes_than_tokens_do_not_make_a_chunk_negative():
    rng = random.Random(1)
    it = engine(tokens=3)
    prompts = [words(rng, 4) for _ in range(8)]
    for uid, prompt in enumerate(prompts):
        submit(it, uid, prompt, 10)
    got = finish(it)
    assert all(got[uid] == expected(prompt, 10) for uid, prompt in enumerate(prompts))


def test_a_finished_request_makes_room_at_the_next_iteration():
    rng = random.Random(2)
    it = engine(requests=2)
    for uid, wanted in enumerate((2, 9, 3)):
        submit(it, uid, words(rng, 5), wanted)
    finish(it)
    plans = it.executor.plans
    last_of_first = max(i for i, plan in enumerate(plans) if share(plan, 0))
    first_of_third = min(i for i, plan in enumerate(plans) if share(plan, 2))
    assert first_of_third == last_of_first + 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_whole_fcfs_is_iteration_level_fcfs(seed):
    """Orca 4.2: whoever came earlier has run at least as many iterations."""
    rng = random.Random(seed)
    it = engine(composer=Whole(), tokens=1000, requests=rng.randrange(1, 6), reuse=False)
    live = [submit(it, uid, words(rng, rng.randrange(1, 40)), 12) for uid in range(8)]
    ran = dict.fromkeys(range(8), 0)
    while it.busy:
        it.step()
        for uid in ran:
            ran[uid] += bool(share(it.executor.plans[-1], uid))
        unfinished = [r for r in live if r.done is None]
        counts = [ran[r.uid] for r in unfinished]
        assert counts == sorted(counts, reverse=True)


def tree_tokens(prompts: list[list[int]]) -> int:
    """Tokens on the edges of the prompts' radix tree: the fewest anyone must compute."""
    return len({tuple(p[: i + 1]) for p in prompts for i in range(len(p))})


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_longest_prefix_first_computes_each_shared_token_once(seed):
    """Theorem 3.1 of SGLang: with room for the longest request, this order is optimal. What it
    gives beyond the tree is one token a request whose prompt was found whole."""
    rng = random.Random(seed)
    heads = [words(rng, rng.randrange(5, 30)) for _ in range(4)]
    prompts = [
        rng.choice(heads)[: rng.randrange(5, 30)] + words(rng, rng.randrange(1, 10))
        for _ in range(30)
    ]
    rng.shuffle(prompts)
    longest = max(map(len, prompts)) + 1
    it = engine(pages=longest, tokens=32, requests=1, longest_prefix=True)
    for uid, prompt in enumerate(prompts):
        submit(it, uid, prompt, 1)
    finish(it)
    computed = sum(plan.tokens for plan in it.executor.plans)
    whole = sum(
        any(p[: len(q)] == q and (p != q or i != j) for i, p in enumerate(prompts))
        for j, q in enumerate(prompts)
    )
    assert tree_tokens(prompts) <= computed <= tree_tokens(prompts) + whole


@pytest.mark.parametrize("page", [1, 4, 16])
def test_requests_that_arrive_together_compute_their_prefix_once(page):
    rng = random.Random(3)
    head = words(rng, 96)
    it = engine(page=page, pages=2000 // page, tokens=40)
    prompts = [head + words(rng, 8) for _ in range(10)]
    for uid, prompt in enumerate(prompts):
        submit(it, uid, prompt, 3)
    got = finish(it)
    assert all(got[uid] == expected(prompt, 3) for uid, prompt in enumerate(prompts))
    chunks = [c for p in it.executor.plans for lane in p.lanes for c in lane]
    prefill = sum(c.length for c in chunks if c.start < c.prompt)
    assert prefill == 96 + 10 * 8
    assert it.stats().hit_tokens == 9 * 96


def test_an_urgent_request_takes_the_pages_of_a_lesser_one():
    rng = random.Random(4)
    it = engine(pages=40, tokens=32)
    slow = submit(it, 0, words(rng, 20), 15, priority=5)
    for _ in range(3):
        it.step()
    urgent = submit(it, 1, words(rng, 30), 4, priority=0)
    prompts = {r.uid: r.tokens[: r.prompt] for r in (slow, urgent)}
    already = slow.settled - slow.prompt
    got = finish(it)
    assert slow.preempted == 1 and urgent.preempted == 0
    assert got[1] == expected(prompts[1], 4)
    assert got[0] == expected(prompts[0], 15)[already:]
    assert it.stats().preemptions == 1


def test_one_that_can_never_fit_ends_at_once_and_says_so():
    it = engine(pages=10)
    submit(it, 0, [1, 2, 3], 8)
    (delta,) = it.step()
    assert delta.done == "error" and "11" in delta.error and "10" in delta.error
    assert not it.busy


def test_an_overlapped_decode_is_planned_before_its_token_is_known():
    it = engine(depth=2)
    submit(it, 0, [3, 4], 6)
    finish(it)
    decodes = [c for p in it.executor.plans for lane in p.lanes for c in lane if c.start >= 2]
    assert decodes and all(c.ids == [] for c in decodes)
    assert sum(c.sample is not None for p in it.executor.plans for ln in p.lanes for c in ln) == 6
