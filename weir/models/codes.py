"""Quantised blocks as the codes that a CPU multiplies directly: no weight is unpacked to floats.

A code is an unsigned number of 4 or 8 bits; 32 neighbours share a float16 scale and offset. Blocks
of 4 and 5 bits and Q8_0 go over as they are (the K types' scales are rounded to float16, 2^-11);
other types are unpacked and rounded anew to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from weir.gguf import FORMATS
from weir.models import dequant
from weir.ops.linear import NATIVE_GROUP
from weir.ops.quantize import Codes

STEP = 1 << 20  # values at a time

Split = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""uint8 [blocks, bytes] → codes, scales and offsets of groups, shapes that flatten to them"""


def read(kind: int, data: Tensor, rows: int, columns: int) -> Codes:
    """The weight [rows, columns] that `data` (uint8 [bytes], a quantised GGML type) holds."""
    split, bits = SPLITS.get(kind, (None, 8))
    codes = torch.empty(rows * columns, dtype=torch.uint8)
    pairs = torch.empty(rows * columns // NATIVE_GROUP, 2, dtype=torch.float16)
    form = FORMATS[kind]
    blocks = data.view(-1, form.size)
    step = STEP // form.block
    for i in range(0, len(blocks), step):
        part = blocks[i : i + step]
        first, last = i * form.block, (i + len(part)) * form.block
        if split is None:
            values = torch.empty(last - first)
            dequant.dequantize(kind, part.reshape(-1), values)
            found, scale, offset = _round(values.view(-1, NATIVE_GROUP))
        else:
            found, scale, offset = split(part)
        codes[first:last] = found.reshape(-1)
        pairs[first // NATIVE_GROUP : last // NATIVE_GROUP, 0] = scale.reshape(-1)
        pairs[first // NATIVE_GROUP : last // NATIVE_GROUP, 1] = offset.reshape(-1)
    return Codes(codes.view(rows, columns), pairs.view(rows, columns // NATIVE_GROUP, 2), bits)


def _round(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = (values.abs().amax(-1, keepdim=True) / 127).half().float()
    codes = (values / scale.clamp(min=1e-8)).round_().clamp_(-128, 127) + 128
    return codes.to(torch.uint8), scale, scale * -128


def _q4_0(b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = dequant.halves(b[:, :2])
    return dequant.nibbles(b[:, 2:]), scale, scale * -8


def _q4_1(b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale, low = dequant.halves(b[:, :4]).unbind(1)
    return dequant.nibbles(b[:, 4:]), scale, low


def _q5_0(b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = dequant.halves(b[:, :2])
    return dequant.fives(b[:, 2:6], b[:, 6:]), scale, scale * -16


def _q5_1(b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale, low = dequant.halves(b[:, :4]).unbind(1)
    return dequant.fives(b[:, 4:8], b[:, 8:]), scale, low


def _q8_0(b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale = dequant.halves(b[:, :2])
    return b[:, 2:] ^ 128, scale, scale * -128  # flipping the sign bit adds 128


def _q4_k(b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale, low = dequant.k_scales(b)
    return dequant.nibbles(b[:, 16:].view(-1, 4, 32)), scale, -low


def _q5_k(b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scale, low = dequant.k_scales(b)
    high = dequant.spread(b[:, 16:48], 1) << 4
    return dequant.nibbles(b[:, 48:].view(-1, 4, 32)).view(-1, 8, 32) | high, scale, -low


_TYPE = {form.name: kind for kind, form in FORMATS.items()}
SPLITS: dict[int, tuple[Split, int]] = {
    _TYPE["Q4_0"]: (_q4_0, 4),
    _TYPE["Q4_1"]: (_q4_1, 4),
    _TYPE["Q5_0"]: (_q5_0, 8),
    _TYPE["Q5_1"]: (_q5_1, 8),
    _TYPE["Q8_0"]: (_q8_0, 8),
    _TYPE["Q4_K"]: (_q4_k, 4),
    _TYPE["Q5_K"]: (_q5_k, 8),
}
