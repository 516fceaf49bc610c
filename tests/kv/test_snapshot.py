"""What sinks to the coldest tier is found by the next cache; what is not a tree is refused."""

import random

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.audit import audit
from tests.whim import Whim
from weir.core import Move, Page, Request, Sampling, Tier
from weir.kv import snapshot
from weir.kv.cache import Cache


def request(uid: int, tokens: list[int]) -> Request:
    return Request(uid, list(tokens), Sampling(), 0.0)


class Contents:
    """What the pages of a cache hold: a page of some tokens holds all tokens up to its end."""

    def __init__(self, cache: Cache):
        self.cache = cache
        self.of: dict[Page, tuple[int, ...]] = {}

    def apply(self, moves: list[Move]) -> None:
        for src, dst in moves:
            self.of[dst] = self.of[src]

    def run(self, r: Request, upto: int) -> bool:
        """Attach, reserve and compute as a plan would; False if there is no room."""
        moves: list[Move] = []
        self.cache.attach(r, self.cache.hot, moves)
        fits = self.cache.grow(r, max(upto, r.computed + 1), self.cache.hot, moves)
        self.apply(moves)
        page = self.cache.page
        for at in range(r.computed // page):
            assert self.of[r.pages[at]] == tuple(r.tokens[: (at + 1) * page])
        if not fits:
            self.cache.release(r)
            return False
        for at in range(r.computed // page, len(r.pages)):
            self.of[r.pages[at]] = tuple(r.tokens[: (at + 1) * page])
        r.computed = max(upto, r.computed + 1)
        return True


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 4]))
def test_the_next_cache_finds_what_sank(seed: int, page: int) -> None:
    rng = random.Random(seed)
    sizes = {Tier.CPU: 24, Tier.DISK: rng.randrange(1, 60)}
    if rng.random() < 0.3:
        sizes[Tier.GPU] = 24
    cache = Cache(page, sizes, below=rng.choice([None, Whim(rng, 0.5, 1.0, 1.0)]))
    contents, live, seen = Contents(cache), dict[int, Request](), []
    for uid in range(100):
        if rng.random() < 0.6 or not live:
            tokens = [rng.randrange(1, 3) for _ in range(rng.randrange(1, 24))]
            seen.append(tokens)
            r = request(uid, tokens)
            if contents.run(r, rng.randrange(1, len(tokens) + 1)):
                live[uid] = r
        else:
            cache.release(live.pop(rng.choice(list(live))))
        audit(cache, live.values())
    for r in live.values():
        cache.release(r)
    held = dict(cache.tree.held)
    moves: list[Move] = []
    cache.demote_all(moves)
    contents.apply(moves)
    audit(cache)
    coldest = cache.tree.held[Tier.DISK]
    assert coldest == sum(cache.tree.held.values())
    assert coldest == min(sizes[Tier.DISK], sum(held.values()))
    pages, kept = snapshot.take(cache)
    assert len(pages) == len(set(pages)) == coldest

    after = Cache(page, sizes)
    assert snapshot.restore(after, kept) == coldest * page
    audit(after)
    again = Contents(after)
    again.of = {key: value for key, value in contents.of.items() if key.tier == Tier.DISK}
    wanted = [request(uid, [*tokens, 99]) for uid, tokens in enumerate(seen)]
    assert [after.known(r) for r in wanted] == [cache.known(r) for r in wanted]
    for r in wanted[:12]:
        if again.run(r, len(r.tokens)):
            after.release(r)
            audit(after)
    assert snapshot.take(Cache(page, sizes))[0] == []


def test_the_latest_used_sink_when_there_is_not_room_for_all() -> None:
    cache = Cache(1, {Tier.CPU: 8, Tier.DISK: 3})
    for tokens in ([1, 2, 3, 4], [5, 6, 7]):
        r = request(0, tokens)
        cache.attach(r, Tier.CPU, [])
        assert cache.grow(r, len(tokens), Tier.CPU, [])
        r.computed = len(tokens)
        cache.release(r)
    moves: list[Move] = []
    cache.demote_all(moves)
    assert cache.known(request(1, [5, 6, 7, 0])) == 3
    assert cache.known(request(1, [1, 2, 3, 4, 0])) == 0
    assert cache.saved[Tier.DISK] >= 3 and cache.loaded[Tier.DISK] == 0
    again = request(1, [5, 6, 7, 0])
    cache.attach(again, Tier.CPU, moves)
    assert again.computed == 3 and cache.loaded[Tier.DISK] == 3
    cache.release(again)


def test_what_is_not_worth_loading_is_computed_again() -> None:
    cache = Cache(1, {Tier.CPU: 4, Tier.DISK: 8}, below=Whim(random.Random(0), 0.0, 1.0, 1.0))
    contents = Contents(cache)
    for tokens in ([1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4]):
        r = request(0, tokens)
        assert contents.run(r, 4)
        assert len(contents.of) and cache.loaded[Tier.DISK] == 0
        cache.release(r)
        audit(cache)
    assert cache.tree.held == {Tier.CPU: 4, Tier.DISK: 4}  # computed again, and hot again
    r = request(0, [1, 2, 3, 4, 5])
    cache.attach(r, Tier.CPU, [])
    assert r.computed == 4
    cache.release(r)


def test_the_order_of_use_is_kept() -> None:
    cache = Cache(1, {Tier.CPU: 8, Tier.DISK: 8})
    for tokens in ([1, 2], [3, 4], [5, 6], [3, 4]):
        r = request(0, tokens)
        cache.attach(r, Tier.CPU, [])
        assert cache.grow(r, 2, Tier.CPU, [])
        r.computed = 2
        cache.release(r)
    cache.demote_all([])
    after = Cache(1, {Tier.CPU: 8, Tier.DISK: 8})
    snapshot.restore(after, snapshot.take(cache)[1])
    gone = []
    while (node := after.tree.coldest(Tier.DISK, 1)) is not None:
        gone += node.key
        after._give(after.tree.drop(node))
    assert gone == [2, 1, 6, 5, 4, 3]


@pytest.mark.parametrize(
    "edges",
    [
        [(1, [1, 2], [0])],  # below itself
        [(0, [1, 2], [9])],  # no such page
        [(0, [1, 2], [0]), (0, [3, 4], [0])],  # a page twice
        [(0, [1, 2], [0]), (0, [1, 2], [1])],  # a prefix twice
        [(0, [1, 2, 3], [0])],  # not whole pages
        [(0, [], [])],
        "nonsense",
    ],
)
def test_what_is_no_tree_of_this_cache_is_refused(edges: object) -> None:
    cache = Cache(2, {Tier.CPU: 4, Tier.DISK: 4})
    kept = msgspec.msgpack.encode({"page": 2, "edges": edges})
    with pytest.raises(ValueError):
        snapshot.restore(cache, kept)
    audit(cache)
    with pytest.raises(ValueError, match="another size"):
        snapshot.restore(cache, msgspec.msgpack.encode({"page": 1, "edges": [(0, [1, 2], [0])]}))
    assert len(cache.pools[Tier.DISK].free) == 4
