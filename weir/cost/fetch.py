"""Decides whether KV on a colder tier is loaded or computed again.

All rates are learned from what this engine loads and computes. Until they are known, and now and
then afterwards, loading is tried.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

RECENT = 0.2
"""Weight of the latest step in the running average of computing."""
RETRY = 64
"""Refusals after which loading is tried again: a busy disk may be idle by then."""


class Slow(Protocol):
    """A tier that is slow to access."""

    def ready(self, pages: Sequence[int]) -> bool:
        """Whether these pages can be read without waiting. If not, they are fetched."""
        ...

    def accepts(self) -> bool:
        """Whether it can take more pages without anyone waiting."""
        ...


@dataclass(slots=True)
class Fetch:
    """bytes: of a token's KV. loaded: returns the bytes and seconds of all loading so far from a
    tier. slow: the slow tiers."""

    bytes: float
    loaded: Callable[[int], tuple[int, float]]
    slow: Mapping[int, Slow] = field(default_factory=dict)
    computing: float = 0.0  # seconds per prompt token; 0: not known yet
    refused: dict[int, int] = field(default_factory=dict)

    def observe(self, tokens: int, seconds: float) -> None:
        """Learn from a step that computed `tokens` prompt tokens and nothing else."""
        latest = seconds / tokens
        self.computing += (RECENT if self.computing else 1.0) * (latest - self.computing)

    def worth(self, tier: int) -> bool:
        """Whether loading from this tier is faster than computing, or should be tried."""
        size, seconds = self.loaded(tier)
        if not size or not self.computing or self.bytes * seconds / size < self.computing:
            return True
        self.refused[tier] = self.refused.get(tier, 0) + 1
        return self.refused[tier] % RETRY == 0

    def ready(self, tier: int, pages: Sequence[int]) -> bool:
        """Whether the next plan can load these pages of a tier."""
        return tier not in self.slow or self.slow[tier].ready(pages)

    def accepts(self, tier: int) -> bool:
        """Whether the next plan can move pages to this tier."""
        return tier not in self.slow or self.slow[tier].accepts()
