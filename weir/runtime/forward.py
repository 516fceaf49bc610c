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
class Pass:
    """A lane's way through the layers, all at hand, in several calls of `forward`, each of which
    brings it up to `upto` of them. The host attends for one of its layers while others pass
    through many."""

    lane: Lane
    upto: int = 0
    done: int = 0  # layers whose attention has begun
    x: Tensor | None = None
    pending: Pending | None = None

    def advance(self, model: Model, attention: Tiered, upto: int) -> None:
        lane, layers = self.lane, model.layers
        assert isinstance(layers, Sequence), "layers come one after another"
        for i in range(self.done, upto):
            if self.x is None or self.pending is None:
                self.x = model.embed(lane.ids, lane.pos)
            else:
                self.x = model.out(layers[i - 1], self.x, self.pending.wait())
            place = attention.place(i, lane)
            qkv = model.qkv(layers[i], self.x, lane.pos, place)
            self.pending, self.done = attention.start(i, lane, *qkv), i + 1


def forward(
    model: Model,
    weights: Iterable[Any],
    attention: Tiered,
    lanes: Sequence[Lane],
    beside: Pass | None = None,
) -> list[Tensor]:
    """The last hidden states of the rows each lane keeps: [kept, H], before the final norm; after
    them those of the pass beside, if it ends here, whose layers are spread between theirs."""
    first = beside.done if beside is not None else 0
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
        if beside is not None:
            share = (i + 1) * (beside.upto - first) // model.spec.layers
            beside.advance(model, attention, first + share)
    states = [_finish(model, previous, lane, x[n], pending[n]) for n, lane in enumerate(lanes)]
    if beside is not None and beside.done == model.spec.layers:
        assert beside.x is not None and beside.pending is not None
        states.append(_finish(model, previous, beside.lane, beside.x, beside.pending))
    return states


def _finish(model: Model, layer: Any, lane: Lane, x: Tensor, pending: Pending) -> Tensor:
    """The last layer, for the rows that are wanted alone."""
    o = pending.wait()
    if lane.kept == 0:
        return x[:0]
    if lane.keep is not None:
        x, o = x[lane.keep], o[lane.keep]
    return model.out(layer, x, o)
