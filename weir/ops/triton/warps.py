"""What the warps of a Hopper GPU do in attention of chunks: one brings keys and values, groups of
four multiply. Both know one tile of queries; hopper.py says which, and where the ring lies.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

LOG2E = gl.constexpr(1.4426950408889634)
LN2 = gl.constexpr(0.6931471805599453)


@gluon.jit
def bring(
    lines, pages, keys, values, keys_full, values_full, keys_empty, values_empty, head, begin, end,
    beyond,
    KV_HEADS: gl.constexpr, SIZE: gl.constexpr, PAGE: gl.constexpr, BOX: gl.constexpr,
    KEYS: gl.constexpr, HALF: gl.constexpr, RING: gl.constexpr,
):  # fmt: skip
    """Copy the keys and values from `begin` to `end` into the ring as it empties. Boxes past the
    end lie beyond the store, where the copy engine reads zeros."""
    BOXES: gl.constexpr = KEYS // BOX
    HALVES: gl.constexpr = SIZE // HALF
    turns = gl.cdiv(end - begin, KEYS)
    for n in range(turns):
        slot = n % RING
        phase = (n // RING + 1) & 1
        at = begin + n * KEYS
        mbarrier.wait(keys_empty.index(slot), phase)
        mbarrier.expect(keys_full.index(slot), KEYS * SIZE * 2)
        for j in gl.static_range(BOXES):
            key = at + j * BOX
            page = gl.load(pages + key // PAGE, mask=key < end, other=0)
            line = (2 * page * KV_HEADS + head) * PAGE + key % PAGE
            line = gl.where(key < end, line, beyond)
            for half in gl.static_range(HALVES):
                there = keys.index((slot * HALVES + half) * BOXES + j)
                tma.async_copy_global_to_shared(
                    lines, [line, half * HALF], keys_full.index(slot), there
                )
        mbarrier.wait(values_empty.index(slot), phase)
        mbarrier.expect(values_full.index(slot), KEYS * SIZE * 2)
        for j in gl.static_range(BOXES):
            key = at + j * BOX
            page = gl.load(pages + key // PAGE, mask=key < end, other=0)
            line = (2 * page * KV_HEADS + KV_HEADS + head) * PAGE + key % PAGE
            line = gl.where(key < end, line, beyond)
            for half in gl.static_range(HALVES):
                there = values.index((slot * HALVES + half) * BOXES + j)
                tma.async_copy_global_to_shared(
                    lines, [line, half * HALF], values_full.index(slot), there
                )


@gluon.jit
def _scores(queries, keys, slot, HALVES: gl.constexpr, ROWS: gl.constexpr, KEYS: gl.constexpr):
    """Begin the product of queries and a tile of keys."""
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, KEYS, 16]
    )
    s = gl.zeros([ROWS, KEYS], gl.float32, layout)
    s = warpgroup_mma(
        queries.index(0), keys.index(slot * HALVES).permute((1, 0)), s, use_acc=False, is_async=True
    )
    if HALVES == 2:
        s = warpgroup_mma(
            queries.index(1), keys.index(slot * HALVES + 1).permute((1, 0)), s, is_async=True
        )
    return s


@gluon.jit
def _weights(
    s, at, end, lowest, seen, best, total, scale, softcap,
    WINDOW: gl.constexpr, SOFTCAP: gl.constexpr, KEYS: gl.constexpr,
):  # fmt: skip
    """The online softmax (arXiv 1805.02867), in base 2: weights of the keys from `at` on, and what
    the sums so far are to be multiplied with."""
    if SOFTCAP:
        s = s * scale
        s = softcap * (2.0 / (1.0 + gl.exp2(-2.0 * LOG2E * s / softcap)) - 1.0) * LOG2E
    else:
        s = s * (scale * LOG2E)
    masked = at + KEYS > gl.minimum(lowest + 1, end)
    if WINDOW:
        masked = True
    if masked:
        key = at + gl.arange(0, KEYS, gl.SliceLayout(0, s.type.layout))
        hidden = (key[None, :] > seen[:, None]) | (key >= end)[None, :]
        if WINDOW:
            hidden = hidden | (key[None, :] <= seen[:, None] - WINDOW)
        s = gl.where(hidden, float("-inf"), s)
    top = gl.maximum(best, gl.max(s, 1))
    base = gl.where(top == float("-inf"), 0.0, top)
    weight = gl.exp2(s - base[:, None])
    keep = gl.exp2(best - base)
    return weight, keep, top, total * keep + gl.sum(weight, 1)


@gluon.jit
def multiply(
    q, o, lse, queries, keys, values, boxes, keys_full, values_full, keys_empty, values_empty, head,
    start, token, count, position, begin, end, scale, softcap,
    STRIDE: gl.constexpr, KV_HEADS: gl.constexpr, GROUP: gl.constexpr, SIZE: gl.constexpr,
    BOX: gl.constexpr, WINDOW: gl.constexpr, SOFTCAP: gl.constexpr, ROWS: gl.constexpr,
    KEYS: gl.constexpr, HALF: gl.constexpr, RING: gl.constexpr,
):  # fmt: skip
    """ROWS / GROUP tokens from `token` on, with the head's group of query heads."""
    HALVES: gl.constexpr = SIZE // HALF
    BOXES: gl.constexpr = KEYS // BOX
    score: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, KEYS, 16]
    )
    result: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, HALF, 16]
    )
    weights: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=result, k_width=2)
    memory: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])  # 16 bytes a thread

    row = gl.arange(0, ROWS, gl.SliceLayout(1, memory))
    dim = gl.arange(0, HALF, gl.SliceLayout(0, memory))
    mine = token + row // GROUP
    heads = head * GROUP + row % GROUP
    where = (start + mine).to(gl.int64) * STRIDE + heads * SIZE
    for half in gl.static_range(HALVES):
        x = gl.load(
            q + where[:, None] + (half * HALF + dim)[None, :],
            mask=(mine < count)[:, None],
            other=0.0,
        )
        queries.index(half).store(x)
    fence_async_shared()

    lowest = position + token
    seen = lowest + gl.arange(0, ROWS, gl.SliceLayout(1, score)) // GROUP
    best = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, score))
    total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, score))
    low = gl.zeros([ROWS, HALF], gl.float32, result)
    high = gl.zeros([ROWS, HALF], gl.float32, result)
    turns = gl.cdiv(end - begin, KEYS)
    if turns > 0:
        mbarrier.wait(keys_full.index(0), 0)
        s = _scores(queries, keys, 0, HALVES, ROWS, KEYS)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(keys_empty.index(0), count=1)
        p, keep, best, total = _weights(
            s, begin, end, lowest, seen, best, total, scale, softcap, WINDOW, SOFTCAP, KEYS
        )
        p = gl.convert_layout(p.to(q.dtype.element_ty), weights)
        for n in range(1, turns):
            slot = n % RING
            last = (n - 1) % RING
            mbarrier.wait(keys_full.index(slot), (n // RING) & 1)
            s = _scores(queries, keys, slot, HALVES, ROWS, KEYS)
            mbarrier.wait(values_full.index(last), ((n - 1) // RING) & 1)
            low = warpgroup_mma(p, values.index(last * HALVES), low, is_async=True)
            if HALVES == 2:
                high = warpgroup_mma(p, values.index(last * HALVES + 1), high, is_async=True)
            s = warpgroup_mma_wait(HALVES, deps=[s])
            mbarrier.arrive(keys_empty.index(slot), count=1)
            fresh, keep, best, total = _weights(
                s, begin + n * KEYS, end, lowest, seen, best, total, scale, softcap, WINDOW,
                SOFTCAP, KEYS,
            )  # fmt: skip
            if HALVES == 2:
                low, high, p = warpgroup_mma_wait(0, deps=[low, high, p])
            else:
                low, p = warpgroup_mma_wait(0, deps=[low, p])
            mbarrier.arrive(values_empty.index(last), count=1)
            factor = gl.convert_layout(keep, gl.SliceLayout(1, result))[:, None]
            low = low * factor
            high = high * factor
            p = gl.convert_layout(fresh.to(q.dtype.element_ty), weights)
        last = (turns - 1) % RING
        mbarrier.wait(values_full.index(last), ((turns - 1) // RING) & 1)
        if end % BOX != 0:
            # what lies past the last key in its page may be NaN, which a weight of 0 does not undo
            at = (end - begin) % KEYS // BOX
            line = gl.arange(0, BOX, gl.SliceLayout(1, memory))
            for half in gl.static_range(HALVES):
                box = boxes.index((last * HALVES + half) * BOXES + at)
                some = box.load(memory)
                box.store(gl.where((line < end % BOX)[:, None], some, 0.0).to(some.dtype))
            fence_async_shared()
        low = warpgroup_mma(p, values.index(last * HALVES), low, is_async=True)
        if HALVES == 2:
            high = warpgroup_mma(p, values.index(last * HALVES + 1), high, is_async=True)
            low, high, p = warpgroup_mma_wait(0, deps=[low, high, p])
        else:
            low, p = warpgroup_mma_wait(0, deps=[low, p])

    divisor = gl.where(total == 0.0, 1.0, total)
    sum_lse = gl.where(total == 0.0, float("-inf"), (best + gl.log2(divisor)) * LN2)
    inverse = gl.convert_layout(1.0 / divisor, gl.SliceLayout(1, result))[:, None]
    place = (start + mine).to(gl.int64) * (KV_HEADS * GROUP) + heads
    out = o + place[:, None] * SIZE + dim[None, :]
    real = (mine < count)[:, None]
    x = gl.convert_layout((low * inverse).to(o.dtype.element_ty), memory)
    gl.store(out, x, mask=real)
    if HALVES == 2:
        x = gl.convert_layout((high * inverse).to(o.dtype.element_ty), memory)
        gl.store(out + HALF, x, mask=real)
    gl.store(lse + place, gl.convert_layout(sum_lse, gl.SliceLayout(1, memory)), mask=mine < count)
