"""A ranker that goes on learning, from how long the answers of the model it ranks for turn out.

It remembers where the latest prompts lie, as numbers of the ranker inside, and no text. Knows no
request, no engine and no thread but the caller's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from weir.ranker.files import Ranker
from weir.ranker.kendall import tau_b
from weir.ranker.light import Array, product
from weir.ranker.log import Answered

BATCH = 64
"""Answers after which it is fitted again, at least; then after a quarter of those remembered."""

LEVEL, SLOPE, NOISE = 1.0, 0.1, 1.0
"""Variances, in units of what prompts as near as can be have in common: of an error of all
predictions, of one that grows with the prediction, and of what no prompt tells."""

MIDDLE = 6.0  # the logarithm of a usual length


class Fit(NamedTuple):
    """Gaussian process regression: what the ranker was wrong by near the prompts remembered."""

    states: Array  # [A, K]
    lean: Array  # [A], how far predictions were from MIDDLE
    heights: Array  # [A]

    def error(self, expected: Array, states: Array) -> Array:
        """[P], to be added to logarithms of lengths `expected` [P] of prompts in `states` [P, K]"""
        alike = _alike(expected - MIDDLE, states, self.lean, self.states)
        error: Array = product(alike, self.heights[None])[:, 0]
        return error


@dataclass(slots=True)
class Adapted:
    """Predicts as `base` does, and as it has learned to where that ranks better.

    memory: answers that are learned from, the latest; 0: it never learns. taus: Kendall's tau-b of
    both over the answers remembered, each predicted by what the others taught; empty before."""

    base: Ranker
    memory: int = 1024
    taus: dict[str, float] = field(default_factory=dict)
    fit: Fit | None = None
    _states: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    _lengths: Array = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    _new: int = 0

    def predict(self, prompts: Sequence[str]) -> list[float]:
        """Tokens expected of each answer."""
        expected, states = self.base.read(prompts)
        if self.fit is not None and self.better:
            logs = np.log1p(expected)
            expected = np.expm1(logs + self.fit.error(logs, states))
        found: list[float] = expected.tolist()
        return found

    @property
    def better(self) -> bool:
        """Whether what was learned has ranked better than `base`."""
        return bool(self.taus) and self.taus["adapted"] > self.taus["base"]

    @property
    def answers(self) -> int:
        return len(self._lengths)

    def learn(self, answers: Sequence[Answered]) -> None:
        """Take in how long answers were. One that was cut before what was expected of it says
        nothing."""
        for start in range(0, len(answers), BATCH):
            self._take(answers[start : start + BATCH])
            if self._new >= max(BATCH, self.answers // 4):
                self._new = 0
                self._refit()

    def _take(self, answers: Sequence[Answered]) -> None:
        expected, states = self.base.read([answer.prompt for answer in answers])
        logs = np.log1p(expected)
        actual = np.log1p([answer.tokens for answer in answers])
        says = (actual > logs) | ~np.array([answer.cut for answer in answers])
        lengths = np.stack([actual, logs], axis=1)[says].astype(np.float32)
        known = self._states if self.answers else states[:0]
        self._states = np.concatenate([known, states[says]])[-self.memory :]
        self._lengths = np.concatenate([self._lengths, lengths])[-self.memory :]
        self._new += len(lengths)

    def _refit(self) -> None:
        actual, expected = self._lengths.T
        lean = expected - MIDDLE
        alike = _alike(lean, self._states, lean, self._states)
        alike[np.diag_indices_from(alike)] += NOISE
        inverse = np.linalg.inv(alike)
        self.fit = Fit(self._states, lean, inverse @ (actual - expected))
        others = actual - self.fit.heights / np.diagonal(inverse)  # as without this answer
        rankings = {"base": expected, "adapted": others}
        self.taus = {name: tau_b(one.tolist(), actual.tolist()) for name, one in rankings.items()}


def _alike(one: Array, states: Array, other: Array, others: Array) -> Array:
    """What is known to be common to the errors of prompts [P] and others [A]: float32 [P, A]."""
    near = (
        np.square(states).sum(1)[:, None] + np.square(others).sum(1) - 2 * product(states, others)
    )
    found: Array = np.exp(-np.maximum(near, 0)) + LEVEL + SLOPE * np.outer(one, other)
    return found
