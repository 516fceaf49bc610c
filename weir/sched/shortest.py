"""Shortest first: whoever will need least goes first, which lowers the mean latency of a queue.

How long an answer will be is known (a benchmark), promised (`max_tokens`) or predicted by a scorer
(learning to rank, arXiv 2408.15792). A scorer works on its own time; until it has answered, a
request counts as one of average length.
"""

import logging
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from weir.core import Request
from weir.sched.prefix import Matches
from weir.sched.ranking import Key, Rank, Ranking

log = logging.getLogger(__name__)

PROMPT = 0.2
"""What a token to compute counts, beside one to come: a step holds many of a prompt and one of an
answer, but they also fill the memory (docs/log.md)."""


def promised(r: Request) -> float:
    """The most tokens that `r` may be answered with; exact for one that ignores its stops."""
    return r.sampling.max_tokens


@dataclass(slots=True)
class Shortest(Ranking):
    """Least work left, prompt and answer together, within a priority class.

    length: tokens of the whole answer to a request. matches: what the cache holds of its prompt
    need not be computed. preempt: a newcomer may take the place of a running request that has more
    left; else the order counts for admission, and for who makes room for those that run."""

    length: Callable[[Request], float] = promised
    matches: Matches | None = None
    preempt: bool = False

    def key(self, r: Request) -> Key:
        tokens, waits = len(r.tokens), not r.running
        todo = tokens - r.computed
        if waits and self.matches is not None:
            todo -= self.matches.of(r)
        left = PROMPT * todo
        if (more := r.prompt + self.expected(r) - tokens) > 0:
            left += more
        return (r.priority, left) if self.preempt else (r.priority, waits, left)

    def expected(self, r: Request) -> float:
        return self.length(r)

    def enter(self, r: Request) -> None:
        if self.matches is not None:
            self.matches.enter(r)

    def leave(self, r: Request) -> None:
        if self.matches is not None:
            self.matches.leave(r)

    def before(self, step: int, waiting: Collection[Request]) -> Iterable[Request]:
        return self.matches.refresh(waiting) if self.matches is not None else ()


Scorer = Callable[[Sequence[Request]], Iterable[tuple[int, float]]]
"""Called once a plan with who has come since the last, returns at once (uid, expected tokens of the
answer) of those that it has found out about since."""


@dataclass(slots=True)
class Told:
    """A scorer that computes nothing: what others predict is brought to it. `failure`: why nothing
    more will be."""

    expected: list[tuple[int, float]] = field(default_factory=list)
    failure: str = ""

    def __call__(self, new: Sequence[Request]) -> Iterable[tuple[int, float]]:
        if self.failure:
            raise RuntimeError(self.failure)
        expected, self.expected = self.expected, []
        return expected


@dataclass(slots=True)
class Learned(Shortest):
    """Shortest first by `Request.score`, which a scorer fills in. A scorer that fails is switched
    off, with a warning; then it is first come, first served."""

    scorer: Scorer = field(default_factory=Told)
    failure: str = ""
    neutral: float = 256.0  # for an unknown length: the mean of those predicted, slowly moving
    new: list[Request] = field(default_factory=list)
    pending: dict[int, Request] = field(default_factory=dict)

    def rank(self, requests: Sequence[Request]) -> list[Rank]:
        if self.failure:
            return [((), (r.priority, not (self.preempt or r.running))) for r in requests]
        return Shortest.rank(self, requests)

    def expected(self, r: Request) -> float:
        return min(self.neutral if r.score is None else r.score, r.sampling.max_tokens)

    def enter(self, r: Request) -> None:
        Shortest.enter(self, r)
        if r.score is None and r.preempted == 0:
            self.new.append(r)

    def before(self, step: int, waiting: Collection[Request]) -> Iterable[Request]:
        if self.failure:
            return ()
        moved = list(Shortest.before(self, step, waiting))
        try:
            return moved + self._exchange()
        except Exception as error:  # whatever goes wrong in there, serving goes on
            self.failure = f"the scorer failed: {error or type(error).__name__}"
            log.warning("%s; requests are now served first come, first served", self.failure)
            self.new, self.pending = [], {}
            return list(waiting)

    def leave(self, r: Request) -> None:
        Shortest.leave(self, r)
        self.pending.pop(r.uid, None)

    @property
    def degraded(self) -> str:
        return self.failure

    def _exchange(self) -> list[Request]:
        """Give the scorer who has come and take what it has found."""
        new, self.new = self.new, []
        self.pending.update((r.uid, r) for r in new)
        scored = []
        for uid, score in self.scorer(new):
            r = self.pending.pop(uid, None)
            if r is not None and math.isfinite(score):
                r.score = score
                self.neutral += (score - self.neutral) / 64
                scored.append(r)
        return scored
