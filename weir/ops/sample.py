"""The arithmetic of sampling: filters, penalties, masks, logprobs, the random choice.

A choice depends only on its row of logits, the request's own parameters and one uniform variate,
not on the rest of the batch. Probabilities are summed as integers, so the order of summation, the
shape and the device do not change a sum, and equal logits are ranked by token id. Knows no request
and no plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weir.ops.dispatch import gpu_kernels

ONE = 2.0**30
"""Weight of the most likely token. A token less likely by more than this factor has weight 0."""

CACHED = 2**18
"""Logits that a CPU processes at a time, so that intermediate results stay in its cache."""

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea and Flood, OOPSLA '14)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(seed: NDArray[np.uint64], position: NDArray[np.int64]) -> NDArray[np.float64]:
    """One variate in [0, 1) for each seed [B] and position [B]: splitmix64 of a counter.

    The seed is hashed before the position is added, so that seeds which differ by a constant (the
    choices of one request) do not share variates at shifted positions.
    """
    with np.errstate(over="ignore"):
        hashed = _mix(_mix(seed + GOLDEN) + (position.astype(np.uint64) + np.uint64(1)) * GOLDEN)
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def greedy(logits: Tensor) -> Tensor:
    """logits [B, V] → int64 [B]: the most likely token, the lowest id among equals; -1 if the row
    holds NaN or +inf, or only -inf."""
    size = next((n for n in (64, 32) if logits.shape[-1] % n == 0), None)
    if size is None:
        best, token = logits.max(dim=-1)
    else:  # `amax` within blocks is vectorised, an argmax over the row is not
        blocks = logits.unflatten(-1, (-1, size))
        best, block = blocks.amax(dim=-1).max(dim=-1)
        inside = blocks.gather(1, block.view(-1, 1, 1).expand(-1, 1, size)).squeeze(1)
        token = block * size + inside.argmax(dim=-1)
    return torch.where(best.isfinite(), token, -1)


def weights(logits: Tensor, temperature: Tensor) -> Tensor:
    """logits [B, V], temperature float32 [B] > 0 → int32 [B, V]: probabilities relative to the
    row's largest, times `ONE`."""
    logits = logits.float()
    relative = logits - logits.amax(dim=-1, keepdim=True)
    return relative.div_(temperature.unsqueeze(-1)).exp_().mul_(ONE).int()


