"""Cuts a lane whose context lies on several tiers, or away from its device, into a part per tier.

Knows positions and pages; attention.py computes the parts.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weir.ops.batch import Batch
from weir.runtime.spans import Spans
from weir.runtime.stage import Stage
from weir.runtime.store import Store
from weir.runtime.tables import Tables


@dataclass(slots=True, eq=False)
class Loan:
    """Copies of a tier's pages for chunks of a lane on another device. All arrays are on the
    host."""

    count: int  # copies
    old: NDArray[np.int64]  # pages that hold earlier rows: they are the first copies
    new: NDArray[np.int64]  # pages that get rows of the lane,
    copies: NDArray[np.int64]  # and where those are among the copies


@dataclass(slots=True, eq=False)
class Part:
    """The part of a lane's attention and writes that one tier serves."""

    tier: int
    batch: Batch  # of the sequences that have context here
    queries: Tensor | None = None  # int64: rows of the lane that attend here; None: all
    writes: Tensor | None = None  # int64: rows whose k, v are stored here; None: all
    alone: bool = True  # its queries attend to no other tier
    away: bool = False  # a relay writes and attends; all of the batch but its slots is on the host
    loan: Loan | None = None  # the batch uses copies of pages of the tier


def split(
    spans: Spans,
    slots: NDArray[np.int64],
    tables: Tables,
    store: Store,
    stage: Stage,
    away: int | None,
) -> list[Part]:
    """Cut the lane's context at the tier boundaries of each request, hottest tier first.

    A tier attends to keys `begin` to `end` of a sequence and counts positions from `begin`.
    away: the tier served by a relay.
    """
    page, rows, owner, pos = store.page, spans.rows, spans.owner, spans.pos
    parts = []
    end = spans.start + spans.length
    upto = np.minimum(tables.upto[rows].astype(np.int64) * page, end[:, None])
    begin = np.zeros_like(end)
    some = (np.diff(upto, axis=1, prepend=0) > 0).sum(axis=1)  # tiers that hold each sequence
    for tier in store.devices:
        end = upto[:, tier]
        has = end > begin
        if has.any():
            here = np.flatnonzero((pos >= begin[owner]) & (pos < end[owner]))
            cut = Cut(tier, spans, begin, end, some, here, slots[here], tables, page, stage)
            if tier != away:
                parts.append(cut.part(has, store.devices[tier]))
            else:
                if (decodes := has & (spans.length == 1)).any():
                    parts.append(cut.away(decodes))
                if (chunks := has & (spans.length > 1)).any():
                    parts.append(cut.lent(chunks))
        begin = end
    return parts


@dataclass(slots=True, eq=False)
class Cut:
    """The part of a lane's context that one tier holds: keys `begin` to `end` of each sequence. The
    tier stores rows `here` of the lane at `slots`. some: number of tiers per sequence."""

    tier: int
    spans: Spans
    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    some: NDArray[np.int64]
    here: NDArray[np.int64]
    slots: NDArray[np.int64]
    tables: Tables
    page: int
    stage: Stage

    def part(self, which: NDArray[np.bool_], device: torch.device) -> Part:
        """Attention of some sequences on the tier's own device, and the write of their rows."""
        rows = self._rows(which)
        slots = self.stage.put(self.slots[rows], device)
        table = self._table(np.flatnonzero(which), device)
        batch = self._batch(which, table, slots, device)
        writes = self._writes(self.here[rows])
        return Part(self.tier, batch, self._queries(which), writes, self._alone(which))

    def away(self, which: NDArray[np.bool_]) -> Part:
        """`part` for a relay: the batch is on the host, and its slots are on the device."""
        part = self.part(which, torch.device("cpu"))
        part.batch.slots, part.away = self.stage.put(self.slots[self._rows(which)]), True
        return part

    def lent(self, which: NDArray[np.bool_]) -> Part:
        """Attention of some sequences over copies of their pages on the lane's device, where their
        rows are written, too. Pages that hold no earlier rows are not copied from the tier."""
        mine, page, rows = np.flatnonzero(which), self.page, self._rows(which)
        table = self._table(mine, torch.device("cpu"))
        old = -(-np.maximum(self.spans.start - self.begin, 0)[mine] // page)
        before = np.unique(table[np.arange(table.shape[1]) < old[:, None]])
        new = np.unique(self.slots[rows] // page)
        pages = np.concatenate([before, np.setdiff1d(new, before)])
        number = np.zeros(int(pages.max(initial=0)) + 1, np.int32)
        number[pages] = np.arange(len(pages))
        copies = number[new].astype(np.int64)
        slots = number[self.slots[rows] // page].astype(np.int64) * page + self.slots[rows] % page
        batch = self._batch(which, number[table], self.stage.put(slots), self.stage.device)
        part = Part(self.tier, batch, self._queries(which), self._writes(self.here[rows]))
        part.alone = self._alone(which)
        part.loan = Loan(len(pages), before.astype(np.int64), new, copies)
        return part

    def _rows(self, which: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of `here` are of some sequences."""
        return which[self.spans.owner[self.here]]

    def _table(self, mine: NDArray[np.int64], device: torch.device) -> NDArray[np.int32]:
        """The pages of some sequences in this tier; on a GPU at the fixed width of `tables`."""
        page, tables = self.page, self.tables
        begin, end = self.begin[mine, None] // page, -(-self.end[mine, None] // page)
        width = int((end - begin).max(initial=1))
        if device.type != "cpu":
            width = tables.width
        columns = np.minimum(begin + np.arange(width), np.maximum(end - 1, 0))
        return tables.page[self.spans.rows[mine, None], columns]

    def _batch(
        self,
        which: NDArray[np.bool_],
        table: NDArray[np.int32],
        slots: Tensor,
        device: torch.device,
    ) -> Batch:
        mine, put = np.flatnonzero(which), self.stage.put
        length = self.spans.length[mine]
        bound = np.zeros(len(mine) + 1, np.int32)
        np.cumsum(length, out=bound[1:])
        return Batch(
            q_start=put(bound, device),
            kv_len=put((self.end - self.begin)[mine].astype(np.int32), device),
            table=put(table, device),
            slots=slots,
            first=put((self.spans.start - self.begin)[mine].astype(np.int32), device),
            lengths=(int(length.min(initial=1)), int(length.max(initial=1))),
        )

    def _queries(self, which: NDArray[np.bool_]) -> Tensor | None:
        return None if which.all() else self.stage.put(np.flatnonzero(which[self.spans.owner]))

    def _writes(self, rows: NDArray[np.int64]) -> Tensor | None:
        return None if len(rows) == len(self.spans.pos) else self.stage.put(rows)

    def _alone(self, which: NDArray[np.bool_]) -> bool:
        return bool((self.some[which] == 1).all())
