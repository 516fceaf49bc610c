"""Hidden vectors of pooled requests: the last hidden state or the mean of all, normalised."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from weir.core import Chunk
from weir.runtime.outputs import Landing


class Pooler:
    """Keeps, by uid, the sums of requests whose mean is not complete yet."""

    def __init__(self) -> None:
        self.sums: dict[int, tuple[Tensor, int]] = {}  # float32 [H], positions summed

    def forget(self, uids: Iterable[int]) -> None:
        for uid in uids:
            self.sums.pop(uid, None)

    def pool(self, chunks: Sequence[Chunk], hidden: Tensor, landing: Landing) -> None:
        """hidden [N, H], after the final norm: all rows of each "mean" chunk and the last row of
        each "last" chunk. For final chunks, `landing` gets float32 [H]; a request fails if an
        earlier position is missing from its mean."""
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
