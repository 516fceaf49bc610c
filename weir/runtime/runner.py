"""Runs plans on one device: tables and pages, the forward loop, then tokens, scores and vectors.

The data plane of one rank. It decides nothing: order, memory and stopping are the plan's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weir.core import Chunk, Plan, Result
from weir.models.base import Model
from weir.ops import sample
from weir.runtime import inputs
from weir.runtime.attention import Tiered
from weir.runtime.forward import forward
from weir.runtime.inputs import Lane
from weir.runtime.outputs import Landing
from weir.runtime.penalties import Feed
from weir.runtime.pooler import Pooler
from weir.runtime.sampler import Draw, Sampler
from weir.runtime.stage import Stage
from weir.runtime.store import Store
from weir.runtime.tables import Tables

LOGITS = 2**24
"""Most logits that exist at once: rows are taken to the vocabulary in slices."""
MAX_ROWS = 256


@dataclass(slots=True, eq=False)
class Work:
    """A lane, and what is to be done with the rows it keeps."""

    lane: Lane
    feed: Feed | None
    draws: list[Draw]


class Runner:
    """model: its weights. store: its KV pages. context: the longest sequence, in tokens."""

    def __init__(self, model: Model, store: Store, context: int, device: torch.device):
        self.model = model
        self.store = store
        self.device = device
        self.vocab = model.spec.vocab
        self.rows = max(1, min(MAX_ROWS, LOGITS // self.vocab))  # of one slice of logits
        self.attention = Tiered(store, model.spec.attention)
        self.tables = Tables(-(-context // store.page), store.pages, device)
        self.sampler = Sampler(self.vocab, device)
        self.pooler = Pooler()

    def run(self, plan: Plan) -> Result:
        """Run a plan and wait for it."""
        return self.launch(plan).result()

    @torch.inference_mode()
    def launch(self, plan: Plan) -> Landing:
        """Queue a plan on the device. Raises only if a plan breaks its contract, and then nothing
        that comes after it can be trusted."""
        landing = Landing(self.device)
        freed = self.tables.forget(plan.forget)
        self.sampler.forget(plan.forget, freed)
        self.pooler.forget(plan.forget)
        self.store.move(plan.moves)
        stage = Stage(self.device)
        works = [self._prepare(chunks, landing, stage) for chunks in plan.lanes if chunks]
        stage.send()
        for work in works:
            work.lane.link(self.tables.last)
            if work.feed is not None:
                self.sampler.penalties.count(work.feed, work.lane.ids)
        lanes = [work.lane for work in works]
        states = forward(self.model, self.model.layers, self.attention, lanes) if lanes else []
        for work, x in zip(works, states, strict=True):
            self._finish(work, x, landing)
        landing.stop()
        return landing

    def _prepare(self, chunks: Sequence[Chunk], landing: Landing, stage: Stage) -> Work:
        lane = inputs.build(chunks, self.tables, self.store, self.vocab, stage)
        landing.failed |= lane.failed
        feed = self.sampler.penalties.plan(chunks, stage)
        draws = []
        for at in range(0, len(lane.sampled), self.rows):
            some = lane.sampled[at : at + self.rows]
            rows = self.tables.rows([chunk.uid for chunk in some])
            draws.append(self.sampler.plan(some, rows, landing.failed, stage))
        return Work(lane, feed, draws)

    def _finish(self, work: Work, x: Tensor, landing: Landing) -> None:
        """x [kept, H]: rows that sample, rows that are scored, rows that are pooled."""
        lane = work.lane
        sampled, scored = len(lane.sampled), len(lane.targets)
        sampling, scoring, pooling = x.split([sampled, scored, lane.kept - sampled - scored])
        for draw in work.draws:
            self._draw(draw, sampling[: len(draw.chunks)], landing)
            sampling = sampling[len(draw.chunks) :]
        if lane.scored:
            self._score(lane.scored, lane.targets, scoring, landing)
        if lane.pooled:
            self._pool(lane.pooled, pooling, landing)

    def _draw(self, draw: Draw, x: Tensor, landing: Landing) -> None:
        drawn = self.sampler.draw(self.model.logits(x), draw)
        self.tables.last[draw.target] = drawn.tokens.clamp(min=0)
        landing.add_tokens(draw.chunks, drawn.tokens)
        if draw.scored is not None:
            index, chunks, _ = draw.scored
            landing.add_logprobs(chunks, drawn.tokens[index], drawn.logprobs)

    def _score(self, chunks: list[Chunk], targets: Tensor, x: Tensor, landing: Landing) -> None:
        top = min(self.vocab, max(chunk.score.top for chunk in chunks))
        slices = [
            sample.logprobs(self.model.logits(rows), some, top)
            for rows, some in zip(x.split(self.rows), targets.split(self.rows), strict=True)
        ]
        columns = tuple(torch.cat(column) for column in zip(*slices, strict=True))
        landing.add_scores(chunks, targets, columns)

    def _pool(self, chunks: list[Chunk], x: Tensor, landing: Landing) -> None:
        lengths = [chunk.length if chunk.pool == "mean" else 1 for chunk in chunks]
        hidden = self.model.hidden(x).split(lengths)
        for chunk, states in zip(chunks, hidden, strict=True):
            try:
                vector = self.pooler.add(chunk, states)
            except ValueError as error:
                landing.failed[chunk.uid] = str(error)
                continue
            if vector is not None:
                landing.add_vector(chunk.uid, vector)
