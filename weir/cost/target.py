"""The prompt tokens of a step from the time that it may take, corrected by what steps really take.

That time bounds the gap between two tokens of every stream, so it bounds every step that decodes.
Sarathi-Serve section 4.3 profiles one budget for all steps; here each step has its own, because its
decodes and their context are known. Knows neither requests nor clocks.
"""

import math
import sys
from typing import Protocol

from weir.core import Load, Plan
from weir.cost.work import Work
from weir.errors import ConfigError

MEMORY = 0.05
"""Weight of the newest step in the running ratio of measured to predicted seconds."""
CARE = 2.0
"""Spreads above the ratio at which a step must still meet the target: tails count, not means."""
CROWD = 1 / 8
"""Of the time that the backlog takes: how long one step may be that gives way to it."""
HALF = 2.0
"""Times that of its decodes alone: how long a step may be that gives way."""
AIM = 0.75
"""Of the time that first tokens have: others come while a prompt is in hand, and take a part."""
KEPT = 4096
"""Answers that are remembered; more would not repeat."""


class Cost(Protocol):
    def seconds(self, work: Work) -> float: ...


class Target:
    """The largest share of prompt that keeps a step within `seconds`; a `Pace` for composers.

    limit: most prompt tokens in a step. least: prompt tokens that every step may carry, so that
    prompts go on even where decodes alone take longer than the target.

    One that is not `firm` gives way. Prompts get half of a step's time if they need it, however
    slow decodes are. And while a crowd waits, steps grow: they finish everybody sooner, and a
    stream is held up for a small part of the time that the others wait for their first token.

    first: seconds in which first tokens shall come. Prompts then get no more of a step than lets
    all that wait be computed in time, so that streams are as smooth as that allows.

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
        self.ratio = 1.0  # of measured to predicted seconds, over late steps with prompts
        self.spread = 0.0  # mean distance of late steps from that ratio
        self._token = cost.seconds(Work(prompts=[(limit, 0)])) / limit
        self._known: dict[tuple[float, ...], int] = {}
        self._known_at = 1.0

    def prompts(self, load: Load, start: int) -> int:
        """Prompt tokens for a step with such a load, whose next prompt goes on from `start`.
        Without decodes nobody waits, and there is no bound."""
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
        """Learn from a step that took `seconds`, if it had prompts: of those the share is decided.
        Returns what was expected of it."""
        work = Work.of(plan)
        expected = self.cost.seconds(work)
        predicted = expected * self.ratio
        if work.prompts and expected > 0 and seconds > 0:
            # a step that was held up by something else says little of the next one
            ratio = min(seconds / expected, 4 * self.ratio)
            self.spread += MEMORY * (abs(ratio - self.ratio) - self.spread)
            self.ratio += MEMORY * (ratio - self.ratio)
        return predicted

    def _crowd(self, load: Load) -> int:
        """Eighths of a doubling of `seconds` that a step may take because others wait."""
        wanted = CROWD * load.backlog * self._token * self.ratio
        if self.firm or wanted <= self.seconds:
            return 0
        return int(8 * math.log2(wanted / self.seconds))

    def _hurry(self, load: Load) -> float:
        """Eighths of a doubling of the prompt tokens a second that make first tokens come in time.
        Who is late already gets what is left: an eighth of the time."""
        if self.first == math.inf:
            return math.inf
        left = max(AIM * self.first - load.waited, self.first / 8)
        return math.ceil(8 * math.log2(max(1, load.backlog) / left))

    def _search(self, decodes: int, context: int, start: int, crowd: int, hurry: float) -> int:
        """The longest chunk within the time, or the shortest that is fast enough. Bisection: time
        grows with the length of the chunk, and less than it."""
        contexts = [context] * decodes
        allowed = self.seconds / self._known_at * 2 ** (crowd / 8)
        if not self.firm:
            allowed = max(allowed, HALF * self.cost.seconds(Work(decodes, contexts)))

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
    """The smallest power of two of prompt tokens, or `limit`, whose rate is within `share` of the
    best: the budget where nothing bounds a step. Larger ones only make others wait."""
    lengths = [1 << i for i in range(4, limit.bit_length()) if 1 << i < limit] + [limit]
    rates = [length / cost.seconds(Work(1, [], [(length, 0)])) for length in lengths]
    enough = share * max(rates)
    return next(n for n, rate in zip(lengths, rates, strict=True) if rate >= enough)
