"""Hidden vectors of pooled requests: the last state, or the mean of all, of unit length."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from weir.core import Chunk
from weir.runtime.outputs import Landing


class Pooler:
    """Sums of the requests whose mean is not complete yet, by uid."""

    def __init__(self) -> None:
        self.sums: dict[int, tuple[Tensor, int]] = {}  # float32 [H], positions summed

    def forget(self, uids: Iterable[int]) -> None:
        for uid in uids:
            self.sums.pop(uid, None)

    def pool(self, chunks: Sequence[Chunk], hidden: Tensor, landing: Landing) -> None:
        """hidden [N, H] after the final norm: all of each "mean" chunk's rows, the last of each
        "last" one's. Vectors float32 [H] of chunks that are final go to `landing`, and so do those
        that fail as positions are missing."""
        lengths = [chunk.length if chunk.pool == "mean" else 1 for chunk in chunks]
        for chunk, states in zip(chunks, hidden.split(lengths), strict=True):
            try:
                vector = self._add(chunk, states)
            except ValueError as error:
                landing.failed[chunk.uid] = str(error)
                continue
            if vector is not None:
                landing.add_vector(chunk.uid, vector)

    def _add(self, chunk: Chunk, hidden: Tensor) -> Tensor | None:
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
