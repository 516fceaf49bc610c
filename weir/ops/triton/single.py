"""Linear layers of one row with weights of 8 and 4 bits on a GPU, bound by reading them.

As in vector.py, a program loads its share of the weight into registers before it waits for x. The
weight is not converted: its bits, with all others 0, are a float32 that is smaller than the weight
by a power of two, and x is multiplied by that power. So a weight takes three to five instructions,
and GPUs and Triton's interpreter compute the same.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from weir.ops.fused import Fused
from weir.ops.triton.bits import KINDS, offset_of, scale_of
from weir.ops.triton.launch import kernel, power_of_2
from weir.ops.triton.sums import prepared

WIDEST = 16384  # columns of a weight
BYTES = 32768  # of a weight that a program takes, per four warps
BLOCK = 64  # columns of codes that lie together
E4M3 = tl.constexpr(-0x78100000)  # mask of e4m3's sign, exponent and mantissa in a float32


def single_of_bytes(x: Tensor, weight: Tensor, scales: Tensor, fused: Fused) -> Tensor:
    """x [1, K] of a 16-bit type @ weight e4m3 [N, K].T with a scale per row, then the bias and
    residual of `fused` → [1, N]. K is a multiple of 4, at most WIDEST. Sums are float32."""
    n, k = weight.shape
    x, residual, out = prepared(x, fused.residual, n)
    columns = power_of_2(k)
    rows = max(2, BYTES // columns)
    _bytes(
        (-(-n // rows), 1, 1), _fours(x), weight.view(torch.int32), scales, residual,
        fused.bias, out,
        N=n, K=k, ROWS=rows, WORDS=columns // 4, KIND=KINDS[x.dtype],
        warps=4 if columns <= 8192 else 8,
    )  # fmt: skip
    return out


def single_of_codes(x: Tensor, codes: Tensor, pairs: Tensor, n: int, fused: Fused) -> Tensor:
    """The same for a weight [n, K] of `to_tiles`; x has the type of the pairs. Weights are not
    rounded: sums of codes times x are scaled for each group."""
    k = codes.shape[1] * BLOCK
    x, residual, out = prepared(x, fused.residual, n)
    columns = power_of_2(k)
    rows = max(4, min(BLOCK, 2 * BYTES // columns))
    _codes(
        (-(-n // rows), 1, 1), _fours(x), codes.view(torch.int32), pairs.view(torch.int32),
        residual, fused.bias, out,
        N=n, K=k, GROUP=k // pairs.shape[1], ROWS=rows, BLOCKS=columns // BLOCK,
        KIND=KINDS[x.dtype],
        warps=4 if columns <= 8192 else 8,
    )  # fmt: skip
    return out


def _fours(x: Tensor) -> Tensor:
    """x [1, K] of a 16-bit type as int64 [K / 4], four numbers in each."""
    row = x[0]
    return (row.clone() if row.storage_offset() % 4 else row).view(torch.int64)


@kernel()
def _bytes(
    x, words, scales, residual, bias, out,
    N: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr, KIND: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    if EARLY:
        gdc_launch_dependents()
    row, word = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.arange(0, WORDS)
    inside = word < K // 4
    where = tl.minimum(row, N - 1).to(tl.int64)[:, None] * (K // 4) + word[None, :]
    w = tl.load(words + where, mask=inside[None, :], other=0)
    if EARLY:
        gdc_wait()
    four = tl.load(x + word, mask=inside, other=0)
    y = tl.zeros((ROWS, WORDS), tl.float32)
    for i in tl.static_range(4):
        bits = ((w << (24 - 8 * i)) >> 4) & E4M3  # the weight times 2^-120
        number = _number(four, i, KIND) * 2.0**60
        y += bits.to(tl.float32, bitcast=True) * number[None, :]
    scale = tl.load(scales + row, mask=row < N, other=0.0)
    _store(tl.sum(y, 1) * 2.0**60 * scale, row, residual, bias, out, N)


@kernel()
def _codes(
    x, words, pairs, residual, bias, out,
    N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, BLOCKS: tl.constexpr,
    KIND: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """ROWS rows of the weight, all of one panel of 64."""
    if EARLY:
        gdc_launch_dependents()
    first = tl.program_id(0) * ROWS
    row, block, word = tl.arange(0, ROWS), tl.arange(0, BLOCKS), tl.arange(0, 8)
    panel, line, inside = (first // 64).to(tl.int64), first % 64 + row, block < K // 64
    # rows are the last axis but one: Triton gives a thread all of them, so it converts x only once
    where = block[:, None, None] * 512 + line[None, :, None] * 8 + word[None, None, :]
    w = tl.load(words + panel * (K * 8) + where, mask=inside[:, None, None], other=0)
    pair = pairs + panel * (K // GROUP * 64) + block[:, None] * 64 // GROUP * 64 + line[None, :]
    low = tl.load(pair, mask=inside[:, None], other=0)
    high = tl.load(pair + 64, mask=inside[:, None], other=0) if GROUP == 32 else low
    if EARLY:
        gdc_wait()
    here = x + block[:, None] * 16 + word[None, :]
    y_low, x_low = _half(w, tl.load(here, mask=inside[:, None], other=0), 0, KIND)
    y_high, x_high = _half(w, tl.load(here + 8, mask=inside[:, None], other=0), 4, KIND)
    y = scale_of(low, KIND) * y_low + offset_of(low, KIND) * x_low[:, None]
    y += scale_of(high, KIND) * y_high + offset_of(high, KIND) * x_high[:, None]
    _store(tl.sum(y, 0), first + row, residual, bias, out, N)


@triton.jit
def _half(w, four, FROM: tl.constexpr, KIND: tl.constexpr):
    """The sums [blocks, rows] of the codes from bit FROM of each byte of w times x, given as `four`
    [blocks, 8]; and the sums [blocks] of x.

    As a float32, an integer of the lowest 24 bits is 2^149 times smaller, subnormal or not."""
    y = tl.zeros(w.shape, tl.float32)
    total = tl.zeros(four.shape, tl.float32)
    for i in tl.static_range(4):
        number = _number(four, i, KIND)
        total += number
        bits = (w if i < 3 else w >> 24) & (15 << (8 * i % 24 + FROM))
        number *= 2.0 ** (60 - 8 * i % 24 - FROM)
        y += bits.to(tl.float32, bitcast=True) * number[:, None, :]
    return tl.sum(y, 2) * 2.0**89, tl.sum(total, 1)


@triton.jit
def _number(four, i: tl.constexpr, KIND: tl.constexpr):
    """One of four 16-bit numbers in an int64."""
    return (four >> (16 * i)).to(tl.int16).to(KIND, bitcast=True).to(tl.float32)


@triton.jit
def _store(y, row, residual, bias, out, N: tl.constexpr):
    """Add bias and residual to the sums, and store them."""
    real = row < N
    if bias is not None:
        y += tl.load(bias + row, mask=real, other=0.0).to(tl.float32)
    if residual is not None:
        y += tl.load(residual + row, mask=real, other=0.0).to(tl.float32)
    tl.store(out + row, y.to(out.dtype.element_ty), mask=real)
