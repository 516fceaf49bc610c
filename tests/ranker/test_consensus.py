"""What many models' lengths say of a prompt, whatever the habits of the models."""

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weir.ranker.consensus import consensus
from weir.ranker.kendall import tau_b
from weir.ranker.lengths import Answer, Asked, Lengths
from weir.ranker.lists import Lists


def noisy(models: int, seed: int, noise: float = 0.6) -> tuple[Lengths, list[float]]:
    """Two sources of 60 prompts; what each model says is its habit, the truth and noise."""
    random = Random(seed)
    truth = [random.gauss(4 + (place >= 60), 0.7) for place in range(120)]
    found = Lengths([f"p{n}" for n in range(120)], ["a"] * 60 + ["b"] * 60)
    for model in range(models):
        habit = random.gauss(0, 1)
        for source, places in (("a", range(60)), ("b", range(60, 120))):
            found.answers[Asked(source, f"m{model}x")] = [
                Answer(place, float(np.exp(truth[place] + habit + random.gauss(0, noise))))
                for place in places
                if random.random() < 0.8
            ]
    return found, truth


def agreement(found: Lengths, truth: list[float]) -> float:
    answers = [answer for answers in found.answers.values() for answer in answers]
    return tau_b([a.tokens for a in answers], [truth[a.prompt] for a in answers])


def test_many_models_know_more_than_one():
    found, truth = noisy(12, seed=1)
    one = Lengths(
        found.prompts, found.sources, {k: v for k, v in found.answers.items() if k.model == "m0x"}
    )
    assert agreement(consensus(found), truth) > agreement(consensus(one), truth) + 0.15
    assert agreement(consensus(found), truth) > 0.8


@given(st.floats(0.1, 10), st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_habit_of_a_model_changes_no_order(factor, seed):
    """Of a model that answers factor times as long, in a source of its own or beside others."""
    found, truth = noisy(6, seed, noise=0.2)
    longer = {
        asked: [
            Answer(a.prompt, a.tokens * (factor if asked.model == "m0x" else 1)) for a in answers
        ]
        for asked, answers in found.answers.items()
    }
    before = agreement(consensus(found), truth)
    after = agreement(consensus(Lengths(found.prompts, found.sources, longer)), truth)
    assert after == pytest.approx(before, abs=0.05)


def test_one_model_is_its_own_consensus():
    answers = {Asked("a", "m"): [Answer(0, 10.0), Answer(1, 30.0), Answer(2, 0.0)]}
    found = consensus(Lengths(["x", "y", "z"], ["a"] * 3, answers))
    assert [(a.prompt, a.tokens) for a in found.answers[Asked("a", "")]] == [
        (0, pytest.approx(10, rel=1e-3)), (1, pytest.approx(30, rel=1e-3)), (2, pytest.approx(0)),
    ]  # fmt: skip


def test_lists_are_of_one_source_or_of_several():
    found, _ = noisy(2, seed=3)
    for mixed in (0.0, 1.0):
        lists = Lists.of(found, Random(0), mixed, size=20)
        kinds = [{found.sources[a.prompt] for a in lists.draw()} for _ in range(30)]
        assert all(len(kind) == 1 + mixed for kind in kinds)
