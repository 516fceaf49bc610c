"""Linear layers over weights of 4 bits on a GPU: codes become numbers in registers, on their way to
the tensor cores, or in memory, for cuBLAS, where there are many rows.

The weight lies as `weir.ops.quantize.to_tiles` has it: what a program reads next follows what it
has read. Two codes of a byte become two 16-bit floats at once, by making their bits the lowest of
a float whose last place is worth 1.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from weir.ops.triton.launch import kernel, shared_memory
from weir.ops.triton.linear import (
    FEW,
    ROOM,
    SOME,
    Tile,
    prepared,
    settle,
    share,
    shared_sums,
    taken,
)
from weir.ops.triton.rows import rms_norm

BLOCK = 64  # columns that lie together
UNPACKED = 16  # blocks of a program that only unpacks
MANY, MOST = (
    128,
    256,
)  # rows of x: of a program, and up to which cuBLAS is slower once it has numbers


@lru_cache
def tile_for_codes(m: int, n: int, k: int) -> Tile | None:
    """What multiplies m rows by a weight [n, k] of 4 bits fastest; None: cuBLAS, once unpacked."""
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
    x: Tensor,
    codes: Tensor,
    pairs: Tensor,
    n: int,
    residual: Tensor | None,
    norm: Tensor | None,
    eps: float,
    act: str | None,
    *,
    bias: Tensor | None = None,
) -> Tensor | None:
    """What `product_of_codes` gives; None where cuBLAS is faster, or x of another type."""
    tile = tile_for_codes(len(x), n, codes.shape[1] * BLOCK)
    if tile is None or x.dtype != pairs.dtype:
        return None
    if tile.tokens > SOME and shared_memory(x.device) < ROOM:  # before Hopper
        return None
    if norm is not None and x.dtype == torch.float16:  # x times the norm's weight would overflow
        x, norm = rms_norm(x, norm, eps, False), None
    return product_of_codes(x, codes, pairs, n, residual, tile, norm, eps, act, bias=bias)


def product_of_codes(
    x: Tensor,
    codes: Tensor,
    pairs: Tensor,
    n: int,
    residual: Tensor | None,
    tile: Tile,
    norm: Tensor | None = None,
    eps: float = 0.0,
    act: str | None = None,
    *,
    bias: Tensor | None = None,
) -> Tensor:
    """As `linear.product` for a weight [n, K] of `to_tiles`, of which it reads N K / 2 bytes and
    the pairs, once for every `tile.tokens` rows of x. Weights are rounded to the type of x."""
    m, k, group = len(x), codes.shape[1] * BLOCK, codes.shape[1] * BLOCK // pairs.shape[1]
    x, residual, out = prepared(x, residual, n)
    if m == 0:
        return out
    tokens = tile.tokens
    tiles, turns = -(-n // tile.rows), -(-m // tokens)
    _product(
        (tiles, tile.splits, turns),
        x,
        codes,
        pairs.view(torch.int32),
        residual,
        bias,
        norm,
        out,
        *shared_sums(x, tile, tiles * turns, tokens),
        eps,
        m,
        X_STRIDE=x.stride(0),
        N=n,
        K=k,
        GROUP=group,
        ROWS=tile.rows,
        BLOCKS=tile.columns // BLOCK,
        TOKENS=tokens,
        SPLITS=tile.splits,
        ACT=act,
        FAST=x.is_cuda and x.dtype == pairs.dtype,
        KIND=KINDS[pairs.dtype],
        STAGES=tile.stages,
        warps=tile.warps,
        stages=tile.stages,
    )
    return out


@kernel("eps", "m")
def _product(
    x,
    codes,
    pairs,
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
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
    ACT: tl.constexpr,
    FAST: tl.constexpr,
    KIND: tl.constexpr,
    STAGES: tl.constexpr,
    EARLY: tl.constexpr,
):
    """ROWS rows of the weight, a share of its columns, TOKENS rows of x."""
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
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    known = token[:, None] < m
    here = x + token[:, None].to(tl.int64) * X_STRIDE
    y = tl.zeros((ROWS, TOKENS), tl.float32)
    square = tl.zeros((TOKENS,), tl.float32)
    for at in tl.range(begin, end, BLOCKS, num_stages=STAGES):
        for i in tl.static_range(BLOCKS):
            block = at + i
            if blocks % BLOCKS:
                block = tl.minimum(block, blocks - 1)  # that x is zero there will do
            packed = tl.load(line + block * 2048)
            low, high = numbers(packed, pair, block, x.dtype.element_ty, GROUP, FAST, KIND)
            column = (at + i) * 64 + half
            part, square = taken(here, norm, column, column < K, known, square, K, ACT)
            y = tl.dot(low, tl.trans(part), y, input_precision="ieee")
            part, square = taken(here, norm, column + 32, column < K, known, square, K, ACT)
            y = tl.dot(high, tl.trans(part), y, input_precision="ieee")
    if FAST and KIND == tl.bfloat16:
        y *= 1 / SHRUNK
    settle(y, square, None, residual, bias, norm, out, parts, tickets, eps, m,
           turn * tl.num_programs(0) + tile, split, row, token, N, K, ROWS, TOKENS,
           SPLITS)  # fmt: skip


@triton.jit
def numbers(
    packed, pair, block, kind: tl.constexpr, GROUP: tl.constexpr, FAST: tl.constexpr,
    KIND: tl.constexpr,
):  # fmt: skip
    """Bytes [rows, 32] of a block → the weights of columns 0 to 31, and of 32 to 63."""
    first = tl.load(pair + block * 64 // GROUP * 64)[:, None]
    second = tl.load(pair + (block * 64 // GROUP + 1) * 64)[:, None] if GROUP == 32 else first
    if FAST:
        return unpack(packed, first, second, KIND)
    else:
        low = (packed & 15).to(tl.float32) * scale_of(first, KIND) + offset_of(first, KIND)
        high = (packed >> 4).to(tl.float32) * scale_of(second, KIND) + offset_of(second, KIND)
        return low.to(kind), high.to(kind)


@triton.jit
def scale_of(pair, KIND: tl.constexpr):
    return (pair & 0xFFFF).to(tl.int16).to(KIND, bitcast=True).to(tl.float32)


@triton.jit
def offset_of(pair, KIND: tl.constexpr):
    return (pair >> 16).to(tl.int16).to(KIND, bitcast=True).to(tl.float32)


# Four bytes become two registers of two numbers, low halves first. A code in the last bits of a
# bfloat16 is itself times 2^-133, and one in the next, 2^-129, across the end of the subnormals.
# In the last bits of 1024 in float16 it adds itself, and 1 * that - 1024 is exact.
BFLOAT16 = tl.constexpr("""{
.reg .b32 a, b, c, d;
prmt.b32 a, $4, 0, 0x4140;
prmt.b32 b, $4, 0, 0x4342;
and.b32 c, a, 0x000f000f;
and.b32 d, b, 0x000f000f;
fma.rn.bf16x2 $0, c, $5, $9;
fma.rn.bf16x2 $1, d, $7, $11;
and.b32 c, a, 0x00f000f0;
and.b32 d, b, 0x00f000f0;
fma.rn.bf16x2 $2, c, $13, $17;
fma.rn.bf16x2 $3, d, $15, $19;
}""")
FLOAT16 = tl.constexpr("""{
.reg .b32 a, b, c, d, one, less;
mov.b32 one, 0x3c003c00;
mov.b32 less, 0xe400e400;
prmt.b32 a, $4, 0, 0x4140;
prmt.b32 b, $4, 0, 0x4342;
lop3.b32 c, a, 0x000f000f, 0x64006400, 0xea;
lop3.b32 d, b, 0x000f000f, 0x64006400, 0xea;
fma.rn.f16x2 c, c, one, less;
fma.rn.f16x2 d, d, one, less;
fma.rn.f16x2 $0, c, $5, $9;
fma.rn.f16x2 $1, d, $7, $11;
shr.b32 a, a, 4;
shr.b32 b, b, 4;
lop3.b32 c, a, 0x000f000f, 0x64006400, 0xea;
lop3.b32 d, b, 0x000f000f, 0x64006400, 0xea;
fma.rn.f16x2 c, c, one, less;
fma.rn.f16x2 d, d, one, less;
fma.rn.f16x2 $2, c, $13, $17;
fma.rn.f16x2 $3, d, $15, $19;
}""")
SHRUNK = tl.constexpr(2.0**-12)
REGISTERS = tl.constexpr("=r,=r,=r,=r" + ",r" * 17)
KINDS = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def unpack(packed, first, second, KIND: tl.constexpr):
    """scale * code + offset of the low four bits, by `first`, and of the high, by `second`; in
    bfloat16 times SHRUNK, so that no scale overflows on its way.

    Two neighbours are of one row, so have one pair, whose numbers go in twice each."""
    if KIND == tl.bfloat16:
        return tl.inline_asm_elementwise(
            BFLOAT16,
            REGISTERS,
            [
                packed,
                tl.broadcast_to(twice((first << 16), 2.0**121), packed.shape),
                tl.broadcast_to(twice((first & -65536), 2.0**-12), packed.shape),
                tl.broadcast_to(twice((second << 16), 2.0**117), packed.shape),
                tl.broadcast_to(twice((second & -65536), 2.0**-12), packed.shape),
            ],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=4,
        )
    else:
        return tl.inline_asm_elementwise(
            FLOAT16,
            REGISTERS,
            [
                packed,
                tl.broadcast_to((first & 0xFFFF) | (first << 16), packed.shape),
                tl.broadcast_to(((first >> 16) & 0xFFFF) | (first & -65536), packed.shape),
                tl.broadcast_to((second & 0xFFFF) | (second << 16), packed.shape),
                tl.broadcast_to(((second >> 16) & 0xFFFF) | (second & -65536), packed.shape),
            ],
            dtype=(tl.float16, tl.float16),
            is_pure=True,
            pack=4,
        )


@triton.jit
def twice(bits, factor: tl.constexpr):
    """A bfloat16 in the upper half of an int32, times a power of two, in both halves."""
    bits = (bits.to(tl.float32, bitcast=True) * factor).to(tl.int32, bitcast=True)
    return (bits & -65536) | ((bits >> 16) & 0xFFFF)


def unpacked(codes: Tensor, pairs: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """The weight [n, K] of `to_tiles` as numbers of `dtype`."""
    panels, blocks = codes.shape[:2]
    k = blocks * BLOCK
    out = torch.empty(n, k, dtype=dtype, device=codes.device)
    _unpack(
        (panels, -(-blocks // UNPACKED), 1),
        codes,
        pairs.view(torch.int32),
        out,
        N=n,
        K=k,
        GROUP=k // pairs.shape[1],
        BLOCKS=UNPACKED,
        FAST=codes.is_cuda and dtype == pairs.dtype,
        KIND=KINDS[pairs.dtype],
        warps=4,
    )
    return out


@kernel()
def _unpack(
    codes,
    pairs,
    out,
    N: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCKS: tl.constexpr,
    FAST: tl.constexpr,
    KIND: tl.constexpr,
    EARLY: tl.constexpr,
):
    panel = tl.program_id(0).to(tl.int64)
    within, half = tl.arange(0, 64), tl.arange(0, 32)
    row = panel * 64 + within
    line = codes + panel * (K * 32) + within[:, None] * 32 + half[None, :]
    pair = pairs + panel * (K // GROUP * 64) + within
    begin = tl.program_id(1) * BLOCKS
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    for block in range(begin, tl.minimum(begin + BLOCKS, K // 64)):
        packed = tl.load(line + block * 2048)
        low, high = numbers(packed, pair, block, out.dtype.element_ty, GROUP, FAST, KIND)
        if FAST and KIND == tl.bfloat16:
            low, high = low * (1 / SHRUNK), high * (1 / SHRUNK)
        there = out + row[:, None] * K + block * 64 + half[None, :]
        tl.store(there, low.to(out.dtype.element_ty), mask=row[:, None] < N)
        tl.store(there + 32, high.to(out.dtype.element_ty), mask=row[:, None] < N)
