"""Pools of free pages, the radix tree over the cached ones, eviction, and moves between tiers.

Knows nodes and page numbers, no requests and no tensors.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from weir.core import Move, Page, Tier
from weir.kv.radix import Node, Radix

PROOF = 50
"""Saving to main memory is useful while at least one in so many saved tokens is found again. This
is not judged before as many tokens were saved as the first tier holds."""


class Pool:
    """The free page numbers of one tier. Those freed last, which CPU caches may still hold,
    are taken first."""

    __slots__ = ("free", "size", "tier")

    def __init__(self, tier: Tier, size: int):
        self.tier = tier
        self.size = size
        self.free = list(range(size - 1, -1, -1))

    def take(self, count: int) -> list[Page]:
        """Take `count` pages. The caller has checked that so many are free."""
        assert count <= len(self.free), "took more pages than are free"
        tier, free = self.tier, self.free
        return [Page(tier, free.pop()) for _ in range(count)]


class Below(Protocol):
    """The state of the tiers that attention cannot read."""

    def worth(self, tier: int) -> bool:
        """Whether loading a prefix from this tier is cheaper than computing it again."""
        ...

    def ready(self, tier: int, pages: Sequence[int]) -> bool:
        """Whether these pages of the tier can be loaded now."""
        ...

    def accepts(self, tier: int) -> bool:
        """Whether the tier can take pages now; if not, they are dropped."""
        ...


class Tiers:
    """A radix tree over one pool a tier.

    page: tokens per page. sizes: pages of each tier. below: the state of colder tiers; None: always
    ready and worth loading from. loads: most pages that a plan may load from a tier; absent: no
    limit. While hardly any page saved to main memory is found again (see PROOF), a plan saves no
    more than that there either and drops the rest. Moves are appended to lists in the order in
    which they must happen.
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
        self.loads_left: dict[int, int] = {}  # tier → pages that this plan may still load from it
        self.saves_left: dict[int, int] = {}  # tier → those it may still save there; absent: any
        self.loaded = {int(tier): 0 for tier in sizes}  # tokens loaded from each tier
        self.found = dict(self.loaded)  # of them, for requests that had not run before
        self.saved = {int(tier): 0 for tier in sizes}  # tokens saved to each tier
        self.tiers = sorted(sizes)
        self.hot = self.tiers[0]
        self.pins: dict[str, Node] = {}  # name → deepest node, locked as by a request
        self.pools = {int(tier): Pool(tier, size) for tier, size in sizes.items()}
        self.tree = Radix(page, self.tiers)

    def begin(self) -> None:
        """A plan begins."""
        self.loads_left = dict(self.loads)
        cold, saved = int(Tier.CPU), self.saved.get(Tier.CPU, 0)
        useless = saved > PROOF * self.found.get(cold, 0) + self.pools[self.hot].size * self.page
        self.saves_left = {cold: self.loads[cold]} if useless and cold in self.loads else {}

    def pages(self, tokens: int) -> int:
        """Pages that `tokens` tokens need."""
        return -(-tokens // self.page)

    def room(self, tier: Tier) -> int:
        """Pages of `tier` that can be taken: free ones and those that can be evicted."""
        return len(self.pools[tier].free) + self.tree.unlocked[tier]

    # -- pinned prefixes, and dropping the others -------------------------------------------

    def pin(self, name: str, tokens: Sequence[int]) -> None:
        """Lock what the first tier holds of `tokens` until `unpin`, in place of the prefix that was
        pinned under that name."""
        self.unpin(name)
        node, _ = self.tree.walk(tokens, len(tokens), self.tree.root, 0)
        while node.parent is not None and node.tier != self.hot:
            node = node.parent
        self.tree.lock(node)
        self.pins[name] = node

    def unpin(self, name: str) -> None:
        """Unlock the prefix pinned under that name, if there is one."""
        if name in self.pins:
            self.tree.unlock(self.pins.pop(name))

    @property
    def pinned(self) -> int:
        """Pages that are pinned."""
        return self._pinned(self.pins.values())

    def pinnable(self, context: int, name: str = "") -> int:
        """Pages that may be pinned in addition: at most half of the first tier, and such that a
        sequence of `context` tokens still fits. name: of the pinned prefix to be replaced."""
        size = self.pools[self.hot].size
        others = self._pinned(node for pin, node in self.pins.items() if pin != name)
        return min(size // 2, size - self.pages(context)) - others

    def _pinned(self, nodes: Iterable[Node]) -> int:
        paths = (self.tree.path(node, self.tree.root) for node in nodes)
        return sum(len(node.pages) for node in {node for path in paths for node in path})

    def flush(self) -> None:
        """Drop every prefix that no request uses."""
        tree = self.tree
        for node in [n for n in tree.nodes() if not n.locks and n.parent and n.parent.locks]:
            self._give(tree.drop(node))

    def disable(self, tier: Tier) -> None:
        """Drop everything on the coldest tier and stop using it."""
        assert tier == self.tiers[-1] != self.hot
        for node in [node for node in self.tree.nodes() if node.tier == tier]:
            if node.alive:  # its parent may have gone with all below it
                self._give(self.tree.drop(node))
        self.tiers.remove(tier)
        self.pools[tier] = Pool(tier, 0)

    def demote_all(self, moves: list[Move]) -> None:
        """At shutdown, unpin all and move every unlocked prefix to the coldest tier, which keeps
        the most recently used if there is not room for all."""
        for name in list(self.pins):
            self.unpin(name)
        self.below, self.saves_left = None, {}  # no limits: there is time to wait
        for tier in self.tiers[:-1]:
            self._evict(tier, self.room(tier), moves)

    # -- moves ------------------------------------------------------------------------------

    def _load(self, node: Node, moves: list[Move]) -> tuple[Node | None, bool]:
        """Load as much of a cold, locked node as this plan may. Returns the node loaded, None if
        there is none, and False if the next plan can load more."""
        if node.locks > 1:  # another request attends to it where it is
            return None, True
        if self.below is not None and not self.below.worth(node.tier):
            return None, True
        most = self._loadable(node)
        whole = most == len(node.pages)
        if not most:
            return None, False
        if not whole:
            node = self.tree.split(node, most * self.page)
        return (node, whole) if self._promote(node, moves) else (None, True)

    def _loadable(self, node: Node) -> int:
        """Pages of a cold node that this plan may load."""
        most = min(len(node.pages), self.loads_left.get(node.tier, len(node.pages)))
        some = [page.index for page in node.pages[:most]]
        at_hand = self.below is None or not some or self.below.ready(node.tier, some)
        return most if at_hand else 0

    def _promote(self, node: Node, moves: list[Move]) -> bool:
        """Move a locked node to the tier of its parent, the hottest it may be on."""
        above = node.parent.pages if node.parent else []
        home = Tier(above[0].tier) if above else self.hot
        pages = self._take(home, len(node.pages), moves)
        if pages is None:
            return False
        self.loaded[node.tier] += len(node.key)
        if node.tier in self.loads_left:
            self.loads_left[node.tier] -= len(pages)
        self._move(node, pages, moves)
        return True

    def _take(self, tier: Tier, count: int, moves: list[Move]) -> list[Page] | None:
        """Take `count` pages, evicting as many as are lacking; None, with nothing evicted, if there
        is no room."""
        pool = self.pools[tier]
        if len(pool.free) < count:
            if self.room(tier) < count:
                return None
            self._evict(tier, count, moves)
        return pool.take(count)

    def _evict(self, tier: Tier, count: int, moves: list[Move]) -> None:
        """Make `count` pages of `tier` free: the least recently used are moved one tier down, or
        dropped."""
        pool = self.pools[tier]
        colder = next((t for t in self.tiers if t > tier), None)
        if colder is not None and self.below is not None and not self.below.accepts(colder):
            colder = None
        while (lacking := count - len(pool.free)) > 0:
            over = 0 if colder is None else lacking - self.saves_left.get(colder, lacking)
            node = self.tree.coldest(tier, over if over > 0 else lacking)
            assert node is not None, "the tree counts pages that it cannot give up"
            pages = None
            if colder is not None and over <= 0:
                pages = self._take(colder, len(node.pages), moves)
            if colder is None or pages is None:
                self._give(self.tree.drop(node))
            else:
                if colder in self.saves_left:
                    self.saves_left[colder] -= len(pages)
                self.saved[colder] += len(node.key)
                self._move(node, pages, moves)

    def _move(self, node: Node, pages: list[Page], moves: list[Move]) -> None:
        moves += map(Move, node.pages, pages)
        self._give(self.tree.retier(node, pages))

    def _give(self, pages: Iterable[Page]) -> None:
        for page in pages:
            self.pools[page.tier].free.append(page.index)
