"""Normalisation of each row over the hidden dimension."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, unit_offset: bool = False) -> Tensor:
    """x [T, H] / rms(x) * weight [H]; with `unit_offset` (Gemma) times 1 + weight."""
    return reference_rms_norm(x, weight, eps, unit_offset)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x [T, H] - mean) / sqrt(variance + eps) * weight [H] + bias [H]."""
    return reference_layer_norm(x, weight, bias, eps)


def reference_rms_norm(x: Tensor, weight: Tensor, eps: float, unit_offset: bool = False) -> Tensor:
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y * (weight.float() + float(unit_offset))).to(x.dtype)


def reference_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    y = torch.nn.functional.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps)
    return y.to(x.dtype)
