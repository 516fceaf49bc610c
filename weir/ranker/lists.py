"""Draws the lists of prompts that a ranker learns to order. Knows no network."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from random import Random
from statistics import fmean

from weir.errors import ConfigError
from weir.ranker.consensus import consensus
from weir.ranker.lengths import Answer, Lengths


@dataclass(slots=True)
class Lists:
    """Of one source, as an evaluation wants it, or of several, as the queue of a server is.

    sources: the answers of each that has two or more. mixed: share of lists over several. size:
    answers in a list. A source goes with the root of its size."""

    sources: list[list[Answer]]
    random: Random
    mixed: float
    size: int

    @classmethod
    def of(cls, lengths: Lengths, random: Random, mixed: float, size: int) -> Lists:
        """Raises `ConfigError` if there is nothing to rank."""
        sources = [found for found in consensus(lengths).answers.values() if len(found) > 1]
        if not sources:
            raise ConfigError("no source has answers to two prompts: there is nothing to rank")
        return cls(sources, random, mixed if len(sources) > 1 else 0.0, size)

    def every(self, most: int = sys.maxsize) -> list[tuple[Answer, float]]:
        """All answers, or a sample of `most`, each with what it counts for, 1 on average over all:
        as draws have it."""
        shares = [(answer, len(source) ** -0.5) for source in self.sources for answer in source]
        mean = fmean(share for _, share in shares)
        found = [(answer, share / mean) for answer, share in shares]
        return found if len(found) <= most else self.random.sample(found, most)

    def draw(self) -> list[Answer]:
        weights = [len(source) ** 0.5 for source in self.sources]
        if self.random.random() < self.mixed:
            chosen = self.random.choices(self.sources, weights, k=self.size)
            return [self.random.choice(source) for source in chosen]
        source = self.random.choices(self.sources, weights)[0]
        return self.random.sample(source, min(self.size, len(source)))
