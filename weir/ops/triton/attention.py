"""Paged attention on a GPU: one loop over keys, launched twice, for decodes and for chunks.

A program serves one kv head and a tile of queries: some tokens times the query heads of the group,
so that keys and values are read once for all of them. Chunks of several tokens are cut into such
tiles (FlashAttention-2, arXiv 2307.08691). A single token has too little work to fill a GPU, so its
keys are split instead and the parts are merged (Flash-Decoding). Where a sequence is split depends
on its own length alone, so its result does not depend on the rest of the batch.

Everything about single sequences is read on the device; the host knows shapes only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from weir.ops.triton.launch import kernel, power_of_2

SPLIT = 512  # keys a program reads at least, for a decode
SPLITS = 32  # programs at most that share a decode's keys
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@dataclass(frozen=True, slots=True)
class Tile:
    """The shape of a program's work: at least 16 rows, which is what tensor cores multiply."""

    rows: int  # tokens times heads of a group
    span: int  # tokens
    keys: int  # of one turn of the loop
    warps: int
    stages: int  # loads in flight


def decode_tile(group: int, size: int, itemsize: int) -> Tile:
    rows = max(16, power_of_2(group))
    return Tile(rows, 1, _keys(size, itemsize), 4, 3 if size * itemsize <= 256 else 2)


