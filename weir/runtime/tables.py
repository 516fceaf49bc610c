"""The runner's state of each request between plans: one row per uid.

Rows are in arrays on the host and on the device, so a step gathers them with one operation. Knows
pages and positions, no policy.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weir.core import Page, Tier
from weir.runtime.stage import Stage


class Tables:
    """One row per live uid, and one for padding, whose context is in a page that no request owns.

    rows: most live uids. pages: most pages of a request. sizes: pages of each tier without the
    padding page, whose number is the size. On the device are `last`, the token sampled last, which
    the next plan reads without a round trip to the host, and `there`, a copy of `page`.
    """

    def __init__(self, rows: int, pages: int, sizes: Mapping[int, int], device: torch.device):
        self.sizes = np.array([sizes.get(tier, 0) for tier in Tier], np.int64)
        self.row: dict[int, int] = {}
        self.padding = rows
        self.free = list(range(rows))
        self.page = np.zeros((rows + 1, pages), np.int32)  # page numbers, in order of position
        self.page[self.padding] = sizes[min(sizes)]
        self.upto = np.zeros((rows + 1, len(Tier)), np.int32)  # pages of this tier and hotter
        self.last = torch.zeros(rows + 1, dtype=torch.int64, device=device)
        self.there = torch.from_numpy(self.page).to(device)  # on the CPU the same memory
        self.fresh: list[tuple[NDArray[np.int64], NDArray[np.int32]]] = []  # places, page numbers
        self.staged: tuple[Tensor, Tensor] | None = None

    @property
    def width(self) -> int:
        """Most pages of a request."""
        return self.page.shape[1]

    def forget(self, uids: Iterable[int]) -> list[int]:
        """Drop requests; unknown ones are ignored. Returns the rows that became free."""
        rows = [self.row.pop(uid) for uid in uids if uid in self.row]
        if rows:
            self.upto[rows] = 0
            self.free += rows
        return rows

    def rows(self, uids: Sequence[int]) -> NDArray[np.int64]:
        """The row of each uid; unknown uids get a new one. Raises RuntimeError if none is free."""
        for uid in uids:
            if uid not in self.row:
                if not self.free:
                    raise RuntimeError(f"more than {self.padding} requests at once")
                self.row[uid] = self.free.pop()
        return np.array([self.row[uid] for uid in uids], np.int64)

    def append(
        self, rows: NDArray[np.int64], pages: Sequence[Sequence[Page]], first: Sequence[int]
    ) -> None:
        """Put pages after the `first` of each of some rows and drop the rest, where there are any
        to put; none may be hotter than the one before. The device has them after `put` and
        `update`. Raises RuntimeError for pages that cannot be."""
        count = np.array([len(some) for some in pages], np.int64)
        total = int(count.sum())
        if not total:
            return
        some = count > 0
        kept = np.array(first, np.int32)[some]
        if (kept > self.upto[rows[some], -1]).any():
            raise RuntimeError("a request has pages that no plan named")
        self.upto[rows[some]] = np.minimum(self.upto[rows[some]], kept[:, None])
        tier, index = np.array([page for some in pages for page in some], np.int64).T
        owner = np.repeat(rows, count)
        first = np.cumsum(count) - count
        at = np.arange(total) - np.repeat(first, count) + self.upto[owner, -1]
        if at.max() >= self.width:
            raise RuntimeError(f"a request has {at.max() + 1} pages, and {self.width} hold any")
        for i in np.flatnonzero((index < 0) | (index >= self.sizes[tier])).tolist():
            raise RuntimeError(f"there is no page {index[i]} of tier {tier[i]}")
        follows = np.append(False, owner[1:] == owner[:-1])
        before = np.where(follows, np.roll(tier, 1), 0)
        if (tier < before).any() or (self.upto[owner, tier] < self.upto[owner, -1]).any():
            raise RuntimeError("a request's pages become hotter with position")
        self.page[owner, at] = index
        more = np.zeros_like(self.upto)
        np.add.at(more, (owner, tier), 1)
        self.upto += more.cumsum(axis=1, dtype=np.int32)
        if self.there.device.type != "cpu":
            self.fresh.append((owner * self.width + at, index.astype(np.int32)))

    def put(self, stage: Stage) -> None:
        """Stage the pages appended since the last call."""
        if self.fresh:
            places, numbers = (np.concatenate(part) for part in zip(*self.fresh, strict=True))
            self.staged, self.fresh = (stage.put(places), stage.put(numbers)), []

    def update(self) -> None:
        """Apply the staged pages to the device's copy."""
        if self.staged is not None:
            self.there.view(-1).index_copy_(0, *self.staged)
            self.staged = None
