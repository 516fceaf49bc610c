"""Linear layers of few rows on a GPU, bound by reading the weights, which are each read once.

A program multiplies some rows of the weight by all rows of x, so the weight is the operand that
tensor cores want tall. If that makes too few programs, the columns are split among several, and
the last of them to finish adds the sums of all in a fixed order, so results are deterministic. Rows
of x may be normed or gated as they are loaded; every program repeats that, which for few rows costs
less than a launch. Weights of 8-bit floats are widened as they are loaded. Weights of 4 bits have a
loop of their own in codes.py and share the rest.
"""

from dataclasses import dataclass
from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from weir.ops.fastest import fastest
from weir.ops.fused import Fused
from weir.ops.triton.bits import widened
from weir.ops.triton.launch import kernel, power_of_2, shared_memory
from weir.ops.triton.rows import activation, ready
from weir.ops.triton.single import WIDEST as WIDEST_SINGLE
from weir.ops.triton.single import single_of_bytes
from weir.ops.triton.sums import prepared, settle, shared_sums
from weir.ops.triton.vector import MOST, WIDEST, vector_product

# rows of x, and elements of a weight, up to which cuBLAS is slower (docs/results.md)
FEW, FEW_WEIGHTS = 16, 16 << 20
SOME, SOME_WEIGHTS = 64, 8 << 20
ROOM = 192 << 10  # bytes of shared memory that the tiles need


@dataclass(frozen=True, slots=True)
class Tile:
    """The shape of a program's work."""

    rows: int  # of the weight
    columns: int  # in one turn of the loop
    splits: int  # programs that share the columns
    warps: int
    stages: int  # loads in flight
    ahead: int = 0  # columns of each split fetched into the cache before x is ready
    tokens: int = 0  # rows of x; 0: all


def few_rows(x: Tensor, weight: Tensor, scales: Tensor | None, fused: Fused) -> Tensor | None:
    """As `product`, by the fastest kernel; None if that is cuBLAS, or the GPU lacks the shared
    memory that the tiles need, which Hopper and later have."""
    m, (n, k) = len(x), weight.shape
    if shared_memory(x.device) < ROOM:
        return None
    if scales is not None:
        return few_rows_of_bytes(x, weight, scales, fused)
    if fused.bias is None and m <= MOST and k <= WIDEST and n * k <= SOME_WEIGHTS:
        return vector_product(x, weight, fused)
    tile = tile_for(m, n, k)
    return product(x, weight, None, tile, fused) if tile else None


def few_rows_of_bytes(x: Tensor, weight: Tensor, scales: Tensor, fused: Fused) -> Tensor | None:
    """The same for an e4m3 weight with a scale per row."""
    m, (n, k) = len(x), weight.shape
    tile = tile_for_fp8(m, n, k)
    if tile is None:
        return None

    def tiles() -> Tensor:
        return product(x, weight, scales, tile, fused)

    if m != 1 or k > WIDEST_SINGLE or k % 4 or x.element_size() != 2:
        return tiles()

    def single() -> Tensor:
        return single_of_bytes(ready(x, fused), weight, scales, fused)

    asked = ("fp8", n, k, fused.norm is None, fused.act, x.device)
    return fastest(asked, x, tiles, single)


@lru_cache
def tile_for(m: int, n: int, k: int) -> Tile | None:
    """The tile that multiplies m rows by a weight [n, k] fastest; None: cuBLAS is faster."""
    few = m <= FEW and n * k <= FEW_WEIGHTS
    if not few and not (m <= SOME and n * k <= SOME_WEIGHTS):
        return None
    programs = -(-n // 64)
    splits = 1
    while splits < 4 and (k // splits > 1024 or programs * splits < 64) and k // splits > 256:
        splits *= 2
    # of larger weights, what is fetched ahead would leave the cache before it is read
    whole = n * k <= SOME_WEIGHTS and k % (128 * splits) == 0
    return Tile(64, 128, splits, warps=4, stages=4, ahead=k // splits if whole else 0)


@lru_cache
def tile_for_fp8(m: int, n: int, k: int) -> Tile | None:
    """The same for a weight of 8-bit floats; None: cuBLAS is faster, with x in 8 bits, too."""
    return Tile(64, 128, share(n, k, 64, 800), warps=2, stages=3) if m <= FEW else None


def share(n: int, k: int, rows: int, programs: int) -> int:
    """The number of programs that share the columns of each `rows` rows of a weight [n, k], so that
    there are about `programs` in all."""
    splits = 1
    while splits < 8 and -(-n // rows) * splits < programs and k // splits > 512:
        splits *= 2
    return splits


def product(x: Tensor, weight: Tensor, scales: Tensor | None, tile: Tile, fused: Fused) -> Tensor:
    """x [M, K] @ weight [N, K].T, with the operations in `fused` → [M, N]; sums are float32.

    scales: of an e4m3 weight, float32 [N], one per row. Reads the weight once: 2 N K bytes in
    bfloat16.
    """
    m, (n, k) = len(x), weight.shape
    x, residual, out = prepared(x, fused.residual, n)
    if m == 0:
        return out
    tiles = -(-n // tile.rows)
    tokens = FEW if m <= FEW else max(SOME, power_of_2(m))  # few values: a kernel is compiled each
    _product(
        (tiles, tile.splits, 1), x, weight, scales, residual, fused.bias, fused.norm, out,
        *shared_sums(x, tiles, tile.splits, tile.rows, tokens), fused.eps, m,
        X_STRIDE=x.stride(0), N=n, K=k, ROWS=tile.rows, COLUMNS=tile.columns, TOKENS=tokens,
        SPLITS=tile.splits, ACT=fused.act, FAST=x.is_cuda, STAGES=tile.stages,
        AHEAD=tile.ahead * weight.element_size(),
        warps=tile.warps, stages=tile.stages,
    )  # fmt: skip
    return out


@kernel("eps", "m")
def _product(
    x, weight, scales, residual, bias, norm, out, parts, tickets, eps, m,
    X_STRIDE: tl.constexpr, N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr, ACT: tl.constexpr,
    FAST: tl.constexpr, STAGES: tl.constexpr, AHEAD: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Multiplies ROWS rows of the weight, in a share of the columns, by all rows of x."""
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
    """Some columns of x, gated or times the norm's weight, and the sum of squares so far. What
    remains of the norm is applied to the product."""
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
def _prefetch(line, BYTES: tl.constexpr):
    """Fetch BYTES from each pointer into the L2 cache."""
    tl.inline_asm_elementwise(
        "{ cp.async.bulk.prefetch.L2.global [$1], $2; mov.u32 $0, 0; }", "=r,l,r",
        [line, tl.full(line.shape, BYTES, tl.int32)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip
