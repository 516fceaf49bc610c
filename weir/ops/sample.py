"""The arithmetic of choosing tokens: filters, penalties, masks, logprobs, the random choice.

A choice depends on the row of logits, the request's own numbers and one uniform variate, never on
what else is in the batch: probabilities are summed as integers, so no order of summation, shape or
device changes a sum, and equal logits are ranked by token id. Knows no request and no plan.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ONE = 2.0**40
"""Weight of the most likely token. A row of 2^20 tokens sums to at most 2^60, exact in int64."""

MAX_VOCAB = 2**20
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA '14)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(seed: NDArray[np.uint64], position: NDArray[np.int64]) -> NDArray[np.float64]:
    """One variate in [0, 1) for each seed [B] and position [B]: splitmix64 as a counter's hash.

    The seed is mixed before the position is added, so that seeds a constant apart (the choices of
    one request) do not run through one another's variates.
    """
    with np.errstate(over="ignore"):
        hashed = _mix(_mix(seed + GOLDEN) + (position.astype(np.uint64) + np.uint64(1)) * GOLDEN)
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def greedy(logits: Tensor) -> Tensor:
    """logits [B, V] → int64 [B]: the most likely token, the lowest id among equals; -1 where the
    row holds NaN or +inf, or nothing but -inf."""
    best, token = logits.max(dim=-1)
    return torch.where(best.isfinite(), token, -1)


def weights(logits: Tensor, temperature: Tensor | None = None) -> Tensor:
    """logits float32 [B, V] → int64 [B, V]: probabilities relative to the row's best, times `ONE`.

    `temperature` is float32 [B] and positive; None means 1.
    """
    relative = logits - logits.amax(dim=-1, keepdim=True)
    if temperature is not None:
        relative /= temperature.unsqueeze(-1)
    return relative.exp_().mul_(ONE).long()


def ranked(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of float32 [B, V], largest first, equals by id: values and ids."""
    # as integers, floats order like their bits once the negative ones are flipped; + 0.0 makes
    # -0.0 equal 0.0. The low 20 bits hold the id, so that no two keys of a row are equal.
    bits = (logits + 0.0).view(torch.int32).long()
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    ids = torch.arange(logits.shape[-1], device=logits.device)
    keys = bits * MAX_VOCAB + (MAX_VOCAB - 1 - ids)
    best = keys.topk(k, dim=-1).values
    index = MAX_VOCAB - 1 - best % MAX_VOCAB
    return logits.gather(-1, index), index


def _choose(cumulative: Tensor, total: Tensor, u: Tensor) -> Tensor:
    """The first index whose cumulative weight [B, N] exceeds u [B] of the total [B]: [B, 1]."""
    target = torch.minimum((u * total.double()).long(), total - 1)
    index = torch.searchsorted(cumulative, target.unsqueeze(-1), right=True)
    return index.clamp_(max=cumulative.shape[-1] - 1)


def draw(logits: Tensor, temperature: Tensor, u: Tensor) -> Tensor:
    """A token from softmax(logits / temperature) by inverse CDF in order of token id.

    logits float32 [B, V], temperature float32 [B], u float64 [B] in [0, 1) → int64 [B]; -1 where
    the row cannot be sampled (see `greedy`).
    """
    cumulative = weights(logits, temperature).cumsum(dim=-1)
    token = _choose(cumulative, cumulative[:, -1], u).squeeze(-1)
    return torch.where(logits.amax(dim=-1).isfinite(), token, -1)


