"""A lane of chunks as tensors: built with numpy once a plan, read by every layer.

Knows positions, pages and which rows of the last hidden state are wanted; no weights, no sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from weir.core import Chunk
from weir.ops.attention import Batch
from weir.runtime.stage import Stage
from weir.runtime.store import Store
from weir.runtime.tables import Tables


@dataclass(slots=True, eq=False)
class Part:
    """What of a lane one tier holds, attends and is given to store."""

    tier: int
    batch: Batch  # of the sequences that have context here
    queries: Tensor | None = None  # int64: rows of the lane that attend here; None: all
    writes: Tensor | None = None  # int64: rows whose k, v are stored here; None: all


@dataclass(slots=True, eq=False)
class Lane:
    """T tokens of S chunks. The rows kept after the last layer come in three stretches: one a
    chunk that samples, then those whose prompt logprobs are wanted, then those that are pooled."""

    ids: Tensor  # int64 [T]
    pos: Tensor  # int64 [T]
    parts: list[Part]
    keep: Tensor | None  # int64: rows wanted after the last layer; None: all, in order
    kept: int
    chained: Tensor | None  # int64: rows of `ids` that are the last token of `source`; None: none
    source: Tensor | None  # int64: rows of Tables
    sampled: list[Chunk]
    scored: list[Chunk]
    targets: Tensor  # int64: of the scored chunks, one a row
    pooled: list[Chunk]
    failed: dict[int, str]  # chunks whose ids are no tokens: computed, but as token 0

    def link(self, last: Tensor) -> None:
        """Put the tokens sampled last in their places, on the device."""
        if self.chained is not None:
            self.ids.index_copy_(0, self.chained, last[self.source])


def build(chunks: Sequence[Chunk], tables: Tables, store: Store, vocab: int, stage: Stage) -> Lane:
    """Tensors of one lane. Adds the chunks' new pages to `tables` on the way."""
    if any(not c.ids and c.uid not in tables.row for c in chunks):
        raise RuntimeError("a chunk goes on from a token that was never sampled here")
    rows = tables.rows([c.uid for c in chunks])
    for row, chunk in zip(rows.tolist(), chunks, strict=True):
        if chunk.pages:
            tables.append(row, chunk.pages)
    start = np.array([c.start for c in chunks], np.int64)
    length = np.array([len(c.ids) or 1 for c in chunks], np.int64)
    bound = np.zeros(len(chunks) + 1, np.int64)  # where each chunk's rows start, and T
    np.cumsum(length, out=bound[1:])
    if np.any(start + length > tables.upto[rows, -1] * store.page):
        raise RuntimeError("a chunk reaches past the pages of its request")
    owner = np.repeat(np.arange(len(chunks)), length)
    pos = np.arange(bound[-1]) + (start - bound[:-1])[owner]
    ids = np.fromiter(chain.from_iterable(c.ids or (0,) for c in chunks), np.int64, bound[-1])
    failed: dict[int, str] = {}
    _check(ids, owner, chunks, vocab, failed)
    chained = np.array([i for i, c in enumerate(chunks) if not c.ids], np.int64)
    sampled = [i for i, c in enumerate(chunks) if c.sample is not None and c.pool is None]
    scored = [i for i, c in enumerate(chunks) if c.score is not None]
    pooled = [i for i, c in enumerate(chunks) if c.pool == "mean" or (c.pool and c.final)]
    targets = [c.score.targets if c.score is not None else () for c in chunks]
    target = np.fromiter(chain.from_iterable(targets), np.int64)
    _check(target, np.repeat(np.arange(len(chunks)), [*map(len, targets)]), chunks, vocab, failed)
    keep = _keep(chunks, bound, sampled, scored, pooled)
    return Lane(
        ids=stage.put(ids),
        pos=stage.put(pos),
        parts=_parts(rows, start, length, owner, pos, tables, store, stage),
        keep=None if np.array_equal(keep, np.arange(bound[-1])) else stage.put(keep),
        kept=len(keep),
        chained=stage.put(bound[chained]) if len(chained) else None,
        source=stage.put(rows[chained]) if len(chained) else None,
        sampled=[chunks[i] for i in sampled],
        scored=[chunks[i] for i in scored],
        targets=stage.put(target),
        pooled=[chunks[i] for i in pooled],
        failed=failed,
    )


def _check(
    ids: NDArray[np.int64],
    owner: NDArray[np.int64],
    chunks: Sequence[Chunk],
    vocab: int,
    failed: dict[int, str],
) -> None:
    """Make ids outside the vocabulary 0: they fail the chunk that owns them, not the batch."""
    for i in np.flatnonzero((ids < 0) | (ids >= vocab)).tolist():
        failed[chunks[owner[i]].uid] = f"token {ids[i]} is outside the vocabulary of {vocab}"
        ids[i] = 0


def _keep(
    chunks: Sequence[Chunk],
    bound: NDArray[np.int64],
    sampled: list[int],
    scored: list[int],
    pooled: list[int],
) -> NDArray[np.int64]:
    rows = [bound[np.array(sampled, np.int64) + 1] - 1]
    for i in scored:
        score = chunks[i].score
        assert score is not None
        first = bound[i] + score.offset
        rows.append(np.arange(first, first + len(score.targets)))
    for i in pooled:
        first = bound[i] if chunks[i].pool == "mean" else bound[i + 1] - 1
        rows.append(np.arange(first, bound[i + 1]))
    return np.concatenate(rows)


def _parts(
    rows: NDArray[np.int64],
    start: NDArray[np.int64],
    length: NDArray[np.int64],
    owner: NDArray[np.int64],
    pos: NDArray[np.int64],
    tables: Tables,
    store: Store,
    stage: Stage,
) -> list[Part]:
    """Cut the lane's context at the tier boundaries of each request, hottest first.

    A tier attends to keys `begin` to `end` of a sequence; positions count from `begin` there.
    """
    page = store.page
    slots = tables.page[rows[owner], pos // page].astype(np.int64) * page + pos % page
    parts = []
    begin = np.zeros_like(start)
    for tier, device in store.devices.items():
        upto = tables.upto[rows, tier].astype(np.int64)
        end = np.minimum(start + length, upto * page)
        has = end > begin
        if has.any():
            mine = np.flatnonzero(has)
            whole = bool(has.all())
            alone = whole and not begin.any() and bool((end == start + length).all())
            width = int(np.max(-(-end[mine] // page) - begin[mine] // page))
            columns = begin[mine, None] // page + np.arange(width)
            columns = np.minimum(columns, tables.page.shape[1] - 1)
            table = tables.page[rows[mine, None], columns]
            bound = np.zeros(len(mine) + 1, np.int32)
            np.cumsum(length[mine], out=bound[1:])
            here = (pos >= begin[owner]) & (pos < end[owner])
            batch = Batch(
                q_start=stage.put(bound, device),
                kv_len=stage.put((end - begin)[mine].astype(np.int32), device),
                table=stage.put(table, device),
                slots=stage.put(slots if alone else slots[here], device),
                first=None if alone else stage.put((start - begin)[mine].astype(np.int32), device),
                lengths=(int(length[mine].min()), int(length[mine].max())),
            )
            parts.append(
                Part(
                    tier,
                    batch,
                    queries=None if whole else stage.put(np.flatnonzero(has[owner])),
                    writes=None if alone else stage.put(np.flatnonzero(here)),
                )
            )
        begin = end
    return parts
