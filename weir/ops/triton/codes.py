"""Linear layers with weights of 4 bits on a GPU. Codes are converted to numbers in registers, for
the tensor cores, or, for many rows, in memory for cuBLAS.

The weight has the layout of `weir.ops.quantize.to_tiles`, which a program reads sequentially.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from weir.ops.fastest import fastest
from weir.ops.fused import Fused
from weir.ops.triton.bits import KINDS, SHRUNK, numbers
from weir.ops.triton.launch import kernel, shared_memory, take_turn
from weir.ops.triton.linear import FEW, ROOM, SOME, Tile, share, taken
from weir.ops.triton.rows import ready
from weir.ops.triton.single import WIDEST, single_of_codes
from weir.ops.triton.sums import prepared, settle, shared_sums

BLOCK = 64  # columns that lie together
UNPACKED = 16  # blocks that a program unpacks
MANY, MOST = 128, 256  # rows of x: most of a program; above which unpacking and cuBLAS are faster


@lru_cache
def tile_for_codes(m: int, n: int, k: int) -> Tile | None:
    """The tile that multiplies m rows by a 4-bit weight [n, k] fastest; None: cuBLAS is faster."""
    if m > MOST:
        return None
    if m <= FEW:
        return Tile(64, 128, share(n, k, 64, 1024), warps=2, stages=3, tokens=FEW)
    if m <= SOME:
        return Tile(128, 64, share(n, k, 128, 384), warps=8, stages=4, tokens=SOME)
    if m <= MANY:
        return Tile(128, 64, share(n, k, 128, 128), warps=8, stages=4, tokens=MANY)
    return Tile(64, 64, 1, warps=4, stages=4, tokens=MANY)


def few_rows_of_codes(
    x: Tensor, codes: Tensor, pairs: Tensor, n: int, fused: Fused
) -> Tensor | None:
    """As `product_of_codes`, by the fastest kernel; None if unpacking and cuBLAS are faster, x and
    pairs differ in type, or there is too little shared memory."""
    k = codes.shape[1] * BLOCK
    tile = tile_for_codes(len(x), n, k)
    if tile is None or x.dtype != pairs.dtype:
        return None
    if tile.tokens > SOME and shared_memory(x.device) < ROOM:  # before Hopper
        return None
    # each program would norm and gate all rows; and float16 times the norm's weight may overflow
    if len(x) > FEW or (fused.norm is not None and x.dtype == torch.float16):
        x, fused = ready(x, fused), fused.rest()

    def tiles() -> Tensor:
        return product_of_codes(x, codes, pairs, n, tile, fused)

    if len(x) != 1 or k > WIDEST:
        return tiles()

    def single() -> Tensor:
        return single_of_codes(ready(x, fused), codes, pairs, n, fused)

    asked = ("int4", n, k, x.dtype, fused.norm is None, fused.act, x.device)
    return fastest(asked, x, tiles, single)


def product_of_codes(
    x: Tensor, codes: Tensor, pairs: Tensor, n: int, tile: Tile, fused: Fused
) -> Tensor:
    """As `linear.product` for a weight [n, K] of `to_tiles`. Reads n K / 2 bytes and the pairs once
    for every `tile.tokens` rows of x. Weights are rounded to the type of x."""
    m, k, group = len(x), codes.shape[1] * BLOCK, codes.shape[1] * BLOCK // pairs.shape[1]
    x, residual, out = prepared(x, fused.residual, n)
    if m == 0:
        return out
    tokens = tile.tokens
    tiles, turns = -(-n // tile.rows), -(-m // tokens)
    _product(
        (tiles, tile.splits, turns), x, codes, pairs.view(torch.int32), residual,
        fused.bias, fused.norm, out,
        *shared_sums(x, tiles * turns, tile.splits, tile.rows, tokens), fused.eps, m,
        X_STRIDE=x.stride(0), N=n, K=k, GROUP=group, ROWS=tile.rows, BLOCKS=tile.columns // BLOCK,
        TOKENS=tokens, SPLITS=tile.splits, ACT=fused.act, FAST=x.is_cuda and x.dtype == pairs.dtype,
        KIND=KINDS[pairs.dtype], STAGES=tile.stages,
        warps=tile.warps, stages=tile.stages,
    )  # fmt: skip
    return out


@kernel("eps", "m")
def _product(
    x, codes, pairs, residual, bias, norm, out, parts, tickets, eps, m,
    X_STRIDE: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
    ROWS: tl.constexpr, BLOCKS: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr,
    ACT: tl.constexpr, FAST: tl.constexpr, KIND: tl.constexpr, STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Multiplies ROWS rows of the weight, in a share of the columns, by TOKENS rows of x."""
    tile, split, turn = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    blocks: tl.constexpr = K // 64
    some: tl.constexpr = tl.cdiv(tl.cdiv(blocks, SPLITS), BLOCKS) * BLOCKS
    begin = split * some
    end = tl.minimum(begin + some, blocks)
    row, token = tile * ROWS + tl.arange(0, ROWS), turn * TOKENS + tl.arange(0, TOKENS)
    half = tl.arange(0, 32)
    panel = tl.minimum(row // 64, (N - 1) // 64).to(tl.int64)
    line = codes + (panel * (blocks * 2048) + row % 64 * 32)[:, None] + half[None, :]
    pair = pairs + panel * (K // GROUP * 64) + row % 64
    take_turn(EARLY)
    known = token[:, None] < m
    here = x + token[:, None].to(tl.int64) * X_STRIDE
    y = tl.zeros((ROWS, TOKENS), tl.float32)
    square = tl.zeros((TOKENS,), tl.float32)
    for at in tl.range(begin, end, BLOCKS, num_stages=STAGES):
        for i in tl.static_range(BLOCKS):
            block = at + i
            if blocks % BLOCKS:
                block = tl.minimum(block, blocks - 1)  # any weights will do, as x is 0 there
            packed = tl.load(line + block * 2048)
            low, high = numbers(packed, pair, block, x.dtype.element_ty, GROUP, FAST, KIND)
            column = (at + i) * 64 + half
            part, square = taken(here, norm, column, column < K, known, square, K, ACT)
            y = tl.dot(low, tl.trans(part), y, input_precision="ieee")
            part, square = taken(here, norm, column + 32, column < K, known, square, K, ACT)
            y = tl.dot(high, tl.trans(part), y, input_precision="ieee")
            if FAST:
                y = waited(y)
    if FAST and KIND == tl.bfloat16:
        y *= 1 / SHRUNK
    settle(y, square, None, residual, bias, norm, out, parts, tickets, eps, m,
           turn * tl.num_programs(0) + tile, split, row, token, N, K, ROWS, TOKENS,
           SPLITS)  # fmt: skip


@triton.jit
def waited(y):
    """Returns y after waiting for its products. On Hopper a product reads weights from registers
    asynchronously, and compilers up to Triton 3.6 overwrite these with the next turn's numbers too
    early (triton-lang/triton#9433). A use of the sums makes them wait."""
    return tl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [y], dtype=tl.float32, is_pure=True, pack=1
    )


def unpacked(codes: Tensor, pairs: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """The weight [n, K] of `to_tiles` as numbers of `dtype`."""
    panels, blocks = codes.shape[:2]
    k = blocks * BLOCK
    out = torch.empty(n, k, dtype=dtype, device=codes.device)
    _unpack(
        (panels, -(-blocks // UNPACKED), 1), codes, pairs.view(torch.int32), out,
        N=n, K=k, GROUP=k // pairs.shape[1], BLOCKS=UNPACKED,
        FAST=codes.is_cuda and dtype == pairs.dtype, KIND=KINDS[pairs.dtype],
        warps=4,
    )  # fmt: skip
    return out


@kernel()
def _unpack(
    codes, pairs, out,
    N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, BLOCKS: tl.constexpr, FAST: tl.constexpr,
    KIND: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    panel = tl.program_id(0).to(tl.int64)
    within, half = tl.arange(0, 64), tl.arange(0, 32)
    row = panel * 64 + within
    line = codes + panel * (K * 32) + within[:, None] * 32 + half[None, :]
    pair = pairs + panel * (K // GROUP * 64) + within
    begin = tl.program_id(1) * BLOCKS
    take_turn(EARLY)
    for block in range(begin, tl.minimum(begin + BLOCKS, K // 64)):
        packed = tl.load(line + block * 2048)
        low, high = numbers(packed, pair, block, out.dtype.element_ty, GROUP, FAST, KIND)
        if FAST and KIND == tl.bfloat16:
            low, high = low * (1 / SHRUNK), high * (1 / SHRUNK)
        there = out + row[:, None] * K + block * 64 + half[None, :]
        tl.store(there, low.to(out.dtype.element_ty), mask=row[:, None] < N)
        tl.store(there + 32, high.to(out.dtype.element_ty), mask=row[:, None] < N)
