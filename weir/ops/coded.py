"""Keys and values in 8 or 4 bits: groups of 64 numbers of a head that share a scale.

This module defines the format in PyTorch; the kernels for CPUs (ops/native/coded.h) and GPUs
(ops/triton/coded.py) read and write the same bytes. Types of KV are given as a `torch.dtype`, where
int8 and int4 mean these formats.

int8: a bfloat16 scale and 64 bytes, each number rounded to a multiple of the scale. int4: the
minimum and a scale, both bfloat16, then 16 words of 16 bits. The nibbles of word j are numbers j,
j + 16, j + 32 and j + 48, as steps of the scale above the minimum (FlexGen, section 5, with groups
along the head).
"""

import torch
from torch import Tensor

from weir.ops.dispatch import gpu_kernels

GROUP = 64
BYTES = {torch.int8: 2 + GROUP, torch.int4: 4 + GROUP // 2}
"""Bytes of a group, by type."""
BITS = {torch.int8: 8, torch.int4: 4}
"""Bits of a code."""


def row_bytes(dtype: torch.dtype, size: int) -> int:
    """Bytes of `size` numbers, which is a multiple of 64 for coded types."""
    return size // GROUP * BYTES[dtype] if dtype in BYTES else size * dtype.itemsize


def type_of(x: Tensor, size: int) -> torch.dtype:
    """The type of KV x, whose rows hold `size` numbers each; coded rows are uint8."""
    if x.dtype != torch.uint8:
        return x.dtype
    return next(dtype for dtype in BYTES if row_bytes(dtype, size) == x.shape[-1])


def encode(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x [..., 64 n] → uint8 [..., bytes]. A group with an infinity or NaN becomes all NaN."""
    if (gpu := gpu_kernels(x)) is not None:
        coded = x.new_empty((*x.shape[:-1], row_bytes(dtype, x.shape[-1])), dtype=torch.uint8)
        gpu.encode_groups(x, coded, BITS[dtype])
        return coded
    groups = x.float().unflatten(-1, (-1, GROUP))
    spoilt = (groups * 0).sum(-1, keepdim=True)  # 0 or NaN
    if dtype == torch.int8:
        scale = (groups.abs().amax(-1, keepdim=True) / 127 + spoilt).bfloat16()
        codes = _steps(groups, scale).clamp(-127, 127).to(torch.int8)
        parts = [scale, codes]
    else:
        low = (groups.amin(-1, keepdim=True) + spoilt).bfloat16()
        scale = ((groups.amax(-1, keepdim=True) - low.float()) / 15).bfloat16()
        steps = _steps(groups - low.float(), scale).clamp(0, 15).to(torch.int32)
        shifts = torch.arange(0, 16, 4, device=x.device, dtype=torch.int32)
        words = (steps.unflatten(-1, (4, 16)) << shifts[:, None]).sum(-2)
        parts = [low, scale, words.to(torch.int32).view(torch.int16)[..., ::2]]
    return torch.cat([part.contiguous().view(torch.uint8) for part in parts], -1).flatten(-2)


def decode(coded: Tensor, dtype: torch.dtype, to: torch.dtype = torch.float32) -> Tensor:
    """The reverse, with the error of coding: uint8 [..., bytes] → `to` [..., 64 n]."""
    if (gpu := gpu_kernels(coded)) is not None:
        size = coded.shape[-1] // BYTES[dtype] * GROUP
        x = coded.new_empty((*coded.shape[:-1], size), dtype=to)
        gpu.decode_groups(coded, x, BITS[dtype])
        return x
    groups = coded.unflatten(-1, (-1, BYTES[dtype]))
    if dtype == torch.int8:
        x = groups[..., 2:].view(torch.int8) * _column(groups[..., :2])
    else:
        words = groups[..., 4:].contiguous().view(torch.int16).int().unsqueeze(-2)
        steps = words >> torch.arange(0, 16, 4, device=coded.device)[:, None] & 15
        x = steps.flatten(-2) * _column(groups[..., 2:4]) + _column(groups[..., :2])
    return x.flatten(-2).to(to)


def _steps(x: Tensor, scale: Tensor) -> Tensor:
    """x in steps of a scale; 0 where x is not a number. A scale of 0 counts as 1."""
    return (x / torch.where(scale == 0, 1.0, scale.float())).round().nan_to_num(0.0)


def _column(scale: Tensor) -> Tensor:
    return scale.contiguous().view(torch.bfloat16).float()
