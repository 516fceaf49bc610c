"""The inner loop of the attention kernels: an online softmax that takes in some keys at a time.

Knows a tile of queries and the pages of one sequence and kv head.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def take(
    q, k, v, pages, at, end, seen, best, total, acc, scale, softcap, stride,
    SIZE: tl.constexpr, PAGE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    KEYS: tl.constexpr, DIMS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take in KEYS keys from `at` on: the online softmax of arXiv 1805.02867, in base 2.

    q [R, DIMS]; row r sees keys up to seen[r], and no keys exist from `end` on. The state is best
    [R], the largest score, and total [R] and acc [R, DIMS], the sums of weights and of weighted
    values. MASKED may be False only if every row sees all of these keys.
    """
    key = at + tl.arange(0, KEYS)
    dim = tl.arange(0, DIMS)
    # memory past the last key may hold NaN, which times a weight of 0 would still be NaN
    if MASKED:
        page = tl.load(pages + key // PAGE, mask=key < end, other=0).to(tl.int64)
    else:
        page = tl.load(pages + key // PAGE).to(tl.int64)
    place = (page * stride + (key % PAGE) * SIZE)[:, None] + dim[None, :]
    if MASKED or SIZE != DIMS:
        within = (key < end)[:, None] & (dim < SIZE)[None, :]
        tile_k = tl.load(k + place, mask=within, other=0.0)
        tile_v = tl.load(v + place, mask=within, other=0.0)
    else:
        tile_k = tl.load(k + place)
        tile_v = tl.load(v + place)
    score = tl.dot(q, tl.trans(tile_k.to(q.dtype)), input_precision="ieee")
    if SOFTCAP:
        score *= scale
        score = softcap * (2.0 * tl.sigmoid(2.0 * score / softcap) - 1.0)  # tanh
        score *= LOG2E
    else:
        score *= scale * LOG2E
    if MASKED:
        hidden = (key[None, :] > seen[:, None]) | (key >= end)[None, :]
        if WINDOW:
            hidden = hidden | (key[None, :] <= seen[:, None] - WINDOW)
        score = tl.where(hidden, float("-inf"), score)
    top = tl.maximum(best, tl.max(score, 1))
    base = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.exp2(score - base[:, None])
    keep = tl.exp2(best - base)
    total = total * keep + tl.sum(weight, 1)
    acc = tl.dot(
        weight.to(q.dtype), tile_v.to(q.dtype), acc * keep[:, None], input_precision="ieee"
    )
    return top, total, acc


@triton.jit
def close(best, total, acc):
    """The softmax's result and its log-sum-exp in base 2: 0 and -inf for a row that saw no key."""
    divisor = tl.where(total == 0.0, 1.0, total)
    return acc / divisor[:, None], tl.where(total == 0.0, float("-inf"), best + tl.log2(divisor))
