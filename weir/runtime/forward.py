"""The one loop that runs every plan. Where it waits for attention decides what overlaps.

One lane is plain serving. With two, the attention of one lane, if it runs elsewhere, hides behind
the linears of the other (NEO). With K lanes and streamed weights each layer's weights serve K
batches (FlexGen's zig-zag).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from weir.models.base import Model
from weir.runtime.attention import Pending, Tiered
from weir.runtime.inputs import Lane


@dataclass(slots=True, eq=False)
class Pass:
    """A lane's way through the layers. If all of them are at hand it may take several calls of
    `forward`, each of which brings it up to `upto`: the host attends for one of its layers while
    others pass through many."""

    lane: Lane
    first: int = 0  # layers done before this call
    upto: int = 0
    done: int = 0  # layers whose attention has begun
    layer: Any = None  # the last of them
    x: Tensor | None = None
    pending: Pending | None = None

    def copy(self) -> "Pass":
        """Another that goes on from here."""
        return replace(self, pending=self.pending and replace(self.pending))

    def step(self, model: Model, attention: Tiered, layer: Any) -> None:
        """End the layer before, and begin this one and its attention."""
        lane, place = self.lane, attention.place(self.done, self.lane)
        if self.x is None or self.pending is None:
            self.x = model.embed(lane.ids, lane.pos)
        else:
            self.x = model.out(self.layer, self.x, self.pending.wait())
        qkv = model.qkv(layer, self.x, lane.pos, place)
        self.pending, self.layer = attention.start(self.done, lane, *qkv), layer
        self.done += 1

    def keep_up(self, model: Model, attention: Tiered, done: int, count: int) -> None:
        """Begin as many of this call's layers as others have of theirs, which are `done` of
        `count`."""
        assert isinstance(model.layers, Sequence), "layers come one after another"
        upto = self.first + done * (self.upto - self.first) // count
        for layer in model.layers[self.done : upto]:
            self.step(model, attention, layer)

    def finish(self, model: Model) -> Tensor:
        """End the last layer, for the rows that are wanted alone."""
        lane, x = self.lane, self.x
        assert x is not None and self.pending is not None, "it never began"
        o = self.pending.wait()
        if lane.kept == 0:
            return x[:0]
        if lane.keep is not None:
            x, o = x[lane.keep], o[lane.keep]
        return model.out(self.layer, x, o)


def forward(
    model: Model,
    weights: Iterable[Any],
    attention: Tiered,
    lanes: Sequence[Lane],
    beside: Pass | None = None,
) -> list[Tensor]:
    """The last hidden states of the rows each lane keeps: [kept, H], before the final norm. The
    layers of `beside` run between theirs; if it ends here, its rows come last."""
    count = model.spec.layers
    passes = [Pass(lane) for lane in lanes]
    for i, layer in enumerate(weights):
        for one in passes:
            one.step(model, attention, layer)
        if beside is not None:
            beside.keep_up(model, attention, i + 1, count)
    if beside is not None and beside.done == count:
        passes.append(beside)
    return [one.finish(model) for one in passes]
