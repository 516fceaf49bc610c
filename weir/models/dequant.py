"""Unpacks GGML's quantised blocks to float32, bit for bit as llama.cpp's reference does.

Common types are written out in torch; the rest goes through the `gguf` package, which is slower.
Layouts: ggml-common.h of llama.cpp. A block is a row of bytes; its first values come first.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from weir.errors import ConfigError
from weir.gguf import FORMATS

CHUNK = 32768  # values at a time: they stay in L2, and torch starts no threads of its own for them

Unpack = Callable[[Tensor], Tensor]
"""uint8 [blocks, bytes] → float32 [blocks, values], or a shape that flattens to it"""


def dequantize(kind: int, data: Tensor, out: Tensor) -> None:
    """Write the values that `data` (uint8 [bytes], GGML type `kind`) holds to `out`, contiguous, in
    its type. Raises ConfigError for a type that nothing here can read."""
    form = FORMATS[kind]
    flat = out.view(-1)
    if kind in PLAIN:
        flat.copy_(data.view(PLAIN[kind]))
        return
    unpack = BLOCKS.get(kind) or _package(kind)
    blocks = data.view(-1, form.size)
    step = CHUNK // form.block
    for i in range(0, len(blocks), step):
        values = unpack(blocks[i : i + step])
        flat[i * form.block : i * form.block + values.numel()].copy_(values.view(-1))


def halves(bytes: Tensor) -> Tensor:
    """Little-endian float16 pairs of bytes [n, 2m] as float32 [n, m]."""
    return bytes.contiguous().view(torch.float16).float()


def nibbles(packed: Tensor) -> Tensor:
    """uint8 [..., m] → uint8 [..., 2, m]: the low four bits, then the high four."""
    return torch.stack((packed & 15, packed >> 4), dim=-2)


def spread(packed: Tensor, bits: int) -> Tensor:
    """uint8 [..., m] → uint8 [..., 8 / bits, m]: fields of `bits` bits, lowest first."""
    mask = (1 << bits) - 1
    return torch.stack([packed >> shift & mask for shift in range(0, 8, bits)], dim=-2)


def _q4_0(b: Tensor) -> Tensor:
    return (nibbles(b[:, 2:]).float().sub_(8)).mul_(halves(b[:, :2]).unsqueeze(-1))


def _q4_1(b: Tensor) -> Tensor:
    scale, low = halves(b[:, :4])[..., None, None].unbind(1)
    return nibbles(b[:, 4:]).float().mul_(scale).add_(low)


def fives(high: Tensor, low: Tensor) -> Tensor:
    """Five-bit numbers [n, 32] from one high bit each [n, 4] and nibbles [n, 16]."""
    bits = spread(high.unsqueeze(-1), 1).view(-1, 2, 16)
    return nibbles(low) | bits << 4


def _q5_0(b: Tensor) -> Tensor:
    return fives(b[:, 2:6], b[:, 6:]).float().sub_(16).mul_(halves(b[:, :2]).unsqueeze(-1))


def _q5_1(b: Tensor) -> Tensor:
    scale, low = halves(b[:, :4])[..., None, None].unbind(1)
    return fives(b[:, 4:8], b[:, 8:]).float().mul_(scale).add_(low)


def _q8_0(b: Tensor) -> Tensor:
    return b[:, 2:].view(torch.int8).float().mul_(halves(b[:, :2]))


def _q2_k(b: Tensor) -> Tensor:
    scales, packed = b[:, :16], b[:, 16:80].view(-1, 2, 32)
    scale, low = halves(b[:, 80:]).unsqueeze(-1).unbind(1)
    scale, low = scale * (scales & 15), low * (scales >> 4)
    values = spread(packed, 2).reshape(-1, 16, 16).float()
    return values.mul_(scale.unsqueeze(-1)).sub_(low.unsqueeze(-1))


def _q3_k(b: Tensor) -> Tensor:
    high, packed, scales = b[:, :32], b[:, 32:96].view(-1, 2, 32), b[:, 96:108]
    sixes = nibbles(scales[:, :8]).view(-1, 16) | spread(scales[:, 8:], 2).view(-1, 16) << 4
    scale = halves(b[:, 108:]) * sixes.float().sub_(32)
    four = spread(high, 1).view(-1, 2, 4, 32) << 2  # a bit that is set: do not subtract four
    values = (spread(packed, 2) | four).view(-1, 16, 16).float().sub_(4)
    return values.mul_(scale.unsqueeze(-1))


def k_scales(b: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum of eight sub-blocks, float32 [n, 8] each, from six-bit fields."""
    first, second, rest = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scales = torch.cat((first & 63, rest & 15 | first >> 2 & 48), dim=-1)
    lows = torch.cat((second & 63, rest >> 4 | second >> 2 & 48), dim=-1)
    scale, low = halves(b[:, :4]).unsqueeze(-1).unbind(1)
    return scale * scales, low * lows


def _q4_k(b: Tensor) -> Tensor:
    scale, low = k_scales(b)
    values = nibbles(b[:, 16:].view(-1, 4, 32)).view(-1, 8, 32).float()
    return values.mul_(scale.unsqueeze(-1)).sub_(low.unsqueeze(-1))


def _q5_k(b: Tensor) -> Tensor:
    scale, low = k_scales(b)
    high = spread(b[:, 16:48], 1) << 4
    values = (nibbles(b[:, 48:].view(-1, 4, 32)).view(-1, 8, 32) | high).float()
    return values.mul_(scale.unsqueeze(-1)).sub_(low.unsqueeze(-1))


def _q6_k(b: Tensor) -> Tensor:
    low = nibbles(b[:, :128].view(-1, 2, 64)).view(-1, 8, 32)
    high = spread(b[:, 128:192].view(-1, 2, 32), 2).view(-1, 8, 32) << 4
    scale = halves(b[:, 208:]) * b[:, 192:208].view(torch.int8)
    return (low | high).view(-1, 16, 16).float().sub_(32).mul_(scale.unsqueeze(-1))


def _package(kind: int) -> Unpack:
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


PLAIN: dict[int, torch.dtype] = {
    0: torch.float32,
    1: torch.float16,
    24: torch.int8,
    25: torch.int16,
    26: torch.int32,
    27: torch.int64,
    28: torch.float64,
    30: torch.bfloat16,
}
BLOCKS: dict[int, Unpack] = {
    2: _q4_0,
    3: _q4_1,
    6: _q5_0,
    7: _q5_1,
    8: _q8_0,
    10: _q2_k,
    11: _q3_k,
    12: _q4_k,
    13: _q5_k,
    14: _q6_k,
}
