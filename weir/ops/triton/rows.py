"""Norms, rotation and activations on a GPU: one pass over the rows, arithmetic in float32."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from weir.ops.triton.launch import kernel, power_of_2

COLUMNS = 1024  # of a program where a row is cut


def _warps(columns: int) -> int:
    """About 16 elements a thread."""
    return min(16, max(1, columns // 512))


def _rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def rms_norm(x: Tensor, weight: Tensor, eps: float, unit_offset: bool) -> Tensor:
    """As weir.ops.norm.rms_norm."""
    return _norm_rows(x, weight, None, eps, unit_offset)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """As weir.ops.norm.layer_norm."""
    return _norm_rows(x, weight, bias, eps, False)


def _norm_rows(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, unit_offset: bool
) -> Tensor:
    x = _rows(x)
    rows, width = x.shape
    out = x.new_empty(x.shape)
    if rows:
        columns = power_of_2(width)
        _norm(
            (rows, 1, 1),
            x,
            weight,
            bias,
            out,
            eps,
            STRIDE=x.stride(0),
            WIDTH=width,
            COLUMNS=columns,
            OFFSET=float(unit_offset),
            BIAS=bias is not None,
            warps=_warps(columns),
        )
    return out


@kernel("eps")
def _norm(
    x,
    weight,
    bias,
    out,
    eps,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    OFFSET: tl.constexpr,
    BIAS: tl.constexpr,
):
    """RMS norm; with a bias, layer norm."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    mask = column < WIDTH
    y = tl.load(x + row * STRIDE + column, mask=mask, other=0.0).to(tl.float32)
    if BIAS:
        y = tl.where(mask, y - tl.sum(y, 0) / WIDTH, 0.0)
    y = y * tl.rsqrt(tl.sum(y * y, 0) / WIDTH + eps)
    y = y * (tl.load(weight + column, mask=mask, other=0.0).to(tl.float32) + OFFSET)
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
            (rows, -(-width // COLUMNS), 1),
            gate_up,
            out,
            STRIDE=gate_up.stride(0),
            WIDTH=width,
            COLUMNS=COLUMNS,
            ACT=act,
            warps=4,
        )
    return out


@kernel()
def _gated(
    gate_up,
    out,
    STRIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    ACT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = column < WIDTH
    gate = tl.load(gate_up + row * STRIDE + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * STRIDE + WIDTH + column, mask=mask, other=0.0).to(tl.float32)
    if ACT == "silu":
        gate = gate * tl.sigmoid(gate)
    elif ACT == "gelu_tanh":  # (1 + tanh(z)) / 2 is sigmoid(2 z)
        z = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        gate = gate * tl.sigmoid(2.0 * z)
    else:
        gate = tl.where(gate < 0.0, 0.0, gate)  # keeps NaN
    tl.store(out + row * WIDTH + column, (gate * up).to(out.dtype.element_ty), mask=mask)


def rope_(
    q: Tensor,
    k: Tensor,
    pos: Tensor,
    cos_sin: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    unit_offset: bool,
) -> None:
    """As weir.ops.rope.rope_; q and k have each token's heads one after another."""
    tokens, heads, size = q.shape
    if tokens == 0:
        return
    dim = cos_sin.shape[1]
    _rope(
        (tokens, 2, 1),
        q,
        k,
        pos,
        cos_sin,
        q_norm,
        k_norm,
        eps,
        Q_STRIDE=q.stride(0),
        K_STRIDE=k.stride(0),
        HEADS=heads,
        KV_HEADS=k.shape[1],
        LINES=power_of_2(heads),
        KV_LINES=power_of_2(k.shape[1]),
        SIZE=size,
        DIM=dim,
        PAIRS=power_of_2(dim // 2),
        REST=power_of_2(max(1, size - dim)),
        Q_NORM=q_norm is not None,
        K_NORM=k_norm is not None,
        OFFSET=float(unit_offset),
        warps=4,
    )


@kernel("eps")
def _rope(
    q,
    k,
    pos,
    cos_sin,
    q_norm,
    k_norm,
    eps,
    Q_STRIDE: tl.constexpr,
    K_STRIDE: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    LINES: tl.constexpr,
    KV_LINES: tl.constexpr,
    SIZE: tl.constexpr,
    DIM: tl.constexpr,
    PAIRS: tl.constexpr,
    REST: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """One token's query heads, or its key heads."""
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, PAIRS)
    table = cos_sin + tl.load(pos + token).to(tl.int64) * DIM + pair
    cos = tl.load(table, mask=pair < DIM // 2, other=0.0)[None, :]
    sin = tl.load(table + DIM // 2, mask=pair < DIM // 2, other=0.0)[None, :]
    if tl.program_id(1) == 0:
        _rotate(
            q + token * Q_STRIDE, cos, sin, q_norm, eps,
            HEADS, LINES, SIZE, DIM, PAIRS, REST, Q_NORM, OFFSET,
        )  # fmt: skip
    else:
        _rotate(
            k + token * K_STRIDE, cos, sin, k_norm, eps,
            KV_HEADS, KV_LINES, SIZE, DIM, PAIRS, REST, K_NORM, OFFSET,
        )  # fmt: skip


@triton.jit
def _rotate(
    x,
    cos,
    sin,
    norm,
    eps,
    HEADS: tl.constexpr,
    LINES: tl.constexpr,
    SIZE: tl.constexpr,
    DIM: tl.constexpr,
    PAIRS: tl.constexpr,
    REST: tl.constexpr,
    NORM: tl.constexpr,
    OFFSET: tl.constexpr,
):
    """The heads of a token at x [HEADS, SIZE]: normalised if NORM, then DIM of them rotated."""
    head, pair = tl.arange(0, LINES)[:, None], tl.arange(0, PAIRS)[None, :]
    mask = (head < HEADS) & (pair < DIM // 2)
    low = x + head * SIZE + pair
    high = low + DIM // 2
    a = tl.load(low, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(high, mask=mask, other=0.0).to(tl.float32)
    if NORM:
        square = tl.sum(a * a + b * b, 1)
        if DIM < SIZE:
            past = DIM + tl.arange(0, REST)[None, :]
            rest_mask = (head < HEADS) & (past < SIZE)
            rest = tl.load(x + head * SIZE + past, mask=rest_mask, other=0.0).to(tl.float32)
            square += tl.sum(rest * rest, 1)
        scale = tl.rsqrt(square / SIZE + eps)[:, None]
        inside = pair < DIM // 2
        a *= scale * (tl.load(norm + pair, mask=inside, other=0.0).to(tl.float32) + OFFSET)
        weight = tl.load(norm + DIM // 2 + pair, mask=inside, other=0.0)
        b *= scale * (weight.to(tl.float32) + OFFSET)
        if DIM < SIZE:
            weight = tl.load(norm + past, mask=past < SIZE, other=0.0).to(tl.float32) + OFFSET
            rest = (rest * scale * weight).to(x.dtype.element_ty)
            tl.store(x + head * SIZE + past, rest, mask=rest_mask)
    tl.store(low, (a * cos - b * sin).to(x.dtype.element_ty), mask=mask)
    tl.store(high, (b * cos + a * sin).to(x.dtype.element_ty), mask=mask)
