"""How `select` rates its choices, from the logprobs of their tokens (SGLang's three methods)."""

from collections.abc import Callable, Sequence
from statistics import fmean

from weir.lang.backend.base import Score

Scores = Sequence[Score]


def _length_normalized(scores: Scores, _: Scores) -> list[float]:
    return [fmean(score.logprobs) for score in scores]


def _unconditional(scores: Scores, alone: Scores) -> list[float]:
    pairs = zip(scores, alone, strict=True)
    return [fmean(score.logprobs) - fmean(plain.logprobs) for score, plain in pairs]


def _greedy(scores: Scores, _: Scores) -> list[float]:
    """1 for the choice at which greedy decoding among the choices ends, 0 for the others.

    At each position the choices with the most likely token stay. A choice that has ended competes
    with its mean logprob, so that short ones are neither favoured nor excluded.
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


SCORERS: dict[str, Callable[[Scores, Scores], list[float]]] = {
    "token_length_normalized": _length_normalized,
    "greedy_token_selection": _greedy,
    "unconditional_likelihood_normalized": _unconditional,
}
"""Rate each choice, the best highest, from its score after the prompt and its score alone."""
