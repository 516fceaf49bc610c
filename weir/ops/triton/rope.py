"""Rotary embedding on a GPU, with the norm of each head before it and the write to pages after."""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from weir.ops.triton.launch import kernel, power_of_2

ELEMENTS = 2048  # most of a program, unless one head is larger


def rope_(
    q: Tensor,
    k: Tensor,
    v: Tensor | None,
    pos: Tensor,
    cos_sin: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    kv: Tensor | None,
    slots: Tensor | None,
) -> None:
    """As weir.ops.rope.rope_; in q, k and v each token's heads are contiguous.

    With `kv`, keys and values are stored there and k is unchanged. One launch, which reads and
    writes each element of q, k and v once.
    """
    tokens, heads, size = q.shape
    if tokens == 0:
        return
    kv_heads, dim, write = k.shape[1], cos_sin.shape[1], kv is not None
    most = max(1, ELEMENTS // power_of_2(size))
    lines, kv_lines = (min(most, power_of_2(n)) for n in (heads, kv_heads))
    parts, kv_parts = -(-heads // lines), -(-kv_heads // kv_lines)
    _rope(
        (tokens, parts + kv_parts * (2 if write else 1), 1), q, k, v, kv, slots, pos, cos_sin,
        q_norm, k_norm, eps,
        Q_STRIDE=q.stride(0), K_STRIDE=k.stride(0), V_STRIDE=v.stride(0) if write else 0,
        HEADS=heads, KV_HEADS=kv_heads, LINES=lines, KV_LINES=kv_lines, PARTS=parts,
        KV_PARTS=kv_parts, SIZE=size, DIMS=power_of_2(size), DIM=dim, PAIRS=power_of_2(dim // 2),
        REST=power_of_2(max(1, size - dim)), Q_NORM=q_norm is not None, K_NORM=k_norm is not None,
        PAGE=kv.shape[3] if write else 0,
        warps=4,
    )  # fmt: skip


@kernel("eps")
def _rope(
    q, k, v, kv, slots, pos, cos_sin, q_norm, k_norm, eps,
    Q_STRIDE: tl.constexpr, K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr, LINES: tl.constexpr, KV_LINES: tl.constexpr, PARTS: tl.constexpr,
    KV_PARTS: tl.constexpr, SIZE: tl.constexpr, DIMS: tl.constexpr, DIM: tl.constexpr,
    PAIRS: tl.constexpr, REST: tl.constexpr, Q_NORM: tl.constexpr, K_NORM: tl.constexpr,
    PAGE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Some heads of one token: of its queries, its keys or, if PAGE is not 0, its values."""
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if EARLY:
        gdc_launch_dependents()
    if PAGE:
        slot = tl.load(slots + token)
        page = kv + (slot // PAGE) * 2 * KV_HEADS * PAGE * SIZE + (slot % PAGE) * SIZE
    if part < PARTS:
        x = q + token * Q_STRIDE
        _rotate(
            x, x, part * LINES, pos + token, cos_sin, q_norm, eps,
            HEADS, SIZE, LINES, SIZE, DIM, PAIRS, REST, Q_NORM, EARLY,
        )  # fmt: skip
    elif part < PARTS + KV_PARTS:
        y = k + token * K_STRIDE
        _rotate(
            y, page if PAGE else y, (part - PARTS) * KV_LINES, pos + token, cos_sin, k_norm, eps,
            KV_HEADS, PAGE * SIZE if PAGE else SIZE,
            KV_LINES, SIZE, DIM, PAIRS, REST, K_NORM, EARLY,
        )  # fmt: skip
    elif PAGE:
        if EARLY:
            gdc_wait()
        head = (part - PARTS - KV_PARTS) * KV_LINES + tl.arange(0, KV_LINES)[:, None]
        dim = tl.arange(0, DIMS)[None, :]
        mask = (head < KV_HEADS) & (dim < SIZE)
        z = tl.load(v + token * V_STRIDE + head * SIZE + dim, mask=mask)
        out = page + (KV_HEADS + head) * PAGE * SIZE + dim
        tl.store(out, z.to(kv.dtype.element_ty), mask=mask)


@triton.jit
def _rotate(
    x, out, first, pos, cos_sin, norm, eps,
    HEADS: tl.constexpr, STRIDE: tl.constexpr, LINES: tl.constexpr, SIZE: tl.constexpr,
    DIM: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, NORM: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """Takes LINES heads from `first` on of a token at x [HEADS, SIZE], normalises them if NORM,
    rotates DIM elements of each and writes all SIZE to `out`, whose heads lie STRIDE apart."""
    head, pair = first + tl.arange(0, LINES)[:, None], tl.arange(0, PAIRS)[None, :]
    inside = pair < DIM // 2
    mask = (head < HEADS) & inside
    table = cos_sin + tl.load(pos).to(tl.int64) * DIM + pair
    cos = tl.load(table, mask=inside, other=0.0)
    sin = tl.load(table + DIM // 2, mask=inside, other=0.0)
    if EARLY:
        gdc_wait()  # until here only the table and what the host sent before this step are read
    a = tl.load(x + head * SIZE + pair, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(x + head * SIZE + DIM // 2 + pair, mask=mask, other=0.0).to(tl.float32)
    if DIM < SIZE:
        past = DIM + tl.arange(0, REST)[None, :]
        rest_mask = (head < HEADS) & (past < SIZE)
        rest = tl.load(x + head * SIZE + past, mask=rest_mask, other=0.0).to(tl.float32)
    if NORM:
        square = tl.sum(a * a + b * b, 1)
        if DIM < SIZE:
            square += tl.sum(rest * rest, 1)
        scale = tl.rsqrt(square / SIZE + eps)[:, None]
        a *= scale * tl.load(norm + pair, mask=inside, other=0.0).to(tl.float32)
        b *= scale * tl.load(norm + DIM // 2 + pair, mask=inside, other=0.0).to(tl.float32)
        if DIM < SIZE:
            rest *= scale * tl.load(norm + past, mask=past < SIZE, other=0.0).to(tl.float32)
    low = out + head * STRIDE + pair
    tl.store(low, (a * cos - b * sin).to(out.dtype.element_ty), mask=mask)
    tl.store(low + DIM // 2, (b * cos + a * sin).to(out.dtype.element_ty), mask=mask)
    if DIM < SIZE:
        tl.store(out + head * STRIDE + past, rest.to(out.dtype.element_ty), mask=rest_mask)
