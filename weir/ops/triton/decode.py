"""Decode attention on a GPU: one query token per sequence, with the keys divided among programs.

Per key, a decode reads 2 · Hkv · D · itemsize bytes and computes 4 · Hq · D FLOP, so it is bound by
memory. The keys of all sequences and kv heads are laid end to end in turns of KEYS, and each
program reads equally many turns, whatever sequences they belong to (stream-K, arXiv 2301.03598;
for attention arXiv 2405.10480). If several programs read one sequence, the last to finish joins
their parts in order of position. The grid depends only on the device, on which the shares are
computed, so a captured graph serves any lengths. Results are deterministic, but the order of
summation depends on what else is in the batch.

A prefix that several decodes have in common is read once for all of them, by the same kernel with
more rows of queries (cascade inference; Hydragen, arXiv 2402.05099). A second pass adds the keys
that each decode has of its own.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from weir.ops.batch import Batch
from weir.ops.prefix import Shared
from weir.ops.triton.launch import kernel, multiprocessors, power_of_2
from weir.ops.triton.softmax import close, take
from weir.ops.triton.tiles import at_least
from weir.ops.triton.units import joined, put, queries_of, span_of
from weir.spec import AttentionSpec

STAGES = 5  # two turns in flight: Triton counts the loads of page numbers as stages, too
PROGRAMS = 4  # per multiprocessor, of two warps each; for prefixes two, of four or eight warps
PARTS = 64  # most programs that share a sequence and kv head
JOINED = 4096  # numbers joined at once: 64 registers per thread


@cache
def arrived(device: torch.device, programs: int) -> Tensor:
    """Zeros, int32 [programs], which each call resets; calls on a device must not overlap."""
    return torch.zeros(programs, dtype=torch.int32, device=device)


def decode(
    q: Tensor,
    kv: Tensor,
    o: Tensor,
    lse: Tensor,
    batch: Batch,
    spec: AttentionSpec,
    mixed: bool,
    shared: Shared | None,
) -> None:
    """Fill the rows of o [T, Hq, D] and lse [T, Hq] that belong to chunks of one token. mixed:
    there are longer chunks, too. shared: prefixes to read once. The rest as in
    weir.ops.attention.attend."""
    place = (q, kv, batch, spec, mixed)
    if shared is None:
        return _launch(*place, o, lse, batch.kv_len)
    common = q.new_empty(q.shape, dtype=torch.float32)
    common_lse = torch.empty_like(lse)
    _launch(*place, common, common_lse, shared.keys, member=shared.member)
    _launch(*place, o, lse, batch.kv_len, skip=shared.skip, common=(common, common_lse))


def _launch(
    q: Tensor,
    kv: Tensor,
    batch: Batch,
    spec: AttentionSpec,
    mixed: bool,
    o: Tensor,
    lse: Tensor,
    length: Tensor,
    member: Tensor | None = None,
    skip: Tensor | None = None,
    common: tuple[Tensor | None, Tensor | None] = (None, None),
) -> None:
    heads, size = q.shape[1:]
    kv_heads, page = kv.shape[2:4]
    group = heads // kv_heads
    members = 1 if member is None else member.shape[1]
    lines, dims = power_of_2(members * group), max(16, power_of_2(size))
    few = lines <= 16 and members == 1
    programs = (PROGRAMS if few else 2) * multiprocessors(q.device)
    parts = q.new_empty(2 * programs, members * group, size, dtype=torch.float32)
    part_lse = q.new_empty(2 * programs, members * group, dtype=torch.float32)
    _decode(
        (programs, 1, 1), q, kv, o, lse, parts, part_lse, arrived(q.device, programs),
        batch.q_start if mixed else None, length, batch.first, batch.table, member, skip, *common,
        len(length), batch.table.stride(0), spec.scale, spec.softcap or 0.0,
        STRIDE=q.stride(0), KV_HEADS=kv_heads, GROUP=group, SIZE=size, PAGE=page,
        WINDOW=spec.window or 0, SOFTCAP=spec.softcap is not None, FIRST=batch.first is not None,
        MIXED=mixed, SKIP=skip is not None, MEMBERS=members,
        UNITS=at_least(len(length)), PARTS=PARTS, ROWS=max(16, lines), LINES=lines,
        KEYS=max(16, min(64, (8192 if few else 16384) // (dims * q.element_size()))), DIMS=dims,
        BLOCK=max(1, (JOINED if few else 2 * JOINED) // (lines * dims)),
        warps=2 if few else 4 if lines <= 64 else 8, stages=STAGES,
    )  # fmt: skip


@kernel("units", "table_stride", "scale", "softcap")
def _decode(
    q, kv, o, lse, parts, part_lse, arrived, q_start, kv_len, first, table, member, skip, common,
    common_lse, units, table_stride, scale, softcap,
    STRIDE: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr,
    PAGE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, FIRST: tl.constexpr,
    MIXED: tl.constexpr, SKIP: tl.constexpr, MEMBERS: tl.constexpr, UNITS: tl.constexpr,
    PARTS: tl.constexpr, ROWS: tl.constexpr, LINES: tl.constexpr, KEYS: tl.constexpr,
    DIMS: tl.constexpr, BLOCK: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """A unit is a sequence or, if MEMBERS > 1, a prefix that several share. Turns are ordered by
    unit, then kv head, then position; program p reads `share` of them from p * share on."""
    if EARLY:
        gdc_launch_dependents()
    each = tl.arange(0, UNITS)
    real = each < units
    _, _, every = span_of(each, real, kv_len, first, skip, FIRST, SKIP, MEMBERS, WINDOW, KEYS)
    if MIXED and MEMBERS == 1:
        after = tl.load(q_start + each + 1, mask=real, other=0)
        real = real & (after == 1 + tl.load(q_start + each, mask=real, other=0))
    every = tl.where(real, every, 0)
    ends = tl.cumsum(every, 0)
    everything = tl.sum(every, 0) * KV_HEADS
    longest = tl.max(every, 0)
    share = tl.maximum(tl.cdiv(everything, tl.num_programs(0)), tl.cdiv(longest, PARTS))
    # joining takes longer the more parts there are, so few turns are spread over fewer programs
    share = tl.maximum(share, (tl.sqrt(longest.to(tl.float32)) * 0.25 + 0.5).to(tl.int32))
    at = tl.program_id(0) * share
    stop = tl.minimum(at + share, everything)
    if EARLY and stop <= at and tl.program_id(0) == 0:
        gdc_wait()
    while at < stop:
        before = ends * KV_HEADS <= at
        unit = tl.sum(before.to(tl.int32), 0)
        origin = tl.max(tl.where(before, ends, 0), 0) * KV_HEADS  # the unit's first turn
        begin, end, turns = span_of(
            unit, True, kv_len, first, skip, FIRST, SKIP, MEMBERS, WINDOW, KEYS
        )
        head = (at - origin) // turns
        origin += head * turns  # now the kv head's first turn
        turn = at - origin
        until = tl.minimum(turns, turn + stop - at)
        if EARLY:
            gdc_wait()  # until here only lengths are read, which the host sent before this step
        best, total, acc = _stretch(
            q, kv, q_start, table, member, table_stride, scale, softcap, unit, head, begin, end,
            turn, until, STRIDE, KV_HEADS, GROUP, SIZE, PAGE, SOFTCAP, MIXED, MEMBERS, ROWS, KEYS,
            DIMS,
        )  # fmt: skip
        acc, sum_lse = close(best, total, acc)
        row, dim = tl.arange(0, ROWS), tl.arange(0, DIMS)
        if until - turn == turns:
            put(
                acc, sum_lse, row, unit, head, o, lse, q_start, member, skip, common, common_lse,
                KV_HEADS, GROUP, SIZE, MIXED, SKIP, MEMBERS, DIMS,
            )  # fmt: skip
        else:
            # at most two parts: one that an earlier program began, one that a later one ends
            slot = (2 * tl.program_id(0) + (turn == 0).to(tl.int32)) * (MEMBERS * GROUP) + row
            mask = row < MEMBERS * GROUP
            there = parts + slot[:, None] * SIZE + dim[None, :]
            tl.store(there, acc, mask=mask[:, None] & (dim < SIZE)[None, :])
            tl.store(part_lse + slot, sum_lse, mask=mask)
            tl.debug_barrier()  # all threads have stored before one reports it
            low, high = origin // share, (origin + turns - 1) // share
            if tl.atomic_add(arrived + low, 1, sem="acq_rel") == high - low:
                tl.store(arrived + low, 0)
                whole, whole_lse = joined(
                    parts, part_lse, low, high, MEMBERS * GROUP, SIZE, LINES, DIMS, BLOCK
                )
                put(
                    whole, whole_lse, tl.arange(0, LINES), unit, head, o, lse, q_start, member,
                    skip, common, common_lse, KV_HEADS, GROUP, SIZE, MIXED, SKIP, MEMBERS, DIMS,
                )  # fmt: skip
        at += until - turn


@triton.jit
def _stretch(
    q, kv, q_start, table, member, table_stride, scale, softcap, unit, head, begin, end, turn,
    until,
    STRIDE: tl.constexpr, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, SIZE: tl.constexpr,
    PAGE: tl.constexpr, SOFTCAP: tl.constexpr, MIXED: tl.constexpr, MEMBERS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, DIMS: tl.constexpr,
):  # fmt: skip
    """The online softmax over turns `turn` to `until` of a unit and kv head."""
    row, dim = tl.arange(0, ROWS), tl.arange(0, DIMS)
    token, heads, real = queries_of(row, unit, head, q_start, member, MEMBERS, GROUP, MIXED)
    where = (token * STRIDE + heads * SIZE)[:, None] + dim[None, :]
    tile_q = tl.load(q + where, mask=real[:, None] & (dim < SIZE)[None, :], other=0.0)
    best = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, DIMS], tl.float32)
    seen = end - 1 + row * 0
    k = kv + head * PAGE * SIZE
    v = k + KV_HEADS * PAGE * SIZE
    sequence = tl.load(member + unit * MEMBERS) if MEMBERS > 1 else unit
    pages = table + sequence.to(tl.int64) * table_stride
    stride = 2 * KV_HEADS * PAGE * SIZE
    # only the last turn needs a mask, but a separate loop would fill the pipeline again
    for at in range(begin + turn * KEYS, begin + until * KEYS, KEYS):
        best, total, acc = take(
            tile_q, k, v, pages, at, end, seen, best, total, acc, scale, softcap,
            stride, SIZE, PAGE, 0, SOFTCAP, KEYS, DIMS, True,
        )  # fmt: skip
    return best, total, acc
