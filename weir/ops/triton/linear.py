"""Linear layers of few rows on a GPU, bound by reading the weights: each is read by one program.

A program multiplies some rows of the weight by all rows of x, so the weight is the operand that
tensor cores want tall. Where that makes too few programs the columns are split among several, and
the last of them to finish adds up what all have left, in their order: a sum never depends on who
came first. Rows of x may be normed or gated as they are taken in; they are few, so that each
program does it again costs less than a launch. Weights of 8-bit floats are widened as they arrive;
weights of 4 bits have a loop of their own (codes.py) and the rest from here.
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
    tokens: int = 0  # rows of x; 0: all


def few_rows(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None,
    norm: Tensor | None,
    eps: float,
    act: str | None,
    *,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
) -> Tensor | None:
    """What `product` gives, by the kernel that is the fastest; None: that is cuBLAS, or the GPU
    lacks the shared memory that the tiles are cut for, which is there from Hopper on."""
    m, (n, k) = len(x), weight.shape
    if shared_memory(x.device) < ROOM:
        return None
    if scales is not None:
        tile = tile_for_fp8(m, n, k)
        more = {"bias": bias, "scales": scales}
        return product(x, weight, residual, tile, norm, eps, act, **more) if tile else None
    if bias is None and m <= MOST and k <= WIDEST and n * k <= SOME_WEIGHTS:
        return vector_product(x, weight, residual, norm, eps, act)
    tile = tile_for(m, n, k)
    return product(x, weight, residual, tile, norm, eps, act, bias=bias) if tile else None


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
def tile_for_fp8(m: int, n: int, k: int) -> Tile | None:
    """The same for a weight of 8-bit floats; None: cuBLAS does, x rounded to 8 bits as well."""
    return Tile(64, 128, share(n, k, 64, 800), warps=2, stages=3) if m <= FEW else None


def share(n: int, k: int, rows: int, programs: int) -> int:
    """How many share the columns of `rows` rows of a weight [n, k], to be so many in all."""
    splits = 1
    while splits < 8 and -(-n // rows) * splits < programs and k // splits > 512:
        splits *= 2
    return splits


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
    *,
    bias: Tensor | None = None,
    scales: Tensor | None = None,
) -> Tensor:
    """x [M, K] @ weight [N, K].T (+ bias [N] + residual [M, N]) → [M, N]; sums in float32.

    With `norm` [K], rms_norm(x, norm, eps) in place of x; with `act`, gated(x, act), x [M, 2K].
    With `scales` float32 [N], each row of the weight times its own, which is what e4m3 needs.
    Reads the weight once, 2 N K bytes in bfloat16.
    """
    m, (n, k) = len(x), weight.shape
    x, residual, out = prepared(x, residual, n)
    if m == 0:
        return out
    tiles = -(-n // tile.rows)
    tokens = FEW if m <= FEW else max(SOME, power_of_2(m))  # few kinds, each is compiled
    _product(
        (tiles, tile.splits, 1),
        x,
        weight,
        scales,
        residual,
        bias,
        norm,
        out,
        *shared_sums(x, tile, tiles, tokens),
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
        FAST=x.is_cuda,
        STAGES=tile.stages,
        AHEAD=tile.ahead * weight.element_size(),
        warps=tile.warps,
        stages=tile.stages,
    )
    return out


def prepared(x: Tensor, residual: Tensor | None, n: int) -> tuple[Tensor, Tensor | None, Tensor]:
    """x and the residual as kernels read them, and where the result of `n` columns goes."""
    x = x if x.stride(1) == 1 else x.contiguous()
    residual = residual.contiguous() if residual is not None else None
    return x, residual, x.new_empty(len(x), n)


def shared_sums(
    x: Tensor, tile: Tile, tiles: int, tokens: int
) -> tuple[Tensor | None, Tensor | None]:
    """Where the splits of each of `tiles` leave their sums, and count themselves."""
    if tile.splits == 1:
        return None, None
    assert tiles <= TILES
    size = tiles * tile.splits * (tile.rows + 1) * tokens
    return x.new_empty(size, dtype=torch.float32), _tickets(x.device)


@kernel("eps", "m")
def _product(
    x,
    weight,
    scales,
    residual,
    bias,
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
    FAST: tl.constexpr,
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
        inside = column < K
        if K % COLUMNS == 0:
            a = tl.load(line[:, None] + column[None, :])
        else:
            a = tl.load(line[:, None] + column[None, :], mask=inside[None, :], other=0.0)
        some, square = taken(here, norm, column, inside, known, square, K, ACT)
        if FAST and a.dtype == tl.float8e4nv and some.dtype == tl.bfloat16:
            a = widened(a)
        y = tl.dot(a.to(x.dtype.element_ty), tl.trans(some), y, input_precision="ieee")
    settle(y, square, scales, residual, bias, norm, out, parts, tickets,
           eps, m, tile, split, row, token, N, K, ROWS, TOKENS, SPLITS)  # fmt: skip


@triton.jit
def taken(here, norm, column, inside, known, square, K: tl.constexpr, ACT: tl.constexpr):
    """Some columns of x, gated or times the norm's weight, and the sum of squares so far."""
    mask = known & inside[None, :]
    some = tl.load(here + column[None, :], mask=mask, other=0.0)
    kind = some.dtype
    if ACT is not None:
        up = tl.load(here + K + column[None, :], mask=mask, other=0.0)
        some = activation(some.to(tl.float32), ACT) * up.to(tl.float32)
    if norm is not None:
        some = some.to(tl.float32)
        square += tl.sum(some * some, 1)
        some *= tl.load(norm + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    return some.to(kind), square


@triton.jit
def settle(
    y,
    square,
    scales,
    residual,
    bias,
    norm,
    out,
    parts,
    tickets,
    eps,
    m,
    tile,
    split,
    row,
    token,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
):
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


# Sign, exponent and mantissa of e4m3 are those of a bfloat16 2^120 times smaller. Four bytes become
# two registers of two, in half the time of the conversions by way of float16.
WIDEN = tl.constexpr("""{
.reg .b32 a, b, c, d, scale, zero;
mov.b32 scale, 0x7b807b80;
mov.b32 zero, 0x80008000;
prmt.b32 a, $2, 0, 0x1404;
prmt.b32 b, $2, 0, 0x3424;
shr.b32 c, a, 4;
shr.b32 d, b, 4;
and.b32 c, c, 0x07f007f0;
and.b32 d, d, 0x07f007f0;
lop3.b32 c, a, 0x80008000, c, 0xea;
lop3.b32 d, b, 0x80008000, d, 0xea;
fma.rn.bf16x2 $0, c, scale, zero;
fma.rn.bf16x2 $1, d, scale, zero;
}""")


@triton.jit
def widened(a):
    """e4m3 as bfloat16, exactly."""
    return tl.inline_asm_elementwise(
        WIDEN, "=r,=r,r", [a.to(tl.uint8, bitcast=True)], dtype=tl.bfloat16, is_pure=True, pack=4
    )


@triton.jit
def _prefetch(line, BYTES: tl.constexpr):
    """Fetch BYTES from each pointer on into the L2 cache."""
    tl.inline_asm_elementwise(
        "{ cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }",
        "=r,l,r",
        [line, tl.full(line.shape, BYTES, tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
