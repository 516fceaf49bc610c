"""The free pages of one tier."""

from weir.core import Page, Tier


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
