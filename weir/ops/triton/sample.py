"""The choice of tokens on a GPU: what weir.ops.sample defines, in three launches and no sort.

Logits are read where they lie, in the type the model gives them, twice: for the largest of each
chunk of a row, then for the weight of each chunk relative to the row's largest. Weights are summed
as integers, so no order of summation matters. A third launch finds the chunk where the variate
falls, and the token in it.

Filters cut a row's ranking: each keeps a prefix of it, and the draw itself is the end of a prefix.
The end of a prefix is found by bisecting the values, over those lines of the row alone whose
largest could be in it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from weir.ops.triton.launch import kernel, power_of_2

CHUNK = 2048  # logits of a program
LINE = 64  # logits with one largest among them, where a filter may look for its prefix
LINES = 128  # that a filter looks at at once
ONE = tl.constexpr(2.0**30)  # as weir.ops.sample.ONE
LOG_ONE = tl.constexpr(20.79441541679836)
FREE_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
"""Low bits of a float32 that mean nothing where it was made from such a type."""


def choose(
    logits: Tensor,
    temperature: Tensor,
    u: Tensor,
    filters: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """As weir.ops.sample.choose; `filters` are top_k, top_p and min_p.

    Moves the logits twice, or once and what the cache lost: 2 B V bytes each in bfloat16.
    """
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows == 0:
        return tokens
    chunks, lines = -(-vocab // CHUNK), -(-vocab // LINE)
    best = torch.empty(rows, chunks, dtype=torch.float32, device=logits.device)
    mass = torch.empty(rows, chunks, dtype=torch.int64, device=logits.device)
    top = None
    if filters is not None:
        top = torch.empty(rows, lines, dtype=torch.float32, device=logits.device)
    shape = {"STRIDE": logits.stride(0), "VOCAB": vocab, "CHUNK": CHUNK}
    _best((rows, chunks, 1), logits, best, top, **shape, LINE=LINE, warps=4)
    parts = {"CHUNKS": chunks, "PARTS": power_of_2(chunks)}
    _mass((rows, chunks, 1), logits, temperature, best, mass, **shape, **parts, warps=4)
    numbers = filters or (None, None, None)
    _pick(
        (rows, 1, 1),
        logits,
        temperature,
        u,
        best,
        mass,
        *numbers,
        tokens,
        **shape,
        **parts,
        warps=8,
    )
    if top is not None:
        kept = torch.empty(rows, lines, dtype=torch.int32, device=logits.device)
        _pick_filtered(
            (rows, 1, 1),
            logits,
            temperature,
            u,
            best,
            mass,
            *numbers,
            top,
            kept,
            tokens,
            STRIDE=logits.stride(0),
            VOCAB=vocab,
            **parts,
            LINE=LINE,
            LINES=LINES,
            COUNT=lines,
            TOPS=power_of_2(lines),
            FREE=FREE_BITS[logits.dtype],
            warps=16,
        )
    return tokens


@triton.jit
def _weight(x, best, temperature):
    """Relative to the row's best, times ONE: as weir.ops.sample.weights."""
    return (tl.exp((x - best) / temperature) * ONE).to(tl.int32).to(tl.int64)


@triton.jit
def _load(row, at, VOCAB: tl.constexpr):
    return tl.load(row + at, mask=at < VOCAB, other=float("-inf")).to(tl.float32)


@triton.jit
def _row_best(best, row, CHUNKS: tl.constexpr, PARTS: tl.constexpr):
    """The largest of each chunk, of all, and whether a row can be sampled."""
    part = tl.arange(0, PARTS)
    each = tl.load(best + row * CHUNKS + part, mask=part < CHUNKS, other=float("-inf"))
    most = tl.max(each, 0)
    return each, most, (most > float("-inf")) & (most < float("inf"))


