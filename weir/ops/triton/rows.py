"""Norms and activations on a GPU: one pass over the rows, arithmetic in float32."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from weir.ops.fused import Fused
from weir.ops.triton.launch import kernel, power_of_2

COLUMNS = 1024  # of a program where a row is cut


def _warps(columns: int) -> int:
    """About 16 elements a thread."""
    return min(16, max(1, columns // 512))


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As weir.ops.norm.rms_norm."""
    return _norm_rows(x, weight, None, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """As weir.ops.norm.layer_norm."""
    return _norm_rows(x, weight, bias, eps)


def _norm_rows(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    x = _rows(x)
    rows, width = x.shape
    out = x.new_empty(x.shape)
    if rows:
        columns = power_of_2(width)
        _norm(
            (rows, 1, 1), x, weight, bias, out, eps,
            STRIDE=x.stride(0), WIDTH=width, COLUMNS=columns, BIAS=bias is not None,
            warps=_warps(columns),
        )  # fmt: skip
    return out


@kernel("eps")
def _norm(
    x, weight, bias, out, eps,
    STRIDE: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, BIAS: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """RMS norm; with a bias, layer norm."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    mask = column < WIDTH
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    y = tl.load(x + row * STRIDE + column, mask=mask, other=0.0).to(tl.float32)
    if BIAS:
        y = tl.where(mask, y - tl.sum(y, 0) / WIDTH, 0.0)
    y = y * tl.rsqrt(tl.sum(y * y, 0) / WIDTH + eps)
    y = y * tl.load(weight + column, mask=mask, other=0.0).to(tl.float32)
    if BIAS:
        y += tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * WIDTH + column, y.to(out.dtype.element_ty), mask=mask)


def gated(gate_up: Tensor, act: str) -> Tensor:
    """As weir.ops.mlp.gated, `act` one of those that it knows."""
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
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    gate = tl.load(gate_up + row * STRIDE + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * STRIDE + WIDTH + column, mask=mask, other=0.0).to(tl.float32)
    gate = activation(gate, ACT)
    tl.store(out + row * WIDTH + column, (gate * up).to(out.dtype.element_ty), mask=mask)


@triton.jit
def activation(x, ACT: tl.constexpr):
    """One of weir.ops.mlp.ACTIVATIONS, of float32."""
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


def quantized(x: Tensor, fused: Fused) -> tuple[Tensor, Tensor]:
    """x [M, K] as e4m3 [M, K] and scales float32 [M, 1], one pass: weir.ops.quantize.to_fp8 of x,
    of rms_norm(x, norm, eps), or of gated(x, act), x [M, 2K]."""
    x = _rows(x)
    rows, width = x.shape[0], x.shape[1] // (2 if fused.act else 1)
    values = x.new_empty(rows, width, dtype=torch.float8_e4m3fn)
    scales = x.new_empty(rows, 1, dtype=torch.float32)
    if rows:
        columns = power_of_2(width)
        _quantized(
            (rows, 1, 1), x, fused.norm, values, scales, fused.eps,
            STRIDE=x.stride(0), WIDTH=width, COLUMNS=columns, ACT=fused.act,
            warps=_warps(columns),
        )  # fmt: skip
    return values, scales


@kernel("eps")
def _quantized(
    x, norm, values, scales, eps,
    STRIDE: tl.constexpr, WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ACT: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    mask = column < WIDTH
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    y = tl.load(x + row * STRIDE + column, mask=mask, other=0.0).to(tl.float32)
    if ACT is not None:
        up = tl.load(x + row * STRIDE + WIDTH + column, mask=mask, other=0.0)
        y = activation(y, ACT) * up.to(tl.float32)
    if norm is not None:
        y *= tl.rsqrt(tl.sum(y * y, 0) / WIDTH + eps)
        y *= tl.load(norm + column, mask=mask, other=0.0).to(tl.float32)
    y = y.to(x.dtype.element_ty).to(tl.float32)  # as if it had been stored
    scale = tl.maximum(tl.max(tl.abs(y), 0), 1e-30) / 448.0
    y = tl.minimum(tl.maximum(y / scale, -448.0), 448.0)
    tl.store(values + row * WIDTH + column, y.to(tl.float8e4nv), mask=mask)
    tl.store(scales + row, scale)
