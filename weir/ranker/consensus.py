"""How long a prompt makes answers, whoever answers: what all models' lengths say together.

A model's own lengths are noisy (two samples of one model rank the prompts of a chat source with a
tau of 0.4), and those of two models are no order of two prompts. So a ranker is fitted to effects.
"""

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from weir.ranker.lengths import Answer, Asked, Lengths, family

SHRINK = 50.0
"""Answers by which the habit of a model is believed: fewer pull it to none."""

ROUNDS = 30


def consensus(lengths: Lengths) -> Lengths:
    """The same prompts, each with one answer, of no model: exp(effect of the prompt), where
    log(1 + tokens) = effect + habit of the family of models + habit of the model in this source.

    The habits make sources comparable that different models answered, if a family is in both."""
    families: dict[str, int] = {}
    names = [family(asked.model) for asked in lengths.answers]
    whose = [families.setdefault(name, len(families)) for name in names]
    counts = [len(answers) for answers in lengths.answers.values()]
    every = [answer for answers in lengths.answers.values() for answer in answers]
    if not every:
        return Lengths(lengths.prompts, lengths.sources, {})
    prompt = np.array([answer.prompt for answer in every])
    values = np.log1p([answer.tokens for answer in every])
    asked, group = np.repeat(np.arange(len(counts)), counts), np.repeat(whose, counts)
    mean = values.mean()
    habit, style = np.zeros(len(families)), np.zeros(len(counts))
    for _ in range(ROUNDS):
        effect = _average(values - mean - habit[group] - style[asked], prompt)
        habit = _average(values - mean - effect[prompt] - style[asked], group, SHRINK)
        style = _average(values - mean - effect[prompt] - habit[group], asked, SHRINK)
    found: dict[Asked, list[Answer]] = defaultdict(list)
    for place in np.unique(prompt).tolist():
        tokens = float(np.expm1(mean + effect[place]))
        found[Asked(lengths.sources[place], "")].append(Answer(place, max(0.0, tokens)))
    return Lengths(lengths.prompts, lengths.sources, dict(found))


def _average(
    values: NDArray[np.float64], group: NDArray[np.int64], shrink: float = 0.0
) -> NDArray[np.float64]:
    """The mean of each group's values; 0 for none."""
    total: NDArray[np.float64] = np.bincount(group, values) / np.maximum(
        np.bincount(group) + shrink, 1
    )
    return total
