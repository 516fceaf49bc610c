"""Converts GGML's quantised blocks to codes that a CPU multiplies without unpacking to floats.

A code is an unsigned number of 4 to 8 bits; 32 or 16 neighbours share a float16 scale and offset.
Most types keep their codes exactly (scales of the K types are rounded to float16, 2^-11). Q2_K, and
types that only the `gguf` package reads, are quantised again, to 8 bits.
"""

import torch
from torch import Tensor

from weir.gguf import FORMATS
from weir.models.dequant import SPLITS, Parts, dequantize
from weir.ops.linear import NATIVE_GROUP
from weir.ops.quantize import Codes

STEP = 1 << 20  # values converted at a time

BITS = {
    "Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "Q5_0": 5, "Q5_1": 5, "Q5_K": 5, "Q3_K": 6, "Q6_K": 6,
    "Q8_0": 8,
}  # fmt: skip
"""Bits of types that keep their codes. Q3_K gets more than it has, to be in groups of 16."""


def read(kind: int, data: Tensor, rows: int, columns: int) -> Codes:
    """The weight [rows, columns] in `data`, uint8 [bytes] of a quantised GGML type."""
    form = FORMATS[kind]
    bits = BITS.get(form.name, 8)
    group = NATIVE_GROUP // 2 if bits == 6 else NATIVE_GROUP
    codes = torch.empty(rows * columns, dtype=torch.uint8)
    pairs = torch.empty(rows * columns // group, 2, dtype=torch.float16)
    blocks, symmetric = data.view(-1, form.size), False
    step = STEP // form.block
    for i in range(0, len(blocks), step):
        part = blocks[i : i + step]
        first, last = i * form.block, (i + len(part)) * form.block
        if form.name in BITS:
            found, scale, low = SPLITS[kind](part)
        else:
            values = torch.empty(last - first)
            dequantize(kind, part.reshape(-1), values)
            found, scale, low = _round(values.view(-1, group))
        if symmetric := isinstance(low, int):
            zero = 1 << (bits - 1)
            found, low = found + (zero - low), scale * -zero
        codes[first:last] = found.reshape(-1)
        pairs[first // group : last // group, 0] = scale.reshape(-1)
        pairs[first // group : last // group, 1] = low.reshape(-1)
    pairs = pairs.view(rows, columns // group, 2)
    return Codes(codes.view(rows, columns), pairs, bits, symmetric)


def _round(values: Tensor) -> Parts:
    scale = (values.abs().amax(-1, keepdim=True) / 127).half().float()
    codes = (values / scale.clamp(min=1e-8)).round_().clamp_(-128, 127) + 128
    return codes.to(torch.uint8), scale, 128
