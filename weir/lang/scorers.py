"""How `select` rates its choices, from the logprobs of their tokens (SGLang's three methods)."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from weir.lang.backend.base import Score


def rate(scorer: str, scores: Sequence[Score], alone: Sequence[Score] | None) -> list[float]:
    """One number a choice, the best the highest. `alone`: of the choices after nothing."""
    if scorer == "token_length_normalized":
        return [fmean(score.logprobs) for score in scores]
    if scorer == "greedy_token_selection":
        return _greedy(scores)
    assert scorer == "unconditional_likelihood_normalized" and alone is not None
    return [
        fmean(score.logprobs) - fmean(plain.logprobs)
        for score, plain in zip(scores, alone, strict=True)
    ]


def _greedy(scores: Sequence[Score]) -> list[float]:
    """1 for the choice that greedy decoding among them ends at, 0 for the others.

    At each token those with the most likely one stay. A choice that has ended stands with its own
    mean, so that a short one is neither favoured nor lost.
    """
    stay = list(range(len(scores)))
    for at in range(max(len(score.tokens) for score in scores)):
        heads: dict[int | None, float] = {}  # token → logprob; None: ended
        for score in (scores[i] for i in stay):
            token = _token(score, at)
            rating = fmean(score.logprobs) if token is None else score.logprobs[at]
            heads[token] = max(rating, heads.get(token, rating))
        best = max(heads, key=lambda token: heads[token])
        stay = [i for i in stay if _token(scores[i], at) == best]
        if len(stay) == 1:
            break
    return [1.0 if i == stay[0] else 0.0 for i in range(len(scores))]


def _token(score: Score, at: int) -> int | None:
    return score.tokens[at] if at < len(score.tokens) else None
