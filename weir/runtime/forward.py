"""The one loop that runs every plan. Where it waits for attention decides what overlaps.

One lane is plain serving. With two, the attention of one lane, if it runs elsewhere, hides behind
the linears of the other (NEO). With K lanes and streamed weights each layer's weights serve K
batches (FlexGen's zig-zag).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weir.models.base import Model
from weir.runtime.attention import Pending, Tiered
from weir.runtime.inputs import Lane


@dataclass(slots=True, eq=False)
class Slow:
    """A lane that goes through the layers, all at hand, in the course of several calls of
    `forward`. The host attends for one of its layers while others pass through many."""

    model: Model
    attention: Tiered
    lane: Lane
    x: Tensor
    done: int = 0  # layers whose attention has begun
    pending: Pending | None = None

    def advance(self, upto: int) -> None:
        model, lane = self.model, self.lane
        assert isinstance(model.layers, Sequence), "layers come one after another"
        for i in range(self.done, upto):
            if self.pending is not None:
                self.x = model.out(model.layers[i - 1], self.x, self.pending.wait())
            place = self.attention.place(i, lane)
            qkv = model.qkv(model.layers[i], self.x, lane.pos, place)
            self.pending, self.done = self.attention.start(i, lane, *qkv), i + 1

    def finish(self) -> Tensor:
        """As `forward`, once it has been through all layers."""
        assert isinstance(self.model.layers, Sequence) and self.pending is not None
        return _finish(self.model, self.model.layers[-1], self.lane, self.x, self.pending)


def forward(
    model: Model,
    weights: Iterable[Any],
    attention: Tiered,
    lanes: Sequence[Lane],
    slow: Slow | None = None,
    upto: int = 0,
) -> list[Tensor]:
    """The last hidden states of the rows each lane keeps: [kept, H], before the final norm. Beside
    them `slow` is brought up to so many layers."""
    first = slow.done if slow is not None else 0
    x = [model.embed(lane.ids, lane.pos) for lane in lanes]
    pending: list[Pending] = []
    previous = None
    for i, layer in enumerate(weights):
        started = []
        for n, lane in enumerate(lanes):
            if previous is not None:
                x[n] = model.out(previous, x[n], pending[n].wait())
            place = attention.place(i, lane)
            started.append(attention.start(i, lane, *model.qkv(layer, x[n], lane.pos, place)))
        pending, previous = started, layer
        if slow is not None:
            slow.advance(first + (i + 1) * (upto - first) // model.spec.layers)
    return [_finish(model, previous, lane, x[n], pending[n]) for n, lane in enumerate(lanes)]


def _finish(model: Model, layer: Any, lane: Lane, x: Tensor, pending: Pending) -> Tensor:
    """The last layer, for the rows that are wanted alone."""
    o = pending.wait()
    if lane.kept == 0:
        return x[:0]
    if lane.keep is not None:
        x, o = x[lane.keep], o[lane.keep]
    return model.out(layer, x, o)
