"""A radix tree from token prefixes to KV pages (SGLang section 3, with whole pages on the edges).

A node covers one or more whole pages; children are found by the tokens of their first page. A
locked node is neither moved nor evicted. Locking a node locks its whole path, so everything below
an unlocked node is unlocked. Down from the root, tiers only get colder.

The tree knows neither requests nor pools. It keeps the evictable leaves of each tier in a heap by
last use, so that eviction never searches the tree.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from weir.core import Page, Tier


class Node:
    """key: its tokens, as many as its pages hold. pages: of one tier. locks: requests and pins that
    use it or a node below it. used: when it was last used, in ticks of the tree. alive: whether it
    is in the tree."""

    __slots__ = ("alive", "children", "key", "locks", "pages", "parent", "used")

    def __init__(self, key: tuple[int, ...], pages: list[Page], parent: Node | None):
        self.key = key
        self.pages = pages
        self.parent = parent
        self.children: dict[tuple[int, ...], Node] = {}
        self.locks = 0
        self.used = 0
        self.alive = True

    @property
    def tier(self) -> int:
        return self.pages[0].tier


class Radix:
    """page: tokens per page. tiers: of the pages that it may hold."""

    def __init__(self, page: int, tiers: Sequence[Tier]):
        self.page = page
        self.root = Node((), [], None)
        self.root.locks = 1
        self.unlocked = {int(tier): 0 for tier in tiers}  # unlocked pages of each tier
        self.held = {int(tier): 0 for tier in tiers}  # pages of each tier in the tree
        self._tick = 0
        self._leaves: dict[int, list[tuple[int, int, Node]]] = {int(tier): [] for tier in tiers}
        self._serial = 0  # ties in the heap; nodes do not compare

    # -- finding -------------------------------------------------------------------------------

    def walk(self, tokens: Sequence[int], limit: int, node: Node, at: int) -> tuple[Node, int]:
        """Go down from `node`, which ends at position `at`, as far as `tokens[:limit]` matches.

        Returns the deepest node reached and the position where it ends, in whole pages. A node that
        matches only in part is split."""
        for child, end in self.trace(tokens, limit, node, at):
            if end - at < len(child.key):
                child = self.split(child, end - at)
            node, at = child, end
        return node, at

    def trace(
        self, tokens: Sequence[int], limit: int, node: Node, at: int
    ) -> Iterator[tuple[Node, int]]:
        """The nodes that `walk` would visit, each with the position up to which it matches; the
        last may match only in part. Changes nothing."""
        page, whole = self.page, True
        while whole and at + page <= limit:
            child = node.children.get(tuple(tokens[at : at + page]))
            if child is None:
                break
            same = self._common(child.key, tokens, at, limit)
            node, at, whole = child, at + same, same == len(child.key)
            yield node, at

    def _common(self, key: tuple[int, ...], tokens: Sequence[int], at: int, limit: int) -> int:
        """Tokens of the whole pages that `key` and `tokens[at:limit]` share: at least one page."""
        page = self.page
        most = min(len(key), (limit - at) // page * page)
        if key[:most] == tuple(tokens[at : at + most]):
            return most
        low = page  # known to be equal
        while key[low : low + page] == tuple(tokens[at + low : at + low + page]):
            low += page
        return low

    def path(self, node: Node, above: Node) -> list[Node]:
        """Nodes from just below `above`, an ancestor, down to `node`."""
        nodes = []
        while node is not above:
            nodes.append(node)
            assert node.parent is not None
            node = node.parent
        nodes.reverse()
        return nodes

    def nodes(self) -> Iterator[Node]:
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    # -- changing ------------------------------------------------------------------------------

    def insert(self, parent: Node, key: tuple[int, ...], pages: list[Page]) -> Node:
        """Add an unlocked child. No other child may start with the same page: `walk` first."""
        node = Node(key, pages, parent)
        self.touch(node)
        parent.children[key[: self.page]] = node
        self.unlocked[node.tier] += len(pages)
        self.held[node.tier] += len(pages)
        self._offer(node)
        return node

    def split(self, node: Node, at: int) -> Node:
        """Cut `node` after `at` tokens (whole pages) and return the new upper part. The lower part
        keeps its identity, so leases on it still name their deepest node."""
        page = self.page
        assert node.parent is not None
        top = Node(node.key[:at], node.pages[: at // page], node.parent)
        top.locks, top.used = node.locks, node.used
        node.parent.children[top.key[:page]] = top
        node.key, node.pages, node.parent = node.key[at:], node.pages[at // page :], top
        top.children[node.key[:page]] = node
        return top

    def lock(self, node: Node) -> None:
        """Lock a node and its path."""
        while node.parent is not None:
            if node.locks == 0:
                self.unlocked[node.tier] -= len(node.pages)
            node.locks += 1
            node = node.parent

    def unlock(self, node: Node) -> None:
        """Undo one `lock`; the nodes that are free now count as used just before."""
        self.touch(node)
        while node.parent is not None:
            node.locks -= 1
            if node.locks == 0:
                self.unlocked[node.tier] += len(node.pages)
                node.used = self._tick
                self._offer(node)
            node = node.parent

    def touch(self, node: Node) -> None:
        """Make a node the most recently used."""
        self._tick += 1
        node.used = self._tick

    def retier(self, node: Node, pages: list[Page]) -> list[Page]:
        """Give a node other pages; returns the old ones."""
        old = node.pages
        for mine, sign in ((old, -1), (pages, +1)):
            self.held[mine[0].tier] += sign * len(mine)
            if node.locks == 0:
                self.unlocked[mine[0].tier] += sign * len(mine)
        node.pages = pages
        self._offer(node)
        if node.parent is not None:
            self._offer(node.parent)
        return old

    def drop(self, node: Node) -> list[Page]:
        """Remove an unlocked node and everything below it; returns their pages."""
        assert node.locks == 0 and node.parent is not None, "dropped a node in use"
        pages: list[Page] = []
        stack = [node]
        while stack:
            gone = stack.pop()
            gone.alive = False
            pages += gone.pages
            self.unlocked[gone.tier] -= len(gone.pages)
            self.held[gone.tier] -= len(gone.pages)
            stack.extend(gone.children.values())
        del node.parent.children[node.key[: self.page]]
        self._offer(node.parent)
        return pages

    # -- evicting ------------------------------------------------------------------------------

    def coldest(self, tier: int, count: int) -> Node | None:
        """The least recently used evictable node of `tier`, cut down to its last `count` pages."""
        leaves = self._leaves[tier]
        while leaves:
            used, _, node = leaves[0]
            if not self._evictable(node, tier):
                heapq.heappop(leaves)
            elif node.used != used:
                heapq.heapreplace(leaves, self._entry(node))
            else:
                if len(node.pages) > count:
                    self.split(node, (len(node.pages) - count) * self.page)
                return node
        return None

    def _evictable(self, node: Node, tier: int) -> bool:
        return (
            node.alive
            and node.locks == 0
            and node.tier == tier
            and all(child.tier > tier for child in node.children.values())
        )

    def _entry(self, node: Node) -> tuple[int, int, Node]:
        self._serial += 1
        return node.used, self._serial, node

    def _offer(self, node: Node) -> None:
        """Add a node that may have become evictable to the heap; stale entries are skipped
        later."""
        if node.parent is None or not self._evictable(node, node.tier):
            return
        leaves = self._leaves[node.tier]
        heapq.heappush(leaves, self._entry(node))
        if len(leaves) > 64 + 4 * self.held[node.tier]:
            fresh = {id(entry[2]): entry[2] for entry in leaves}
            leaves[:] = [self._entry(n) for n in fresh.values() if self._evictable(n, node.tier)]
            heapq.heapify(leaves)
