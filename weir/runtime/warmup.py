"""Steps that serve nobody: after them memory is known and every kernel is compiled and loaded.

They run before the first request, over the pages that it will be given, and leave nothing behind.
"""

from __future__ import annotations

from collections.abc import Iterator

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


COMMON = 192  # tokens of the prompts whose prefix is shared


def pages_needed(tokens: int, requests: int, page: int) -> int:
    """Pages that `warm_up` writes to."""
    return max(_length(tokens, requests), min(tokens, COMMON)) // page + 1


def warm_up(runner: Runner, tokens: int, requests: int) -> None:
    """Run the largest steps, of prompts and of decodes, and every way of choosing a token.

    All requests share their pages: what they compute is of no use to anyone."""
    landings = [runner.launch(plan) for plan in _plans(runner, tokens, requests)]
    runner.saved, saved = 1, runner.saved
    landings += [runner.launch(plan) for plan in _sharing(runner, tokens)]
    runner.saved = saved
    for landing in landings:  # each holds what its plan still reads
        landing.result()


def _plans(runner: Runner, tokens: int, requests: int) -> Iterator[Plan]:
    length = _length(tokens, requests)
    tier = min(runner.store.pages)
    pages = [Page(tier, i) for i in range(pages_needed(tokens, requests, runner.store.page))]
    uids = [-1 - i for i in range(min(tokens // length, requests))]
    prompts = [Chunk(uid, 0, [0] * length, pages, tier, Sampling()) for uid in uids]
    yield Plan(0, [], [prompts], [])
    yield Plan(0, [], [[Chunk(uid, length, [], [], tier, Sampling()) for uid in uids]], [])
    yield Plan(0, [], [], uids)
    for sampling in CHOICES:  # beside each other: a chunk of several tokens, and one of one
        history = [] if sampling.penalised else None
        chunk = Chunk(-1, 0, [0] * length, pages, tier, sampling, history=history)
        single = Chunk(-2, length, [0], pages, tier, sampling, history=history)
        yield Plan(0, [], [[chunk, single]], [])
        yield Plan(0, [], [], [-1, -2])


def _sharing(runner: Runner, tokens: int) -> Iterator[Plan]:
    """Decodes whose prefix is read once, alone and beside a chunk of a prompt."""
    tier, length = min(runner.store.pages), min(tokens, COMMON)
    if tokens < COMMON + 4 or runner.store.pages[tier] * runner.store.page <= length:
        return
    pages = [Page(tier, i) for i in range(length // runner.store.page + 1)]
    for uid in (-1, -2):
        yield Plan(0, [], [[Chunk(uid, 0, [0] * length, pages, tier, Sampling())]], [])
    for at, more in enumerate(([], [Chunk(-3, 0, [0] * 4, pages, tier, Sampling())])):
        decodes = [Chunk(uid, length + at, [], [], tier, Sampling()) for uid in (-1, -2)]
        yield Plan(0, [], [decodes + more], [])
    yield Plan(0, [], [], [-1, -2, -3])


def warm_up_away(runner: Runner) -> None:
    """Run what a relay adds: contexts that lie on both tiers, beside others and in lanes of their
    own. Leaves nothing behind."""
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
    """Tokens of a prompt such that prompts of as many requests as may run fill a step."""
    return max(2, tokens // requests)
