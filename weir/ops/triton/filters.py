"""Draws a token of a row with filters, by bisecting for the ends of prefixes of its ranking.

draw.py has summed the weights of chunks. A line is some adjacent logits whose largest is known.
"""

import triton
import triton.language as tl

from weir.ops.triton.draw import ONE, filtered, loaded, row_best, target_of, weight_of
from weir.ops.triton.launch import kernel, take_turn

LOG_ONE = tl.constexpr(20.79441541679836)


@triton.jit
def _key(x, FREE: tl.constexpr):
    """An integer that sorts like the number."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # -0 becomes 0
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> FREE


@triton.jit
def _value(key, FREE: tl.constexpr):
    """The number that has a key."""
    bits = key << FREE
    if FREE > 0:
        bits = tl.where(key < 0, bits | ((1 << FREE) - 1), bits)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _tile(row, kept, count, at, VOCAB: tl.constexpr, LINE: tl.constexpr, LINES: tl.constexpr):
    """The logits of LINES kept lines from the `at`-th on, and their token ids."""
    which = at + tl.arange(0, LINES)
    line = tl.load(kept + which, mask=which < count, other=VOCAB)
    ids = line[:, None] * LINE + tl.arange(0, LINE)[None, :]
    return loaded(row, ids, VOCAB), ids


@triton.jit
def _measure(
    row, kept, count, least, most, heat,
    MASS: tl.constexpr, FREE: tl.constexpr,
    VOCAB: tl.constexpr, LINE: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """The number or, with MASS, weight of kept lines' logits whose key is at least `least`."""
    total = tl.zeros((LINES, LINE), tl.int64)
    for at in range(0, count, LINES):
        x, ids = _tile(row, kept, count, at, VOCAB, LINE, LINES)
        inside = (_key(x, FREE) >= least) & (ids < VOCAB)
        if MASS:
            total += tl.where(inside, weight_of(x, most, heat), 0)
        else:
            total += inside.to(tl.int64)
    return tl.sum(tl.sum(total, 1), 0)


