"""What the runner remembers of each request between plans: a row of numbers by uid.

Rows live in arrays, so that a step gathers them at once. Knows pages and positions, no policy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from weir.core import Page, Tier

FIRST_ROWS = 64


class Tables:
    """One row a live uid; rows are reused and arrays grow as requests come.

    pages: most pages a request can have. sizes: pages of each tier. `last` is on the device: the
    token sampled last, read by the next plan without passing through the host.
    """

    def __init__(self, pages: int, sizes: Mapping[int, int], device: torch.device):
        self.sizes = sizes
        self.row: dict[int, int] = {}
        self.free = list(range(FIRST_ROWS))
        self.page = np.zeros((FIRST_ROWS, pages), np.int32)  # page numbers, in order of position
        self.upto = np.zeros((FIRST_ROWS, len(Tier)), np.int32)  # pages of this tier and hotter
        self.last = torch.zeros(FIRST_ROWS, dtype=torch.int64, device=device)

    @property
    def size(self) -> int:
        return len(self.page)

    def forget(self, uids: Iterable[int]) -> list[int]:
        """Drop requests; unknown ones are ignored. Returns the rows that became free."""
        rows = [self.row.pop(uid) for uid in uids if uid in self.row]
        if rows:
            self.upto[rows] = 0
            self.free += rows
        return rows

    def rows(self, uids: Sequence[int]) -> NDArray[np.int64]:
        """The row of each uid; a new one for each that is not known."""
        for uid in uids:
            if uid not in self.row:
                if not self.free:
                    self._grow()
                self.row[uid] = self.free.pop()
        return np.array([self.row[uid] for uid in uids], np.int64)

    def append(self, row: int, pages: Sequence[Page]) -> None:
        """Give a row more pages, none hotter than one before it."""
        have, most = int(self.upto[row, -1]), self.page.shape[1]
        if have + len(pages) > most:
            raise RuntimeError(f"a request has {have + len(pages)} pages, and {most} hold any")
        for at, (tier, index) in enumerate(pages, have):
            if not 0 <= index < self.sizes.get(tier, 0):
                raise RuntimeError(f"there is no page {index} of tier {tier}")
            if self.upto[row, tier] < at:
                raise RuntimeError("a request's pages become hotter with position")
            self.page[row, at] = index
            self.upto[row, tier:] += 1

    def _grow(self) -> None:
        size = self.size
        self.free = list(range(size, 2 * size))
        self.page = np.concatenate([self.page, np.zeros_like(self.page)])
        self.upto = np.concatenate([self.upto, np.zeros_like(self.upto)])
        self.last = torch.cat([self.last, torch.zeros_like(self.last)])
