"""Linear layers of few rows on a GPU, bound by reading the weights: each is read by one program.

A program multiplies some rows of the weight by all rows of x, so the weight is the operand that
tensor cores want tall. Where that makes too few programs the columns are split among several, and
the last of them to finish adds up what all have left, in their order: a sum never depends on who
came first. Rows of x may be normed or gated as they are taken in; they are few, so that each
program does it again costs less than a launch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from weir.ops.triton.launch import kernel, power_of_2, shared_memory
from weir.ops.triton.rows import activation
from weir.ops.triton.vector import MOST, WIDEST, vector_product

TILES = 16384  # of one launch, at most, where columns are split
# rows, and elements of a weight, up to which cuBLAS is slower (docs/results.md)
FEW, FEW_WEIGHTS = 16, 16 << 20
SOME, SOME_WEIGHTS = 64, 8 << 20
ROOM = 192 << 10  # bytes of shared memory that a program may take


@dataclass(frozen=True, slots=True)
class Tile:
    """The shape of a program's work."""

    rows: int  # of the weight
    columns: int  # of one turn of the loop
    splits: int  # programs that share the columns
    warps: int
    stages: int  # loads in flight
    ahead: int = 0  # columns of each split fetched into the cache before x is there


def few_rows(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    norm: Tensor | None,
    eps: float,
    act: str | None,
) -> Tensor | None:
    """What `product` gives, by the kernel that is the fastest; None: that is cuBLAS, or the GPU
    lacks the shared memory that the tiles are cut for, which is there from Hopper on."""
    m, (n, k) = len(x), weight.shape
    if shared_memory(x.device) < ROOM:
        return None
    if m <= MOST and k <= WIDEST and n * k <= SOME_WEIGHTS:
        return vector_product(x, weight, residual, norm, eps, act)
    tile = tile_for(m, n, k)
    return None if tile is None else product(x, weight, residual, tile, norm, eps, act)


