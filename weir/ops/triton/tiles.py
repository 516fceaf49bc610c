"""Cuts chunks of several tokens into tiles for attention, on the device.

This is done once a step for all layers, so that attention's programs need not search for their
chunk. Decodes have no tiles.
"""

import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from weir.ops.batch import Batch, Tiles
from weir.ops.triton.launch import kernel

NUMBERS = 8192
"""Sequences times tiles of a program, as many as its registers hold."""


def tiles_of(batch: Batch, tokens: int, span: int) -> Tiles:
    """The batch's tiles of `span` tokens, of its `tokens` in all. Cached in the batch."""
    if batch.tiles is not None and batch.tiles.span == span:
        return batch.tiles
    sequences = len(batch.kv_len)
    most = tokens // span + sequences
    made = batch.kv_len.new_empty((most, 5)), batch.kv_len.new_empty(1)
    units = at_least(sequences)
    block = max(1, NUMBERS // units)
    _cut(
        (-(-most // block), 1, 1), *made, batch.q_start, batch.kv_len, batch.first, sequences, most,
        SPAN=span, FIRST=batch.first is not None, UNITS=units, BLOCK=block,
        warps=4,
    )  # fmt: skip
    batch.tiles = Tiles(span, *made)
    return batch.tiles


def at_least(units: int) -> int:
    """The least power of 4 that is at least `units` and 256, so that few kernels are compiled."""
    bound = 256
    while bound < units:
        bound *= 4
    return bound


@kernel("sequences", "most")
def _cut(
    tiles, count, q_start, kv_len, first, sequences, most,
    SPAN: tl.constexpr, FIRST: tl.constexpr, UNITS: tl.constexpr, BLOCK: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """A chunk's tiles are adjacent, so that the keys that one reads are cached for the next."""
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    each = tl.arange(0, UNITS)
    real = each < sequences
    start = tl.load(q_start + each, mask=real, other=0)
    length = tl.load(q_start + each + 1, mask=real, other=0) - start
    ends = tl.cumsum(tl.where(length > 1, tl.cdiv(length, SPAN), 0), 0)
    total = tl.max(ends, 0)
    slot = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(count + slot, total, mask=slot == 0)
    within = slot < total
    # in reverse: the last tiles of a prompt have the most keys and should begin first
    tile = total - 1 - slot
    before = ends[None, :] <= tile[:, None]
    sequence = tl.sum(before.to(tl.int32), 1)
    token = (tile - tl.max(tl.where(before, ends[None, :], 0), 1)) * SPAN
    start = tl.load(q_start + sequence, mask=within, other=0)
    length = tl.load(q_start + sequence + 1, mask=within, other=0) - start
    keys = tl.load(kv_len + sequence, mask=within, other=0)
    position = tl.load(first + sequence, mask=within, other=0) if FIRST else keys - length
    position += token
    tokens = tl.minimum(length - token, SPAN)
    there = tiles + slot * 5
    tl.store(there, start + token, mask=within)
    tl.store(there + 1, tokens, mask=within)
    tl.store(there + 2, position, mask=within)
    tl.store(there + 3, tl.minimum(position + tokens, keys), mask=within)
    tl.store(there + 4, sequence, mask=within)
    # of unused tiles only the number of tokens is read
    tl.store(there + 1, 0, mask=(slot >= total) & (slot < most))
