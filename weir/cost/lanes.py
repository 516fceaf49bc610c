"""Seconds of plans whose decodes may be attended to by the host's cores, beside the device.

The lanes of a plan take turns on the device, layer by layer, and on the host. So a plan takes as
long as the busier of both, or as the lane that waits for itself (NEO, arXiv 2411.01142, for any
number of lanes).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from weir.core import Chunk, Plan
from weir.cost.target import Cost
from weir.cost.work import Work


class Host(Struct, frozen=True):
    """What attention on the host takes. rate: bytes/s of keys and values that it reads. token:
    bytes of a token in all layers. layers: how many. layer_seconds: from queries to answer.
    launch: seconds in which a lane's layer is launched, when no recording replays it."""

    rate: float
    token: float
    layers: int
    layer_seconds: float = 100e-6
    launch: float = 150e-6

    def seconds(self, tokens: int) -> float:
        """Of decodes that read so many tokens between them."""
        return tokens * self.token / self.rate + self.layers * self.layer_seconds if tokens else 0.0


@dataclass(slots=True)
class Share:
    """One lane: its work on the device, and the tokens that the host reads for it; of its layers,
    how many are in this plan. launched: one by one, not by replaying a recording."""

    work: Work = field(default_factory=Work)
    tokens: int = 0
    part: float = 1.0
    launched: bool = True

    @staticmethod
    def of(chunks: Iterable[Chunk], away: int | None, part: float = 1.0) -> Share:
        """Decodes whose new KV is on the tier `away` are attended to by the host."""
        share = Share(part=part)
        for chunk in chunks:
            share.work.add(chunk, chunk.home != away)
            if chunk.home == away and chunk.length == 1:
                share.tokens += chunk.start + 1
        return share


@dataclass(slots=True)
class Lanes:
    """device: what a lane takes there. host: None if it attends to nothing. away: the tier whose
    decodes are the host's."""

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
        """Of a plan of these lanes, if each side takes so many times as long as it should."""
        busy, reads = self.parts(shares)
        busy, reads = [device * part for part in busy], [host * part for part in reads]
        if self.host is None or not any(reads):
            return sum(busy)
        alone = max(sum(pair) for pair in zip(busy, reads, strict=True))
        parts = sum(share.part for share in shares if share.launched)
        launched = parts * self.host.layers * self.host.launch
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
