"""Predicts the seconds of plans in which the host's cores compute some decode attention.

The lanes of a plan take turns on the device and on the host, layer by layer. A plan takes as long
as the busier of the two, or as its slowest lane alone (NEO, arXiv 2411.01142, for any number of
lanes).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from weir.core import Chunk, Plan
from weir.cost.target import Cost
from weir.cost.work import Work

PARTS = 8
"""CUDA graphs that a recorded lane of decodes is cut into where the host attends to others: layers
of those are launched between the graphs. Only the last one launched in each gap is attended to
while the device computes the lane; for the others it waits."""


class Host(Struct, frozen=True):
    """Rates of attention on the host. rate: bytes/s of keys and values that it reads. token: bytes
    of a token's KV in all layers. layers: number of layers. layer_seconds: fixed cost of a layer.
    launch: seconds to launch a layer of a lane that is not replayed as a CUDA graph. lend: the same
    of a lane with prompts whose KV goes to the host at each layer (15 decodes and a prompt of a
    32B model, H200)."""

    rate: float
    token: float
    layers: int
    layer_seconds: float = 100e-6
    launch: float = 150e-6
    lend: float = 1.2e-3

    def seconds(self, tokens: int) -> float:
        """Seconds of decodes that read `tokens` tokens in all."""
        return tokens * self.token / self.rate + self.layers * self.layer_seconds if tokens else 0.0


@dataclass(slots=True)
class Share:
    """One lane. work: on the device. tokens: read by the host. part: fraction of its layers in this
    plan. launched: layer by layer, not replayed as a CUDA graph. lends: with prompts whose KV goes
    to the host."""

    work: Work = field(default_factory=Work)
    tokens: int = 0
    part: float = 1.0
    launched: bool = True
    lends: bool = False

    @staticmethod
    def of(chunks: Iterable[Chunk], away: int | None, part: float = 1.0) -> Share:
        """The host attends to decodes whose new KV is on the tier `away`."""
        share = Share(part=part)
        for chunk in chunks:
            share.work.add(chunk, chunk.home != away)
            if chunk.home == away and chunk.length == 1:
                share.tokens += chunk.start + 1
            share.lends |= chunk.home == away and chunk.length > 1
        return share


@dataclass(slots=True)
class Lanes:
    """device: cost model of the device. host: None if the host attends to nothing. away: the tier
    whose decodes the host attends to."""

    device: Cost
    host: Host | None = None
    away: int | None = None

    @property
    def layers(self) -> int:
        return self.host.layers if self.host is not None else 1

    def parts(self, shares: Sequence[Share]) -> tuple[list[float], list[float]]:
        """Seconds of each lane, on the device and on the host."""
        busy = [share.part * self.device.seconds(share.work) for share in shares]
        if self.host is None:
            return busy, [0.0] * len(busy)
        return busy, [share.part * self.host.seconds(share.tokens) for share in shares]

    def seconds(self, shares: Sequence[Share], device: float = 1.0, host: float = 1.0) -> float:
        """Seconds of a plan of these lanes. device, host: factors by which each side is slower."""
        busy, reads = self.parts(shares)
        busy, reads = [device * part for part in busy], [host * part for part in reads]
        if self.host is None or not (any(reads) or any(share.lends for share in shares)):
            return sum(busy)
        alone = max(sum(pair) for pair in zip(busy, reads, strict=True))
        launched = self.host.layers * sum(
            share.part * (self.host.lend if share.lends else self.host.launch)
            for share in shares
            if share.launched
        )
        return max(sum(busy), sum(reads), alone, launched)

    def shares(self, plan: Plan) -> list[Share]:
        shares = [Share.of(lane, self.away) for lane in plan.lanes]
        if len(shares) == 1 and not (shares[0].tokens or shares[0].work.prompts):
            shares[0].launched = False
        if (segment := plan.segment) is not None:
            shares.append(Share.of(segment.chunks, self.away, segment.share))
        return shares

    def plan(self, plan: Plan) -> float:
        return self.seconds(self.shares(plan))
