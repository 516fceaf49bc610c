"""The lanes of a runner that have fixed shapes: how they are filled, recorded and replayed.

Padding reads no keys, writes to a page that no request has, and its tokens go to a row of `Tables`
that no request has. See graphs.py for the shapes, stage.py for why recordings find their arrays.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from weir.core import Chunk
from weir.cost.lanes import PARTS
from weir.models.base import Model
from weir.ops.prefix import Prefixes
from weir.runtime import inputs
from weir.runtime.attention import Tiered
from weir.runtime.forward import Pass
from weir.runtime.graphs import Graphs, Recorded, Recorder
from weir.runtime.inputs import Lane, Shape
from weir.runtime.outputs import Landing
from weir.runtime.sampler import Choice, Sampler
from weir.runtime.stage import Stage
from weir.runtime.tables import Tables


@dataclass(slots=True, eq=False)
class Padded:
    """Lanes with the shapes of `graphs`, computed by `model` and `sampler` on arrays of `stage`."""

    graphs: Graphs
    model: Model
    attention: Tiered
    tables: Tables
    sampler: Sampler
    stage: Stage
    rows: int  # most whose logits are computed at once
    states: Tensor = field(init=False)  # [S, hidden]: the rows that a recorded lane keeps
    tokens: Tensor = field(init=False)  # int64 [S]: the tokens sampled from them

    def __post_init__(self) -> None:
        size = max((shape.sequences for shape in self.graphs.shapes), default=0)
        nothing = torch.zeros(1, dtype=torch.int64, device=self.stage.device)
        self.states = self.model.embed(nothing, nothing).new_zeros(size, self.model.spec.hidden)
        self.tokens = nothing.new_zeros(size)

    def record(self) -> None:
        """Record the lanes of all shapes. Until then none is padded."""
        recorder = Recorder(self.stage.device)
        beside = recorder.on_device and self.attention.relay is not None
        parts = min(PARTS, len(self.model.layers)) if beside else 1
        for shape in self.graphs.shapes:
            lane, choice, staged = self._nothing(shape)
            self.graphs.recorded[shape] = Recorded(
                lane,
                staged,
                forward=[recorder.record(part) for part in self._forward(lane, parts)],
                plain=recorder.record(partial(self._choose, choice, False), ours=False),
                filtered=recorder.record(partial(self._choose, choice, True), ours=False),
            )

    def launch_nothing(self, shape: Shape) -> None:
        """Compute a lane of padding alone, without a recording."""
        lane, choice, _ = self._nothing(shape)
        for part in self._forward(lane, 1):
            part()
        self._choose(choice, True)

    def fill(
        self, chunks: Sequence[Chunk], shape: Shape, landing: Landing, prefixes: Prefixes | None
    ) -> tuple[Lane, Choice]:
        """The chunks as a lane of a recorded shape, and how they sample, first on the stage."""
        made = self._made(chunks, shape, landing, prefixes)
        if self.stage.used != self.graphs.recorded[shape].staged:
            raise RuntimeError("a padded lane does not lie where it was recorded")
        return made

    def _made(
        self,
        chunks: Sequence[Chunk],
        shape: Shape,
        landing: Landing,
        prefixes: Prefixes | None = None,
    ) -> tuple[Lane, Choice]:
        """As `fill`. Only the values of the arrays, not their places, depend on the chunks."""
        sampler, tables, stage = self.sampler, self.tables, self.stage
        place = tables, self.attention.store, sampler.vocab, stage
        lane = inputs.build(chunks, *place, shape, prefixes)
        landing.failed |= lane.failed
        padding = shape.sequences, tables.padding
        return lane, sampler.choice(chunks, lane.seats, landing.failed, stage, padding)

    def _nothing(self, shape: Shape) -> tuple[Lane, Choice, int]:
        """A lane of padding alone, and how many bytes of the stage it takes."""
        self.stage.begin()
        lane, choice = self._made([], shape, Landing(self.stage.device))
        self.stage.send()
        return lane, choice, self.stage.used

    def _forward(self, lane: Lane, parts: int) -> Iterator[Callable[[], None]]:
        """The recorded forward pass of a padded lane, from its arrays to `states`, in parts. Each
        part continues from the latest call of the one before it."""
        layers, begun = self.model.layers, {0: Pass(lane)}
        assert isinstance(layers, Sequence), "layers come one after another"

        def run(part: int) -> None:
            if part == 0:
                lane.link(self.tables)
            one = begun[part].copy()
            for layer in layers[len(layers) * part // parts : len(layers) * (part + 1) // parts]:
                one.step(self.model, self.attention, layer)
            begun[part + 1] = one
            if part + 1 == parts:
                self.states[: lane.kept].copy_(one.finish(self.model))

        return (partial(run, part) for part in range(parts))

    def _choose(self, choice: Choice, filtered: bool) -> None:
        """Sample after the recorded forward pass: from `states` to `tokens`."""
        count = len(choice.target)
        for first in range(0, count, self.rows):
            rows = slice(first, min(count, first + self.rows))
            logits = self.model.logits(self.states[rows])
            self.tokens[rows] = choice.tokens(logits, filtered, rows)
        self.tables.last.index_copy_(0, choice.target, self.tokens[:count].clamp(min=0))
