"""The outputs of a plan on the device, and how they become a `Result` on the host.

All copies are asynchronous; `Landing.result` waits once for all of them.
"""

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from weir.core import Chunk, Result, TokenLogprobs
from weir.runtime.stage import fetch

UNUSABLE = "no token can be chosen: the logits are not finite, or every token is excluded"
NOT_FINITE = "the model's output for this request is not finite"


class Timer:
    """Measures the seconds from its creation to `stop` on the device's clock."""

    def __init__(self, device: torch.device):
        self.on_device = device.type == "cuda"
        self.started, self.stopped = self._mark(), None

    def stop(self) -> None:
        self.stopped = self._mark()

    def wait(self) -> float:
        """Wait until the device has reached `stop`; returns the seconds."""
        if self.on_device:
            self.stopped.synchronize()
            return self.started.elapsed_time(self.stopped) / 1e3
        return self.stopped - self.started

    def _mark(self):
        if not self.on_device:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def described(tokens: Tensor, columns: Sequence[Tensor], wanted: list[int]) -> list[TokenLogprobs]:
    """The logprobs of tokens int64 [N] from the results of ops.sample.logprobs, on the host.
    columns: logprob, rank [N]; ids, logprobs [N, n]. wanted: how many of the n, for each row."""
    lists = (column.tolist() for column in (tokens, *columns))
    return [
        TokenLogprobs(token, logprob, rank, list(zip(ids[:n], values[:n], strict=True)))
        for token, logprob, rank, ids, values, n in zip(*lists, wanted, strict=True)
    ]


class Landing:
    """A plan in flight. The `add` methods do not wait for the device: each starts a copy to the
    host and stores a function that later puts it into the result."""

    def __init__(self, device: torch.device, spent: Callable[[], float] = float):
        """spent: returns the seconds of attention on the host since its last call."""
        self.timer = Timer(device)
        self.spent = spent
        self.failed: dict[int, str] = {}
        self.gather: list[Callable[[Result], None]] = []
        self.works: object = None  # keeps alive what the plan uses

    def add_tokens(self, chunks: Sequence[Chunk], tokens: Tensor) -> None:
        """tokens int64 [B], one per chunk; -1 if none could be sampled. Chunks that do not sample
        may have any."""
        here = fetch(tokens)

        def gather(result: Result) -> None:
            for chunk, token in zip(chunks, here.tolist(), strict=True):
                if chunk.sample is not None:
                    result.tokens[chunk.uid] = token
                    if token < 0:
                        result.failed.setdefault(chunk.uid, UNUSABLE)

        self.gather.append(gather)

    def add_logprobs(
        self, chunks: list[Chunk], tokens: Tensor, columns: tuple[Tensor, ...]
    ) -> None:
        """Add the logprobs of the token [B] of each chunk; columns as in `described`."""
        wanted = [chunk.sample.logprobs for chunk in chunks]
        here, columns = fetch(tokens), tuple(map(fetch, columns))

        def gather(result: Result) -> None:
            rows = described(here, columns, wanted)
            result.logprobs |= {c.uid: row for c, row in zip(chunks, rows, strict=True)}

        self.gather.append(gather)

    def add_scores(self, chunks: list[Chunk], columns: tuple[Tensor, ...]) -> None:
        """Add the logprobs of the targets of all chunks' scores, concatenated."""
        targets = torch.tensor([t for chunk in chunks for t in chunk.score.targets])
        wanted = [chunk.score.top for chunk in chunks for _ in chunk.score.targets]
        columns = tuple(map(fetch, columns))

        def gather(result: Result) -> None:
            rows = iter(described(targets, columns, wanted))
            for chunk in chunks:
                mine = [next(rows) for _ in chunk.score.targets]
                result.scores[chunk.uid] = mine
                if any(math.isnan(row.logprob) for row in mine):
                    result.failed.setdefault(chunk.uid, NOT_FINITE)

        self.gather.append(gather)

    def add_vector(self, uid: int, vector: Tensor) -> None:
        here = fetch(vector)

        def gather(result: Result) -> None:
            result.vectors[uid] = here.tolist()
            if not all(map(math.isfinite, result.vectors[uid])):
                result.failed.setdefault(uid, NOT_FINITE)

        self.gather.append(gather)

    def stop(self) -> None:
        """Stop the timer, once everything has been added."""
        self.timer.stop()

    def result(self) -> Result:
        """Wait for the device and build the result. Called once."""
        result = Result({}, failed=self.failed, seconds=self.timer.wait())
        result.host = self.spent()
        for gather in self.gather:
            gather(result)
        for outcome in (result.tokens, result.logprobs, result.scores, result.vectors):
            for uid in result.failed.keys() & outcome.keys():
                del outcome[uid]
        return result
