"""Gives requests their pages and prefixes. Integers only: the cache never sees a tensor.

Cached prefixes and running requests share one pool per tier. Releasing a request hands its full
pages to the radix tree, so preempting, finishing and caching are one code path, and finding the
pages again is a prefix hit. What is evicted is recomputed or, with a colder tier, moved there and
back.
"""

from collections.abc import Iterator, Mapping

from weir.core import Move, Page, Request, Tier
from weir.kv.radix import Node
from weir.kv.tiers import Below, Tiers
from weir.kv.watch import Watch


class Cache(Tiers):
    """What the scheduler asks of the tiers. reuse: False keeps no prefix at all."""

    def __init__(
        self,
        page: int,
        sizes: Mapping[Tier, int],
        *,
        reuse: bool = True,
        below: Below | None = None,
        loads: Mapping[int, int] | None = None,
    ):
        super().__init__(page, sizes, below, loads)
        self.reuse = reuse
        self.watch = Watch()

    def attach(self, r: Request, coldest: Tier, moves: list[Move]) -> bool:
        """Give `r` the longest prefix the tree holds, lock it and set `computed`.

        Pages colder than `coldest` cannot be read by attention. They are loaded from the root down,
        as far as there is room and no other request attends to them. At least one token is left to
        compute. A running request advances too if others have computed what it needs next.

        Returns False if one plan may not load all of it: call again for the next plan."""
        if r.lease is None:
            r.lease, r.shared, r.computed, r.pages = self.tree.root, 0, 0, []
        if not self.reuse or r.computed != r.shared * self.page or r.shared != len(r.pages):
            return True
        tree, held = self.tree, r.lease
        node, _ = tree.walk(r.tokens, self._limit(r), held, r.computed)
        if node is held:
            return True
        tree.lock(node)  # so that loading evicts none of it
        whole = True
        for step in tree.path(node, held):
            found: Node | None = step
            if (tier := step.tier) > coldest:
                found, whole = self._load(step, moves)
            if found is None:
                break
            if tier > coldest and r.preempted == 0:  # not its own pages, evicted and found again
                self.found[tier] += len(found.key)
                r.loaded[tier] = r.loaded.get(tier, 0) + len(found.key)
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
        """Tokens of `r` that the tree holds. Changes nothing."""
        return max((at for _, at in self._trace(r)), default=0)

    def expect(self, r: Request) -> int:
        """As `known`; from now on `watch` tells when the tree gains the next page of `r`."""
        known = self.known(r)
        if self.reuse and known + self.page <= self._limit(r):
            self.watch.put(r, (known, tuple(r.tokens[known : known + self.page])))
        return known

    def path(self, r: Request) -> list[Node]:
        """The nodes, opaque outside kv, of the prefix that `r` would find. Changes nothing."""
        return [node for node, _ in self._trace(r)]

    def cold(self, r: Request) -> list[int]:
        """Pages of the coldest tier in the prefix that `r` would find. Changes nothing."""
        tier = self.tiers[-1]
        return [page.index for node in self.path(r) for page in node.pages if page.tier == tier]

    def grow(self, r: Request, upto: int, home: Tier, moves: list[Move]) -> bool:
        """Reserve pages of `home` so that `r` can hold `upto` tokens. False, with nothing taken, if
        there is no room even after evicting every unlocked prefix."""
        need = self.pages(upto) - len(r.pages)
        if need <= 0:
            return True
        pages = self._take(home, need, moves)
        if pages is None:
            return False
        r.pages += pages
        return True

    def share(self, r: Request, upto: int) -> None:
        """Put the full pages of `r.tokens[:upto]`, whose values are known, into the tree, locked by
        `r`. The plan being made, or an earlier one, must compute them."""
        full = upto // self.page
        if not self.reuse or full <= r.shared:
            return
        node, at = self.tree.walk(r.tokens, full * self.page, r.lease, r.shared * self.page)
        if not self._replaces(r, node, at // self.page):
            return  # computed twice, since at least one token always is: ours stays private
        self._join(r, node)
        node, upto = self._adopt(r, node, at // self.page, full)
        self.tree.lock(node)
        self.tree.unlock(r.lease)
        r.lease, r.shared = node, upto

    def release(self, r: Request) -> None:
        """Take back all pages of `r`: full ones go to the tree, the others are freed."""
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
        r.lease, r.pages, r.shared, r.computed, r.sent = None, [], 0, 0, -1

    def send(self, r: Request, tier: Tier, moves: list[Move]) -> bool:
        """Move the pages of `r` to a colder tier, but for a prefix that others hold or that hotter
        pages follow in the tree. False, with nothing moved, if there is no room."""
        nodes: list[Node] = []  # from the deepest up
        node, first = r.lease, r.shared
        while node.locks == 1 and node.parent is not None:
            if any(child.tier < tier and child not in nodes for child in node.children.values()):
                break
            nodes.append(node)
            node, first = node.parent, first - len(node.pages)
        pages = self._take(tier, len(r.pages) - first, moves)
        if pages is None:
            return False
        old, r.pages[first:] = r.pages[first:], pages
        moves += map(Move, old, pages)
        self._give(old)
        for node in reversed(nodes):
            mine, pages = pages[: len(node.pages)], pages[len(node.pages) :]
            self.tree.retier(node, mine)
        r.sent = min(r.sent, first)
        return True

    # -- inside --------------------------------------------------------------------------------

    def _trace(self, r: Request) -> Iterator[tuple[Node, int]]:
        tree = self.tree
        return tree.trace(r.tokens, self._limit(r), tree.root, 0) if self.reuse else iter(())

    def _limit(self, r: Request) -> int:
        limit = min(len(r.tokens) - 1, r.settled)
        uncached = r.sampling.uncached
        return limit if uncached is None else min(limit, uncached)

    def _adopt(self, r: Request, node: Node, first: int, full: int) -> tuple[Node, int]:
        """Insert `r.pages[first:full]` below `node`, one child per run of pages of one tier. Stops
        at a page hotter than the one above it. Returns the deepest node and its end, in pages."""
        page = self.page
        while first < full:
            tier, end = r.pages[first].tier, first + 1
            if node.pages and tier < node.tier:
                break
            while end < full and r.pages[end].tier == tier:
                end += 1
            key = tuple(r.tokens[first * page : end * page])
            self.watch.added(first * page, key, page)
            node, first = self.tree.insert(node, key, r.pages[first:end]), end
        return node, first

    def _join(self, r: Request, node: Node) -> None:
        """Free the private pages of `r` that duplicate nodes down to `node`, which others inserted
        first. If a node's pages are colder, keep those of `r` and free the node's instead."""
        first = r.shared
        for step in self.tree.path(node, r.lease):
            mine = r.pages[first : first + len(step.pages)]
            first += len(mine)
            if self._hotter(mine, step):
                mine = self.tree.retier(step, mine)
            self._give(mine)

    def _replaces(self, r: Request, node: Node, end: int) -> bool:
        """Whether `_join` would replace the pages of all nodes down to `node` by those of `r`."""
        tiers = {page.tier for page in r.pages[r.shared : end]}
        above = r.lease.tier if r.lease.pages else min(tiers, default=0)
        return not tiers or (
            len(tiers) == 1
            and above <= min(tiers)
            and all(not s.locks and s.tier > min(tiers) for s in self.tree.path(node, r.lease))
        )

    def _hotter(self, pages: list[Page], node: Node) -> bool:
        """Whether `pages`, which hold the same tokens, may replace those of `node`."""
        assert node.parent is not None
        above = node.parent.tier if node.parent.pages else pages[0].tier
        return not node.locks and above <= pages[0].tier == pages[-1].tier < node.tier