@triton.jit
def _end(
    row, kept, count, need, low, high, most, heat,
    MASS: tl.constexpr, FREE: tl.constexpr,
    VOCAB: tl.constexpr, LINE: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """The last key of the shortest prefix that measures `need`; the one down to `low` does."""
    while low < high:
        middle = high - (high - low) // 2
        found = _measure(row, kept, count, middle, most, heat, MASS, FREE, VOCAB, LINE, LINES)
        low = tl.where(found >= need, middle, low)
        high = tl.where(found >= need, high, middle - 1)
    return low


@triton.jit
def _tops_end(keys, measures, need, low, high):
    """As `_end`, over the largest logit of each line only: a lower bound of the end over all."""
    while low < high:
        middle = high - (high - low) // 2
        enough = tl.sum(tl.where(keys >= middle, measures, 0), 0) >= need
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    return low


@triton.jit
def _floor_key(floor, high, most, heat, FREE: tl.constexpr):
    """The least key whose weight is at least `floor`, which is at least 1."""
    low = _key(most - LOG_ONE * heat * 1.001 - 1e-3, FREE).to(tl.int64)  # its weight is 0
    while low < high:
        middle = low + (high - low) // 2
        enough = weight_of(_value(middle.to(tl.int32), FREE), most, heat) >= floor
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return low


@triton.jit
def _tie(
    row, kept, count, key, rank, FREE: tl.constexpr,
    VOCAB: tl.constexpr, LINE: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """The token id of the `rank`-th logit, from 1, among those with this key."""
    found = -1
    before = 0
    for at in range(0, count, LINES):
        x, ids = _tile(row, kept, count, at, VOCAB, LINE, LINES)
        same = tl.reshape((_key(x, FREE) == key) & (ids < VOCAB), (LINES * LINE,))
        number = before + tl.cumsum(same.to(tl.int32), 0)
        ids = tl.reshape(ids, (LINES * LINE,))
        found = tl.maximum(found, tl.max(tl.where(same & (number == rank), ids, -1), 0))
        before += tl.sum(same.to(tl.int32), 0)
    return found


@kernel()
def pick_filtered(
    logits, temperature, u, best, mass, top_k, top_p, min_p, top, kept, tokens,
    STRIDE: tl.constexpr, VOCAB: tl.constexpr, CHUNKS: tl.constexpr, PARTS: tl.constexpr,
    LINE: tl.constexpr, LINES: tl.constexpr, COUNT: tl.constexpr, TOPS: tl.constexpr,
    FREE: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The token of a row with filters."""
    row = tl.program_id(0).to(tl.int64)
    take_turn(EARLY)
    heat = tl.load(temperature + row)
    _, most, good = row_best(best, row, CHUNKS, PARTS)
    if good & (heat > 0) & filtered(row, top_k, top_p, min_p):
        x = logits + row * STRIDE
        lines = kept + row * COUNT
        k, p, least = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
        part, line = tl.arange(0, PARTS), tl.arange(0, TOPS)
        total = tl.sum(tl.load(mass + row * CHUNKS + part, mask=part < CHUNKS, other=0), 0)
        high = _key(most, FREE).to(tl.int64)
        floor = tl.maximum(tl.ceil(least * ONE).to(tl.int64), 1)
        low = _floor_key(floor, high, most, heat, FREE)

        # keep the lines that matter: every end to be found has a key of at least `low`
        tops = tl.load(top + row * COUNT + line, mask=line < COUNT, other=float("-inf"))
        keys, weights = _key(tops, FREE).to(tl.int64), weight_of(tops, most, heat)
        ones = (keys >= low).to(tl.int64)
        need = tl.ceil(p * total.to(tl.float64)).to(tl.int64)
        if k > 0:
            if tl.sum(ones, 0) >= k:
                low = _tops_end(keys, ones, k, low, high)
        elif (least <= 0.0) & (tl.sum(weights, 0) >= need):
            low = _tops_end(keys, weights, need, low, high)
        here = keys >= low
        count = tl.sum(here.to(tl.int32), 0)
        tl.store(lines + tl.cumsum(here.to(tl.int32), 0) - 1, line, mask=here)
        tl.debug_barrier()

        # the mass that min-p and top-k keep
        if least > 0.0:
            total = _measure(
                x, lines, count, low, most, heat, True, FREE, VOCAB, LINE, LINES
            )  # fmt: skip
        if k > 0:
            if _measure(x, lines, count, low, most, heat, False, FREE, VOCAB, LINE, LINES) >= k:
                low = _end(
                    x, lines, count, k, low, high, most, heat, False, FREE, VOCAB, LINE, LINES
                )
                more = _measure(
                    x, lines, count, low + 1, most, heat, False, FREE, VOCAB, LINE, LINES
                )
                total = (k - more) * weight_of(_value(low.to(tl.int32), FREE), most, heat)
                total += _measure(
                    x, lines, count, low + 1, most, heat, True, FREE, VOCAB, LINE, LINES
                )
        if p < 1.0:
            need = tl.minimum(tl.ceil(p * total.to(tl.float64)).to(tl.int64), total)
            low = _end(x, lines, count, need, low, high, most, heat, True, FREE, VOCAB, LINE, LINES)
            more = _measure(x, lines, count, low + 1, most, heat, True, FREE, VOCAB, LINE, LINES)
            weight = weight_of(_value(low.to(tl.int32), FREE), most, heat)
            total = more + (need - more + weight - 1) // weight * weight

        # the drawn token is the end of a prefix, too
        target = target_of(u, row, total)
        low = _end(
            x, lines, count, target + 1, low, high, most, heat, True, FREE, VOCAB, LINE, LINES
        )
        more = _measure(x, lines, count, low + 1, most, heat, True, FREE, VOCAB, LINE, LINES)
        rank = (target - more) // weight_of(_value(low.to(tl.int32), FREE), most, heat) + 1
        token = _tie(x, lines, count, low, rank, FREE, VOCAB, LINE, LINES)
        tl.store(tokens + row, token.to(tl.int64))
