"""Capacity: the search finds the edge, and what a rate must keep."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir.sim.report import Record, measure
from weir.sim.search import Limits, Trial, search


def edge(capacity: float):
    tried: list[float] = []

    def attempt(rate: float) -> Trial:
        tried.append(rate)
        return Trial(rate, 0.0, 0.0, 0.0, rate <= capacity)

    return attempt, tried


@given(st.floats(0.05, 500), st.floats(0.2, 50))
def test_the_edge_is_found(capacity: float, first: float) -> None:
    attempt, tried = edge(capacity)
    found, trials = search(attempt, first)
    if capacity < first / 32:
        assert found in (0.0, pytest.approx(capacity, rel=0.5))
    elif capacity > first * 128:
        assert found <= capacity  # may run out of trials on the way
    else:
        assert found <= capacity <= found * 1.0251
    assert [trial.rate for trial in trials] == tried and len(tried) <= 20


def test_nothing_is_kept() -> None:
    attempt, tried = edge(0.0)
    assert search(attempt, 8.0)[0] == 0.0
    assert min(tried) == 8 / 64


def test_what_comes_all_at_once_is_no_rate() -> None:
    limits, few = Limits(0.05), measure([record(0.04, 0.1)] * 12, 9)
    found, trials = search(lambda rate: limits.trial(rate, few))
    assert trials[-1].burst and not trials[-2].burst
    assert found == trials[-1].rate == 512  # an answer takes 0.26 s, the arrivals 0.023


def record(gap: float, delay: float, error: str = "") -> Record:
    times = [1 + delay + gap * at for at in range(5)]
    return Record(1.0, times, times[-1], 10, 5, started=1 + delay, error=error)


def test_what_must_be_kept() -> None:
    limits = Limits(0.05, 2.0)
    fine, slow, late = record(0.04, 0.1), record(0.06, 0.1), record(0.04, 2.5)
    assert limits.trial(3, measure([fine] * 99 + [late], 9)) == Trial(
        3, pytest.approx(0.04), pytest.approx(0.1), pytest.approx(0.1), True
    )
    assert limits.trial(3, measure([fine] * 995 + [slow] * 5, 9)).kept
    assert not limits.trial(3, measure([fine] * 90 + [slow] * 10, 9)).kept
    assert not limits.trial(3, measure([late] * 60 + [fine] * 40, 9)).kept
    assert not limits.trial(3, measure([fine, record(0.04, 0.1, "lost")], 9)).kept
