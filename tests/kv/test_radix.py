"""The radix tree and the cache alone: what is found, what goes first, who owns what."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.audit import audit
from weir.core import Move, Request, Sampling, Tier
from weir.kv.cache import Cache


def request(uid: int, tokens: list[int], **sampling) -> Request:
    return Request(uid, list(tokens), Sampling(**sampling), 0.0)


def fill(cache: Cache, r: Request, moves: list[Move] | None = None) -> None:
    """Attach, reserve and compute all of `r`, as a plan would."""
    moves = [] if moves is None else moves
    cache.attach(r, cache.hot, moves)
    assert cache.grow(r, len(r.tokens), cache.hot, moves)
    r.computed = len(r.tokens)


def pass_through(cache: Cache, tokens: list[int], uid: int = 0) -> int:
    """Compute a request to its end and let it go; returns the tokens it found cached."""
    r = request(uid, tokens)
    cache.attach(r, cache.hot, [])
    found = r.computed
    fill(cache, r)
    cache.release(r)
    audit(cache)
    return found


def test_a_prefix_is_found_in_whole_pages_and_one_token_is_left():
    cache = Cache(4, {Tier.CPU: 32})
    tokens = list(range(12))
    assert pass_through(cache, tokens) == 0
    assert pass_through(cache, tokens) == 8  # 11 tokens may match: two pages
    assert pass_through(cache, [*tokens, 99]) == 12
    assert pass_through(cache, [*tokens[:6], 50, 51]) == 4
    assert pass_through(cache, [7, *tokens]) == 0


def test_without_reuse_nothing_is_kept():
    cache = Cache(4, {Tier.CPU: 32}, reuse=False)
    assert pass_through(cache, list(range(12))) == 0
    assert pass_through(cache, list(range(12))) == 0
    assert len(cache.pools[Tier.CPU].free) == 32


def test_prompt_logprobs_and_mean_pooling_reach_behind_the_cache():
    cache = Cache(2, {Tier.CPU: 32})
    pass_through(cache, list(range(12)))
    for sampling, found in (
        ({"prompt_logprobs": 1}, 0),
        ({"prompt_logprobs": 1, "score_from": 7}, 6),
        ({"pool": "mean"}, 0),
        ({"pool": "last"}, 10),
    ):
        r = request(1, list(range(12)), **sampling)
        cache.attach(r, Tier.CPU, [])
        assert r.computed == found, sampling
        cache.release(r)


def test_siblings_in_one_plan_share_what_the_first_computes():
    cache = Cache(4, {Tier.CPU: 32})
    first, second = request(1, list(range(20))), request(2, [*range(16), 77, 78])
    fill(cache, first)
    cache.share(first, 20)
    cache.attach(second, Tier.CPU, [])
    assert second.computed == 16 and second.pages == first.pages[:4]
    audit(cache, [first, second])
    cache.release(first)
    audit(cache, [second])
    cache.release(second)
    audit(cache)


def test_the_least_recently_used_leaf_goes_first_and_only_as_far_as_needed():
    cache = Cache(1, {Tier.CPU: 12})
    pass_through(cache, [1, 2, 3, 4])
    pass_through(cache, [5, 6, 7, 8])
    pass_through(cache, [1, 2, 3, 4])  # now 5… is the oldest
    big = request(9, [9] * 6)
    cache.attach(big, Tier.CPU, [])
    assert cache.grow(big, 6, Tier.CPU, [])
    audit(cache, [big])
    assert cache.known(request(1, [1, 2, 3, 4, 0])) == 4
    assert cache.known(request(2, [5, 6, 7, 8, 0])) == 2  # only its tail was needed
    cache.release(big)


def test_a_locked_prefix_survives_pressure_and_refusal_takes_nothing():
    cache = Cache(1, {Tier.CPU: 8})
    pass_through(cache, [1, 2, 3, 4])
    holder = request(1, [1, 2, 3, 4, 5])
    cache.attach(holder, Tier.CPU, [])
    big = request(2, [9] * 5)
    cache.attach(big, Tier.CPU, [])
    assert not cache.grow(big, 5, Tier.CPU, [])
    assert big.pages == [] and cache.room(Tier.CPU) == 4
    assert cache.grow(big, 4, Tier.CPU, [])
    audit(cache, [holder, big])


def test_what_is_sent_to_a_colder_tier_leaves_a_shared_prefix_behind():
    cache = Cache(2, {Tier.GPU: 16, Tier.CPU: 16})
    other, r = request(1, [1, 2, 3, 4, 50, 51]), request(2, [1, 2, 3, 4, 60, 61, 62, 63, 64])
    fill(cache, other)
    cache.share(other, 6)
    fill(cache, r)
    cache.share(r, 9)
    r.sent = len(r.pages)
    before, moves = list(r.pages), []
    assert cache.send(r, Tier.CPU, moves)
    assert [page.tier for page in r.pages] == [Tier.GPU] * 2 + [Tier.CPU] * 3
    assert moves == [Move(src, dst) for src, dst in zip(before[2:], r.pages[2:], strict=True)]
    assert r.sent == 2, "the executor is told of the others again"
    audit(cache, [other, r])
    assert cache.grow(r, 11, Tier.CPU, [])
    cache.release(r)
    audit(cache, [other])
    assert cache.known(request(3, [1, 2, 3, 4, 60, 61, 62, 63, 0])) == 8
    full = request(4, [9] * 32)
    cache.attach(full, Tier.CPU, [])
    assert cache.grow(full, 32, Tier.CPU, [])
    assert not cache.send(other, Tier.CPU, moves) and other.pages[0].tier == Tier.GPU
    audit(cache, [other, full])


def test_eviction_moves_down_a_tier_and_a_hit_moves_back_up():
    cache = Cache(1, {Tier.GPU: 6, Tier.CPU: 6})
    pass_through(cache, [1, 2, 3, 4])
    moves: list[Move] = []
    big = request(2, [9] * 6)
    cache.attach(big, Tier.GPU, moves)
    assert cache.grow(big, 6, Tier.GPU, moves)
    assert len(moves) == 4 and all(m.dst.tier == Tier.CPU for m in moves)
    audit(cache, [big])
    cache.release(big)
    moves.clear()
    again = request(3, [1, 2, 3, 4, 5])
    cache.attach(again, Tier.GPU, moves)
    assert again.computed == 4 and all(p.tier == Tier.GPU for p in again.pages)
    assert [m.src.tier for m in moves if m.dst.tier == Tier.GPU] == [Tier.CPU] * 4
    audit(cache, [again])


def test_flush_keeps_what_is_in_use():
    cache = Cache(2, {Tier.CPU: 32})
    pass_through(cache, [1, 2, 3, 4, 5, 6])
    pass_through(cache, [7, 8, 9, 10])
    holder = request(1, [1, 2, 3, 4, 9])
    cache.attach(holder, Tier.CPU, [])
    cache.flush()
    audit(cache, [holder])
    assert cache.known(request(2, [1, 2, 3, 4, 0])) == 4
    assert cache.known(request(3, [7, 8, 9, 10, 0])) == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 4]))
def test_any_sequence_of_operations_keeps_every_page_owned_once(seed, page):
    rng = random.Random(seed)
    cache = Cache(page, {Tier.GPU: 24, Tier.CPU: rng.randrange(1, 30)}, reuse=rng.random() < 0.9)
    live: dict[int, Request] = {}
    for uid in range(120):
        act = rng.random()
        if act < 0.5 or not live:
            head = [rng.randrange(1, 3) for _ in range(rng.randrange(1, 24))]
            r = request(uid, head)
            moves: list[Move] = []
            cache.attach(r, rng.choice([Tier.GPU, Tier.CPU]), moves)
            upto = rng.randrange(r.computed + 1, len(r.tokens) + 1)
            if cache.grow(r, upto, Tier.GPU, moves):
                r.computed = upto
                if rng.random() < 0.5:
                    cache.share(r, upto)
                live[uid] = r
            else:
                cache.release(r)
        elif act < 0.6:
            r = rng.choice(list(live.values()))
            upto = rng.randrange(r.computed, len(r.tokens) + 1)
            if cache.grow(r, upto, rng.choice([Tier.GPU, Tier.CPU]), []):
                r.computed = upto
        elif act < 0.65:
            cache.flush()
        elif act < 0.7:
            cache.unpin(rng.choice("ab"))
        elif act < 0.75:
            if cache.pinned < 6:
                cache.pin(rng.choice("ab"), rng.choice(list(live.values())).tokens)
        else:
            cache.release(live.pop(rng.choice(list(live))))
        audit(cache, live.values())
    for r in live.values():
        cache.release(r)
    audit(cache)


def test_a_pinned_prefix_stays_until_it_is_let_go():
    cache = Cache(1, {Tier.GPU: 8, Tier.CPU: 20})
    pass_through(cache, [1, 2, 3, 4])
    cache.pin("system", [1, 2, 3, 9])
    audit(cache)
    assert cache.pinned == 3 and cache.room(Tier.GPU) == 5
    assert cache.pinnable(4) == 1 and cache.pinnable(6) == -1
    cache.pin("twin", [1, 2, 3, 4])
    assert cache.pinned == 4  # what two share counts once
    cache.unpin("twin")
    big = request(2, [7] * 6)
    cache.attach(big, Tier.GPU, [])
    assert not cache.grow(big, 6, Tier.GPU, []) and cache.grow(big, 5, Tier.GPU, [])
    audit(cache, [big])
    cache.release(big)
    cache.flush()
    assert cache.known(request(3, [1, 2, 3, 0])) == 3
    cache.unpin("system"), cache.unpin("nobody")
    cache.flush()
    assert cache.pinned == 0 and cache.room(Tier.GPU) == 8
    audit(cache)


def test_what_was_brought_from_each_tier_is_told_and_a_victim_comes_back_by_loading():
    cache = Cache(1, {Tier.GPU: 6, Tier.CPU: 6, Tier.DISK: 20}, loads={Tier.CPU: 2, Tier.DISK: 9})
    victim = request(1, [1, 2, 3, 4, 5])
    fill(cache, victim)
    cache.release(victim)  # a preemption is no more than this
    big, moves = request(2, [9] * 6), list[Move]()
    fill(cache, big, moves)
    assert [(m.src.tier, m.dst.tier) for m in moves] == [(Tier.GPU, Tier.CPU)] * 5
    cache.release(big)
    again, tries = request(1, [1, 2, 3, 4, 5, 6]), 0
    cache.begin()
    while not cache.attach(again, Tier.GPU, []):
        assert again.computed == 2 * (tries + 1)
        audit(cache, [again])
        cache.begin()
        tries += 1
    assert tries == 2 and again.computed == 5 and again.loaded == {Tier.CPU: 5}
    cache.release(again)
    audit(cache)
    cache.disable(Tier.DISK)
    audit(cache)
    assert cache.tiers == [Tier.GPU, Tier.CPU] and cache.room(Tier.DISK) == 0


def test_no_more_sinks_than_is_needed_also_above_what_has_sunk():
    cache = Cache(1, {Tier.GPU: 8, Tier.CPU: 20})
    pass_through(cache, [1, 2, 3, 4, 5, 6, 7])
    for uid in range(3):
        moves: list[Move] = []
        r = request(uid, [10 + uid])
        cache.attach(r, Tier.GPU, moves)
        assert cache.grow(r, 1, Tier.GPU, moves)
        assert [m.dst.tier for m in moves] == [Tier.CPU] * (uid > 0)
        audit(cache, [r])
        cache.release(r)  # computed nothing: its page is free
        r = request(uid, [10 + uid])
        fill(cache, r)
        cache.release(r)
        audit(cache)


@pytest.mark.parametrize("hits", [0, 1])
def test_while_nothing_comes_back_the_oldest_of_what_one_plan_may_sink_are_dropped(hits):
    cache = Cache(1, {Tier.GPU: 6, Tier.CPU: 12}, loads={Tier.CPU: 4})
    cache.saved[Tier.CPU], cache.found[Tier.CPU] = 40, hits
    for first in (10, 20):
        cache.begin()
        pass_through(cache, [first, first + 1, first + 2])
    cache.begin()
    newcomer, moves = request(2, [*range(30, 36)]), []
    fill(cache, newcomer, moves)
    assert len(moves) == cache.saved[Tier.CPU] - 40 == (6 if hits else 4)
    kept = [cache.known(request(3, [*range(first, first + 4)])) for first in (10, 20)]
    assert kept == [3 if hits else 1, 3], "of the older prefix the end is dropped"
    audit(cache, [newcomer])
