"""Capacity: the highest request rate that keeps latency within limits (Sarathi-Serve section 5).

A rate is kept if the P99 of the time between tokens, over all tokens, and the median scheduling
delay are within their limits. The latter means that no queue builds up. Works with any server.
"""

from collections.abc import Callable
from dataclasses import dataclass

from weir.sim.report import Report


@dataclass(slots=True, frozen=True)
class Trial:
    """The result of one rate. Times are seconds."""

    rate: float
    tbt: float  # P99
    delay: float  # median
    ttft: float  # median
    kept: bool
    burst: bool = False  # all came within a tenth of one answer: a higher rate changes nothing


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
    """The highest rate kept, to within `precision` of it, and all trials; 0 if even 1/64 of `first`
    was not kept. Doubles or halves from `first` until one rate is kept and one is not, then
    bisects. Ends after `most` trials, or with a burst that is kept."""
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
