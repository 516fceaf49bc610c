"""A lane of chunks as tensors, built with numpy once per plan and read by every layer.

Knows positions, pages and which rows of the last hidden state are wanted, but neither weights nor
sampling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weir.core import PENDING, Chunk
from weir.ops.batch import Batch
from weir.ops.prefix import Prefixes, Shared, padded
from weir.runtime.parts import Part, split
from weir.runtime.spans import Shape, Spans
from weir.runtime.stage import Stage
from weir.runtime.store import Store
from weir.runtime.tables import Tables


@dataclass(slots=True, eq=False)
class Lane:
    """T tokens of S chunks, some of which may be padding to a `Shape`. The rows kept after the last
    layer are, in this order: one per chunk that samples, those that are scored (prompt logprobs),
    and those that are pooled. A padded lane keeps one row of every chunk."""

    ids: Tensor  # int64 [T]
    pos: Tensor  # int64 [T]
    owner: Tensor  # int64 [T]: row of Tables of each token
    rows: Tensor  # int64 [S]: of each chunk
    seats: NDArray[np.int64]  # `rows` without padding, on the host
    parts: list[Part]
    keep: Tensor | None  # int64: rows wanted after the last layer; None: all, in order
    kept: int
    chained: bool  # some ids are PENDING: to be the last token of their row of Tables
    width: int  # pages of the widest chunk; 0: the table is in the batch already
    sampled: list[Chunk]
    scored: list[Chunk]
    targets: Tensor  # int64: of the scored chunks, one a row
    pooled: list[Chunk]
    failed: dict[int, str]  # uid → error, of chunks with ids outside the vocabulary
    seat: int = 0  # of its attention away from its device, among the lanes of a plan

    def link(self, tables: Tables) -> None:
        """Replace PENDING ids by the tokens sampled last, and gather the page table."""
        if self.chained:
            torch.where(self.ids < 0, tables.last[self.owner], self.ids, out=self.ids)
        if self.width:
            batch = self.parts[0].batch
            batch.tiles = None  # a recording must cut them anew
            batch.table = tables.there[:, : self.width].index_select(0, self.rows)


def build(
    chunks: Sequence[Chunk],
    tables: Tables,
    store: Store,
    vocab: int,
    stage: Stage,
    shape: Shape | None = None,
    prefixes: Prefixes | None = None,
    away: int | None = None,
    seat: int = 0,
) -> Lane:
    """Tensors of one lane, padded to `shape` if there is one; then it must lie on the first tier,
    and none of it be scored or pooled. `prefixes` are what its decodes have in common, `away` is
    the tier that a relay attends to. Also adds the chunks' new pages to `tables`.

    Raises `RuntimeError` for a chunk that contradicts what `tables` holds: a bug in the plan."""
    if any(not c.ids and c.uid not in tables.row for c in chunks):
        raise RuntimeError("a chunk goes on from a token that was never sampled here")
    spans = Spans.of(chunks, tables, shape)
    real = spans.rows[: spans.real]
    tables.append(real, [c.pages for c in chunks], [c.first for c in chunks])
    if np.any((spans.start + spans.length)[: spans.real] > tables.upto[real, -1] * store.page):
        raise RuntimeError("a chunk reaches past the pages of its request")
    ids = np.zeros(len(spans.pos), np.int64)
    given = np.fromiter(chain.from_iterable(c.ids or (0,) for c in chunks), np.int64)
    ids[: len(given)] = given
    failed: dict[int, str] = {}
    _check(ids, spans.owner, chunks, vocab, failed)
    chained = spans.bound[:-1][[i for i, c in enumerate(chunks) if not c.ids]]
    ids[chained] = PENDING
    sampled = [i for i, c in enumerate(chunks) if c.sample is not None and c.pool is None]
    scored = [i for i, c in enumerate(chunks) if c.score is not None]
    pooled = [i for i, c in enumerate(chunks) if c.pool == "mean" or (c.pool and c.final)]
    targets = [c.score.targets if c.score is not None else () for c in chunks]
    target = np.fromiter(chain.from_iterable(targets), np.int64)
    _check(target, np.repeat(np.arange(len(chunks)), [*map(len, targets)]), chunks, vocab, failed)
    if shape is None:
        keep = _keep(chunks, spans.bound, sampled, scored, pooled)
    else:
        keep = np.maximum(spans.bound[1:] - 1, 0)
    every = len(keep) == len(ids) and np.array_equal(keep, np.arange(len(ids)))
    width, parts = _parts(spans, tables, store, stage, shape, prefixes, away)
    return Lane(
        ids=stage.put(ids),
        pos=stage.put(spans.pos),
        owner=stage.put(spans.rows[spans.owner]),
        rows=stage.put(spans.rows),
        seats=real,
        parts=parts,
        keep=None if every else stage.put(keep),
        kept=len(keep),
        chained=len(chained) > 0 or shape is not None,
        width=width,
        sampled=[chunks[i] for i in sampled],
        scored=[chunks[i] for i in scored],
        targets=stage.put(target),
        pooled=[chunks[i] for i in pooled],
        failed=failed,
        seat=seat,
    )


def _check(
    ids: NDArray[np.int64],
    owner: NDArray[np.int64],
    chunks: Sequence[Chunk],
    vocab: int,
    failed: dict[int, str],
) -> None:
    """Replace ids outside the vocabulary by 0: they fail their chunk, not the batch."""
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
    """The rows wanted after the last layer, in the order that `Lane` documents."""
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
    spans: Spans,
    tables: Tables,
    store: Store,
    stage: Stage,
    shape: Shape | None,
    prefixes: Prefixes | None,
    away: int | None,
) -> tuple[int, list[Part]]:
    """The parts of a lane, and `Lane.width`."""
    page = store.page
    slots = tables.page[spans.rows[spans.owner], spans.pos // page].astype(np.int64) * page
    slots += spans.pos % page
    end = spans.start + spans.length
    tier = next(iter(store.devices))
    here = tables.upto[spans.rows[: spans.real], tier] * page >= end[: spans.real]
    if tier == away or not here.all():
        return 0, split(spans, slots, tables, store, stage, away)
    device = store.devices[tier]
    end[spans.real :] = 0
    width = -(-int(end.max(initial=1)) // page)
    if shape is not None or device.type != "cpu":
        width = tables.width  # kernels are compiled for it
    lengths = int(spans.length.min(initial=1)), int(spans.length.max(initial=1))
    if shape is not None:
        lengths = 1, 1 if shape.tokens == shape.sequences else shape.tokens
    batch = Batch(
        q_start=stage.put(spans.bound.astype(np.int32)),
        kv_len=stage.put(end.astype(np.int32)),
        table=tables.there,  # until it is linked
        slots=stage.put(slots),
        lengths=lengths,
        shared=_shared(prefixes, shape, stage),
    )
    return width, [Part(tier, batch)]


def _shared(prefixes: Prefixes | None, shape: Shape | None, stage: Stage) -> Shared | None:
    """The prefixes a lane's decodes share; in a padded lane always the most tiles possible."""
    if shape is not None:
        if not shape.shared:
            return None
        prefixes = padded(prefixes, shape.sequences)
    if prefixes is None:
        return None
    return Shared(*map(stage.put, prefixes))
