"""Attention of chunks of several tokens on a GPU.

A program serves one kv head and a tile of queries, which is some tokens times the query heads of
the group, so that keys and values are read once for all of them (FlashAttention-2, arXiv
2307.08691). n tokens that follow c others take 4 · Hq · D · (n · c + n² / 2) FLOP: attention is
bound by arithmetic.
"""

from dataclasses import dataclass
from functools import cache

import torch
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from weir.ops.batch import Batch
from weir.ops.triton.launch import kernel, power_of_2, shared_memory
from weir.ops.triton.softmax import LN2, close, take
from weir.ops.triton.tiles import tiles_of
from weir.spec import AttentionSpec


@dataclass(frozen=True, slots=True)
class Tile:
    """The shape of a program's work."""

    rows: int  # tokens times heads of a group
    keys: int  # in one turn of the loop
    warps: int
    stages: int  # loads in flight


@cache
def tile_of(group: int, size: int, itemsize: int, device: torch.device) -> Tile:
    """The largest tile measured to be fast that fits shared memory, which holds the queries and two
    turns of keys and values."""
    rows = max(32 if itemsize == 4 else 64, 2 * power_of_2(group))
    if itemsize == 2 and 64 <= size <= 128 and rows <= 128 and shared_memory(device) >= 180_000:
        return Tile(128, 128, 8, 3)
    keys = max(16, min(64, 16384 // (power_of_2(size) * itemsize)))
    return Tile(rows, keys, 4, 3)


def prefill(
    q: Tensor, kv: Tensor, o: Tensor, lse: Tensor, batch: Batch, spec: AttentionSpec
) -> None:
    """Fill the rows of o [T, Hq, D] and lse [T, Hq] that belong to chunks of several tokens. The
    rest as in weir.ops.attention.attend."""
    heads, size = q.shape[1:]
    kv_heads = kv.shape[2]
    group = heads // kv_heads
    tile = tile_of(group, size, q.element_size(), q.device)
    tiles = tiles_of(batch, len(q), tile.rows // group)
    _prefill(
        (kv_heads, len(tiles.each), 1), q, kv, o, lse, tiles.each, batch.table,
        batch.table.stride(0), spec.scale, spec.softcap or 0.0,
        STRIDE=q.stride(0), KV_HEADS=kv_heads, GROUP=group, SIZE=size, PAGE=kv.shape[3],
        WINDOW=spec.window or 0, SOFTCAP=spec.softcap is not None, ROWS=tile.rows, KEYS=tile.keys,
        DIMS=max(16, power_of_2(size)),
        warps=tile.warps, stages=tile.stages,
    )  # fmt: skip


@kernel("table_stride", "scale", "softcap")
def _prefill(
    q, kv, o, lse, tiles, table, table_stride, scale, softcap,
    STRIDE: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr,
    PAGE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, DIMS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Attention of a tile's tokens and GROUP heads over all their keys."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    head = tl.program_id(0)
    tile = tiles + tl.program_id(1) * 5
    tokens = tl.load(tile + 1)
    if tokens == 0:
        return
    start, position, end, sequence = (
        tl.load(tile),
        tl.load(tile + 2),
        tl.load(tile + 3),
        tl.load(tile + 4),
    )
    begin = tl.maximum(position - WINDOW + 1, 0) if WINDOW else 0

    row = tl.arange(0, ROWS)
    token = row // GROUP
    real = token < tokens
    seen = position + token  # the last key that a row sees
    heads = head * GROUP + row % GROUP
    dim = tl.arange(0, DIMS)
    where = (start + token).to(tl.int64) * STRIDE + heads * SIZE
    mask = real[:, None] & (dim < SIZE)[None, :]
    tile_q = tl.load(q + where[:, None] + dim[None, :], mask=mask, other=0.0)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIMS], tl.float32)
    pages = table + sequence.to(tl.int64) * table_stride
    stride = 2 * KV_HEADS * PAGE * SIZE
    k = kv + head * PAGE * SIZE
    v = k + KV_HEADS * PAGE * SIZE

    # keys that every row sees need no mask
    clear = begin
    if WINDOW == 0:
        clear += tl.maximum(tl.minimum(end, position + 1) - begin, 0) // KEYS * KEYS
        for at in range(begin, clear, KEYS):
            best, total, acc = take(
                tile_q, k, v, pages, at, end, seen, best, total, acc, scale, softcap,
                stride, SIZE, PAGE, WINDOW, SOFTCAP, KEYS, DIMS, False,
            )  # fmt: skip
    for at in range(clear, end, KEYS):
        best, total, acc = take(
            tile_q, k, v, pages, at, end, seen, best, total, acc, scale, softcap,
            stride, SIZE, PAGE, WINDOW, SOFTCAP, KEYS, DIMS, True,
        )  # fmt: skip

    acc, sum_lse = close(best, total, acc)
    place = (start + token).to(tl.int64) * (KV_HEADS * GROUP) + heads
    tl.store(o + place[:, None] * SIZE + dim[None, :], acc.to(o.dtype.element_ty), mask=mask)
    tl.store(lse + place, sum_lse * LN2, mask=real)
