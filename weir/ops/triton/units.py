"""The units of decode attention, each a sequence or a prefix that several have in common: their
keys and queries, and how the parts of several programs are joined and the result is written.
"""

import triton
import triton.language as tl

from weir.ops.triton.softmax import LN2, LOG2E, close


@triton.jit
def span_of(unit, real, kv_len, first, skip, FIRST, SKIP, MEMBERS, WINDOW, KEYS):
    """A unit's first key, the end of its keys, and the turns that they take. A sequence takes at
    least one turn, so that a result is written even if it sees no key."""
    length = tl.load(kv_len + unit, mask=real, other=0)
    if MEMBERS > 1:
        return length * 0, length, tl.cdiv(length, KEYS)
    position = tl.load(first + unit, mask=real, other=0) if FIRST else length - 1
    begin = length * 0
    if WINDOW:
        begin = tl.maximum(position - WINDOW + 1, 0)
    if SKIP:
        begin = tl.load(skip + unit, mask=real, other=0)
    end = tl.minimum(position + 1, length)
    return begin, end, tl.maximum(tl.cdiv(end - begin, KEYS), 1)


@triton.jit
def queries_of(row, unit, head, q_start, member, MEMBERS, GROUP, MIXED):
    """For each row: its token, its query head, and whether they exist."""
    if MEMBERS > 1:
        real = row < MEMBERS * GROUP
        sequence = tl.load(member + unit * MEMBERS + row // GROUP, mask=real, other=-1)
        real = sequence >= 0
        if MIXED:
            sequence = tl.load(q_start + sequence, mask=real, other=0)
    else:
        real = row < GROUP
        sequence = (tl.load(q_start + unit) if MIXED else unit) + row * 0
    return sequence.to(tl.int64), head * GROUP + row % GROUP, real


@triton.jit
def joined(
    parts, part_lse, low, high,
    COUNT: tl.constexpr, SIZE: tl.constexpr, LINES: tl.constexpr, DIMS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The parts of programs `low` to `high` for a unit and kv head, joined by log-sum-exp."""
    line, dim = tl.arange(0, LINES), tl.arange(0, DIMS)
    best = tl.full([LINES], float("-inf"), tl.float32)
    total = tl.zeros([LINES], tl.float32)
    acc = tl.zeros([LINES, DIMS], tl.float32)
    for some in range(low, high + 1, BLOCK):
        program = some + tl.arange(0, BLOCK)
        slot = (2 * program + (program == low).to(tl.int32))[:, None] * COUNT + line[None, :]
        real = (program <= high)[:, None] & (line < COUNT)[None, :]
        # .cg: other programs wrote these, so this multiprocessor's L1 cache may be stale
        each = tl.load(part_lse + slot, mask=real, other=float("-inf"), cache_modifier=".cg")
        x = tl.load(
            parts + slot[:, :, None] * SIZE + dim[None, None, :],
            mask=real[:, :, None] & (dim < SIZE)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        top = tl.maximum(best, tl.max(each, 0))
        base = tl.where(top == float("-inf"), 0.0, top)
        weight = tl.exp2(each - base[None, :])
        keep = tl.exp2(best - base)
        total = total * keep + tl.sum(weight, 0)
        acc = acc * keep[:, None] + tl.sum(x * weight[:, :, None], 0)
        best = top
    return close(best, total, acc)


@triton.jit
def put(
    x, sum_lse, row, unit, head, o, lse, q_start, member, skip, common, common_lse,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr, MIXED: tl.constexpr,
    SKIP: tl.constexpr, MEMBERS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """Write a unit's result x [R, DIMS] of a kv head, merged with that of the skipped prefix."""
    token, heads, real = queries_of(row, unit, head, q_start, member, MEMBERS, GROUP, MIXED)
    dim = tl.arange(0, DIMS)
    place = token * (KV_HEADS * GROUP) + heads
    out = place[:, None] * SIZE + dim[None, :]
    mask = real[:, None] & (dim < SIZE)[None, :]
    if SKIP:
        has = real & (tl.load(skip + unit) + row * 0 > 0)
        other = tl.load(common_lse + place, mask=has, other=float("-inf")) * LOG2E
        y = tl.load(common + out, mask=mask & has[:, None], other=0.0)
        top = tl.maximum(sum_lse, other)
        base = tl.where(top == float("-inf"), 0.0, top)
        a, b = tl.exp2(sum_lse - base), tl.exp2(other - base)
        x, sum_lse = close(top, a + b, x * a[:, None] + y * b[:, None])
    tl.store(o + out, x.to(o.dtype.element_ty), mask=mask)
    tl.store(lse + place, sum_lse * LN2, mask=real)
