"""Norms and activations on a GPU: one pass over the rows, computed in float32."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from weir.ops.fused import Fused
from weir.ops.triton.launch import kernel, power_of_2, take_turn

COLUMNS = 1024  # of a program, where several share a row


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As weir.ops.norm.rms_norm."""
    return layer_norm(x, weight, None, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """As weir.ops.norm.layer_norm; without a bias, as rms_norm."""
    x = _rows(x)
    out = x.new_empty(x.shape)
    _launch(x, weight, bias, eps, None, out, None)
    return out


def quantized(x: Tensor, fused: Fused) -> tuple[Tensor, Tensor]:
    """weir.ops.quantize.to_fp8 of x [M, K], of rms_norm(x, norm, eps) or of gated(x [M, 2K], act),
    in one pass → e4m3 [M, K], scales float32 [M, 1]."""
    x = _rows(x)
    rows, width = x.shape[0], x.shape[1] // (2 if fused.act else 1)
    values = x.new_empty(rows, width, dtype=torch.float8_e4m3fn)
    scales = x.new_empty(rows, 1, dtype=torch.float32)
    _launch(x, fused.norm, None, fused.eps, fused.act, values, scales)
    return values, scales


def _launch(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    act: str | None,
    out: Tensor,
    scales: Tensor | None,
) -> None:
    rows, width = out.shape
    if rows:
        columns = power_of_2(width)
        _row(
            (rows, 1, 1), x, weight, bias, out, scales, eps,
            STRIDE=x.stride(0), WIDTH=width, COLUMNS=columns, ACT=act,
            warps=min(16, max(1, columns // 512)),  # about 16 elements a thread
        )  # fmt: skip


@kernel("eps")
def _row(
    x, weight, bias, out, scales, eps,
    STRIDE: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ACT: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """One row: gated if ACT is given; with a weight, RMS norm or, with a bias too, layer norm; with
    scales, rounded to 8 bits."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    mask = column < WIDTH
    take_turn(EARLY)
    y = tl.load(x + row * STRIDE + column, mask=mask, other=0.0).to(tl.float32)
    if ACT is not None:
        up = tl.load(x + row * STRIDE + WIDTH + column, mask=mask, other=0.0)
        y = activation(y, ACT) * up.to(tl.float32)
    if bias is not None:
        y = tl.where(mask, y - tl.sum(y, 0) / WIDTH, 0.0)
    if weight is not None:
        y *= tl.rsqrt(tl.sum(y * y, 0) / WIDTH + eps)
        y *= tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    if bias is not None:
        y += tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
    if scales is not None:
        y = y.to(x.dtype.element_ty).to(tl.float32)  # as if stored in between
        scale = tl.maximum(tl.max(tl.abs(y), 0), 1e-30) / 448.0
        y = tl.minimum(tl.maximum(y / scale, -448.0), 448.0)
        tl.store(scales + row, scale)
    tl.store(out + row * WIDTH + column, y.to(out.dtype.element_ty), mask=mask)


def gated(gate_up: Tensor, act: str) -> Tensor:
    """As weir.ops.mlp.gated."""
    gate_up = _rows(gate_up)
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    if rows:
        _gated(
            (rows, -(-width // COLUMNS), 1), gate_up, out,
            STRIDE=gate_up.stride(0), WIDTH=width, COLUMNS=COLUMNS, ACT=act,
            warps=4,
        )  # fmt: skip
    return out


@kernel()
def _gated(
    gate_up, out,
    STRIDE: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ACT: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < WIDTH
    take_turn(EARLY)
    gate = tl.load(gate_up + row * STRIDE + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * STRIDE + WIDTH + column, mask=mask, other=0.0).to(tl.float32)
    gate = activation(gate, ACT)
    tl.store(out + row * WIDTH + column, (gate * up).to(out.dtype.element_ty), mask=mask)


@triton.jit
def activation(x, ACT: tl.constexpr):
    """One of weir.ops.mlp.ACTIVATIONS, in float32."""
    if ACT == "silu":
        x = x * tl.sigmoid(x)
    elif ACT == "gelu_tanh":  # (1 + tanh(z)) / 2 is sigmoid(2 z)
        z = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        x = x * tl.sigmoid(2.0 * z)
    else:
        x = tl.where(x < 0.0, 0.0, x)  # keeps NaN
    return x


def ready(x: Tensor, fused: Fused) -> Tensor:
    """rms_norm(x, norm, eps), or gated(x, act), or x."""
    if fused.norm is not None:
        return rms_norm(x, fused.norm, fused.eps)
    return x if fused.act is None else gated(x, fused.act)
