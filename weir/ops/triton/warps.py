"""The warps' parts in attention of chunks on a Hopper GPU: one loads keys and values (`bring`),
groups of four multiply (`multiply`). hopper.py launches them and allocates the ring between them.
"""

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
def item_of(n):
    """The n-th item of a program. A chunk's items get shorter from first to last, so every other
    round over the programs is in reverse, which gives all about the same work."""
    at, programs = gl.program_id(0), gl.num_programs(0)
    return n * programs + gl.where(n % 2 == 0, at, programs - 1 - at)


@gluon.jit
def _span(tiles, item, KV_HEADS: gl.constexpr, WINDOW: gl.constexpr, KEYS: gl.constexpr):
    """An item's tile, its first key, the end of its keys, and the turns they take (at least 1)."""
    tile = tiles + item // KV_HEADS * 5
    begin = 0
    if WINDOW:
        begin = gl.maximum(gl.load(tile + 2) - WINDOW + 1, 0) // KEYS * KEYS
    end = gl.maximum(gl.load(tile + 3), begin)
    return tile, begin, end, gl.maximum(gl.cdiv(end - begin, KEYS), 1)


@gluon.jit
def bring(
    lines, tiles, items, table, keys, values, keys_full, values_full, keys_empty, values_empty,
    table_stride, beyond,
    KV_HEADS: gl.constexpr, SIZE: gl.constexpr, PAGE: gl.constexpr, BOX: gl.constexpr,
    WINDOW: gl.constexpr, KEYS: gl.constexpr, HALF: gl.constexpr, RING: gl.constexpr,
):  # fmt: skip
    """Copy the keys and values of all items of a program into the ring, as slots become free. For
    boxes past the last key, line `beyond` is read, for which the copy engine gives zeros."""
    done = 0
    for i in range(items):
        item = item_of(i)
        tile, begin, end, turns = _span(tiles, item, KV_HEADS, WINDOW, KEYS)
        pages = table + gl.load(tile + 4).to(gl.int64) * table_stride
        for n in range(turns):
            _copy(
                lines, pages, keys, keys_full, keys_empty, done + n, begin + n * KEYS, end,
                item % KV_HEADS, beyond, KV_HEADS, SIZE, PAGE, BOX, KEYS, HALF, RING,
            )  # fmt: skip
            _copy(
                lines, pages, values, values_full, values_empty, done + n, begin + n * KEYS, end,
                KV_HEADS + item % KV_HEADS, beyond, KV_HEADS, SIZE, PAGE, BOX, KEYS, HALF, RING,
            )  # fmt: skip
        done += turns


