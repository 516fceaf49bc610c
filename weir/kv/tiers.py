"""Who owns the pages of each tier, how room is made there, and what is moved between them.

Pools of free pages, and a tree that holds all others but those of running requests. Knows nodes and
page numbers; no request, no tensor.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from weir.core import Move, Page, Tier
from weir.kv.radix import Node, Radix

PROOF = 50
"""Tokens brought to main memory, besides as many as the first tier holds, for one that comes back:
if it is less, plans do not wait for them."""


class Pool:
    """Hands out page numbers of one tier. The most recently freed go out first: they are warm."""

    __slots__ = ("free", "size", "tier")

    def __init__(self, tier: Tier, size: int):
        self.tier = tier
        self.size = size
        self.free = list(range(size - 1, -1, -1))

    def take(self, count: int) -> list[Page]:
        """`count` pages. The caller has checked that so many are free."""
        assert count <= len(self.free), "took more pages than are free"
        tier, free = self.tier, self.free
        return [Page(tier, free.pop()) for _ in range(count)]


class Below(Protocol):
    """What is known of the tiers that attention cannot read."""

    def worth(self, tier: int) -> bool:
        """Is a prefix on this tier worth loading, rather than computed again?"""
        ...

    def ready(self, tier: int, pages: Sequence[int]) -> bool:
        """Can these pages of the tier be loaded now?"""
        ...

    def accepts(self, tier: int) -> bool:
        """Can pages be brought there now, rather than dropped?"""
        ...


class Tiers:
    """A radix tree over one pool a tier.

    page: tokens a page. sizes: pages of each tier. below: what is known of colder tiers; None: they
    are always at hand, and worth loading from. loads: most pages that are brought from a tier
    between two calls of `begin`; else any number. While hardly any of what was brought to main
    memory is found again, no more than that goes there either, and the oldest of more are dropped.
    Every list of moves is appended to in the order the moves must happen.
    """

    def __init__(
        self,
        page: int,
        sizes: Mapping[Tier, int],
        below: Below | None = None,
        loads: Mapping[int, int] | None = None,
    ):
        self.page = page
        self.below = below
        self.loads = loads or {}
        self.left: dict[int, int] = {}  # of `loads`, until the next plan
        self.sinks: dict[int, int] = {}  # the same of what is brought there
        self.loaded = {int(tier): 0 for tier in sizes}  # tokens brought from each tier for a hit
        self.found = dict(self.loaded)  # of them, by requests that had not run before
        self.saved = {int(tier): 0 for tier in sizes}  # tokens brought to each tier, not dropped
        self.tiers = sorted(sizes)
        self.hot = self.tiers[0]
        self.pins: dict[str, Node] = {}  # name → deepest node, locked as by a request
        self.pools = {int(tier): Pool(tier, size) for tier, size in sizes.items()}
        self.tree = Radix(page, self.tiers)

    def begin(self) -> None:
        """A plan begins."""
        self.left = dict(self.loads)
        cold, saved = int(Tier.CPU), self.saved.get(Tier.CPU, 0)
        useless = saved > PROOF * self.found.get(cold, 0) + self.pools[self.hot].size * self.page
        self.sinks = {cold: self.loads[cold]} if useless and cold in self.loads else {}

    def pages(self, tokens: int) -> int:
        """Pages that so many tokens need."""
        return -(-tokens // self.page)

    def room(self, tier: Tier) -> int:
        """Pages of `tier` that can be had: free, or held by the tree alone."""
        return len(self.pools[tier].free) + self.tree.unlocked[tier]

    # -- pinned prefixes, and dropping the others -------------------------------------------

    def pin(self, name: str, tokens: Sequence[int]) -> None:
        """Keep what the first tier holds of `tokens` until `unpin`. A name is of one prefix."""
        self.unpin(name)
        node, _ = self.tree.walk(tokens, len(tokens), self.tree.root, 0)
        while node.parent is not None and node.tier != self.hot:
            node = node.parent
        self.tree.lock(node)
        self.pins[name] = node

    def unpin(self, name: str) -> None:
        """Let go of a pinned prefix, if there is one of that name."""
        if name in self.pins:
            self.tree.unlock(self.pins.pop(name))

    @property
    def pinned(self) -> int:
        """Pages that are pinned."""
        return self._pinned(self.pins.values())

    def pinnable(self, context: int, name: str = "") -> int:
        """Pages that may be pinned besides: half of the first tier, and room is left for a sequence
        of `context` tokens. name: of what is pinned, this takes the place of."""
        size = self.pools[self.hot].size
        others = self._pinned(node for pin, node in self.pins.items() if pin != name)
        return min(size // 2, size - self.pages(context)) - others

    def _pinned(self, nodes: Iterable[Node]) -> int:
        paths = (self.tree.path(node, self.tree.root) for node in nodes)
        return sum(len(node.pages) for node in {node for path in paths for node in path})

    def flush(self) -> None:
        """Drop every prefix that nobody uses."""
        tree = self.tree
        for node in [n for n in tree.nodes() if not n.locks and n.parent and n.parent.locks]:
            self._give(tree.drop(node))

    def forsake(self, tier: Tier) -> None:
        """Drop all that the coldest tier holds, and use it no more."""
        assert tier == self.tiers[-1] != self.hot
        for node in [node for node in self.tree.nodes() if node.tier == tier]:
            if node.alive:  # its parent may have gone with all below it
                self._give(self.tree.drop(node))
        self.tiers.remove(tier)
        self.pools[tier] = Pool(tier, 0)

    def sink(self, moves: list[Move]) -> None:
        """At the end, bring every prefix that nobody uses to the coldest tier, the latest used as
        far as there is room."""
        for name in list(self.pins):
            self.unpin(name)
        self.below, self.sinks = None, {}  # whoever takes them may be waited for
        for tier in self.tiers[:-1]:
            self._evict(tier, self.room(tier), moves)

    # -- what is moved ----------------------------------------------------------------------

    def _bring(self, node: Node, moves: list[Move]) -> tuple[Node | None, bool]:
        """Warm what of a cold node, locked for one request alone, may be loaded in this plan.
        Returns the node that holds it, None if there is none, and False if more can be had in the
        next plan."""
        if node.locks > 1:  # where another request attends to it, it stays
            return None, True
        if self.below is not None and not self.below.worth(node.tier):
            return None, True
        most = self._loadable(node)
        whole = most == len(node.pages)
        if not most:
            return None, False
        if not whole:
            node = self.tree.split(node, most * self.page)
        return (node, whole) if self._warm(node, moves) else (None, True)

    def _loadable(self, node: Node) -> int:
        """Pages of a cold node that this plan may load."""
        most = min(len(node.pages), self.left.get(node.tier, len(node.pages)))
        some = [page.index for page in node.pages[:most]]
        at_hand = self.below is None or not some or self.below.ready(node.tier, some)
        return most if at_hand else 0

    def _warm(self, node: Node, moves: list[Move]) -> bool:
        """Bring a locked node as near as the order of tiers lets it be."""
        above = node.parent.pages if node.parent else []
        home = Tier(above[0].tier) if above else self.hot
        pages = self._take(home, len(node.pages), moves)
        if pages is None:
            return False
        self.loaded[node.tier] += len(node.key)
        if node.tier in self.left:
            self.left[node.tier] -= len(pages)
        self._move(node, pages, moves)
        return True

    def _take(self, tier: Tier, count: int, moves: list[Move]) -> list[Page] | None:
        pool = self.pools[tier]
        if len(pool.free) < count:
            if self.room(tier) < count:
                return None
            self._evict(tier, count, moves)
        return pool.take(count)

    def _evict(self, tier: Tier, count: int, moves: list[Move]) -> None:
        """Free `count` pages of `tier`: the least recently used go a tier down, or are dropped."""
        pool = self.pools[tier]
        colder = next((t for t in self.tiers if t > tier), None)
        if colder is not None and self.below is not None and not self.below.accepts(colder):
            colder = None
        while (lacking := count - len(pool.free)) > 0:
            over = 0 if colder is None else lacking - self.sinks.get(colder, lacking)
            node = self.tree.coldest(tier, over if over > 0 else lacking)
            assert node is not None, "the tree counts pages that it cannot give up"
            pages = None
            if colder is not None and over <= 0:
                pages = self._take(colder, len(node.pages), moves)
            if colder is None or pages is None:
                self._give(self.tree.drop(node))
            else:
                if colder in self.sinks:
                    self.sinks[colder] -= len(pages)
                self.saved[colder] += len(node.key)
                self._move(node, pages, moves)

    def _move(self, node: Node, pages: list[Page], moves: list[Move]) -> None:
        moves += map(Move, node.pages, pages)
        self._give(self.tree.retier(node, pages))

    def _give(self, pages: Iterable[Page]) -> None:
        for page in pages:
            self.pools[page.tier].free.append(page.index)
