"""Calls of one program together: a program is done when its last call is (SGLang section 3)."""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from weir.core import Request
from weir.sched.ranking import Around, Rank

KEPT = 4096  # programs that are remembered while none of their calls is live


@dataclass(slots=True)
class Programs(Around):
    """Programs first come, first served, within a priority class: each call stands where the first
    call of its program arrived, and `inner` orders the calls of one program. So programs that began
    are finished, with their prefixes still cached, before others begin. A request of no program is
    one of its own."""

    since: OrderedDict[str, float] = field(default_factory=OrderedDict)  # of its first call
    live: Counter[str] = field(default_factory=Counter)  # calls of each program

    def rank(self, requests: Sequence[Request]) -> list[Rank]:
        since = self.since.get
        return [
            (group, (r.priority, since(r.program, r.arrival), *key))
            for r, (group, key) in zip(requests, self.inner.rank(requests), strict=True)
        ]

    def enter(self, r: Request) -> None:
        if r.program and r.preempted == 0:
            self.live[r.program] += 1
            self.since.setdefault(r.program, r.arrival)
            self.since.move_to_end(r.program)

    def leave(self, r: Request) -> None:
        if r.program:
            self.live[r.program] -= 1
            if not self.live[r.program]:
                del self.live[r.program]
                self._tidy()

    def _tidy(self) -> None:
        """Forget, of the programs that have no call left, those that called longest ago."""
        if len(self.since) > 2 * (len(self.live) + KEPT):
            for program in [p for p in self.since if p not in self.live][:-KEPT]:
                del self.since[program]
