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
class Part:
    """The part of a lane's attention and writes that one tier serves."""

    tier: int
    batch: Batch  # of the sequences that have context here
    queries: Tensor | None = None  # int64: rows of the lane that attend here; None: all
    writes: Tensor | None = None  # int64: rows whose k, v are stored here; None: all
    alone: bool = True  # its queries attend to no other tier
    away: bool = False  # a relay writes and attends; all of the batch but its slots is on the host
    borrowed: Tensor | None = None  # int64: pages to copy from the tier; the batch uses the copies
    lent: int = 0  # pages of that copy, including those that only the lane itself fills


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
                parts.append(cut.away(has & (spans.length == 1)))
                if (chunks := has & (spans.length > 1)).any():
                    parts.append(cut.borrowed(chunks))
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
        """Attention of some sequences on the tier's own device, and the write of all its rows."""
        slots = self.stage.put(self.slots, device)
        table = self._table(np.flatnonzero(which), device)
        batch = self._batch(which, table, slots, device)
        writes = self._writes(self.here)
        return Part(self.tier, batch, self._queries(which), writes, self._alone(which))

    def away(self, which: NDArray[np.bool_]) -> Part:
        """`part` for a relay: the batch is on the host, and its slots are on the device."""
        part = self.part(which, torch.device("cpu"))
        part.batch.slots, part.away = self.stage.put(self.slots), True
        return part

    def borrowed(self, which: NDArray[np.bool_]) -> Part:
        """Attention of some sequences over a copy of their pages on the lane's device. The lane's
        own rows are also written there; pages that hold no earlier rows are not copied."""
        mine, page = np.flatnonzero(which), self.page
        table = self._table(mine, torch.device("cpu"))
        count = -(-(self.end - self.begin)[mine] // page)
        old = -(-np.maximum(self.spans.start - self.begin, 0)[mine] // page)
        column = np.arange(table.shape[1])
        pages = np.unique(table[column < old[:, None]])
        fresh = np.setdiff1d(table[(column >= old[:, None]) & (column < count[:, None])], pages)
        number = np.zeros(int(table.max()) + 1, np.int32)
        number[np.concatenate([pages, fresh])] = np.arange(len(pages) + len(fresh))
        rows = which[self.spans.owner[self.here]]
        slots = number[self.slots[rows] // page].astype(np.int64) * page + self.slots[rows] % page
        stage = self.stage
        batch = self._batch(which, number[table], stage.put(slots), stage.device)
        return Part(
            self.tier,
            batch,
            self._queries(which),
            self._writes(self.here[rows]),
            self._alone(which),
            borrowed=stage.put(pages.astype(np.int64)),
            lent=len(pages) + len(fresh),
        )

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
