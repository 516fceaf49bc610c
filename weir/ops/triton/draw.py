"""Draws a token of a row: sums the weights of each chunk, then finds the token at which the variate
falls. filters.py draws from rows with filters.
"""

import triton
import triton.language as tl

from weir.ops.triton.launch import kernel, take_turn

ONE = tl.constexpr(2.0**30)  # as weir.ops.sample.ONE


@triton.jit
def weight_of(x, best, temperature):
    """The weight relative to the row's best, times ONE: as weir.ops.sample.weights."""
    return (tl.exp((x - best) / temperature) * ONE).to(tl.int32).to(tl.int64)


@triton.jit
def loaded(row, at, VOCAB: tl.constexpr):
    return tl.load(row + at, mask=at < VOCAB, other=float("-inf")).to(tl.float32)


@triton.jit
def row_best(best, row, CHUNKS: tl.constexpr, PARTS: tl.constexpr):
    """The largest logit of each chunk and of the row, and whether the row can be sampled."""
    part = tl.arange(0, PARTS)
    each = tl.load(best + row * CHUNKS + part, mask=part < CHUNKS, other=float("-inf"))
    most = tl.max(each, 0)
    return each, most, (most > float("-inf")) & (most < float("inf"))


@triton.jit
def filtered(row, top_k, top_p, min_p):
    if top_k is None:
        return False
    else:
        k, p, least = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
        return (k > 0) | (p < 1.0) | (least > 0.0)


@triton.jit
def target_of(u, row, total):
    """The integer in [0, total) at which the variate falls."""
    return tl.minimum((tl.load(u + row) * total.to(tl.float64)).to(tl.int64), total - 1)


@kernel()
def best_of_chunks(
    logits, best, top,
    STRIDE: tl.constexpr, VOCAB: tl.constexpr, CHUNK: tl.constexpr, LINE: tl.constexpr,
    EARLY: tl.constexpr,
):  # fmt: skip
    """The largest logit of a chunk, and of each of its lines; inf if one is NaN."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lines: tl.constexpr = CHUNK // LINE
    line = chunk * lines + tl.arange(0, lines)
    take_turn(EARLY)
    x = loaded(logits + row * STRIDE, line[:, None] * LINE + tl.arange(0, LINE)[None, :], VOCAB)
    each = tl.max(tl.where(x != x, float("inf"), x), 1)
    if top is not None:
        count: tl.constexpr = tl.cdiv(VOCAB, LINE)
        tl.store(top + row * count + line, each, mask=line < count)
    tl.store(best + row * tl.num_programs(1) + chunk, tl.max(each, 0))


@kernel()
def mass_of_chunks(
    logits, temperature, best, mass,
    STRIDE: tl.constexpr, VOCAB: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    PARTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The sum of a chunk's weights."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    take_turn(EARLY)
    heat = tl.load(temperature + row)
    if heat > 0:
        _, most, good = row_best(best, row, CHUNKS, PARTS)
        if good:
            weight = weight_of(loaded(logits + row * STRIDE, at, VOCAB), most, heat)
            tl.store(mass + row * CHUNKS + chunk, tl.sum(weight, 0))


@kernel()
def pick(
    logits, temperature, u, best, mass, top_k, top_p, min_p, tokens,
    STRIDE: tl.constexpr, VOCAB: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
    PARTS: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The token of a row without filters."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    take_turn(EARLY)
    heat = tl.load(temperature + row)
    each, most, good = row_best(best, row, CHUNKS, PARTS)
    if not good:
        tl.store(tokens + row, -1)
    elif not (heat > 0):
        chunk = tl.min(tl.where(each == most, part, PARTS), 0)
        at = chunk * CHUNK + tl.arange(0, CHUNK)
        x = loaded(logits + row * STRIDE, at, VOCAB)
        tl.store(tokens + row, tl.min(tl.where(x == most, at, VOCAB), 0).to(tl.int64))
    elif not filtered(row, top_k, top_p, min_p):
        weights = tl.load(mass + row * CHUNKS + part, mask=part < CHUNKS, other=0)
        target = target_of(u, row, tl.sum(weights, 0))
        past = tl.cumsum(weights, 0) <= target
        chosen = tl.sum(past.to(tl.int32), 0)
        target -= tl.sum(tl.where(past, weights, 0), 0)
        within = chosen * CHUNK + tl.arange(0, CHUNK)
        weight = weight_of(loaded(logits + row * STRIDE, within, VOCAB), most, heat)
        index = tl.sum((tl.cumsum(weight, 0) <= target).to(tl.int32), 0)
        tl.store(tokens + row, (chosen * CHUNK + index).to(tl.int64))
