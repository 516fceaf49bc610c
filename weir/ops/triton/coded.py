"""Encodes and decodes keys and values of 8 or 4 bits on a GPU, in the format of weir.ops.coded.

A group is a header of one or two 16-bit words, then words of codes. Part n of word j is the group's
number 16 n + j with 4 bits, n + 2 j with 8. Knows groups; no heads, no pages.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from weir.ops.triton.launch import kernel

GROUPS = 16
"""Groups that one program handles."""


def encode_groups(x: Tensor, coded: Tensor, bits: int) -> None:
    """As weir.ops.coded.encode, from rows x [T, ...] that may lie apart to contiguous bytes."""
    rows = x.flatten(1)
    _launch(_encode, rows, coded, bits, rows.stride(0), rows.shape[1] // 64)


def decode_groups(coded: Tensor, x: Tensor, bits: int) -> None:
    """As weir.ops.coded.decode, to contiguous x."""
    rows = x.flatten(1)
    _launch(_decode, rows, coded, bits, rows.stride(0), rows.shape[1] // 64)


def _launch(run, rows: Tensor, coded: Tensor, bits: int, stride: int, each: int) -> None:
    groups = len(rows) * each
    if groups:
        grid = (triton.cdiv(groups, GROUPS), 1, 1)
        words = coded.view(torch.int16)
        run(grid, rows, words, groups, stride, each, BITS=bits, TILE=GROUPS, warps=4)


@triton.jit
def bfloat16_bits(x):
    """The bits of the nearest bfloat16. Done by hand, as Triton's interpreter rounds otherwise."""
    bits = x.to(tl.int32, bitcast=True)
    near = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(x == x, near & 0xFFFF, 0x7FC0)


@triton.jit
def float_of(bits):
    return (bits << 16).to(tl.float32, bitcast=True)


@triton.jit
def nearest(x, scale, least: tl.constexpr, most: tl.constexpr):
    """x in steps of a scale, rounded half to even; 0 for NaN."""
    steps = tl.div_rn(x, tl.where(scale == 0, 1.0, scale) + tl.zeros_like(x))
    steps = tl.minimum(tl.maximum(tl.where(steps == steps, steps, 0.0), least), most)
    return (steps + 12582912.0 - 12582912.0).to(tl.int32)


@triton.jit
def places(rows, words, groups, stride, each, BITS: tl.constexpr, TILE: tl.constexpr):
    """For the program's groups: pointers to numbers [TILE, parts, words], headers [TILE, 1, 1] and
    words [TILE, 1, words]; a mask of groups that exist [TILE, 1, 1]; indices of the parts."""
    group = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)[:, None, None]
    part, word = tl.arange(0, 16 // BITS)[None, :, None], tl.arange(0, 4 * BITS)[None, None, :]
    place = part * 16 + word if BITS == 4 else part + word * 2
    numbers = rows + group // each * stride + group % each * 64 + place
    header = words + group * (4 * BITS + 8 // BITS)
    return numbers, header, header + 8 // BITS + word, group < groups, part


@kernel("groups", "stride", "each")
def _encode(rows, words, groups, stride, each, BITS: tl.constexpr, TILE: tl.constexpr):
    numbers, header, there, mine, part = places(rows, words, groups, stride, each, BITS, TILE)
    x = tl.load(numbers, mask=mine, other=0.0).to(tl.float32)
    spoilt = tl.sum(tl.sum(x * 0, 2), 1)[:, None, None]  # 0 or NaN
    if BITS == 4:
        low = bfloat16_bits(tl.min(tl.min(x, 2), 1)[:, None, None] + spoilt)
        tl.store(header, low.to(tl.int16), mask=mine)
        least = float_of(low)
        span = tl.max(tl.max(x, 2), 1)[:, None, None] - least
        scale = bfloat16_bits(tl.div_rn(span, tl.full(span.shape, 15.0, tl.float32)))
        tl.store(header + 1, scale.to(tl.int16), mask=mine)
        codes = nearest(x - least, float_of(scale), 0.0, 15.0)
    else:
        most = tl.max(tl.max(tl.abs(x), 2), 1)[:, None, None]
        tall = tl.div_rn(most, tl.full(most.shape, 127.0, tl.float32))
        scale = bfloat16_bits(tall + spoilt)
        tl.store(header, scale.to(tl.int16), mask=mine)
        codes = nearest(x, float_of(scale), -127.0, 127.0)
    packed = tl.sum((codes & ((1 << BITS) - 1)) << part * BITS, 1)[:, None, :]
    tl.store(there, packed.to(tl.int16), mask=mine)


@kernel("groups", "stride", "each")
def _decode(rows, words, groups, stride, each, BITS: tl.constexpr, TILE: tl.constexpr):
    numbers, header, there, mine, part = places(rows, words, groups, stride, each, BITS, TILE)
    first = float_of(tl.load(header, mask=mine, other=0).to(tl.int32))
    packed = tl.load(there, mask=mine, other=0).to(tl.int32)
    codes = packed >> part * BITS & ((1 << BITS) - 1)
    if BITS == 4:
        scale = float_of(tl.load(header + 1, mask=mine, other=0).to(tl.int32))
        x = codes.to(tl.float32) * scale + first
    else:
        x = ((codes ^ 128) - 128).to(tl.float32) * first
    tl.store(numbers, x.to(rows.dtype.element_ty), mask=mine)
