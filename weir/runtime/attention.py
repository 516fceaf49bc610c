"""Attention over every tier that holds some of a lane's context, joined by log-sum-exp.

`start` writes a lane's keys and values and begins; `wait` gives the result. Where the two are
called decides what overlaps (forward.py). Knows tensors and tiers, no requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weir.core import AttentionSpec
from weir.ops.attention import Place, attend, write
from weir.ops.merge import merge
from weir.runtime.inputs import Lane, Part
from weir.runtime.store import Store


@dataclass(slots=True, eq=False)
class Pending:
    """Attention of one lane and layer under way."""

    q: Tensor  # [T, Hq, D]
    parts: list[tuple[Part, Tensor, Tensor]]  # o [Tp, Hq, D] and lse [Tp, Hq] of each tier

    def wait(self) -> Tensor:
        """→ o [T, Hq, D]. Each tier attends to its own keys, so the merge is exact."""
        if len(self.parts) == 1 and self.parts[0][0].queries is None:
            return self.parts[0][1]
        o = torch.zeros_like(self.q)
        lse = torch.full(self.q.shape[:2], -torch.inf, dtype=torch.float32, device=self.q.device)
        for part, o_part, lse_part in self.parts:
            o_part, lse_part = o_part.to(o.device), lse_part.to(o.device)
            rows = slice(None) if part.queries is None else part.queries
            o[rows], lse[rows] = merge(o[rows], lse[rows], o_part, lse_part)
        return o


class Tiered:
    """The attention of each layer over the tiers of a store."""

    def __init__(self, store: Store, layers: Sequence[AttentionSpec]):
        self.store = store
        self.layers = layers

    def place(self, layer: int, lane: Lane) -> Place | None:
        """Where a model may store a lane's keys and values itself: one tier takes all of them."""
        part, *others = lane.parts
        kv = self.store.kv[part.tier][layer]
        if others or part.writes is not None or kv.device != lane.pos.device:
            return None
        return Place(kv, part.batch.slots)

    def start(
        self, layer: int, lane: Lane, q: Tensor, k: Tensor | None, v: Tensor | None
    ) -> Pending:
        """Write k, v [T, Hkv, D] to their pages, then attend q [T, Hq, D] to them and all before.
        They are None where the model has stored them.

        Everything of a lane is written before any of it is read, so that a chunk can attend to
        pages that another one of the lane, or of an earlier lane, fills in this very layer.
        """
        spec, parts = self.layers[layer], []
        for part in lane.parts:
            if k is None or len(part.batch.slots) == 0:
                continue
            kv = self.store.kv[part.tier][layer]
            write(kv, _take(k, part.writes, kv), _take(v, part.writes, kv), part.batch.slots)
        for part in lane.parts:
            kv = self.store.kv[part.tier][layer]
            parts.append((part, *attend(_take(q, part.queries, kv), kv, part.batch, spec)))
        return Pending(q, parts)


def _take(x: Tensor, rows: Tensor | None, kv: Tensor) -> Tensor:
    """The given rows of x, where kv is."""
    return (x if rows is None else x[rows]).to(kv.device)
