"""Capacity: the highest request rate that keeps latency within limits (Sarathi-Serve section 5).

A rate is kept if the P99 of the time between tokens, over all tokens, is within the target and the
median scheduling delay within its limit, so that no queue builds up. Knows not who serves.
"""

from collections.abc import Callable
from dataclasses import dataclass

from weir.sim.report import Report


@dataclass(slots=True, frozen=True)
class Trial:
    """One rate as it went: seconds."""

    rate: float
    tbt: float  # P99
    delay: float  # median
    ttft: float  # median
    kept: bool
    burst: bool = False  # all came while one is answered in part: a higher rate would be no other


@dataclass(slots=True, frozen=True)
class Limits:
    """tbt: P99 of the time between tokens. delay: median until first scheduled. In seconds."""

    tbt: float
    delay: float = 2.0

    def trial(self, rate: float, report: Report) -> Trial:
        tbt = report.metrics["itl"].percentile(99) / 1000
        delay = report.metrics["delay"].median / 1000
        kept = tbt <= self.tbt and delay <= self.delay and not report.failed
        burst = 10 * report.completed / rate < report.metrics["e2el"].median / 1000
        return Trial(rate, tbt, delay, report.metrics["ttft"].median / 1000, kept, burst)


def search(
    attempt: Callable[[float], Trial],
    first: float = 1.0,
    precision: float = 0.025,
    most: int = 20,
) -> tuple[float, list[Trial]]:
    """The highest rate kept, to within `precision` of it, and all trials; 0 if even 1/64 of
    `first` was not kept. At most `most` trials: from `first` by doubling or halving to a rate that
    is kept and one that is not, then by bisection. It ends at a burst that is kept."""
    trials: list[Trial] = []
    kept, broken, rate = 0.0, float("inf"), first
    while len(trials) < most and broken > kept * (1 + precision):
        trials.append(attempt(rate))
        if trials[-1].kept:
            kept = rate
            if trials[-1].burst:
                break
        else:
            broken = rate
        if broken == float("inf"):
            rate = 2 * kept
        elif kept > 0:
            rate = (kept + broken) / 2
        elif broken > first / 64:
            rate = broken / 2
        else:
            break
    return kept, trials
