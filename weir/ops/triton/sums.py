"""What the programs of a product leave behind: the sums of those that share its columns are joined
by the last to finish, in their order, and finished and stored as the linear layer has it.

Knows float32 sums [rows of the weight, rows of x]; not how they came about.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

TILES = 16384  # of one launch, at most, where columns are split


@lru_cache
def _tickets(device: torch.device) -> Tensor:
    """How many programs of a tile are done; zero between launches, which one stream runs."""
    return torch.zeros(TILES, dtype=torch.int32, device=device)


def prepared(x: Tensor, residual: Tensor | None, n: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """x and the residual as kernels read them, and where the result of `n` columns goes."""
    x = x if x.stride(1) == 1 else x.contiguous()
    residual = residual.contiguous() if residual is not None else None
    return x, residual, x.new_empty(len(x), n)


def shared_sums(
    x: Tensor, tiles: int, splits: int, rows: int, tokens: int
) -> tuple[Tensor | None, Tensor | None]:
    """Where the splits of each of `tiles` leave their sums, and count themselves."""
    if splits == 1:
        return None, None
    assert tiles <= TILES
    size = tiles * splits * (rows + 1) * tokens
    return x.new_empty(size, dtype=torch.float32), _tickets(x.device)


@triton.jit
def settle(
    y, square, scales, residual, bias, norm, out, parts, tickets, eps, m, tile, split, row, token,
    N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    """Join the sums of a tile's splits, the last to come for all; finish and store them."""
    if SPLITS == 1:
        _finish(y, square, scales, residual, bias, norm, out, eps, row, token, m, N, K)
    else:
        area: tl.constexpr = (ROWS + 1) * TOKENS
        within: tl.constexpr = ROWS * TOKENS
        place = parts + tile.to(tl.int64) * SPLITS * area + tl.arange(0, TOKENS)
        each = place[None, :] + tl.arange(0, ROWS)[:, None] * TOKENS
        tl.store(each + split * area, y)
        if norm is not None:
            tl.store(place + split * area + within, square)
        tl.debug_barrier()
        if tl.atomic_add(tickets + tile, 1, sem="acq_rel") == SPLITS - 1:
            tl.store(tickets + tile, 0)
            y = tl.load(each, cache_modifier=".cg")
            for other in range(1, SPLITS):
                y += tl.load(each + other * area, cache_modifier=".cg")
            if norm is not None:
                square = tl.load(place + within, cache_modifier=".cg")
                for other in range(1, SPLITS):
                    square += tl.load(place + other * area + within, cache_modifier=".cg")
            _finish(y, square, scales, residual, bias, norm, out, eps, row, token, m, N, K)


@triton.jit
def _finish(
    y, square, scales, residual, bias, norm, out, eps, row, token, m,
    N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Scale by what the norm comes to, add bias and residual, store it transposed."""
    if norm is not None:
        y *= tl.rsqrt(square / K + eps)[None, :]
    if scales is not None:
        y *= tl.load(scales + row, mask=row < N, other=0.0)[:, None]
    if bias is not None:
        y += tl.load(bias + row, mask=row < N, other=0.0).to(tl.float32)[:, None]
    y = tl.trans(y)
    place = token[:, None].to(tl.int64) * N + row[None, :]
    mask = (token < m)[:, None] & (row < N)[None, :]
    if residual is not None:
        y += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=mask)