def chunk_tile(group: int, size: int, itemsize: int) -> Tile:
    rows = max(32 if itemsize == 4 else 64, 2 * power_of_2(group))
    return Tile(rows, rows // group, _keys(size, itemsize), 4, 2)


def _keys(size: int, itemsize: int) -> int:
    """16 KiB of keys at most, so that what is in flight fits the 99 KiB of the smaller GPUs."""
    return max(16, min(64, 16384 // (power_of_2(size) * itemsize)))


def attend(
    q: Tensor,
    kv: Tensor,
    q_start: Tensor,
    kv_len: Tensor,
    first: Tensor | None,
    table: Tensor,
    lengths: tuple[int, int] | None,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """As weir.ops.attention.attend, on the fields of its Batch. Products are of the type of q, to
    which keys and values are converted; sums are float32."""
    tokens, heads, size = q.shape
    sequences, kv_heads, page = len(kv_len), kv.shape[2], kv.shape[3]
    o = q.new_empty(q.shape)
    lse = q.new_empty(tokens, heads, dtype=torch.float32)
    if tokens == 0:
        return o, lse
    group = heads // kv_heads
    keys = table.shape[1] * page
    shortest, longest = lengths or (1, tokens)
    splits = min(SPLITS, -(-(keys if window is None else min(keys, window)) // SPLIT))
    parts, part_lse = o, lse
    if splits > 1 and shortest == 1:
        parts = q.new_empty(sequences, heads, splits, size, dtype=torch.float32)
        part_lse = q.new_empty(sequences, heads, splits, dtype=torch.float32)

    def launch(grid: tuple[int, int, int], tile: Tile, splits: int, skip: bool) -> None:
        _attend(
            grid,
            q,
            kv,
            parts if splits > 1 else o,
            part_lse if splits > 1 else lse,
            q_start,
            kv_len,
            first,
            table,
            sequences,
            table.stride(0),
            scale,
            softcap or 0.0,
            STRIDE=q.stride(0),
            HEADS=heads,
            GROUP=group,
            SIZE=size,
            PAGE=page,
            WINDOW=window or 0,
            SOFTCAP=softcap is not None,
            FIRST=first is not None,
            SKIP=skip,
            SPLITS=splits,
            SPLIT=SPLIT,
            ROWS=tile.rows,
            SPAN=tile.span,
            KEYS=tile.keys,
            DIMS=max(16, power_of_2(size)),
            warps=tile.warps,
            stages=tile.stages,
        )

    if longest > 1:
        tile = chunk_tile(group, size, q.element_size())
        launch((tokens // tile.span + sequences, kv_heads, 1), tile, 1, shortest == 1)
    if shortest == 1:
        tile = decode_tile(group, size, q.element_size())
        launch((sequences, kv_heads, splits), tile, splits, False)
        if splits > 1:
            _merge(
                (sequences, heads, 1),
                parts,
                part_lse,
                o,
                lse,
                q_start,
                SIZE=size,
                DIMS=power_of_2(size),
                SPLITS=splits,
                PARTS=power_of_2(splits),
                warps=4,
            )
    return o, lse


@kernel("sequences", "table_stride", "scale", "softcap")
def _attend(
    q,
    kv,
    o,
    lse,
    q_start,
    kv_len,
    first,
    table,
    sequences,
    table_stride,
    scale,
    softcap,
    STRIDE: tl.constexpr,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    FIRST: tl.constexpr,
    SKIP: tl.constexpr,
    SPLITS: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
    KEYS: tl.constexpr,
    DIMS: tl.constexpr,
):
    """A tile of SPAN tokens and GROUP heads of one sequence and kv head, over all its keys or, of a
    decode, over the keys of one split."""
    if SPAN == 1:
        sequence = tl.program_id(0)
        block = 0
    else:
        # the last tiles of a prompt have the most keys and begin first
        tile = tl.num_programs(0) - 1 - tl.program_id(0)
        sequence = _owner(q_start, sequences, tile, SPAN)
        block = tile - (tl.load(q_start + sequence) // SPAN + sequence)
    head = tl.program_id(1)
    start = tl.load(q_start + sequence)
    count = tl.load(q_start + sequence + 1) - start
    if block * SPAN >= count:
        return
    if SPAN == 1 and count != 1:
        return
    if SKIP and count == 1:
        return
    length = tl.load(kv_len + sequence)
    if FIRST:
        position = tl.load(first + sequence)
    else:
        position = length - count

    row = tl.arange(0, ROWS)
    token = block * SPAN + row // GROUP
    real = (token < count) & (row < SPAN * GROUP)
    seen = position + token  # the last key that a row sees
    lowest = position + block * SPAN
    highest = position + tl.minimum(block * SPAN + SPAN, count) - 1
    begin = tl.maximum(lowest - WINDOW + 1, 0) if WINDOW else 0
    end = tl.minimum(highest + 1, length)
    if SPLITS > 1:
        share = tl.maximum(tl.cdiv(tl.cdiv(end - begin, SPLITS), KEYS) * KEYS, SPLIT)
        begin += tl.program_id(2) * share
        end = tl.minimum(end, begin + share)

    dim = tl.arange(0, DIMS)
    heads = head * GROUP + row % GROUP
    where = (start + token).to(tl.int64) * STRIDE + heads * SIZE
    mask = real[:, None] & (dim < SIZE)[None, :]
    tile_q = tl.load(q + where[:, None] + dim[None, :], mask=mask, other=0.0)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIMS], tl.float32)
    pages = table + sequence.to(tl.int64) * table_stride
    stride = 2 * (HEADS // GROUP) * PAGE * SIZE
    k = kv + head * PAGE * SIZE
    v = k + (HEADS // GROUP) * PAGE * SIZE

    # keys that every row sees need no mask
    clear = begin
    if WINDOW == 0:
        clear += tl.maximum(tl.minimum(end, lowest + 1) - begin, 0) // KEYS * KEYS
        for at in range(begin, clear, KEYS):
            best, total, acc = _turn(
                tile_q, k, v, pages, at, end, seen, best, total, acc, scale, softcap,
                stride, SIZE, PAGE, WINDOW, SOFTCAP, KEYS, DIMS, False,
            )  # fmt: skip
    for at in range(clear, end, KEYS):
        best, total, acc = _turn(
            tile_q, k, v, pages, at, end, seen, best, total, acc, scale, softcap,
            stride, SIZE, PAGE, WINDOW, SOFTCAP, KEYS, DIMS, True,
        )  # fmt: skip

    divisor = tl.where(total == 0.0, 1.0, total)  # 0: a row that sees no key
    acc = acc / divisor[:, None]
    result = tl.where(total == 0.0, float("-inf"), (best + tl.log2(divisor)) * LN2)
    if SPLITS > 1:
        place = (sequence * HEADS + heads).to(tl.int64) * SPLITS + tl.program_id(2)
    else:
        place = (start + token).to(tl.int64) * HEADS + heads
    tl.store(o + place[:, None] * SIZE + dim[None, :], acc.to(o.dtype.element_ty), mask=mask)
    tl.store(lse + place, result, mask=real)


@triton.jit
def _turn(
    q,
    k,
    v,
    pages,
    at,
    end,
    seen,
    best,
    total,
    acc,
    scale,
    softcap,
    stride,
    SIZE: tl.constexpr,
    PAGE: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    KEYS: tl.constexpr,
    DIMS: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Take in KEYS keys from `at`: the online softmax of arXiv 1805.02867, in base 2."""
    key = at + tl.arange(0, KEYS)
    dim = tl.arange(0, DIMS)
    # what lies past the last key may be anything, also NaN, which a weight of 0 would not undo
    page = tl.load(pages + key // PAGE, mask=key < end, other=0).to(tl.int64)
    place = page * stride + (key % PAGE) * SIZE
    within = (key < end)[:, None] & (dim < SIZE)[None, :]
    if MASKED or SIZE != DIMS:
        tile_k = tl.load(k + place[:, None] + dim[None, :], mask=within, other=0.0)
        tile_v = tl.load(v + place[:, None] + dim[None, :], mask=within, other=0.0)
    else:
        tile_k = tl.load(k + place[:, None] + dim[None, :])
        tile_v = tl.load(v + place[:, None] + dim[None, :])
    score = tl.dot(q, tl.trans(tile_k.to(q.dtype)), input_precision="ieee") * scale
    if SOFTCAP:
        score = softcap * (2.0 * tl.sigmoid(2.0 * score / softcap) - 1.0)  # tanh
    score *= LOG2E
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
def _owner(q_start, sequences, tile, SPAN: tl.constexpr):
    """The sequence of a tile. That of number s has its tiles from q_start[s] // SPAN + s on, which
    leaves room for one more tile than whole ones, so no two sequences meet."""
    low = 0
    high = sequences
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(q_start + middle) // SPAN + middle <= tile:
            low = middle
        else:
            high = middle
    return low


@kernel()
def _merge(
    parts,
    part_lse,
    o,
    lse,
    q_start,
    SIZE: tl.constexpr,
    DIMS: tl.constexpr,
    SPLITS: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Join the splits of one decode and head by log-sum-exp."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    start = tl.load(q_start + sequence)
    if tl.load(q_start + sequence + 1) - start != 1:
        return
    heads = tl.num_programs(1)
    at = (sequence.to(tl.int64) * heads + head) * SPLITS
    part, dim = tl.arange(0, PARTS), tl.arange(0, DIMS)
    each = tl.load(part_lse + at + part, mask=part < SPLITS, other=float("-inf"))
    top = tl.max(each, 0)
    weight = tl.exp(each - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(weight, 0)
    mask = (part < SPLITS)[:, None] & (dim < SIZE)[None, :]
    x = tl.load(parts + (at + part)[:, None] * SIZE + dim[None, :], mask=mask, other=0.0)
    divisor = tl.where(total == 0.0, 1.0, total)
    x = tl.sum(x * weight[:, None], 0) / divisor
    place = start.to(tl.int64) * heads + head
    tl.store(o + place * SIZE + dim, x.to(o.dtype.element_ty), mask=dim < SIZE)
    tl.store(lse + place, tl.where(total == 0.0, float("-inf"), top + tl.log(divisor)))


def write(kv: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    """As weir.ops.attention.write."""
    tokens, heads, size = k.shape
    if tokens == 0:
        return
    _write(
        (tokens, 1, 1),
        kv,
        k,
        v,
        slots,
        K_STRIDE=k.stride(0),
        V_STRIDE=v.stride(0),
        HEADS=heads,
        SIZE=size,
        PAGE=kv.shape[3],
        LINES=power_of_2(heads),
        DIMS=power_of_2(size),
        warps=4,
    )


@kernel()
def _write(
    kv,
    k,
    v,
    slots,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PAGE: tl.constexpr,
    LINES: tl.constexpr,
    DIMS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    head, dim = tl.arange(0, LINES)[:, None], tl.arange(0, DIMS)[None, :]
    mask = (head < HEADS) & (dim < SIZE)
    block = HEADS * PAGE * SIZE
    there = kv + (slot // PAGE) * 2 * block + (head * PAGE + slot % PAGE) * SIZE + dim
    here = head * SIZE + dim
    x = tl.load(k + token * K_STRIDE + here, mask=mask)
    tl.store(there, x.to(kv.dtype.element_ty), mask=mask)
    x = tl.load(v + token * V_STRIDE + here, mask=mask)
    tl.store(there + block, x.to(kv.dtype.element_ty), mask=mask)
