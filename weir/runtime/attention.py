"""Attention over every tier that holds part of a lane's context, merged by log-sum-exp.

`start` writes a lane's keys and values and starts its attention; `wait` returns the result. What
overlaps depends on where forward.py calls them. Knows tensors and tiers, no requests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weir.ops.attention import attend, merge, write
from weir.ops.batch import Place
from weir.runtime.inputs import Lane, Part
from weir.runtime.relay import Relay
from weir.runtime.store import Store
from weir.spec import AttentionSpec


@dataclass(slots=True, eq=False)
class Pending:
    """The attention of one lane and layer, in flight."""

    shape: torch.Size  # [T, Hq, D], of o
    dtype: torch.dtype
    device: torch.device
    parts: list[tuple[Part, Callable[[], tuple[Tensor, Tensor]]]]
    """For each part, a function that returns o [Tp, Hq, D] and lse float32 [Tp, Hq]."""

    def wait(self) -> Tensor:
        """→ o [T, Hq, D], owned by the caller; call once. Tiers hold disjoint keys, so the merge is
        exact."""
        parts, self.parts = self.parts, []
        (part, result), *others = parts
        if not others and part.queries is None:
            o = result()[0]
            return o.clone() if part.away else o
        o = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        lse = None
        for part, result in parts:
            o_part, lse_part = (x.to(o.device) for x in result())
            rows = slice(None) if part.queries is None else part.queries
            if part.alone:
                o[rows] = o_part
                continue
            if lse is None:
                lse = torch.full(o.shape[:2], -torch.inf, dtype=torch.float32, device=o.device)
            o[rows], lse[rows] = merge(o[rows], lse[rows], o_part, lse_part)
        return o


class Tiered:
    """The attention of each layer over the tiers of a store. relay: attends to the tier that is on
    another device than the lanes."""

    def __init__(self, store: Store, layers: Sequence[AttentionSpec], relay: Relay | None = None):
        self.store = store
        self.layers = layers
        self.relay = relay

    def place(self, layer: int, lane: Lane) -> Place | None:
        """Where a model may store a lane's keys and values itself; None unless one tier on the
        lane's device takes all."""
        part, *others = lane.parts
        kv = self.store.kv[part.tier][layer]
        if others or part.writes is not None or part.away or kv.device != lane.pos.device:
            return None
        return Place(kv, part.batch.slots)

    def start(
        self, layer: int, lane: Lane, q: Tensor, k: Tensor | None, v: Tensor | None
    ) -> Pending:
        """Write k, v [T, Hkv, D] to their pages, then start attention of q [T, Hq, D] to them and
        all earlier keys. k and v are None if the model has stored them.

        A lane writes all its keys before it reads any, so a chunk can attend to pages that another
        chunk of this lane, or of an earlier one, fills in the same layer.
        """
        spec, parts = self.layers[layer], []
        stores = [self._pages(layer, part, k) for part in lane.parts]
        for part, kv in zip(lane.parts, stores, strict=True):
            if part.away:
                assert self.relay is not None, "no relay for a tier that is away"
                assert k is not None and v is not None, "a model stored what it cannot reach"
                answer = self.relay.start(lane.seat, layer, q, k, v, part, spec)
                if answer is not None:
                    parts.append((part, answer))
            elif k is not None and v is not None and len(part.batch.slots):
                write(kv, _take(k, part.writes, kv), _take(v, part.writes, kv), part.batch.slots)
        for part, kv in zip(lane.parts, stores, strict=True):
            if not part.away:
                result = attend(_take(q, part.queries, kv), kv, part.batch, spec)
                parts.append((part, lambda result=result: result))
        return Pending(q.shape, q.dtype, q.device, parts)

    def _pages(self, layer: int, part: Part, k: Tensor | None) -> Tensor:
        if part.borrowed is None:
            return self.store.kv[part.tier][layer]
        assert self.relay is not None and k is not None, "no relay lends pages"
        return self.relay.borrow(layer, part.borrowed, part.lent, k)


def _take(x: Tensor, rows: Tensor | None, kv: Tensor) -> Tensor:
    """The given rows of x (None: all), on the device of kv."""
    return (x if rows is None else x[rows]).to(kv.device)
