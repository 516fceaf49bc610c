"""The end of a matrix product. If several programs share the columns, the last to finish adds their
sums, in a fixed order; then scales, bias and residual are applied and the result is stored.

Knows float32 sums [rows of the weight, rows of x], whatever computed them.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

TILES = 16384  # most of a launch in which columns are split


@lru_cache
def _tickets(device: torch.device) -> Tensor:
    """Counts each tile's finished programs. Zero between launches, which are on one stream."""
    return torch.zeros(TILES, dtype=torch.int32, device=device)


def prepared(x: Tensor, residual: Tensor | None, n: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """x and the residual in the layout that kernels read, and memory for `n` columns of results."""
    x = x if x.stride(1) == 1 else x.contiguous()
    residual = residual.contiguous() if residual is not None else None
    return x, residual, x.new_empty(len(x), n)


def shared_sums(
    x: Tensor, tiles: int, splits: int, rows: int, tokens: int
) -> tuple[Tensor | None, Tensor | None]:
    """Memory for the sums of each tile's splits, and their count; None if there is only one."""
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
    """Add the sums of a tile's splits, in the last program to arrive; finish and store them."""
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
    """Apply the norm's factor and the scales, add bias and residual, and store the transpose."""
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
