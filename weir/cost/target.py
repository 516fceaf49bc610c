"""The token budget of a step from a latency target, corrected by what steps really take.

The target bounds the time between two tokens of a stream, so it bounds every step that decodes.
Sarathi-Serve section 4.3 profiles one budget for all steps; here each step has its own, because its
decodes and their context are known. Knows neither requests nor clocks.
"""

from __future__ import annotations

import sys
from typing import Protocol

from weir.core import Plan
from weir.cost.work import Work
from weir.errors import ConfigError

MEMORY = 0.05
"""Weight of the newest step in the running ratio of measured to predicted seconds."""
CARE = 2.0
"""Spreads above the ratio at which a step must still meet the target: tails count, not means."""
KEPT = 4096
"""Answers that are remembered; more would not repeat."""


class Cost(Protocol):
    def seconds(self, work: Work) -> float: ...


class Target:
    """The largest share of prompt that keeps a step within `seconds`; a `Pace` for composers.

    limit: most prompt tokens in a step. least: prompt tokens that every step may carry, so that
    prompts go on even where decodes alone take longer than the target. Raises `ConfigError` if the
    target is below a step of one decode.
    """

    def __init__(self, cost: Cost, seconds: float, limit: int, least: int = 16):
        alone = cost.seconds(Work(1, [1]))
        if seconds <= alone:
            raise ConfigError(
                f"a target of {1000 * seconds:g} ms between tokens cannot be met: one decode alone "
                f"takes {1000 * alone:.1f} ms here; raise --target-tbt"
            )
        self.cost = cost
        self.seconds = seconds
        self.limit = limit
        self.least = min(least, limit)
        self.ratio = 1.0  # of measured to predicted seconds, over late steps
        self.spread = 0.0  # mean distance of late steps from that ratio
        self._known: dict[tuple[int, int, int], int] = {}
        self._known_at = 1.0

    def prompts(self, decodes: int, context: int, start: int) -> int:
        """Prompt tokens for a step whose decodes read `context` tokens between them and whose next
        prompt goes on from `start`. Without decodes nobody waits, and there is no bound."""
        if not decodes:
            return sys.maxsize
        careful = self.ratio + CARE * self.spread
        if abs(careful - self._known_at) > 0.02 * self._known_at or len(self._known) > KEPT:
            self._known, self._known_at = {}, careful
        key = (decodes, context // decodes // 64, start // 256)
        if key not in self._known:
            self._known[key] = self._search(decodes, context // decodes, start)
        return self._known[key]

    def observe(self, plan: Plan, seconds: float) -> float:
        """Learn from a step that took `seconds`; returns what was expected of it."""
        expected = self.cost.seconds(Work.of(plan))
        predicted = expected * self.ratio
        if expected > 0 and seconds > 0:
            # a step that was held up by something else says little of the next one
            ratio = min(seconds / expected, 4 * self.ratio)
            self.spread += MEMORY * (abs(ratio - self.ratio) - self.spread)
            self.ratio += MEMORY * (ratio - self.ratio)
        return predicted

    def _search(self, decodes: int, context: int, start: int) -> int:
        """Bisection: time grows with the length of the chunk."""
        allowed, contexts = self.seconds / self._known_at, [context] * decodes

        def fits(length: int) -> bool:
            return self.cost.seconds(Work(decodes, contexts, [(length, start)])) <= allowed

        low, high = self.least, self.limit
        if fits(high):
            return high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low


def best_budget(cost: Cost, limit: int, share: float = 0.95) -> int:
    """The smallest power of two of prompt tokens, or `limit`, whose rate is within `share` of the
    best: the budget where nothing bounds a step. Larger ones only make others wait."""
    lengths = [1 << i for i in range(4, limit.bit_length()) if 1 << i < limit] + [limit]
    rates = [length / cost.seconds(Work(1, [], [(length, 0)])) for length in lengths]
    enough = share * max(rates)
    return next(n for n, rate in zip(lengths, rates, strict=True) if rate >= enough)
