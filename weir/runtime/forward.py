"""The one loop that runs every plan. Where it waits for attention decides what overlaps.

One lane is plain serving. With two, the attention of one lane, if it runs elsewhere, hides behind
the linears of the other (NEO). With K lanes and streamed weights each layer's weights serve K
batches (FlexGen's zig-zag).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from weir.models.base import Model
from weir.runtime.attention import Pending, Tiered
from weir.runtime.inputs import Lane


def forward(
    model: Model, weights: Iterable[Any], attention: Tiered, lanes: Sequence[Lane]
) -> list[Tensor]:
    """The last hidden states of the rows each lane keeps: [kept, H], before the final norm."""
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
    return [_finish(model, previous, lane, x[n], pending[n]) for n, lane in enumerate(lanes)]


def _finish(model: Model, layer: Any, lane: Lane, x: Tensor, pending: Pending) -> Tensor:
    """The last layer, for the rows that are wanted alone."""
    o = pending.wait()
    if lane.kept == 0:
        return x[:0]
    if lane.keep is not None:
        x, o = x[lane.keep], o[lane.keep]
    return model.out(layer, x, o)
