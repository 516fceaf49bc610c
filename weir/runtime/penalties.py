"""Counts the tokens of each penalised request as they are fed to the model.

Every token is fed exactly once before its successor is sampled, so none is counted twice or missed.
Counting is done on the device, since a token may be known only there.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weir.core import Chunk
from weir.runtime.stage import Stage, upload


@dataclass(slots=True, eq=False)
class Feed:
    """Rows of a lane to count, and their slots, as prompt and as output: int64 [2, n] each."""

    prompt: Tensor | None
    output: Tensor | None


class Penalties:
    """Each penalised uid has a slot of `seen`, bool [slots, V], for its prompt, and of `counts`,
    int32 [slots, V], for its output.

    A request is penalised once a chunk of it has `history`; a later history replaces an earlier."""

    def __init__(self, vocab: int, device: torch.device):
        self.vocab = vocab
        self.slot: dict[int, int] = {}
        self.next: dict[int, int] = {}  # the position to be fed next
        self.free: list[int] = []
        self.seen = torch.zeros(0, vocab, dtype=torch.bool, device=device)
        self.counts = torch.zeros(0, vocab, dtype=torch.int32, device=device)

    def forget(self, uids: Iterable[int]) -> None:
        for uid in uids:
            if uid in self.slot:
                self.free.append(self.slot.pop(uid))
                del self.next[uid]

    def plan(self, chunks: Sequence[Chunk], stage: Stage) -> Feed | None:
        """Take in the histories of a lane. Returns what to count of it; None: nothing."""
        for chunk in chunks:
            if chunk.history is not None:
                self._begin(chunk, chunk.history)
        if not self.slot:
            return None
        fed: tuple[list[NDArray[np.int64]], ...] = ([], [])  # prompt, output
        first = 0
        for chunk in chunks:
            slot = self.slot.get(chunk.uid)
            if slot is not None and self.next[chunk.uid] == chunk.start:
                rows = np.arange(first, first + chunk.length)
                split = min(max(chunk.prompt - chunk.start, 0), chunk.length)
                for some, part in zip(fed, (rows[:split], rows[split:]), strict=True):
                    if len(part):
                        some.append(np.stack([part, np.full_like(part, slot)]))
                self.next[chunk.uid] += chunk.length
            first += chunk.length
        return Feed(*(stage.put(np.concatenate(some, axis=1)) if some else None for some in fed))

    def complete(self, chunk: Chunk) -> bool:
        """Whether all tokens up to the end of a planned chunk are, or will be, counted."""
        return self.next.get(chunk.uid) == chunk.start + chunk.length

    def count(self, feed: Feed | None, ids: Tensor) -> None:
        """Count the planned rows of a lane's ids [T], if there are any."""
        if feed is None:
            return
        if feed.prompt is not None:
            rows, slots = feed.prompt
            yes = torch.ones((), dtype=torch.bool, device=ids.device)
            self.seen.index_put_((slots, ids[rows]), yes)
        if feed.output is not None:
            rows, slots = feed.output
            one = torch.ones((), dtype=torch.int32, device=ids.device)
            self.counts.index_put_((slots, ids[rows]), one, accumulate=True)

    def _begin(self, chunk: Chunk, history: list[int]) -> None:
        if chunk.uid not in self.slot:
            if not self.free:
                self._grow()
            self.slot[chunk.uid] = self.free.pop()
        slot = self.slot[chunk.uid]
        self.next[chunk.uid] = chunk.start
        prompt, output = (
            np.bincount([t for t in tokens if 0 <= t < self.vocab], minlength=self.vocab)
            for tokens in (history[: chunk.prompt], history[chunk.prompt :])
        )
        self.seen[slot] = upload(torch.from_numpy(prompt > 0), self.seen.device)
        self.counts[slot] = upload(torch.from_numpy(output).int(), self.seen.device)

    def _grow(self) -> None:
        size = len(self.seen)
        more = max(4, size)
        self.free = list(range(size, size + more))
        self.seen = torch.cat([self.seen, self.seen.new_zeros(more, self.vocab)])
        self.counts = torch.cat([self.counts, self.counts.new_zeros(more, self.vocab)])
