"""The table of a ranker beside its yardsticks."""

from math import isnan

import pytest

from tests.ranker.test_consensus import noisy
from weir.ranker.evaluate import evaluate, summary, table
from weir.ranker.lengths import Answer, Asked, Lengths


def test_the_truth_is_above_every_yardstick():
    found, truth = noisy(8, seed=2)
    rows = summary(evaluate(found, {"truth": truth, "reversed": [-t for t in truth]}))
    assert [row.source for row in rows] == ["a", "b", "(mixed)"]
    for row in rows:
        taus = row.taus
        assert taus["reversed"] == pytest.approx(-taus["truth"])
        assert taus["truth"] > taus["all others"] > taus["another model"] + 0.05 > 0.3
    assert rows[2].prompts > 60 >= rows[0].prompts


def test_only_the_sources_named_are_mixed():
    found, truth = noisy(2, seed=4)
    assert [row.source for row in evaluate(found, {}, ["a"])] == ["a", "a", "b", "b"]
    assert "(mixed)" in {row.source for row in evaluate(found, {"t": truth}, ["a", "b"])}


def test_a_model_alone_has_no_others_and_few_prompts_no_row():
    answers = {
        Asked("a", "m"): [Answer(place, float(place)) for place in range(30)],
        Asked("b", "m"): [Answer(30, 1.0)],
    }
    found = Lengths(["x" * n for n in range(31)], ["a"] * 30 + ["b"], answers)
    one, mixed = evaluate(found, {})
    assert (one.prompts, mixed.prompts, mixed.source) == (30, 31, "(mixed)")
    assert one.taus["prompt length"] == 1 and isnan(one.taus["all others"])
    assert table([one]).splitlines()[2] == "| a | m | 30 | 1.00 | - | - |"