def ranked(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits of each row [B, V], largest first, equals by id: values and ids [B, k].

    Which of several logits equal to the k-th are returned is unspecified.
    """
    if k == logits.shape[-1]:
        return logits.sort(dim=-1, descending=True, stable=True)
    values, ids = logits.topk(k, dim=-1)
    ids, order = ids.sort(dim=-1)
    values, order = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, order)


def _choose(cumulative: Tensor, total: Tensor, u: Tensor) -> Tensor:
    """int64 [B]: the first index whose cumulative weight [B, N] exceeds u [B] times total [B]."""
    target = torch.minimum((u * total.double()).long(), total - 1)
    index = torch.searchsorted(cumulative, target.unsqueeze(-1), right=True)
    return index.squeeze(-1).clamp_(max=cumulative.shape[-1] - 1)


@dataclass(slots=True, eq=False)
class Filters:
    """The filters of each row of a draw. Each keeps a prefix of the tokens, most likely first.

    min-p keeps tokens with at least `min_p` times the largest probability, top-k the first k, and
    top-p the fewest that reach `top_p` of the mass that the other two keep (Holtzman et al., arXiv
    1904.09751; Minh et al., arXiv 2407.01082). One value per row, [B].
    """

    top_k: Tensor  # int64; 0: off
    top_p: Tensor  # float64
    min_p: Tensor  # float64

    def __getitem__(self, rows: slice | Tensor) -> Filters:
        return Filters(self.top_k[rows], self.top_p[rows], self.min_p[rows])


def draw(logits: Tensor, temperature: Tensor, u: Tensor, filters: Filters | None = None) -> Tensor:
    """Draw a token from softmax(logits / temperature) by inverse CDF in order of token id; with
    filters, over the tokens they keep, most likely first.

    logits [B, V], temperature float32 [B], u float64 [B] in [0, 1) → int64 [B]; -1 if the row
    cannot be sampled (see `greedy`).
    """
    tokens = []
    step = len(logits) if logits.is_cuda else max(1, CACHED // logits.shape[-1])
    for first in range(0, len(logits), step):
        rows = slice(first, first + step)
        if filters is not None:
            tokens.append(_draw_rows(logits[rows], temperature[rows], filters[rows], u[rows]))
        else:
            cumulative = weights(logits[rows], temperature[rows]).cumsum(dim=-1)
            tokens.append(_choose(cumulative, cumulative[:, -1], u[rows]))
    return torch.where(logits.amax(dim=-1).isfinite(), torch.cat(tokens), -1)


def choose(
    logits: Tensor, temperature: Tensor, u: Tensor, filters: Filters | None = None
) -> Tensor:
    """Choose a token per row: `greedy` if its temperature is 0, otherwise `draw`, with the row's
    filters if any is on.

    The GPU kernels read nothing back to the host, so a CUDA graph can record them. A row with
    filters costs many times as much as others."""
    gpu = gpu_kernels(logits)
    if gpu is not None:
        cut = None if filters is None else (filters.top_k, filters.top_p, filters.min_p)
        return gpu.choose(logits, temperature, u, cut)
    tokens = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    cold, cut = temperature <= 0, torch.zeros_like(temperature, dtype=torch.bool)
    if filters is not None:
        cut = ~cold & ((filters.top_k > 0) | (filters.top_p < 1) | (filters.min_p > 0))
    for some in (cold, cut, ~(cold | cut)):
        if not some.any():
            continue
        rows = slice(None) if some.all() else some
        x, heat = logits[rows], temperature[rows]
        if some is cold:
            tokens[rows] = greedy(x)
        else:
            tokens[rows] = draw(x, heat, u[rows], filters[rows] if some is cut else None)
    return tokens


def _draw_rows(logits: Tensor, temperature: Tensor, filters: Filters, u: Tensor) -> Tensor:
    """Rank a row only as deep as its filters reach. On a GPU without kernels, where checking that
    would synchronise, rank it in full."""
    vocab = logits.shape[-1]
    depth = vocab if logits.is_cuda else min(vocab, 128)
    tokens = _draw_ranked(logits, temperature, filters, u, depth)
    while depth < vocab:
        left = (tokens < 0).nonzero().squeeze(-1)
        if len(left) == 0:
            break
        depth = min(vocab, depth * 16)
        tokens[left] = _draw_ranked(logits[left], temperature[left], filters[left], u[left], depth)
    return tokens


def _draw_ranked(
    logits: Tensor, temperature: Tensor, filters: Filters, u: Tensor, depth: int
) -> Tensor:
    """Draw from the `depth` most likely tokens; -1 if the filters may keep more than these."""
    vocab = logits.shape[-1]
    values, ids = ranked(logits, depth)
    weight = weights(values, temperature)
    cumulative = weight.cumsum(dim=-1)
    floor = (filters.min_p * ONE).ceil().int().unsqueeze(-1)
    limit = torch.where(filters.top_k > 0, filters.top_k, vocab)
    within = (weight >= floor) & (torch.arange(depth, device=ids.device) < limit.unsqueeze(-1))
    mass = (weight * within).sum(dim=-1)  # of the tokens that min-p and top-k keep
    if depth < vocab:
        more = within.all(dim=-1)  # they may keep tokens beyond `depth`
        deeper = (more & (filters.top_p < 1) & (limit == vocab)).nonzero().squeeze(-1)
        every = weights(logits[deeper], temperature[deeper])
        mass = mass.index_copy(0, deeper, (every * (every >= floor[deeper])).sum(dim=-1))
    need = torch.minimum((filters.top_p * mass.double()).ceil().long(), mass)
    kept = within & (cumulative - weight < need.unsqueeze(-1))
    index = _choose(cumulative, (weight * kept).sum(dim=-1), u)
    token = ids.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    if depth == vocab:
        return token
    # the mass is unknown, or the cut falls among equals that may go on beyond `depth`
    unknown = more & (depth < limit) & (limit < vocab)
    unknown |= (kept & (values == values[:, -1:])).any(dim=-1)
    return torch.where(unknown, -1, token)


def penalise(
    logits: Tensor,
    seen: Tensor,
    counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> Tensor:
    """Repetition (CTRL, arXiv 1909.05858, section 4.1), presence and frequency (OpenAI) penalties.

    logits float32 [B, V]; seen bool [B, V]: token is in the prompt; counts int32 [B, V]: its
    occurrences in the output; penalties float32 [B] → float32 [B, V].
    """
    output = counts > 0
    repetition = repetition.unsqueeze(-1)
    repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
    logits = torch.where(seen | output, repeated, logits)
    return logits - frequency.unsqueeze(-1) * counts - presence.unsqueeze(-1) * output


def restrict(logits: Tensor, rows: Tensor, which: Tensor, masks: Tensor) -> None:
    """Exclude disallowed tokens from `rows` int64 [R] of logits [B, V], in place. Row i uses mask
    `which[i]` (int64 [R]) of masks uint8 [M, N]: token t is allowed if bit t % 8 of byte t // 8 is
    set; tokens beyond the last byte are not.

    On a CPU a table maps each byte to what it adds to eight logits: a sixtieth of the time that
    unpacking bits and filling takes."""
    gpu = gpu_kernels(logits)
    if gpu is not None:
        return gpu.restrict(logits, rows, which, masks)
    added = torch.nn.functional.embedding(masks.int(), _octets(logits.device)).flatten(-2)
    vocab = logits.shape[-1]
    missing = vocab - added.shape[-1]
    added = torch.nn.functional.pad(added, (0, missing), value=-torch.inf)  # or cut, below zero
    logits.index_add_(0, rows, added[which].to(logits.dtype))


@cache
def _octets(device: torch.device) -> Tensor:
    """float32 [256, 8]: 0 for each set bit of a byte, lowest first, otherwise -inf. Made on the
    device: a copy from pageable memory would wait for it."""
    octets, bits = torch.arange(256, device=device)[:, None], torch.arange(8, device=device)
    return torch.where((octets >> bits & 1).bool(), 0.0, -torch.inf)


def logprobs(logits: Tensor, tokens: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log_softmax of logits [B, V] at `tokens` int64 [B] and at the n most likely tokens.

    → logprob float64 [B] and rank int64 [B] (1: the most likely) of `tokens`; ids int64 [B, n] and
    logprobs float64 [B, n] of the n most likely.
    """
    logits = logits.float()
    best = logits.amax(dim=-1, keepdim=True)
    norm = (
        best.double() + (logits - best).exp_().sum(dim=-1, keepdim=True, dtype=torch.float64).log()
    )
    chosen = logits.gather(-1, tokens.unsqueeze(-1))
    rank = (logits > chosen).sum(dim=-1) + 1
    values, ids = ranked(logits, n)
    return (chosen.double() - norm).squeeze(-1), rank, ids, values.double() - norm
