"""Hidden vectors of pooled requests: the last state, or the mean of all, of unit length."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from weir.core import Chunk


class Pooler:
    """Sums of the requests whose mean is not complete yet, by uid."""

    def __init__(self) -> None:
        self.sums: dict[int, tuple[Tensor, int]] = {}  # float32 [H], positions summed

    def forget(self, uids: Iterable[int]) -> None:
        for uid in uids:
            self.sums.pop(uid, None)

    def add(self, chunk: Chunk, hidden: Tensor) -> Tensor | None:
        """hidden [n, H] after the final norm: all of a "mean" chunk's rows, the last of a "last"
        one. → the vector float32 [H] if the chunk is final. ValueError if positions are missing."""
        total, count = hidden.float().sum(dim=0), len(hidden)
        if chunk.pool == "mean":
            before, counted = self.sums.pop(chunk.uid, (torch.zeros_like(total), 0))
            if counted != chunk.start:
                raise ValueError("a mean over hidden states needs every position computed in order")
            total, count = before + total, counted + count
            if not chunk.final:
                self.sums[chunk.uid] = (total, count)
        if not chunk.final:
            return None
        return torch.nn.functional.normalize(total / count, dim=0)
