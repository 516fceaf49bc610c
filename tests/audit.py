"""What must hold of a cache between any two calls."""

from collections import Counter
from collections.abc import Iterable

from weir.core import Request
from weir.kv.cache import Cache


def audit(cache: Cache, live: Iterable[Request] = ()) -> None:
    """Assert that every page is owned once, that locks are exactly the leases of `live` and the
    pins, that tiers only get colder, and that the counts agree. Walks everything."""
    tree, pools = cache.tree, cache.pools
    owned: dict[int, list[int]] = {tier: list(pool.free) for tier, pool in pools.items()}
    locks: Counter[int] = Counter()
    for node in cache.pins.values():
        path = tree.path(node, tree.root)
        locks.update(map(id, path))
        assert all(step.tier == min(pools) for step in path), "what is pinned has sunk"
    for r in live:
        if r.lease is not None:
            path = tree.path(r.lease, tree.root)
            locks.update(map(id, path))
            held_pages = sum(len(step.pages) for step in path)
            assert held_pages == r.shared, "a lease covers other pages than it says"
        for page in r.pages[r.shared :]:
            owned[page.tier].append(page.index)
    unlocked = dict.fromkeys(tree.unlocked, 0)
    held = dict.fromkeys(tree.held, 0)
    for node in tree.nodes():
        assert len(node.key) == len(node.pages) * tree.page and node.alive
        assert len({page.tier for page in node.pages}) == 1
        assert node.parent is not None
        assert not node.parent.pages or node.parent.tier <= node.tier, "a child is hotter"
        assert node.locks == locks[id(node)], "a lock without a lease, or the reverse"
        held[node.tier] += len(node.pages)
        unlocked[node.tier] += 0 if node.locks else len(node.pages)
        for page in node.pages:
            owned[page.tier].append(page.index)
    assert unlocked == tree.unlocked and held == tree.held
    for tier, pool in pools.items():
        assert sorted(owned[tier]) == list(range(pool.size)), f"pages of tier {tier} lost or twice"
