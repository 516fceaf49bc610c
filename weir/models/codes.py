"""Quantised blocks as the codes that a CPU multiplies directly: no weight is unpacked to floats.

A code is an unsigned number of 4 or 8 bits; 32 neighbours share a float16 scale and offset. Blocks
of 4 and 5 bits and Q8_0 go over as they are (the K types' scales are rounded to float16, 2^-11);
other types are unpacked and rounded anew to 8 bits.
"""

import torch
from torch import Tensor

from weir.gguf import FORMATS
from weir.models.dequant import SPLITS, Parts, dequantize
from weir.ops.linear import NATIVE_GROUP
from weir.ops.quantize import Codes

STEP = 1 << 20  # values at a time

BITS = {"Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "Q5_0": 8, "Q5_1": 8, "Q5_K": 8, "Q8_0": 8}
"""Of the codes of types that go over as they are."""


def read(kind: int, data: Tensor, rows: int, columns: int) -> Codes:
    """The weight [rows, columns] that `data` (uint8 [bytes], a quantised GGML type) holds."""
    codes = torch.empty(rows * columns, dtype=torch.uint8)
    pairs = torch.empty(rows * columns // NATIVE_GROUP, 2, dtype=torch.float16)
    form = FORMATS[kind]
    blocks = data.view(-1, form.size)
    step = STEP // form.block
    for i in range(0, len(blocks), step):
        part = blocks[i : i + step]
        first, last = i * form.block, (i + len(part)) * form.block
        if form.name in BITS:
            found, scale, low = SPLITS[kind](part)
        else:
            values = torch.empty(last - first)
            dequantize(kind, part.reshape(-1), values)
            found, scale, low = _round(values.view(-1, NATIVE_GROUP))
        offset = scale * -low if isinstance(low, int) else low
        codes[first:last] = found.reshape(-1)
        pairs[first // NATIVE_GROUP : last // NATIVE_GROUP, 0] = scale.reshape(-1)
        pairs[first // NATIVE_GROUP : last // NATIVE_GROUP, 1] = offset.reshape(-1)
    pairs = pairs.view(rows, columns // NATIVE_GROUP, 2)
    return Codes(codes.view(rows, columns), pairs, BITS.get(form.name, 8))


def _round(values: Tensor) -> Parts:
    scale = (values.abs().amax(-1, keepdim=True) / 127).half().float()
    codes = (values / scale.clamp(min=1e-8)).round_().clamp_(-128, 127) + 128
    return codes.to(torch.uint8), scale, 128
