"""Linear layers: x @ W.T, with bias and residual added on the way out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(slots=True, eq=False)
class Linear:
    """A weight [n, k] in the layout its device computes fastest, made by `pack`."""

    n: int
    k: int
    dtype: torch.dtype
    weight: Tensor
    bias: Tensor | None


def pack(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """Lay out `weight` [N, K] and `bias` [N] for the device they are on."""
    n, k = weight.shape
    return Linear(n, k, weight.dtype, weight.contiguous(), bias)


def linear(x: Tensor, w: Linear, residual: Tensor | None = None) -> Tensor:
    """x [M, K] → x @ W.T + bias + residual, [M, N]."""
    return reference_linear(x, w, residual)


def reference_linear(x: Tensor, w: Linear, residual: Tensor | None = None) -> Tensor:
    """Multiplies in the weight's type; bias and residual are added in the type of `x`."""
    y = torch.nn.functional.linear(x.to(w.dtype), w.weight).to(x.dtype)
    if w.bias is not None:
        y += w.bias
    if residual is not None:
        y += residual
    return y
