"""Hand-made plans: what a scheduler would send, with every choice in the test's hands."""

from collections.abc import Sequence

import torch

from tests.reference import Tiny
from weir.core import Chunk, Move, Page, Plan, Result, Sampling, Score
from weir.runtime.graphs import Graphs
from weir.runtime.relay import Relay
from weir.runtime.runner import Runner
from weir.runtime.store import Store

CPU = torch.device("cpu")
EVERY = Sampling(temperature=0.0, logprobs=61)  # greedy, with the whole distribution


def runner(
    model: Tiny,
    page: int = 4,
    pages: dict[int, int] | None = None,
    context: int = 128,
    device: torch.device = CPU,
    requests: int = 64,
    graphs: Graphs | None = None,
    relayed: bool = False,
    dtype: torch.dtype = torch.float32,
    cold: torch.dtype | None = None,
) -> Runner:
    """Tier 0 is where the model is, the others are on the CPU, of type `cold`, attended through a
    relay if they are to be. Lanes of `graphs` are recorded."""
    pages = pages or {1: 256}
    devices = {tier: CPU if tier else device for tier in pages}
    if 0 not in pages:
        dtype, cold = cold or dtype, None
    store = Store(model.spec.attention, page, pages, devices, dtype, cold=cold)
    if relayed and device.type == "cuda":
        store.kv[1] = [kv.pin_memory() for kv in store.kv[1]]
    relay = Relay(1, store.kv[1], device) if relayed else None
    run = Runner(model, store, context, device, requests, graphs, relay)
    run.record()
    return run


class Drive:
    """Allocates pages upwards, remembers what each request was told, numbers the plans."""

    def __init__(self, run: Runner):
        self.run = run
        self.page = run.store.page
        self.used = dict.fromkeys(run.store.pages, 0)
        self.pages: dict[int, list[Page]] = {}
        self.step = 0

    def take(self, tier: int, count: int) -> list[Page]:
        first = self.used[tier]
        self.used[tier] += count
        return [Page(tier, index) for index in range(first, first + count)]

    def chunk(
        self,
        uid: int,
        start: int,
        ids: Sequence[int],
        *,
        sample: Sampling | None = None,
        pages: list[Page] | None = None,
        tier: int | None = None,
        prompt: int = 0,
        history: list[int] | None = None,
        score: Score | None = None,
        pool: str | None = None,
        final: bool = False,
        mask: bytes | None = None,
        late: bool = False,
    ) -> Chunk:
        """ids empty: the token sampled last. Pages are taken from `tier` unless they are given."""
        held = self.pages.setdefault(uid, [])
        tier = min(self.used) if tier is None else tier
        first, new = len(held), list(pages or [])
        need = -(-(start + (len(ids) or 1)) // self.page) - len(held) - len(new)
        new += self.take(tier, max(0, need))
        held += new
        wanted = (sample, prompt, history, score, pool, final, mask, late, first)
        return Chunk(uid, start, list(ids), new, tier, *wanted)

    def plan(
        self, *lanes: Sequence[Chunk], moves: Sequence[Move] = (), forget: Sequence[int] = ()
    ) -> Plan:
        self.step += 1
        for uid in forget:
            kept = [chunk for lane in lanes for chunk in lane if chunk.uid == uid]
            self.pages[uid] = [page for chunk in kept for page in chunk.pages]
        return Plan(self.step, list(moves), [list(lane) for lane in lanes], list(forget))

    def go(self, *lanes: Sequence[Chunk], **plan) -> Result:
        result = self.run.run(self.plan(*lanes, **plan))
        assert not result.failed, result.failed
        return result
