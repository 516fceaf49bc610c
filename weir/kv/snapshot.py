"""Saves and restores the part of a radix tree on its coldest tier, so a disk cache survives a
restart.

The caller stores the bytes and the pages, and checks that they are intact.
"""

import msgspec
from msgspec import Struct

from weir.core import Page, Tier
from weir.kv.cache import Cache
from weir.kv.radix import Node


class Edge(Struct, frozen=True, array_like=True):
    parent: int  # 1 + index of the edge above; 0: the root
    key: list[int]
    pages: list[int]
    used: int = 0  # later is larger


class Snapshot(Struct, frozen=True):
    page: int  # tokens a page
    edges: list[Edge]  # none before its parent


def take(cache: Cache) -> tuple[list[int], bytes]:
    """The page numbers on the coldest tier whose whole path lies there, and their `Snapshot`."""
    tier, places, edges = cache.tiers[-1], {id(cache.tree.root): 0}, list[Edge]()
    for node in _parents_first(cache, tier):
        assert node.parent is not None
        pages = [page.index for page in node.pages]
        edges.append(Edge(places[id(node.parent)], list(node.key), pages, node.used))
        places[id(node)] = len(edges)
    used = [index for edge in edges for index in edge.pages]
    return used, msgspec.msgpack.encode(Snapshot(cache.page, edges))


def restore(cache: Cache, kept: bytes) -> int:
    """Restore a snapshot into an empty cache. Returns its tokens.

    Raises ValueError, with the cache unchanged, if the snapshot does not fit this cache."""
    try:
        snapshot = msgspec.msgpack.decode(kept, type=Snapshot)
    except msgspec.DecodeError as error:
        raise ValueError(str(error)) from None
    tier, pool = cache.tiers[-1], cache.pools[cache.tiers[-1]]
    used = [index for edge in snapshot.edges for index in edge.pages]
    _check(snapshot, cache.page)
    if len(set(used)) < len(used) or any(not 0 <= index < pool.size for index in used):
        raise ValueError("pages that do not exist, or twice")
    taken = set(used)
    pool.free = [index for index in pool.free if index not in taken]
    nodes = [cache.tree.root]
    for edge in snapshot.edges:
        pages = [Page(tier, index) for index in edge.pages]
        nodes.append(cache.tree.insert(nodes[edge.parent], tuple(edge.key), pages))
    for node, _ in sorted(zip(nodes[1:], snapshot.edges, strict=True), key=lambda two: two[1].used):
        cache.tree.touch(node)
    return len(used) * cache.page


def _check(snapshot: Snapshot, page: int) -> None:
    """Raise ValueError unless the edges are those of a radix tree with such pages."""
    begins = set()
    for place, edge in enumerate(snapshot.edges):
        begin = (edge.parent, tuple(edge.key[:page]))
        if not 0 <= edge.parent <= place or begin in begins:
            raise ValueError("edges that are not a tree")
        if not edge.pages or len(edge.key) != len(edge.pages) * page or snapshot.page != page:
            raise ValueError("pages of another size")
        begins.add(begin)


def _parents_first(cache: Cache, tier: Tier) -> list[Node]:
    """Nodes of the tier whose whole path lies there, each after its parent."""
    found = [node for node in cache.tree.root.children.values() if node.tier == tier]
    for node in found:  # grows meanwhile
        found += node.children.values()
    return found
