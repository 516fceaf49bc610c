"""Whether KV on a colder tier can be loaded now, and is worth it, or is computed again sooner.

All rates are learned from what has been loaded and computed here; until they are known, and every
so often after, loading is tried.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

RECENT = 0.2
"""Weight of the latest step in the rate of computing."""
RETRY = 64
"""Refusals after which loading is tried again: a disk that was busy may not be any more."""


class Slow(Protocol):
    """A tier that takes its time."""

    def ready(self, pages: Sequence[int]) -> bool:
        """Can these pages be had at once? If not, they can soon."""
        ...

    def accepts(self) -> bool:
        """Can it take more pages without anyone waiting?"""
        ...


@dataclass(slots=True)
class Fetch:
    """bytes: of a token. loaded: bytes and seconds of all loading so far from a tier. slow: those
    tiers that are not at hand."""

    bytes: float
    loaded: Callable[[int], tuple[int, float]]
    slow: Mapping[int, Slow] = field(default_factory=dict)
    computing: float = 0.0  # seconds a prompt token takes; 0: not known yet
    refused: dict[int, int] = field(default_factory=dict)

    def observe(self, tokens: int, seconds: float) -> None:
        """A step computed so many prompt tokens and nothing else."""
        latest = seconds / tokens
        self.computing += (RECENT if self.computing else 1.0) * (latest - self.computing)

    def worth(self, tier: int) -> bool:
        """Is a page loaded from there sooner than computed?"""
        size, seconds = self.loaded(tier)
        if not size or not self.computing or self.bytes * seconds / size < self.computing:
            return True
        self.refused[tier] = self.refused.get(tier, 0) + 1
        return self.refused[tier] % RETRY == 0

    def ready(self, tier: int, pages: Sequence[int]) -> bool:
        """Can these pages of a tier be loaded by the next plan?"""
        return tier not in self.slow or self.slow[tier].ready(pages)

    def accepts(self, tier: int) -> bool:
        """Can the next plan bring pages there?"""
        return tier not in self.slow or self.slow[tier].accepts()
