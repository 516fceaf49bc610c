"""Warm-up steps: after them the memory needed is known and all kernels are compiled and loaded.

They run before the first request, on the same pages, and leave nothing behind.
"""

import sys
from collections.abc import Iterator

import torch

from weir.core import Chunk, Page, Plan, Sampling
from weir.runtime.runner import Runner

CHOICES = [
    Sampling(temperature=0.0),
    Sampling(),
    Sampling(top_k=50, top_p=0.9),
    Sampling(logprobs=1),
    Sampling(repetition_penalty=1.1),
    Sampling(logit_bias={0: 0.0}),
]

COMMON = 192  # tokens of a common prefix, enough to be read once for several decodes
BESIDE = 4  # tokens of a prompt beside decodes
RECORDING = 4 << 20
"""About how many bytes the driver takes to record one shape."""


def pages_needed(tokens: int, requests: int, page: int) -> int:
    """Pages that `warm_up` writes to."""
    return max(_length(tokens, requests), min(tokens, COMMON + BESIDE)) // page + 1


def warm_up(runner: Runner, tokens: int, requests: int, lane: int = sys.maxsize) -> None:
    """Run the largest steps, of prompts and of decodes, in lanes of `lane` tokens, and every way of
    choosing a token. If lanes are to be recorded, also run smaller steps, whose kernels may differ.

    All requests share the same pages, as nobody needs their results."""
    landings = [runner.launch(plan) for plan in _plans(runner, tokens, requests, lane)]
    runner.saved, saved = 1, runner.saved
    landings += [runner.launch(plan) for plan in _sharing(runner, tokens, requests)]
    runner.saved = saved
    for landing in landings:  # each holds what its plan still reads
        landing.result()


def rehearse(runner: Runner, tokens: int, requests: int, lane: int) -> int:
    """Warm up a runner that has not recorded yet, in lanes of `lane` tokens.

    PyTorch keeps the memory that this takes, so it no longer counts as free. → further bytes that
    recording will take: its memory pool is as large as the largest lane needs."""
    warm_up(runner, tokens, requests, lane)
    shapes = runner.graphs.shapes
    if not shapes:
        return 0
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    runner.pad(shapes[0])
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before + RECORDING * len(shapes)


def _plans(runner: Runner, tokens: int, requests: int, lane: int) -> Iterator[Plan]:
    tier, page = min(runner.store.pages), runner.store.page
    longest = min(lane, runner.tables.width * page - 1)  # room is left for one more token
    length = min(_length(tokens, requests), longest)
    pages = [Page(tier, i) for i in range(length // page + 1)]
    for width in [tokens, *_widths(runner, tokens)]:  # largest first: the others reuse its memory
        uids = [-1 - i for i in range(min(width // length, requests))]
        prompts = [Chunk(n, 0, [0] * length, pages, tier, Sampling()) for n in uids]
        some = lane // length
        yield Plan(0, [], [prompts[at : at + some] for at in range(0, len(prompts), some)], [])
        if width == tokens:
            yield Plan(0, [], [[Chunk(n, length, [], [], tier, Sampling()) for n in uids]], [])
        yield Plan(0, [], [], uids)
    lanes = []
    for i, sampling in enumerate(CHOICES):  # a chunk of several tokens beside one of one token
        history = [] if sampling.penalised else None
        chunk = Chunk(-1 - 2 * i, 0, [0] * length, pages, tier, sampling, history=history)
        single = Chunk(-2 - 2 * i, length, [0], pages, tier, sampling, history=history)
        lanes += [[chunk, single]] if requests > 1 else [[chunk], [single]]
    most = max(1, min(requests // 2, tokens // (length + 1)))
    for at in range(0, len(lanes), most):  # many lanes a plan: streamed weights are loaded once
        some = lanes[at : at + most]
        yield Plan(0, [], some, [])
        yield Plan(0, [], [], [chunk.uid for lane in some for chunk in lane])


def _widths(runner: Runner, tokens: int) -> list[int]:
    """Sizes of steps, in tokens, for which libraries may load other kernels at first use."""
    widths = [64 * 3**i // 2**i for i in range(16)] if runner.graphs.shapes else []
    return [width for width in widths if width < tokens]


def _sharing(runner: Runner, tokens: int, requests: int) -> Iterator[Plan]:
    """Decodes beside a prompt's chunk; then with a prefix that is read once, alone and beside it.
    The number of sequences decides what attention is compiled for (ops/triton/decode.py)."""
    tier, length = min(runner.store.pages), min(tokens, COMMON)
    need = (length + BESIDE) // runner.store.page + 1
    if tokens < COMMON + BESIDE or min(runner.store.pages[tier], runner.tables.width) < need:
        return
    pages = [Page(tier, i) for i in range(need)]
    more = [4**k - 1 for k in (5, 6)] if runner.graphs.shapes else []
    for count in sorted({min(n, requests - 1, tokens - BESIDE) for n in (2, *more)} - {0}):
        uids = [-2 - i for i in range(count)]
        prompt = Chunk(-1, 0, [0] * BESIDE, pages, tier, Sampling())
        known = [Chunk(uid, length, [0], pages, tier, Sampling()) for uid in uids]
        yield Plan(0, [], [[*known, prompt]], [])
        for at, beside in ((1, []), (2, [prompt])):
            decodes = [Chunk(uid, length + at, [], [], tier, Sampling()) for uid in uids]
            yield Plan(0, [], [decodes + beside], [-1])
        yield Plan(0, [], [], [-1, *uids])


def warm_up_away(runner: Runner) -> None:
    """Run what a relay adds: contexts that lie on both tiers, beside other chunks and in lanes of
    their own. Leaves nothing behind."""
    relay, page = runner.relay, runner.store.page
    hot = min(runner.store.pages)
    if relay is None or relay.tier == hot or min(runner.store.pages.values()) < 3:
        return
    both, here = [Page(hot, 0), Page(relay.tier, 0), Page(relay.tier, 1)], [Page(hot, 1)] * 2
    greedy, length = Sampling(temperature=0.0), page + 2
    plans = [
        [[Chunk(-1, 0, [0] * length, both, relay.tier, greedy)]],
        [[Chunk(-1, length, [0] * 2, [], relay.tier), Chunk(-2, 0, [0] * 2, here, hot, greedy)]],
        [[Chunk(uid, at, [0], [], home, greedy)]
         for uid, at, home in ((-2, 2, hot), (-1, length + 2, relay.tier))],
        [[Chunk(-2, 3, [0], [], hot, greedy), Chunk(-1, length + 3, [0], [], relay.tier, greedy)]],
    ]  # fmt: skip
    for lanes in plans:
        runner.run(Plan(0, [], lanes, []))
    runner.run(Plan(0, [], [], [-1, -2]))


def _length(tokens: int, requests: int) -> int:
    """The prompt length at which prompts of all `requests` fill a step of `tokens`."""
    return max(2, tokens // requests)