@kernel()
def _best(
    logits,
    best,
    top,
    STRIDE: tl.constexpr,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    LINE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The largest logit of a chunk, and of each of its lines; inf where one is not a number."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lines: tl.constexpr = CHUNK // LINE
    line = chunk * lines + tl.arange(0, lines)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    x = _load(logits + row * STRIDE, line[:, None] * LINE + tl.arange(0, LINE)[None, :], VOCAB)
    each = tl.max(tl.where(x != x, float("inf"), x), 1)
    if top is not None:
        count: tl.constexpr = tl.cdiv(VOCAB, LINE)
        tl.store(top + row * count + line, each, mask=line < count)
    tl.store(best + row * tl.num_programs(1) + chunk, tl.max(each, 0))


@kernel()
def _mass(
    logits,
    temperature,
    best,
    mass,
    STRIDE: tl.constexpr,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    PARTS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The weight of a chunk."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    at = chunk * CHUNK + tl.arange(0, CHUNK)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    heat = tl.load(temperature + row)
    if heat > 0:
        _, most, good = _row_best(best, row, CHUNKS, PARTS)
        if good:
            weight = _weight(_load(logits + row * STRIDE, at, VOCAB), most, heat)
            tl.store(mass + row * CHUNKS + chunk, tl.sum(weight, 0))


@triton.jit
def _filtered(row, top_k, top_p, min_p):
    if top_k is None:
        return False
    else:
        k, p, least = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
        return (k > 0) | (p < 1.0) | (least > 0.0)


@triton.jit
def _target(u, row, total):
    """Where of a total weight the variate falls."""
    return tl.minimum((tl.load(u + row) * total.to(tl.float64)).to(tl.int64), total - 1)


@kernel()
def _pick(
    logits,
    temperature,
    u,
    best,
    mass,
    top_k,
    top_p,
    min_p,
    tokens,
    STRIDE: tl.constexpr,
    VOCAB: tl.constexpr,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    PARTS: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The token of a row that no filter cuts."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    heat = tl.load(temperature + row)
    each, most, good = _row_best(best, row, CHUNKS, PARTS)
    if not good:
        tl.store(tokens + row, -1)
    elif not (heat > 0):
        chunk = tl.min(tl.where(each == most, part, PARTS), 0)
        at = chunk * CHUNK + tl.arange(0, CHUNK)
        x = _load(logits + row * STRIDE, at, VOCAB)
        tl.store(tokens + row, tl.min(tl.where(x == most, at, VOCAB), 0).to(tl.int64))
    elif not _filtered(row, top_k, top_p, min_p):
        weights = tl.load(mass + row * CHUNKS + part, mask=part < CHUNKS, other=0)
        target = _target(u, row, tl.sum(weights, 0))
        past = tl.cumsum(weights, 0) <= target
        chosen = tl.sum(past.to(tl.int32), 0)
        target -= tl.sum(tl.where(past, weights, 0), 0)
        within = chosen * CHUNK + tl.arange(0, CHUNK)
        weight = _weight(_load(logits + row * STRIDE, within, VOCAB), most, heat)
        index = tl.sum((tl.cumsum(weight, 0) <= target).to(tl.int32), 0)
        tl.store(tokens + row, (chosen * CHUNK + index).to(tl.int64))


@triton.jit
def _key(x, FREE: tl.constexpr):
    """An integer that orders as the number does."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # -0 becomes 0
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> FREE


@triton.jit
def _value(key, FREE: tl.constexpr):
    """The number of a key."""
    bits = key << FREE
    if FREE > 0:
        bits = tl.where(key < 0, bits | ((1 << FREE) - 1), bits)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _tile(row, kept, count, at, VOCAB: tl.constexpr, LINE: tl.constexpr, LINES: tl.constexpr):
    """The logits of kept lines from number `at` on, and their ids."""
    which = at + tl.arange(0, LINES)
    line = tl.load(kept + which, mask=which < count, other=VOCAB)
    ids = line[:, None] * LINE + tl.arange(0, LINE)[None, :]
    return _load(row, ids, VOCAB), ids


@triton.jit
def _measure(
    row, kept, count, least, most, heat,
    MASS: tl.constexpr, FREE: tl.constexpr,
    VOCAB: tl.constexpr, LINE: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """How many of the kept lines' logits have a key of at least `least`, or what they weigh."""
    total = tl.zeros((LINES, LINE), tl.int64)
    for at in range(0, count, LINES):
        x, ids = _tile(row, kept, count, at, VOCAB, LINE, LINES)
        inside = (_key(x, FREE) >= least) & (ids < VOCAB)
        if MASS:
            total += tl.where(inside, _weight(x, most, heat), 0)
        else:
            total += inside.to(tl.int64)
    return tl.sum(tl.sum(total, 1), 0)


@triton.jit
def _end(
    row, kept, count, need, low, high, most, heat,
    MASS: tl.constexpr, FREE: tl.constexpr,
    VOCAB: tl.constexpr, LINE: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """The key where the shortest prefix ends that measures `need`, which those from `low` do."""
    while low < high:
        middle = high - (high - low) // 2
        found = _measure(row, kept, count, middle, most, heat, MASS, FREE, VOCAB, LINE, LINES)
        low = tl.where(found >= need, middle, low)
        high = tl.where(found >= need, high, middle - 1)
    return low


@triton.jit
def _tops_end(keys, measures, need, low, high):
    """As `_end`, over the largest of each line alone: the end over all logits is not below it."""
    while low < high:
        middle = high - (high - low) // 2
        enough = tl.sum(tl.where(keys >= middle, measures, 0), 0) >= need
        low = tl.where(enough, middle, low)
        high = tl.where(enough, high, middle - 1)
    return low


@triton.jit
def _floor_key(floor, high, most, heat, FREE: tl.constexpr):
    """The least key whose weight is not below `floor`, which is at least 1."""
    low = _key(most - LOG_ONE * heat * 1.001 - 1e-3, FREE).to(tl.int64)  # weighs nothing
    while low < high:
        middle = low + (high - low) // 2
        enough = _weight(_value(middle.to(tl.int32), FREE), most, heat) >= floor
        high = tl.where(enough, middle, high)
        low = tl.where(enough, low, middle + 1)
    return low


@triton.jit
def _tie(
    row, kept, count, key, rank, FREE: tl.constexpr,
    VOCAB: tl.constexpr, LINE: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """The id of number `rank`, from 1, of the logits that have this key."""
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
def _pick_filtered(
    logits,
    temperature,
    u,
    best,
    mass,
    top_k,
    top_p,
    min_p,
    top,
    kept,
    tokens,
    STRIDE: tl.constexpr,
    VOCAB: tl.constexpr,
    CHUNKS: tl.constexpr,
    PARTS: tl.constexpr,
    LINE: tl.constexpr,
    LINES: tl.constexpr,
    COUNT: tl.constexpr,
    TOPS: tl.constexpr,
    FREE: tl.constexpr,
    EARLY: tl.constexpr,
):
    """The token of a row that filters cut."""
    row = tl.program_id(0).to(tl.int64)
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()
    heat = tl.load(temperature + row)
    _, most, good = _row_best(best, row, CHUNKS, PARTS)
    if good & (heat > 0) & _filtered(row, top_k, top_p, min_p):
        x = logits + row * STRIDE
        lines = kept + row * COUNT
        k, p, least = tl.load(top_k + row), tl.load(top_p + row), tl.load(min_p + row)
        part, line = tl.arange(0, PARTS), tl.arange(0, TOPS)
        total = tl.sum(tl.load(mass + row * CHUNKS + part, mask=part < CHUNKS, other=0), 0)
        high = _key(most, FREE).to(tl.int64)
        floor = tl.maximum(tl.ceil(least * ONE).to(tl.int64), 1)
        low = _floor_key(floor, high, most, heat, FREE)

        # which lines matter: every end that is looked for has a key of at least `low`
        tops = tl.load(top + row * COUNT + line, mask=line < COUNT, other=float("-inf"))
        keys, weights = _key(tops, FREE).to(tl.int64), _weight(tops, most, heat)
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
                total = (k - more) * _weight(_value(low.to(tl.int32), FREE), most, heat)
                total += _measure(
                    x, lines, count, low + 1, most, heat, True, FREE, VOCAB, LINE, LINES
                )
        if p < 1.0:
            need = tl.minimum(tl.ceil(p * total.to(tl.float64)).to(tl.int64), total)
            low = _end(x, lines, count, need, low, high, most, heat, True, FREE, VOCAB, LINE, LINES)
            more = _measure(x, lines, count, low + 1, most, heat, True, FREE, VOCAB, LINE, LINES)
            weight = _weight(_value(low.to(tl.int32), FREE), most, heat)
            total = more + (need - more + weight - 1) // weight * weight

        # the draw is the end of a prefix as well
        target = _target(u, row, total)
        low = _end(
            x, lines, count, target + 1, low, high, most, heat, True, FREE, VOCAB, LINE, LINES
        )
        more = _measure(x, lines, count, low + 1, most, heat, True, FREE, VOCAB, LINE, LINES)
        rank = (target - more) // _weight(_value(low.to(tl.int32), FREE), most, heat) + 1
        token = _tie(x, lines, count, low, rank, FREE, VOCAB, LINE, LINES)
        tl.store(tokens + row, token.to(tl.int64))