def draw_filtered(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, u: Tensor
) -> Tensor:
    """As `draw`, by inverse CDF over what the filters keep, most likely first.

    top_k int64 [B] (0: off), top_p and min_p float64 [B]. Each keeps a prefix of the ranked tokens:
    min-p those with at least `min_p` of the best's probability, top-k the first k, and top-p the
    fewest that reach `top_p` of the mass the other two keep. A row is ranked only as deep as
    needed; on a GPU, where looking would cost a wait, in full.
    """
    vocab = logits.shape[-1]
    token = torch.full_like(top_k, -1)
    left = torch.arange(len(logits), device=logits.device)
    weight = weights(logits, temperature)
    depth = min(vocab, 128 if logits.device.type == "cpu" else vocab)
    while True:
        found = _draw_ranked(
            logits[left], weight[left], depth, top_k[left], top_p[left], min_p[left], u[left]
        )
        token[left] = found
        if depth == vocab:
            break
        left = left[found < 0]
        if len(left) == 0:
            break
        depth = min(vocab, depth * 16)
    return torch.where(logits.amax(dim=-1).isfinite(), token, -1)


def _draw_ranked(
    logits: Tensor,
    weight: Tensor,
    depth: int,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    u: Tensor,
) -> Tensor:
    """`draw_filtered` seeing the `depth` most likely alone; -1 where more may be kept than that."""
    vocab = logits.shape[-1]
    ids = ranked(logits, depth)[1]
    best = weight.gather(-1, ids)
    cumulative = best.cumsum(dim=-1)
    floor = (min_p * ONE).ceil().long().unsqueeze(-1)
    limit = torch.where(top_k > 0, top_k, vocab).unsqueeze(-1)
    within = (best >= floor) & (torch.arange(depth, device=ids.device) < limit)
    seen = (best * within).sum(dim=-1)  # mass of what min-p and top-k keep, as far as we look
    whole = (within.sum(dim=-1) < depth) | (limit.squeeze(-1) <= depth) | (depth == vocab)
    unseen = (weight * (weight >= floor)).sum(dim=-1)
    mass = torch.where(whole, seen, unseen)
    need = torch.minimum((top_p * mass.double()).ceil().long(), mass)
    kept = within & (cumulative - best < need.unsqueeze(-1))
    known = whole | ((limit.squeeze(-1) >= vocab) & (seen >= need))
    index = _choose(cumulative, (best * kept).sum(dim=-1), u)
    return torch.where(known, ids.gather(-1, index).squeeze(-1), -1)


def penalise(
    logits: Tensor,
    seen: Tensor,
    counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> Tensor:
    """Repetition (CTRL, arXiv 1909.05858, section 4.1), presence and frequency (OpenAI) penalties.

    logits float32 [B, V]; seen bool [B, V]: in the prompt; counts int32 [B, V]: how often in the
    output; the penalties float32 [B] → float32 [B, V].
    """
    output = counts > 0
    repetition = repetition.unsqueeze(-1)
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(seen | output, repeated, logits)
    return logits - frequency.unsqueeze(-1) * counts - presence.unsqueeze(-1) * output


def unpack(mask: Tensor, vocab: int) -> Tensor:
    """uint8 [N], token t at bit t % 8 of byte t // 8 → bool [vocab]; what it lacks is False."""
    shifts = torch.arange(8, dtype=torch.uint8, device=mask.device)
    bits = ((mask.unsqueeze(-1) >> shifts) & 1).flatten()[:vocab].bool()
    return torch.nn.functional.pad(bits, (0, vocab - len(bits)))


def logprobs(logits: Tensor, tokens: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log_softmax of logits float32 [B, V], seen from `tokens` int64 [B] and from the n best.

    → logprob float64 [B] and rank int64 [B] (1: the most likely) of the tokens; ids int64 [B, n]
    and logprobs float64 [B, n] of the n most likely.
    """
    best = logits.amax(dim=-1)
    norm = best.double() + torch.log(weights(logits).sum(dim=-1).double() / ONE)
    chosen = logits.gather(-1, tokens.unsqueeze(-1))
    rank = (logits > chosen).sum(dim=-1) + 1
    values, ids = ranked(logits, n)
    return chosen.squeeze(-1).double() - norm, rank, ids, values.double() - norm.unsqueeze(-1)
