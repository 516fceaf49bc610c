"""Colder tiers that are at hand, or worth loading from, as chance will have it."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random


@dataclass
class Whim:
    """How likely each answer is yes. Not to be asked for more than a while, lest nothing moves."""

    rng: Random
    likely_worth: float = 1.0
    likely_ready: float = 1.0
    likely_accepts: float = 1.0

    def worth(self, tier: int) -> bool:
        return self.rng.random() < self.likely_worth

    def ready(self, tier: int, pages: Sequence[int]) -> bool:
        assert pages
        return self.rng.random() < self.likely_ready

    def accepts(self, tier: int) -> bool:
        return self.rng.random() < self.likely_accepts