@lru_cache
def tile_for(m: int, n: int, k: int) -> Tile | None:
    """What multiplies m rows by a weight [n, k] fastest; None: cuBLAS does."""
    few = m <= FEW and n * k <= FEW_WEIGHTS
    if not few and not (m <= SOME and n * k <= SOME_WEIGHTS):
        return None
    programs = -(-n // 64)
    splits = 1
    while splits < 4 and (k // splits > 1024 or programs * splits < 64) and k // splits > 256:
        splits *= 2
    # larger weights would push what is fetched ahead out of the cache before it is read
    whole = n * k <= SOME_WEIGHTS and k % (128 * splits) == 0
    return Tile(64, 128, splits, warps=4, stages=4, ahead=k // splits if whole else 0)


@lru_cache
def _tickets(device: torch.device) -> Tensor:
    """How many programs of a tile are done; zero between launches, which one stream runs."""
    return torch.zeros(TILES, dtype=torch.int32, device=device)


def product(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    tile: Tile,
    norm: Tensor | None = None,
    eps: float = 0.0,
    act: str | None = None,
) -> Tensor:
    """x [M, K] @ weight [N, K].T (+ residual [M, N]) → [M, N]; sums in float32.

    With `norm` [K], rms_norm(x, norm, eps) in place of x; with `act`, gated(x, act), x [M, 2K].
    Reads the weight once, 2 N K bytes in bfloat16.
    """
    m, (n, k) = len(x), weight.shape
    x = x if x.stride(1) == 1 else x.contiguous()
    residual = residual.contiguous() if residual is not None else None
    out = x.new_empty(m, n)
    if m == 0:
        return out
    tiles = -(-n // tile.rows)
    tokens = FEW if m <= FEW else max(SOME, power_of_2(m))  # few kinds, each is compiled
    parts = tickets = None
    if tile.splits > 1:
        assert tiles <= TILES
        size = tiles * tile.splits * (tile.rows + 1) * tokens
        parts, tickets = x.new_empty(size, dtype=torch.float32), _tickets(x.device)
    _product(
        (tiles, tile.splits, 1),
        x,
        weight,
        residual,
        norm,
        out,
        parts,
        tickets,
        eps,
        m,
        X_STRIDE=x.stride(0),
        N=n,
        K=k,
        ROWS=tile.rows,
        COLUMNS=tile.columns,
        TOKENS=tokens,
        SPLITS=tile.splits,
        ACT=act,
        STAGES=tile.stages,
        AHEAD=tile.ahead,
        warps=tile.warps,
        stages=tile.stages,
    )
    return out


@kernel("eps", "m")
def _product(
    x,
    weight,
    residual,
    norm,
    out,
    parts,
    tickets,
    eps,
    m,
    X_STRIDE: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
    ACT: tl.constexpr,
    STAGES: tl.constexpr,
    AHEAD: tl.constexpr,
    EARLY: tl.constexpr,
):
    """ROWS rows of the weight and a share of its columns."""
    tile, split = tl.program_id(0), tl.program_id(1)
    row, token = tile * ROWS + tl.arange(0, ROWS), tl.arange(0, TOKENS)
    share: tl.constexpr = tl.cdiv(tl.cdiv(K, COLUMNS), SPLITS) * COLUMNS
    begin = split * share
    end = tl.minimum(begin + share, K)
    line = weight + tl.minimum(row, N - 1).to(tl.int64) * K
    if EARLY:
        if AHEAD:
            _prefetch(line + begin, AHEAD)
        gdc_wait()
        gdc_launch_dependents()
    known = token[:, None] < m
    here = x + token[:, None] * X_STRIDE
    y = tl.zeros((ROWS, TOKENS), tl.float32)
    square = tl.zeros((TOKENS,), tl.float32)
    for at in tl.range(begin, end, COLUMNS, num_stages=STAGES):
        column = at + tl.arange(0, COLUMNS)
        inside = (column < K)[None, :]
        if K % COLUMNS == 0:
            a = tl.load(line[:, None] + column[None, :])
        else:
            a = tl.load(line[:, None] + column[None, :], mask=inside, other=0.0)
        some = tl.load(here + column[None, :], mask=known & inside, other=0.0)
        if ACT is not None:
            up = tl.load(here + K + column[None, :], mask=known & inside, other=0.0)
            some = activation(some.to(tl.float32), ACT) * up.to(tl.float32)
        if norm is not None:
            some = some.to(tl.float32)
            square += tl.sum(some * some, 1)
            some *= tl.load(norm + column, mask=column < K, other=0.0).to(tl.float32)[None, :]
        y = tl.dot(a, tl.trans(some.to(a.dtype)), y, input_precision="ieee")
    if SPLITS == 1:
        _finish(y, square, residual, norm, out, eps, row, token, m, N, K)
    else:
        area: tl.constexpr = (ROWS + 1) * TOKENS
        place = parts + tile.to(tl.int64) * SPLITS * area + token
        within = ROWS * TOKENS
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
            _finish(y, square, residual, norm, out, eps, row, token, m, N, K)


@triton.jit
def _finish(y, square, residual, norm, out, eps, row, token, m, N: tl.constexpr, K: tl.constexpr):
    """Scale by what the norm comes to, add the residual, store [tokens, rows of the weight]."""
    if norm is not None:
        y *= tl.rsqrt(square / K + eps)[None, :]
    y = tl.trans(y)
    place = token[:, None].to(tl.int64) * N + row[None, :]
    mask = (token < m)[:, None] & (row < N)[None, :]
    if residual is not None:
        y += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _prefetch(line, COUNT: tl.constexpr):
    """Fetch COUNT elements of two bytes from each pointer into the L2 cache."""
    tl.inline_asm_elementwise(
        "{ cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r",
        [line, tl.full(line.shape, COUNT * 2, tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
