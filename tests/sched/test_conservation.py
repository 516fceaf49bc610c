"""Random arrivals, policies, tiers, depths and aborts: no page lost or misread, same tokens."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sched.draw import a_scheduler, check
from tests.shadow import Shadow, expected
from weir.core import Request, Sampling
from weir.engine import Engine
from weir.executor.sim import VirtualClock


def build(rng: random.Random, page: int, depth: int, chains: bool, longest: int) -> Engine:
    """An engine of random policies over a shadow executor, with a pool that forces preemption."""
    scheduler = a_scheduler(rng, page, chains, longest)
    executor = Shadow(scheduler.capacity, depth=depth, chains=chains)
    return Engine(scheduler, executor, VirtualClock())


class Toy:
    """A grammar as the scheduler sees one: begins with given tokens, replaces some of the sampled
    tokens and forces others after them, is late with masks and with these at times, ends at 49.
    What it says is a function of the tokens alone."""

    def __init__(self, rng: random.Random, most: int):
        self.rng = rng  # says only how late it is
        self.most = most
        self.complete = False

    def begin(self) -> list[int]:
        return [3, 1, 4][: max(0, self.most - 1)]

    def mask(self, alone: bool = False) -> bytes | None:
        return None if self.rng.random() < 0.3 else b""

    def advance(self, token: int, alone: bool = False) -> list[int] | None:
        return None if self.rng.random() < 0.3 else self.said(token)

    def said(self, token: int) -> list[int]:
        self.complete = token == 49
        forced = [(token * n) % 48 + 1 for n in range(2, 2 + token % 4)] if token % 3 == 0 else []
        return [token + token % 2, *forced]

    def answer(self, prompt: list[int], most: int) -> tuple[list[int], str]:
        """What a request must produce, and how it ends."""
        made = self.begin()
        while len(made) < most:
            made += self.said(expected(prompt + made, 1)[0])
            if self.complete and len(made) <= most:
                return made, "stop"
        return made[:most], "length"


def work(rng: random.Random, count: int) -> list[tuple[int, list[int], int]]:
    """(arrival step, prompt, tokens wanted); half of the prompts share one of three heads."""
    heads = [[rng.randrange(1, 50) for _ in range(40)] for _ in range(3)]
    out = []
    for _ in range(count):
        head = rng.choice(heads)[: rng.randrange(41)] if rng.random() < 0.5 else []
        tail = [rng.randrange(1, 50) for _ in range(rng.randrange(1, 30))]
        out.append((rng.randrange(0, 30), head + tail, rng.randrange(0, 20)))
    return out


def drive(engine: Engine, items, aborts: dict[int, int], stop: int | None = None, rng=None):
    """Run to the end; returns uid → (tokens, how it ended)."""
    got: dict[int, list[int]] = {uid: [] for uid in range(len(items))}
    done: dict[int, str] = {}
    step = 0
    while step < 30000:  # one token a step, ageing and no room for two take thousands
        for uid, (arrival, prompt, wanted) in enumerate(items):
            if arrival == step:
                stops = [] if stop is None else [stop]
                r = Request(
                    uid,
                    list(prompt),
                    Sampling(max_tokens=wanted, stops=stops),
                    float(step),
                    priority=uid % 5 == 0,
                    user="abc"[uid % 3],
                    program=["", "p", "q"][uid % 3],
                )
                if rng is not None and uid % 2:
                    r.matcher = Toy(rng, r.sampling.max_tokens)
                engine.executor.requests[uid] = r.tokens
                engine.add(r)
        for uid, when in aborts.items():
            if when == step:
                engine.abort(uid)
        engine.clock.advance(float(step))
        for delta in engine.step():
            assert delta.uid not in done, "a delta after the end"
            got[delta.uid] += delta.tokens
            if delta.done:
                done[delta.uid] = delta.done
        check(engine.scheduler)
        step += 1
        if step > 30 and not engine.busy:
            break
    assert not engine.busy, "never finished"
    return got, done


@settings(max_examples=90, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 2, 4, 16]),
    st.sampled_from([(1, True), (2, True), (2, False), (3, True), (3, False)]),
)
def test_no_page_is_lost_and_tokens_do_not_depend_on_policy(seed, page, flight):
    rng = random.Random(seed)
    items = work(rng, 25)
    longest = max(len(prompt) + wanted for _, prompt, wanted in items)
    engine = build(rng, page, *flight, longest)
    got, done = drive(engine, items, {})
    for uid, (_, prompt, wanted) in enumerate(items):
        assert got[uid] == expected(prompt, wanted)
        assert done[uid] == "length"
    cache = engine.scheduler.cache
    assert cache.room(cache.hot) == cache.pools[cache.hot].size


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 4]),
    st.sampled_from([(1, True), (2, True), (3, False)]),
)
def test_aborts_and_stop_tokens_leave_nothing_behind(seed, page, flight):
    rng = random.Random(seed)
    items = work(rng, 25)
    longest = max(len(prompt) + wanted for _, prompt, wanted in items)
    engine = build(rng, page, *flight, longest)
    aborts = {uid: items[uid][0] + rng.randrange(0, 12) for uid in rng.sample(range(25), 12)}
    got, done = drive(engine, items, aborts, stop=7)
    for uid, (_, prompt, wanted) in enumerate(items):
        full = expected(prompt, wanted)
        if 7 in full:
            full = full[: full.index(7) + 1]
        assert got[uid] == full[: len(got[uid])]
        assert (done[uid] == "abort" and uid in aborts) or got[uid] == full
    cache = engine.scheduler.cache
    assert cache.room(cache.hot) == cache.pools[cache.hot].size
    assert not engine.scheduler.live and not engine.executor.tables


@settings(max_examples=90, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([1, 4, 16]),
    st.sampled_from([(1, True), (2, True), (2, False), (3, True)]),
)
def test_forced_tokens_do_not_depend_on_policy(seed, page, flight):
    """Every second request has a grammar: its tokens jump, the others' do not notice."""
    rng = random.Random(seed)
    items = work(rng, 25)
    longest = max(len(prompt) + wanted for _, prompt, wanted in items)
    engine = build(rng, page, *flight, longest)
    got, done = drive(engine, items, {}, rng=rng)
    for uid, (_, prompt, wanted) in enumerate(items):
        answer = Toy(rng, wanted).answer(prompt, wanted) if uid % 2 else None
        assert (got[uid], done[uid]) == (answer or (expected(prompt, wanted), "length"))
    cache = engine.scheduler.cache
    assert cache.room(cache.hot) == cache.pools[cache.hot].size


def test_same_arrivals_give_the_same_plans():
    for seed in range(20):
        plans = []
        for _ in range(2):
            rng = random.Random(seed)
            items = work(rng, 25)
            longest = max(len(prompt) + wanted for _, prompt, wanted in items)
            engine = build(rng, 4, 2, True, longest)
            drive(engine, items, {})
            plans.append(engine.executor.plans)
        assert plans[0] == plans[1]
