"""Who owns which page. Integers only: the cache never sees a tensor.

Cached prefixes and running requests share one pool a tier. Letting go of a request hands its full
pages to the radix tree, so preemption, finishing and caching are one code path. Finding them again
is a prefix hit. What is evicted is recomputed or, given a colder tier, moved and moved back.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from weir.core import Move, Page, Request, Tier
from weir.kv.pool import Pool
from weir.kv.radix import Node, Radix
from weir.kv.watch import Watch

PROOF = 50
"""Tokens brought to main memory, besides as many as the first tier holds, for one that comes back:
if it is less, plans do not wait for them."""


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


class Cache:
    """Radix tree over one pool a tier.

    page: tokens a page. sizes: pages of each tier. reuse: False keeps no prefix at all. below:
    what is known of colder tiers; None: they are always at hand, and worth loading from. loads:
    most pages that are brought from a tier between two calls of `begin`; else any number. While
    hardly any of what was brought to main memory is found again, no more than that goes there
    either, and the oldest of more are dropped.
    Every list of moves is appended to in the order the moves must happen.
    """

    def __init__(
        self,
        page: int,
        sizes: Mapping[Tier, int],
        *,
        reuse: bool = True,
        below: Below | None = None,
        loads: Mapping[int, int] | None = None,
    ):
        self.page = page
        self.reuse = reuse
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
        self.watch = Watch()

    # -- what the scheduler asks ---------------------------------------------------------------

    def begin(self) -> None:
        """A plan begins."""
        self.left = dict(self.loads)
        cold, saved = int(Tier.CPU), self.saved.get(Tier.CPU, 0)
        useless = saved > PROOF * self.found.get(cold, 0) + self.pools[self.hot].size * self.page
        self.sinks = {cold: self.loads[cold]} if useless and cold in self.loads else {}

    def attach(self, r: Request, coldest: Tier, moves: list[Move]) -> bool:
        """Give `r` the longest prefix the tree holds and lock it; sets `computed`.

        Pages colder than `coldest`, which attention cannot read, are warmed from the root down, as
        far as room lasts and nobody else attends to them. At least one token is left to compute. A
        request that already runs is carried further if others have computed what it needs next.
        Returns False if there is more to be had than one plan may load: then ask again in the next
        one."""
        if r.lease is None:
            r.lease, r.shared, r.computed, r.pages = self.tree.root, 0, 0, []
        if not self.reuse or r.computed != r.shared * self.page or r.shared != len(r.pages):
            return True
        tree, held = self.tree, r.lease
        node, _ = tree.walk(r.tokens, self._limit(r), held, r.computed)
        if node is held:
            return True
        tree.lock(node)  # so that warming evicts nothing on the way
        whole = True
        for step in tree.path(node, held):
            found: Node | None = step
            if step.tier > coldest:
                found, whole = self._bring(step, r, moves)
            if found is None:
                break
            r.lease = found
            r.pages += found.pages
            if not whole:
                break
        tree.lock(r.lease)
        tree.unlock(node)
        tree.unlock(held)
        r.shared = len(r.pages)
        r.computed = r.shared * self.page
        return whole

    def known(self, r: Request) -> int:
        """Tokens of `r` that the tree holds. Touches nothing."""
        return max((at for _, at in self._trace(r)), default=0)

    def expect(self, r: Request) -> int:
        """As `known`; and `watch` tells when a page more of `r` has come."""
        known = self.known(r)
        if self.reuse and known + self.page <= self._limit(r):
            self.watch.put(r, (known, tuple(r.tokens[known : known + self.page])))
        return known

    def pages(self, tokens: int) -> int:
        """Pages that so many tokens need."""
        return -(-tokens // self.page)

    def path(self, r: Request) -> list[Node]:
        """The nodes, opaque outside kv, that hold what `r` would find. Touches nothing."""
        return [node for node, _ in self._trace(r)]

    def cold(self, r: Request) -> list[int]:
        """Pages of the coldest tier that hold what `r` would find. Touches nothing."""
        tier = self.tiers[-1]
        return [page.index for node in self.path(r) for page in node.pages if page.tier == tier]

    def grow(self, r: Request, upto: int, home: Tier, moves: list[Move]) -> bool:
        """Reserve pages of `home` so that `r` can hold `upto` tokens; False, and nothing taken,
        if there is no room even after giving up every unlocked prefix."""
        need = self.pages(upto) - len(r.pages)
        if need <= 0:
            return True
        pages = self._take(home, need, moves)
        if pages is None:
            return False
        r.pages += pages
        return True

    def share(self, r: Request, upto: int) -> None:
        """Put the full pages of `r.tokens[:upto]`, all of known value, into the tree, still locked
        by `r`. The plan that computes them must be the one in hand or an earlier one."""
        full = upto // self.page
        if not self.reuse or full <= r.shared:
            return
        node, at = self.tree.walk(r.tokens, full * self.page, r.lease, r.shared * self.page)
        if not self._replaces(r, node, at // self.page):
            return  # computed twice (a whole prompt found): ours stays private
        self._join(r, node)
        node, upto = self._adopt(r, node, at // self.page, full)
        self.tree.lock(node)
        self.tree.unlock(r.lease)
        r.lease, r.shared = node, upto

    def release(self, r: Request) -> None:
        """Let go, at the end or to make room: full pages go to the tree, the rest is free."""
        if r.lease is None:
            return
        keep = r.shared
        full = min(r.computed, r.settled) // self.page if self.reuse else 0
        if full > r.shared:
            node, at = self.tree.walk(r.tokens, full * self.page, r.lease, r.shared * self.page)
            self._join(r, node)
            self.tree.touch(node)
            _, keep = self._adopt(r, node, at // self.page, full)
        self._give(r.pages[keep:])
        self.tree.unlock(r.lease)
        r.lease, r.pages, r.shared, r.computed, r.sent = None, [], 0, 0, 0

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
        if not self.pins:
            return 0
        paths = (self.tree.path(node, self.tree.root) for node in self.pins.values())
        return sum(len(node.pages) for node in {node for path in paths for node in path})

    def pinnable(self, context: int) -> int:
        """Pages that may be pinned besides: half of the first tier, and room is left for a sequence
        of `context` tokens."""
        size = self.pools[self.hot].size
        return min(size // 2, size - self.pages(context)) - self.pinned

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

    def room(self, tier: Tier) -> int:
        """Pages of `tier` that can be had: free, or held by the tree alone."""
        return len(self.pools[tier].free) + self.tree.unlocked[tier]

    # -- inside --------------------------------------------------------------------------------

    def _trace(self, r: Request) -> Iterator[tuple[Node, int]]:
        tree = self.tree
        return tree.trace(r.tokens, self._limit(r), tree.root, 0) if self.reuse else iter(())

    def _limit(self, r: Request) -> int:
        limit = min(len(r.tokens) - 1, r.settled)
        uncached = r.sampling.uncached
        return limit if uncached is None else min(limit, uncached)

    def _adopt(self, r: Request, node: Node, first: int, full: int) -> tuple[Node, int]:
        """Hang `r.pages[first:full]` below `node`, one child for each run of one tier. Stops where
        a page is hotter than what is above it. Returns the deepest node and its end, in pages."""
        page = self.page
        while first < full:
            tier, end = r.pages[first].tier, first + 1
            if node.pages and tier < node.tier:
                break
            while end < full and r.pages[end].tier == tier:
                end += 1
            key = tuple(r.tokens[first * page : end * page])
            self.watch.taken(first * page, key, page)
            node, first = self.tree.insert(node, key, r.pages[first:end]), end
        return node, first

    def _join(self, r: Request, node: Node) -> None:
        """Give up the private pages of `r` that nodes down to `node` hold as well, since others got
        there first; where theirs are colder, theirs instead."""
        first = r.shared
        for step in self.tree.path(node, r.lease):
            mine = r.pages[first : first + len(step.pages)]
            first += len(mine)
            if self._hotter(mine, step):
                mine = self.tree.retier(step, mine)
            self._give(mine)

    def _replaces(self, r: Request, node: Node, end: int) -> bool:
        """Would `_join` put pages of `r` in the place of all others down to `node`?"""
        tiers = {page.tier for page in r.pages[r.shared : end]}
        above = r.lease.tier if r.lease.pages else min(tiers, default=0)
        return not tiers or (
            len(tiers) == 1
            and above <= min(tiers)
            and all(not s.locks and s.tier > min(tiers) for s in self.tree.path(node, r.lease))
        )

    def _hotter(self, pages: list[Page], node: Node) -> bool:
        """May pages that hold the same take the place of an unlocked node's?"""
        assert node.parent is not None
        above = node.parent.tier if node.parent.pages else pages[0].tier
        return not node.locks and above <= pages[0].tier == pages[-1].tier < node.tier

    def _bring(self, node: Node, r: Request, moves: list[Move]) -> tuple[Node | None, bool]:
        """Warm what of a cold node, locked for `r` alone, may be loaded in this plan. Returns the
        node that holds it, None if there is none, and False if more can be had in the next plan."""
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
        tier = node.tier
        if not self._warm(node, moves):
            return None, True
        if r.preempted == 0:  # one that comes back to its own pages proves nothing
            self.found[tier] += len(node.key)
            r.loaded[tier] = r.loaded.get(tier, 0) + len(node.key)
        return node, whole

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
        moves += map(Move, node.pages, pages)
        self.loaded[node.tier] += len(node.key)
        if node.tier in self.left:
            self.left[node.tier] -= len(pages)
        self._give(self.tree.retier(node, pages))
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
                moves += map(Move, node.pages, pages)
                if colder in self.sinks:
                    self.sinks[colder] -= len(pages)
                self.saved[colder] += len(node.key)
                self._give(self.tree.retier(node, pages))

    def _give(self, pages: Iterable[Page]) -> None:
        for page in pages:
            self.pools[page.tier].free.append(page.index)
