"""Chooses the prompt tokens of a step so that it keeps within a target time.

The time of a step with decodes is the gap between two tokens of all its streams. Sarathi-Serve
section 4.3 profiles one budget for all steps; here each step has its own, because its decodes and
their context are known. Predictions are corrected by the measured times of steps. Knows neither
requests nor clocks.
"""

import math
import sys
from typing import Protocol

from weir.core import Load, Plan
from weir.cost.work import Work
from weir.errors import ConfigError

RECENT = 0.05
"""Weight of the newest step in the running ratio of measured to predicted seconds."""
CARE = 2.0
"""A step must meet the target even if it is this many spreads slower than the ratio says: tails
count, not means."""
CROWD = 1 / 8
"""Share of the time to compute the backlog that one step may take, if the target is not firm."""
STRETCH = 2.0
"""A step may take this many times as long as its decodes alone, if the target is not firm."""
AIM = 0.75
"""Share of the first-token target to plan for: prompts that arrive meanwhile need the rest."""
KEPT = 4096
"""Results that are cached."""


class Cost(Protocol):
    def seconds(self, work: Work) -> float: ...


class Target:
    """The most prompt tokens that keep a step within `seconds`; a `Pace` for composers.

    limit: most prompt tokens in a step. least: prompt tokens that every step may have, so that
    prompts advance even if decodes alone exceed the target.

    A target that is not `firm` yields in two cases. If prompts need it, a step may take `STRETCH`
    times as long as its decodes alone, however slow these are. And while many requests wait, steps
    grow: everybody finishes sooner, and a stream is delayed for a small part of the time that
    others wait for their first token.

    first: target for first tokens, in seconds. Prompts then get no more of a step than is needed to
    compute all that wait in time, so that streams are as smooth as that allows.

    Raises `ConfigError` if a firm target is below a step of one decode, or `first` below the step
    of a prompt of one token.
    """

    def __init__(
        self,
        cost: Cost,
        seconds: float,
        limit: int,
        least: int = 16,
        *,
        firm: bool = True,
        first: float = math.inf,
    ):
        alone = cost.seconds(Work(1, [1]))
        shortest = cost.seconds(Work(prompts=[(1, 0)]))
        if first <= shortest:
            raise ConfigError(
                f"a target of {1000 * first:g} ms for first tokens cannot be met: the shortest "
                f"prompt takes {1000 * shortest:.1f} ms here; raise --target-ttft"
            )
        if firm and seconds <= alone:
            raise ConfigError(
                f"a target of {1000 * seconds:g} ms between tokens cannot be met: one decode alone "
                f"takes {1000 * alone:.1f} ms here; raise --target-tbt"
            )
        self.cost = cost
        self.seconds = seconds
        self.limit = limit
        self.least = min(least, limit)
        self.firm = firm
        self.first = first
        self.ratio = 1.0  # of measured to predicted seconds, over recent steps with prompts
        self.spread = 0.0  # mean distance of recent steps from that ratio
        self._token = cost.seconds(Work(prompts=[(limit, 0)])) / limit
        self._known: dict[tuple[float, ...], int] = {}
        self._known_at = 1.0

    def prompts(self, load: Load, start: int) -> int:
        """Most prompt tokens for a step with this load, whose next prompt continues from `start`.
        No bound if there are no decodes, which it would delay."""
        if not load.decodes:
            return sys.maxsize
        careful = self.ratio + CARE * self.spread
        if abs(careful - self._known_at) > 0.02 * self._known_at or len(self._known) > KEPT:
            self._known, self._known_at = {}, careful
        context, crowd = load.context // load.decodes, self._crowd(load)
        hurry = self._hurry(load)
        key = (load.decodes, context // 64, start // 256, crowd, hurry)
        if key not in self._known:
            self._known[key] = self._search(load.decodes, context, start, crowd, hurry)
        return self._known[key]

    def observe(self, plan: Plan, seconds: float) -> float:
        """Learn from a step that took `seconds`, if it had prompts, because only their share is
        decided here. Returns the seconds that were predicted."""
        work = Work.of(plan)
        expected = self.cost.seconds(work)
        predicted = expected * self.ratio
        if work.prompts and expected > 0 and seconds > 0:
            # bounded: a step delayed by something else says little about the next one
            ratio = min(seconds / expected, 4 * self.ratio)
            self.spread += RECENT * (abs(ratio - self.ratio) - self.spread)
            self.ratio += RECENT * (ratio - self.ratio)
        return predicted

    def _crowd(self, load: Load) -> int:
        """How much a step may exceed `seconds` as others wait: log2 of the factor, in eighths."""
        wanted = CROWD * load.backlog * self._token * self.ratio
        if self.firm or wanted <= self.seconds:
            return 0
        return int(8 * math.log2(wanted / self.seconds))

    def _hurry(self, load: Load) -> float:
        """The prompt tokens per second that meet the first-token target: log2, in eighths. At least
        an eighth of the target counts as time left, even if a request is late already."""
        if self.first == math.inf:
            return math.inf
        left = max(AIM * self.first - load.waited, self.first / 8)
        return math.ceil(8 * math.log2(max(1, load.backlog) / left))

    def _search(self, decodes: int, context: int, start: int, crowd: int, hurry: float) -> int:
        """The longest chunk within the allowed time, or a shorter one if that meets `hurry`.
        Bisects, as time grows with the chunk's length, but less than in proportion."""
        contexts = [context] * decodes
        allowed = self.seconds / self._known_at * 2 ** (crowd / 8)
        if not self.firm:
            allowed = max(allowed, STRETCH * self.cost.seconds(Work(decodes, contexts)))

        needed = 2 ** (hurry / 8) * self._known_at

        def fits(length: int) -> bool:
            seconds = self.cost.seconds(Work(decodes, contexts, [(length, start)]))
            return seconds <= allowed and length < needed * seconds

        low, high = self.least, self.limit
        if fits(high):
            return high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low


def best_budget(cost: Cost, limit: int, share: float = 0.95) -> int:
    """The budget of steps that no target bounds: the smallest power of two, or `limit`, of prompt
    tokens whose rate is at least `share` of the best. A larger one would only delay others."""
    lengths = [1 << i for i in range(4, limit.bit_length()) if 1 << i < limit] + [limit]
    rates = [length / cost.seconds(Work(1, [], [(length, 0)])) for length in lengths]
    enough = share * max(rates)
    return next(n for n, rate in zip(lengths, rates, strict=True) if rate >= enough)
