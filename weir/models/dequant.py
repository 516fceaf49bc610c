"""Unpacks GGML's quantised blocks to float32, with the same bits as llama.cpp's reference.

Common types are split into codes, scales and offsets in torch; codes.py uses these parts, too.
Other types go through the `gguf` package, which is slower. The layouts are those of llama.cpp's
ggml-common.h. A block is a row of bytes, and its values are in order.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from weir.errors import ConfigError
from weir.gguf import FORMATS

CHUNK = 32768  # values at a time: few enough for L2 and for torch to use one thread

Parts = tuple[Tensor, Tensor, Tensor | int]
"""Some blocks as codes, scales and offsets. Codes: uint8, in a shape that flattens to the order of
values. Scales: float32 [blocks, groups], for equal groups of neighbours. Offsets: the same, in
scale * code + offset, or an int, the zero in scale * (code - zero)."""


def dequantize(kind: int, data: Tensor, out: Tensor) -> None:
    """Write the values of `data`, uint8 [bytes] of GGML type `kind`, to `out`, which is contiguous,
    in its dtype. Raises ConfigError for a type that cannot be read."""
    form = FORMATS[kind]
    flat = out.view(-1)
    if kind in PLAIN:
        flat.copy_(data.view(PLAIN[kind]))
        return
    unpack = _floats(kind) if kind in SPLITS else _package(kind)
    blocks = data.view(-1, form.size)
    step = CHUNK // form.block
    for i in range(0, len(blocks), step):
        values = unpack(blocks[i : i + step])
        flat[i * form.block : i * form.block + values.numel()].copy_(values.view(-1))


def _floats(kind: int) -> Callable[[Tensor], Tensor]:
    def unpack(blocks: Tensor) -> Tensor:
        codes, scale, low = SPLITS[kind](blocks)
        values, scale = codes.reshape(*scale.shape, -1).float(), scale.unsqueeze(-1)
        if isinstance(low, int):
            return values.sub_(low).mul_(scale)
        return values.mul_(scale).add_(low.unsqueeze(-1))

    def signed(blocks: Tensor) -> Tensor:  # faster: read as signed bytes, codes need no zero
        return blocks[:, 2:].view(torch.int8).float().mul_(_halves(blocks[:, :2]))

    return signed if FORMATS[kind].name == "Q8_0" else unpack


def _halves(bytes: Tensor) -> Tensor:
    """Little-endian float16 numbers in bytes [n, 2m], as float32 [n, m]."""
    return bytes.contiguous().view(torch.float16).float()


def _nibbles(packed: Tensor) -> Tensor:
    """uint8 [..., m] → uint8 [..., 2, m]: the low four bits, then the high four."""
    return torch.stack((packed & 15, packed >> 4), dim=-2)


def _spread(packed: Tensor, bits: int) -> Tensor:
    """uint8 [..., m] → uint8 [..., 8 / bits, m]: fields of `bits` bits, lowest first."""
    mask = (1 << bits) - 1
    return torch.stack([packed >> shift & mask for shift in range(0, 8, bits)], dim=-2)


def _fives(high: Tensor, low: Tensor) -> Tensor:
    """Five-bit numbers [n, 2, 16] from their high bits [n, 4] and nibbles [n, 16]."""
    bits = _spread(high.unsqueeze(-1), 1).view(-1, 2, 16)
    return _nibbles(low) | bits << 4


def _k_scales(b: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and offset of eight sub-blocks, float32 [n, 8] each, from six-bit fields."""
    first, second, rest = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = torch.cat((first & 63, rest & 15 | first >> 2 & 48), dim=-1)
    lows = torch.cat((second & 63, rest >> 4 | second >> 2 & 48), dim=-1)
    scale, low = _halves(b[:, :4]).unsqueeze(-1).unbind(1)
    return scale * scales, low * -lows.float()


def _q4_0(b: Tensor) -> Parts:
    return _nibbles(b[:, 2:]), _halves(b[:, :2]), 8


def _q4_1(b: Tensor) -> Parts:
    scale, low = _halves(b[:, :4]).split(1, dim=1)
    return _nibbles(b[:, 4:]), scale, low


def _q5_0(b: Tensor) -> Parts:
    return _fives(b[:, 2:6], b[:, 6:]), _halves(b[:, :2]), 16


def _q5_1(b: Tensor) -> Parts:
    scale, low = _halves(b[:, :4]).split(1, dim=1)
    return _fives(b[:, 4:8], b[:, 8:]), scale, low


def _q8_0(b: Tensor) -> Parts:
    return b[:, 2:] ^ 128, _halves(b[:, :2]), 128  # flipping the sign bit adds 128


def _q2_k(b: Tensor) -> Parts:
    scales = b[:, :16]
    scale, low = _halves(b[:, 80:]).split(1, dim=1)
    codes = _spread(b[:, 16:80].view(-1, 2, 32), 2)
    return codes, scale * (scales & 15), low * -(scales >> 4).float()


def _q3_k(b: Tensor) -> Parts:
    high, packed, scales = b[:, :32], b[:, 32:96].view(-1, 2, 32), b[:, 96:108]
    sixes = _nibbles(scales[:, :8]).view(-1, 16) | _spread(scales[:, 8:], 2).view(-1, 16) << 4
    scale = _halves(b[:, 108:]) * sixes.float().sub_(32)
    four = _spread(high, 1).view(-1, 2, 4, 32) << 2  # GGML subtracts four where the bit is 0
    return _spread(packed, 2) | four, scale, 4


def _q4_k(b: Tensor) -> Parts:
    return _nibbles(b[:, 16:].view(-1, 4, 32)), *_k_scales(b)


def _q5_k(b: Tensor) -> Parts:
    high = _spread(b[:, 16:48], 1) << 4
    return _nibbles(b[:, 48:].view(-1, 4, 32)).view(-1, 8, 32) | high, *_k_scales(b)


def _q6_k(b: Tensor) -> Parts:
    low = _nibbles(b[:, :128].view(-1, 2, 64)).view(-1, 8, 32)
    high = _spread(b[:, 128:192].view(-1, 2, 32), 2).view(-1, 8, 32) << 4
    scale = _halves(b[:, 208:]) * b[:, 192:208].view(torch.int8)
    return low | high, scale, 32


def _package(kind: int) -> Callable[[Tensor], Tensor]:
    """The `gguf` package's own routine for a type."""
    try:
        from gguf import GGMLQuantizationType, quants
    except ImportError:
        raise ConfigError(f"{FORMATS[kind].name} tensors need the `gguf` package") from None
    try:
        known = GGMLQuantizationType(kind)
        quants.dequantize(torch.zeros(1, FORMATS[kind].size, dtype=torch.uint8).numpy(), known)
    except (ValueError, NotImplementedError):
        raise ConfigError(
            f"tensors of type {FORMATS[kind].name} cannot be read: "
            "use a file quantised otherwise, such as Q4_K_M or Q8_0"
        ) from None
    return lambda blocks: torch.from_numpy(quants.dequantize(blocks.numpy(), known))


PLAIN = {
    0: torch.float32, 1: torch.float16, 30: torch.bfloat16, 28: torch.float64,
    24: torch.int8, 25: torch.int16, 26: torch.int32, 27: torch.int64,
}  # fmt: skip
SPLITS: dict[int, Callable[[Tensor], Parts]] = {
    2: _q4_0, 3: _q4_1, 6: _q5_0, 7: _q5_1, 8: _q8_0,
    10: _q2_k, 11: _q3_k, 12: _q4_k, 13: _q5_k, 14: _q6_k,
}  # fmt: skip