@gluon.jit
def _copy(
    lines, pages, ring, full, empty, turn, at, end, head, beyond,
    KV_HEADS: gl.constexpr, SIZE: gl.constexpr, PAGE: gl.constexpr, BOX: gl.constexpr,
    KEYS: gl.constexpr, HALF: gl.constexpr, RING: gl.constexpr,
):  # fmt: skip
    """Copy KEYS lines of a head, from key `at` on, to the slot of that turn, once it is empty."""
    BOXES: gl.constexpr = KEYS // BOX
    HALVES: gl.constexpr = SIZE // HALF
    slot = turn % RING
    mbarrier.wait(empty.index(slot), (turn // RING + 1) & 1)
    mbarrier.expect(full.index(slot), KEYS * SIZE * 2)
    for j in gl.static_range(BOXES):
        key = at + j * BOX
        page = gl.load(pages + key // PAGE, mask=key < end, other=0)
        line = (2 * page * KV_HEADS + head) * PAGE + key % PAGE
        line = gl.where(key < end, line, beyond)
        for half in gl.static_range(HALVES):
            there = ring.index((slot * HALVES + half) * BOXES + j)
            tma.async_copy_global_to_shared(lines, [line, half * HALF], full.index(slot), there)


@gluon.jit
def _scores(queries, keys, slot, HALVES: gl.constexpr, ROWS: gl.constexpr, KEYS: gl.constexpr):
    """Start the product of queries and a tile of keys."""
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
    """The online softmax (arXiv 1805.02867), in base 2: weights of the keys from `at` on, the
    factor for the sums so far, and the new best and total. `scale` includes LOG2E."""
    if SOFTCAP:
        s = softcap * (2.0 / (1.0 + gl.exp2(s * (-2.0 * scale / softcap))) - 1.0)
        scale = LOG2E
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
    base = gl.where(top == float("-inf"), 0.0, top * scale)
    weight = gl.exp2(s * scale - base[:, None])
    keep = gl.exp2(best * scale - base)
    return weight, keep, top, total * keep + gl.sum(weight, 1)


@gluon.jit
def _queries(
    q, tiles, item, offset, half,
    STRIDE: gl.constexpr, KV_HEADS: gl.constexpr, GROUP: gl.constexpr, SIZE: gl.constexpr,
    ROWS: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    """Half number `half` of the elements of an item's queries, of tokens from `offset` on."""
    memory: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])  # 16 bytes a thread
    row = gl.arange(0, ROWS, gl.SliceLayout(1, memory))
    dim = half * HALF + gl.arange(0, HALF, gl.SliceLayout(0, memory))
    tile = tiles + item // KV_HEADS * 5
    token = offset + row // GROUP
    where = (gl.load(tile) + token).to(gl.int64) * STRIDE
    where += (item % KV_HEADS * GROUP + row % GROUP) * SIZE
    real = token < gl.load(tile + 1)
    return gl.load(q + where[:, None] + dim[None, :], mask=real[:, None], other=0.0)


@gluon.jit
def multiply(
    q, o, lse, tiles, items, queries, keys, values, boxes, keys_full, values_full, keys_empty,
    values_empty, offset, scale, softcap,
    STRIDE: gl.constexpr, KV_HEADS: gl.constexpr, GROUP: gl.constexpr, SIZE: gl.constexpr,
    BOX: gl.constexpr, WINDOW: gl.constexpr, SOFTCAP: gl.constexpr, ROWS: gl.constexpr,
    KEYS: gl.constexpr, HALF: gl.constexpr, RING: gl.constexpr,
):  # fmt: skip
    """Attention of ROWS / GROUP tokens, from `offset` on, of each of a program's items."""
    HALVES: gl.constexpr = SIZE // HALF
    score: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, KEYS, 16]
    )
    result: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, HALF, 16]
    )
    weights: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=result, k_width=2)
    scale *= LOG2E
    lines = gl.arange(0, ROWS, gl.SliceLayout(1, score)) // GROUP
    done = 0
    item = item_of(0)
    left = _queries(q, tiles, item, offset, 0, STRIDE, KV_HEADS, GROUP, SIZE, ROWS, HALF)
    right = left
    if HALVES == 2:
        right = _queries(q, tiles, item, offset, 1, STRIDE, KV_HEADS, GROUP, SIZE, ROWS, HALF)
    for i in range(items):
        item = item_of(i)
        tile, begin, end, turns = _span(tiles, item, KV_HEADS, WINDOW, KEYS)
        lowest = gl.load(tile + 2) + offset
        seen = lowest + lines
        queries.index(0).store(left)
        if HALVES == 2:
            queries.index(1).store(right)
        fence_async_shared()
        best = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, score))
        total = gl.zeros([ROWS], gl.float32, gl.SliceLayout(1, score))
        low = gl.zeros([ROWS, HALF], gl.float32, result)
        high = gl.zeros([ROWS, HALF], gl.float32, result)
        mbarrier.wait(keys_full.index(done % RING), (done // RING) & 1)
        s = _scores(queries, keys, done % RING, HALVES, ROWS, KEYS)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(keys_empty.index(done % RING), count=1)
        p, keep, best, total = _weights(
            s, begin, end, lowest, seen, best, total, scale, softcap, WINDOW, SOFTCAP, KEYS
        )
        p = gl.convert_layout(p.to(q.dtype.element_ty), weights)
        for n in range(1, turns):
            slot = (done + n) % RING
            last = (done + n - 1) % RING
            mbarrier.wait(keys_full.index(slot), ((done + n) // RING) & 1)
            s = _scores(queries, keys, slot, HALVES, ROWS, KEYS)
            mbarrier.wait(values_full.index(last), ((done + n - 1) // RING) & 1)
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
        done += turns
        last = (done - 1) % RING
        mbarrier.wait(values_full.index(last), ((done - 1) // RING) & 1)
        if end % BOX != 0:
            _clear(boxes, last, begin, end, HALVES, BOX, KEYS)
        low = warpgroup_mma(p, values.index(last * HALVES), low, is_async=True)
        if HALVES == 2:
            high = warpgroup_mma(p, values.index(last * HALVES + 1), high, is_async=True)
        after = item_of(gl.minimum(i + 1, items - 1))
        left = _queries(q, tiles, after, offset, 0, STRIDE, KV_HEADS, GROUP, SIZE, ROWS, HALF)
        if HALVES == 2:
            right = _queries(q, tiles, after, offset, 1, STRIDE, KV_HEADS, GROUP, SIZE, ROWS, HALF)
            low, high, p = warpgroup_mma_wait(0, deps=[low, high, p])
        else:
            low, p = warpgroup_mma_wait(0, deps=[low, p])
        mbarrier.arrive(values_empty.index(last), count=1)
        if SOFTCAP:
            best = best * LOG2E
        else:
            best = best * scale
        _store(
            o, lse, low, high, best, total, tile, item, offset, KV_HEADS, GROUP, SIZE, ROWS, HALF
        )


@gluon.jit
def _clear(
    boxes, slot, begin, end, HALVES: gl.constexpr, BOX: gl.constexpr, KEYS: gl.constexpr
):  # fmt: skip
    """Zero the box past the last key: it may hold NaN, which times a weight of 0 is still NaN."""
    memory: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    at = (end - begin) % KEYS // BOX
    line = gl.arange(0, BOX, gl.SliceLayout(1, memory))
    for half in gl.static_range(HALVES):
        box = boxes.index((slot * HALVES + half) * (KEYS // BOX) + at)
        some = box.load(memory)
        box.store(gl.where((line < end % BOX)[:, None], some, 0.0).to(some.dtype))
    fence_async_shared()


@gluon.jit
def _store(
    o, lse, low, high, best, total, tile, item, offset,
    KV_HEADS: gl.constexpr, GROUP: gl.constexpr, SIZE: gl.constexpr, ROWS: gl.constexpr,
    HALF: gl.constexpr,
):  # fmt: skip
    """Write the results of an item's tokens from `offset` on."""
    memory: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    row = gl.arange(0, ROWS, gl.SliceLayout(1, memory))
    dim = gl.arange(0, HALF, gl.SliceLayout(0, memory))
    divisor = gl.where(total == 0.0, 1.0, total)
    sum_lse = gl.where(total == 0.0, float("-inf"), (best + gl.log2(divisor)) * LN2)
    inverse = gl.convert_layout(1.0 / divisor, gl.SliceLayout(1, low.type.layout))[:, None]
    token = offset + row // GROUP
    real = token < gl.load(tile + 1)
    place = (gl.load(tile) + token).to(gl.int64) * (KV_HEADS * GROUP)
    place += item % KV_HEADS * GROUP + row % GROUP
    out = o + place[:, None] * SIZE + dim[None, :]
    x = gl.convert_layout((low * inverse).to(o.dtype.element_ty), memory)
    gl.store(out, x, mask=real[:, None])
    if SIZE // HALF == 2:
        x = gl.convert_layout((high * inverse).to(o.dtype.element_ty), memory)
        gl.store(out + HALF, x, mask=real[:, None])
    gl.store(lse + place, gl.convert_layout(sum_lse, gl.SliceLayout(1, memory)), mask=real)
