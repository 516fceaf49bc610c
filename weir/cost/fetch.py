"""Whether KV on a colder tier is worth loading, or is computed again sooner.

All rates are learned from what has been loaded and computed here; until they are known, and every
so often after, loading is tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

RECENT = 0.2
"""Weight of the latest step in the rate of computing."""
RETRY = 64
"""Refusals after which loading is tried again: a disk that was busy may not be any more."""


@dataclass(slots=True)
class Fetch:
    """bytes: of a token. loaded: bytes and seconds of all loading so far from a tier."""

    bytes: float
    loaded: Callable[[int], tuple[int, float]]
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
