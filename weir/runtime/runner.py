"""Runs plans on one device: page tables and moves, the forward loop, then tokens and scores.

The data plane of one rank. It makes no decisions: order, memory and stopping are the plan's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from weir.core import Chunk, Move, Plan, Result, Segment
from weir.models.base import Model
from weir.ops import sample
from weir.ops.prefix import SAVED, Prefixes, find, shares
from weir.runtime import inputs
from weir.runtime.attention import Tiered
from weir.runtime.forward import Pass, forward
from weir.runtime.graphs import Graphs, Recorded
from weir.runtime.inputs import Lane, Shape
from weir.runtime.outputs import Landing
from weir.runtime.padded import Padded
from weir.runtime.penalties import Feed
from weir.runtime.pooler import Pooler
from weir.runtime.relay import SEATS, Relay
from weir.runtime.sampler import Draw, Sampler
from weir.runtime.stage import Stage
from weir.runtime.store import Store
from weir.runtime.tables import Tables

LOGITS = {"cpu": 2**24, "cuda": 2**26}
"""Most logits that exist at once: they are computed for slices of rows."""
MAX_ROWS = 256
HELD = 1 << 20
"""Bytes for the arrays of a pass that takes several plans."""


@dataclass(slots=True, eq=False)
class Work:
    """A lane, and what to do with the rows it keeps."""

    chunks: Sequence[Chunk]
    lane: Lane
    feed: Feed | None
    draws: list[Draw]
    recorded: Recorded | None = None  # what runs a padded lane
    plain: bool = True  # no row has a filter
    drawn: Tensor | None = None  # int64: the rows of a padded lane that `draws` take
    beside: Pass | None = None  # of decodes that take several plans


class Runner:
    """model: its weights. store: its KV pages. context: the longest sequence, in tokens.
    requests: most that are alive at once. graphs: shapes of lanes to be recorded by `record`.
    relay: attends to a tier that is on another device."""

    def __init__(
        self,
        model: Model,
        store: Store,
        context: int,
        device: torch.device,
        requests: int = 256,
        graphs: Graphs | None = None,
        relay: Relay | None = None,
    ):
        self.model = model
        self.store = store
        self.device = device
        self.vocab = model.spec.vocab
        self.rows = max(1, min(MAX_ROWS, LOGITS[device.type] // self.vocab))  # of a slice of logits
        self.attention = Tiered(store, model.spec.attention, relay)
        self.relay = relay
        self.shares = device.type == "cuda" and shares(model.spec.attention)
        self.saved = SAVED  # keys that sharing must spare a step
        self.stage = Stage(device)
        self.passing: Work | None = None  # on its way through the layers, over some plans
        self.held = Stage(device, HELD)  # its arrays
        self.tables = Tables(requests, -(-context // store.page), store.pages, device)
        self.sampler = Sampler(self.vocab, device)
        self.pooler = Pooler()
        self.late: list[tuple[Draw, Tensor, Landing]] = []  # what waits for masks
        self.graphs = graphs or Graphs()
        shared = model, self.attention, self.tables, self.sampler, self.stage, self.rows
        self.padded = Padded(self.graphs, *shared)

    def close(self) -> None:
        """Launch nothing more. May be called twice."""
        if self.relay is not None:
            self.relay.close()

    @torch.inference_mode()
    def record(self) -> None:
        """Record the lanes of all shapes, if pages are where they can be. Until then none is
        padded."""
        if self._hot(()):
            self.padded.record()

    @torch.inference_mode()
    def pad(self, shape: Shape) -> None:
        """Launch a lane of padding only."""
        self.padded.launch_nothing(shape)

    def run(self, plan: Plan) -> Result:
        """Run a plan and wait for it."""
        return self.launch(plan).result()

    @torch.inference_mode()
    def launch(self, plan: Plan, prepared: Callable[[], None] | None = None) -> Landing:
        """Queue a plan on the device. `prepared` is called when its arrays are, before anything is
        computed. Raises only if a plan breaks its contract, and then nothing that comes after it
        can be trusted."""
        if self.late:
            raise RuntimeError("the masks of the plan before never came")
        landing = Landing(self.device, float if self.relay is None else self.relay.spent)
        freed = self.tables.forget(plan.forget)
        self.sampler.forget(plan.forget, freed)
        self.pooler.forget(plan.forget)
        lanes, segment = [chunks for chunks in plan.lanes if chunks], plan.segment
        begun = [segment.chunks] if segment is not None and segment.begin == 0 else []
        self._move(plan.moves, [*lanes, *begun])
        self.stage.begin()
        works = [self._prepare(some, landing, n, len(lanes) == 1) for n, some in enumerate(lanes)]
        passing = self._pass(segment, landing) if segment is not None else None
        landing.works = works, passing  # attention on the host reads their arrays
        self.tables.put(self.stage)
        self.stage.send()
        self.tables.update()
        if prepared is not None:
            prepared()
        if works and works[0].recorded is not None:
            self._replay(works[0], works[0].recorded, landing, passing)
        elif works or passing is not None:
            self._run(works, landing, passing)
        if not self.late:
            landing.stop()
        return landing

    @torch.inference_mode()
    def choose(self, masks: dict[int, bytes]) -> None:
        """Continue the plan launched last, which waited for these masks, by uid."""
        late, self.late = self.late, []
        for draw, x, landing in late:
            self.sampler.mask(draw, masks)
            self._draw_one(draw, x, landing)
        if late:
            late[-1][2].stop()

    def _prepare(self, chunks: Sequence[Chunk], landing: Landing, seat: int, alone: bool) -> Work:
        """`seat`: among the lanes of its plan. `alone`: there is no other, so this may be one that
        was recorded."""
        prefixes = self._prefixes(chunks) if self.shares else None
        fits = alone and self._hot(chunks)
        shape = self.graphs.fit(chunks, prefixes is not None) if fits else None
        if shape is None:
            lane = self._lane(chunks, landing, prefixes, seat)
            feed = self.sampler.penalties.plan(chunks, self.stage)
            return Work(chunks, lane, feed, self._draws(lane.sampled, landing))
        lane, choice = self.padded.fill(chunks, shape, landing, prefixes)
        feed = self.sampler.penalties.plan(chunks, self.stage)
        work = Work(chunks, lane, feed, [], self.graphs.recorded[shape], choice.plain)
        if not choice.enough:
            drawn = [i for i, chunk in enumerate(chunks) if chunk.sample is not None]
            work.drawn = self.stage.put(np.array(drawn, np.int64))
            work.draws = self._draws(lane.sampled, landing)
        return work

    def _pass(self, segment: Segment, landing: Landing) -> Work:
        """What is to be done with decodes that take several plans: with the first of these their
        arrays, which stay, and their ids; with the last the tokens that come out."""
        work = self.passing
        if segment.begin == 0:
            self.held.begin()
            lane = self._lane(segment.chunks, landing, None, SEATS - 1, self.held)
            self.held.send()
            feed = self.sampler.penalties.plan(segment.chunks, self.stage)
            work = self.passing = Work(segment.chunks, lane, feed, [], beside=Pass(lane))
        assert work is not None and work.beside is not None, "it never began"
        work.beside.first, work.beside.upto = segment.begin, segment.end
        if segment.last:
            landing.failed |= work.lane.failed
            work.draws, self.passing = self._draws(work.lane.sampled, landing), None
        return work

    def _move(self, moves: Sequence[Move], lanes: Sequence[Sequence[Chunk]]) -> None:
        """Copy pages; those that a relay attends to are there before it does."""
        if self.relay is not None and self.relay.stream is not None:
            self.store.follow(self.relay.stream)
        self.store.move(moves)
        if self.relay is not None:
            given = [page for chunks in lanes for chunk in chunks for page in chunk.pages]
            self.store.settle([page.index for page in given if page.tier == self.relay.tier])

    def _hot(self, chunks: Sequence[Chunk]) -> bool:
        """Whether all that the chunks attend to is on the first tier, and that on this device."""
        tables, hot = self.tables, next(iter(self.store.pages))
        if self.relay is not None and self.relay.tier == hot:
            return False
        rows = [tables.row[c.uid] for c in chunks if c.uid in tables.row]
        told = (tables.upto[rows, hot] == tables.upto[rows, -1]).all()
        return bool(told) and all(page.tier == hot for c in chunks for page in c.pages)

    def _prefixes(self, chunks: Sequence[Chunk]) -> Prefixes | None:
        """The prefixes that decodes among the chunks share, found before their new pages are
        known."""
        rows = [self.tables.row.get(c.uid, self.tables.padding) for c in chunks]
        keys = [c.start if c.length == 1 and c.uid in self.tables.row else 0 for c in chunks]
        return find(self.tables.page, np.array(rows), np.array(keys), self.store.page, self.saved)

    def _lane(
        self,
        chunks: Sequence[Chunk],
        landing: Landing,
        prefixes: Prefixes | None,
        seat: int,
        stage: Stage | None = None,
    ) -> Lane:
        away = None if self.relay is None else self.relay.tier
        place = self.tables, self.store, self.vocab, stage or self.stage
        lane = inputs.build(chunks, *place, None, prefixes, away, seat)
        landing.failed |= lane.failed
        return lane

    def _draws(self, chunks: list[Chunk], landing: Landing) -> list[Draw]:
        draws = []
        for at in range(0, len(chunks), self.rows):
            some = chunks[at : at + self.rows]
            rows = self.tables.rows([chunk.uid for chunk in some])
            draws.append(self.sampler.plan(some, rows, landing.failed, self.stage))
        return draws

    def _run(self, works: list[Work], landing: Landing, passing: Work | None) -> None:
        """Launch lanes of any shape, and the next layers of a pass that takes several plans."""
        beside = passing.beside if passing is not None else None
        for work in works:
            self._enter(work)
        if passing is not None:
            self._enter(passing)
        lanes = [work.lane for work in works]
        states = forward(self.model, self.model.layers, self.attention, lanes, beside)
        if self.relay is not None:
            self.relay.join()  # so that no page is given to others too early
        leaving = works if passing is None or self.passing is not None else [*works, passing]
        for work, x in zip(leaving, states, strict=True):
            self._finish(work, x, landing)

    def _enter(self, work: Work) -> None:
        """Before the first layer of a lane: its tokens are known."""
        if work.beside is None or not work.beside.done:
            work.lane.link(self.tables)
            self.sampler.penalties.count(work.feed, work.lane.ids)

    def _replay(
        self, work: Work, recorded: Recorded, landing: Landing, passing: Work | None
    ) -> None:
        """Launch a padded lane, and the next layers of a pass that takes several plans."""
        beside = passing.beside if passing is not None else None
        if passing is not None:
            self._enter(passing)
        for done, part in enumerate(recorded.forward, 1):
            part()
            if beside is not None:
                beside.keep_up(self.model, self.attention, done, len(recorded.forward))
        if passing is not None and beside is not None:
            if self.relay is not None:
                self.relay.join()
            if self.passing is None:
                self._finish(passing, beside.finish(self.model), landing)
        self.sampler.penalties.count(work.feed, recorded.lane.ids)
        if work.drawn is None:
            (recorded.plain if work.plain else recorded.filtered)()
            landing.add_tokens(work.chunks, self.padded.tokens[: len(work.chunks)])
        else:
            self._draw(work.draws, self.padded.states[work.drawn], landing)

    def _finish(self, work: Work, x: Tensor, landing: Landing) -> None:
        """x [kept, H]: rows that sample, rows that are scored, rows that are pooled."""
        lane = work.lane
        sampled, scored = len(lane.sampled), len(lane.targets)
        sampling, scoring, pooling = x.split([sampled, scored, lane.kept - sampled - scored])
        self._draw(work.draws, sampling, landing)
        if lane.scored:
            self._score(lane.scored, lane.targets, scoring, landing)
        if lane.pooled:
            self.pooler.pool(lane.pooled, self.model.hidden(pooling), landing)

    def _draw(self, draws: list[Draw], x: Tensor, landing: Landing) -> None:
        """x [B, H]: the rows of all draws."""
        for draw, rows in zip(draws, x.split(self.rows), strict=False):
            if draw.late:
                self.late.append((draw, rows, landing))
            else:
                self._draw_one(draw, rows, landing)

    def _draw_one(self, draw: Draw, x: Tensor, landing: Landing) -> None:
        tokens, columns = self.sampler.draw(self.model.logits(x), draw)
        self.tables.last[draw.choice.target] = tokens.clamp(min=0)
        landing.add_tokens(draw.chunks, tokens)
        if draw.scored is not None:
            index, chunks, _ = draw.scored
            landing.add_logprobs(chunks, tokens[index], columns)

    def _score(self, chunks: list[Chunk], targets: Tensor, x: Tensor, landing: Landing) -> None:
        top = min(self.vocab, max(chunk.score.top for chunk in chunks))
        slices = [
            sample.logprobs(self.model.logits(rows), some, top)
            for rows, some in zip(x.split(self.rows), targets.split(self.rows), strict=True)
        ]
        columns = tuple(torch.cat(column) for column in zip(*slices, strict=True))
        landing.add_scores(chunks, columns)
