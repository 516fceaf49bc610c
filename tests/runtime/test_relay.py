"""Attention away from a lane's device: the tokens of one tier alone, whatever lanes there are."""

import pytest
import torch

from tests.reference import Tiny, logprobs
from tests.runtime.drive import CPU, EVERY, Drive, runner
from tests.runtime.test_runner import agrees, prompt
from weir.ops import native
from weir.ops.coded import BYTES
from weir.runtime.warmup import warm_up_away

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.status())
ERROR = {torch.int8: 0.15, torch.int4: 1.7}
"""Of a logarithm, where keys and values are of such codes."""
GPU = pytest.param(
    torch.device("cuda"),
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)


@pytest.fixture(params=[CPU, GPU], ids=["cpu", "gpu"])
def device(request):
    return request.param


@pytest.fixture(params=[None, *BYTES], ids=["exact", "int8", "int4"])
def kind(request):
    """Of KV away."""
    return request.param


@pytest.fixture
def drive(device, kind):
    """Pages of 4 tokens on the lane's device and, as many, away from it."""
    run = runner(tiny().to(device), 4, {0: 64, 1: 64}, device=device, relayed=True, cold=kind)
    yield Drive(run)
    run.relay.close()


def tiny() -> Tiny:
    return Tiny(size=64)  # a group


def follows(tokens: list[int], result, uid: int, kind: torch.dtype | None) -> int:
    """Check a sampled token's whole distribution, which may be as far off as codes make it."""
    if kind is None:
        return agrees(tiny(), tokens, result, uid)
    want, got = logprobs(tiny(), tokens)[-1], result.logprobs[uid]
    ids, values = zip(*got.top, strict=True)
    error = (torch.tensor(values).double() - want[list(ids)]).abs().max()
    assert error < ERROR[kind]
    return got.token


@pytest.mark.parametrize("pages", [{0: 64, 1: 64}, {1: 64}], ids=["two tiers", "one tier"])
def test_everything_away(device, kind, pages):
    """Prompts in chunks over pages that were written before, then decodes chained in two lanes."""
    run = runner(tiny().to(device), 4, pages, device=device, relayed=True, cold=kind)
    drive, texts = Drive(run), {uid: prompt(9 + 4 * uid, uid) for uid in range(4)}
    for begin, end in ((0, 6), (6, 99)):
        chunks = []
        for uid, tokens in texts.items():
            part, last = tokens[begin:end], end >= len(tokens)
            chunks.append(drive.chunk(uid, begin, part, sample=EVERY if last else None, tier=1))
        result = drive.go(chunks)
    for uid, tokens in texts.items():
        tokens.append(follows(tokens, result, uid, kind))
    for _ in range(6):
        decodes = [
            drive.chunk(uid, len(tokens) - 1, [], sample=EVERY, tier=1)
            for uid, tokens in texts.items()
        ]
        result = drive.go(decodes[:1], decodes[1:])
        for uid, tokens in texts.items():
            tokens.append(follows(tokens, result, uid, kind))
        assert 0 < result.host < 10, "the host's seconds are told"
    run.relay.close()


def test_lanes_of_both_kinds(drive, kind):
    """As NEO: prompts and decodes at home beside a lane of decodes away, whose number grows; a
    shared prefix at home has its tail away."""
    shared, texts = prompt(8), {}
    for uid in range(6):
        texts[uid] = shared + prompt(3 + uid, uid)
        tier = uid % 2
        if uid < 2:
            new = drive.chunk(uid, 0, texts[uid], sample=EVERY, tier=0)
        else:
            pages = drive.pages[0][:2]
            new = drive.chunk(uid, 8, texts[uid][8:], sample=EVERY, tier=tier, pages=pages)
        old = [
            drive.chunk(other, len(texts[other]) - 1, [], sample=EVERY, tier=other % 2)
            for other in range(uid)
        ]
        away = [chunk for chunk in old if chunk.uid % 2]
        result = drive.go([new, *(chunk for chunk in old if not chunk.uid % 2)], away)
        for other, tokens in texts.items():
            tokens.append(follows(tokens, result, other, kind))


def test_one_lane_of_both(drive, kind):
    tokens, others = prompt(10), prompt(7, 1)
    result = drive.go(
        [
            drive.chunk(1, 0, tokens, sample=EVERY, tier=1),
            drive.chunk(2, 0, others, sample=EVERY, tier=0),
        ]
    )
    tokens.append(follows(tokens, result, 1, kind))
    others.append(follows(others, result, 2, kind))
    for _ in range(5):
        pair = [
            drive.chunk(1, len(tokens) - 1, [], sample=EVERY, tier=1),
            drive.chunk(2, len(others) - 1, [], sample=EVERY, tier=1),
        ]
        result = drive.go(pair)
        tokens.append(follows(tokens, result, 1, kind))
        others.append(follows(others, result, 2, kind))


def test_closing_lets_nobody_wait_for_queries_that_do_not_come():
    run = runner(Tiny(), 4, {0: 64, 1: 64}, relayed=True)
    relay, drive = run.relay, Drive(run)
    tokens = prompt(5)
    tokens.append(drive.go([drive.chunk(1, 0, tokens, sample=EVERY, tier=1)]).tokens[1])
    waited = []
    relay.signals.set = lambda word, ticket: None
    relay.signals.wait = lambda word, ticket: waited.append((word, ticket))
    run.run(drive.plan([drive.chunk(1, 5, [], sample=EVERY, tier=1)]))
    relay.close()
    relay.close()
    assert waited and all(relay.signals.words[word] == waited[-1][1] for word, _ in waited)


@pytest.mark.parametrize("pages", [{0: 4, 1: 4}, {0: 2, 1: 64}, {1: 64}], ids=str)
def test_warming_up_leaves_nothing_behind(device, kind, pages):
    run = runner(tiny().to(device), 4, pages, device=device, relayed=True, cold=kind)
    warm_up_away(run)
    assert not run.tables.row
    run.relay.close()
