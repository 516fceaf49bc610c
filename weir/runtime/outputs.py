"""What a plan leaves behind on the device, and its way into a `Result` on the host.

Everything is fetched without waiting; `Landing.result` waits once, for all of it.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weir.core import Chunk, Result, TokenLogprobs
from weir.runtime.stage import fetch

UNUSABLE = "no token can be chosen: the logits are not finite, or every token is excluded"
NOT_FINITE = "the model's output for this request is not finite"


class Timer:
    """Seconds between its making and `stop`, as the device sees them."""

    def __init__(self, device: torch.device):
        self.on_device = device.type == "cuda"
        self.started, self.stopped = self._mark(), None

    def stop(self) -> None:
        self.stopped = self._mark()

    def wait(self) -> float:
        """Wait until the device has come to `stop`."""
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


@dataclass(slots=True, eq=False)
class Logprobs:
    """Logprobs of N tokens, in the terms of ops.sample.logprobs, on the host."""

    tokens: Tensor  # int64 [N]
    columns: tuple[Tensor, Tensor, Tensor, Tensor]  # logprob, rank [N]; ids, logprobs [N, n]
    wanted: list[int]  # how many of the n, for each row

    def rows(self) -> list[TokenLogprobs]:
        columns = (column.tolist() for column in (self.tokens, *self.columns))
        return [
            TokenLogprobs(token, logprob, rank, list(zip(ids[:n], values[:n], strict=True)))
            for token, logprob, rank, ids, values, n in zip(*columns, self.wanted, strict=True)
        ]


class Landing:
    """A plan under way. The `add` methods may not wait for the device."""

    def __init__(self, device: torch.device):
        self.timer = Timer(device)
        self.failed: dict[int, str] = {}
        self.tokens: list[tuple[Sequence[Chunk], Tensor]] = []
        self.logprobs: list[tuple[list[Chunk], Logprobs]] = []
        self.scores: list[tuple[list[Chunk], Logprobs]] = []
        self.vectors: list[tuple[int, Tensor]] = []
        self.works: object = None  # what must outlive the plan

    def add_tokens(self, chunks: Sequence[Chunk], tokens: Tensor) -> None:
        """tokens int64 [B], one a chunk; -1 where none could be chosen, any where none samples."""
        self.tokens.append((chunks, fetch(tokens)))

    def add_logprobs(
        self, chunks: list[Chunk], tokens: Tensor, columns: tuple[Tensor, ...]
    ) -> None:
        """Of the token [B] of each chunk."""
        wanted = [chunk.sample.logprobs for chunk in chunks]
        columns = tuple(fetch(column) for column in columns)
        self.logprobs.append((chunks, Logprobs(fetch(tokens), columns, wanted)))

    def add_scores(self, chunks: list[Chunk], columns: tuple[Tensor, ...]) -> None:
        """Of the targets of all the chunks' scores, one after the other."""
        targets = torch.tensor([t for chunk in chunks for t in chunk.score.targets])
        wanted = [chunk.score.top for chunk in chunks for _ in chunk.score.targets]
        columns = tuple(fetch(column) for column in columns)
        self.scores.append((chunks, Logprobs(targets, columns, wanted)))

    def add_vector(self, uid: int, vector: Tensor) -> None:
        self.vectors.append((uid, fetch(vector)))

    def stop(self) -> None:
        """Everything has been added."""
        self.timer.stop()

    def result(self) -> Result:
        """Wait for the device, and gather. Called once."""
        seconds = self.timer.wait()
        result = Result({}, failed=self.failed, seconds=seconds)
        for chunks, tokens in self.tokens:
            for chunk, token in zip(chunks, tokens.tolist(), strict=True):
                if chunk.sample is None:
                    continue
                if token < 0:
                    result.failed.setdefault(chunk.uid, UNUSABLE)
                result.tokens[chunk.uid] = token
        for chunks, logprobs in self.logprobs:
            for chunk, row in zip(chunks, logprobs.rows(), strict=True):
                result.logprobs[chunk.uid] = row
        for chunks, scores in self.scores:
            rows = iter(scores.rows())
            for chunk in chunks:
                mine = [next(rows) for _ in chunk.score.targets]
                if any(math.isnan(row.logprob) for row in mine):
                    result.failed.setdefault(chunk.uid, NOT_FINITE)
                result.scores[chunk.uid] = mine
        for uid, vector in self.vectors:
            result.vectors[uid] = vector.tolist()
            if not all(map(math.isfinite, result.vectors[uid])):
                result.failed.setdefault(uid, NOT_FINITE)
        for outcome in (result.tokens, result.logprobs, result.scores, result.vectors):
            for uid in result.failed.keys() & outcome.keys():
                del outcome[uid]
        return result
