"""Attention away from a lane's device: the tokens of one tier alone, whatever lanes there are."""

from __future__ import annotations

import pytest
import torch

from tests.reference import Tiny
from tests.runtime.drive import CPU, EVERY, Drive, runner
from tests.runtime.test_runner import agrees, prompt
from weir.ops import native
from weir.runtime.warmup import warm_up_away

pytestmark = pytest.mark.skipif(native.library() is None, reason=native.status())
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


@pytest.fixture
def drive(device):
    """Pages of 4 tokens on the lane's device and, as many, away from it."""
    run = runner(Tiny().to(device), 4, {0: 64, 1: 64}, device=device, relayed=True)
    yield Drive(run)
    run.relay.close()


@pytest.mark.parametrize("pages", [{0: 64, 1: 64}, {1: 64}], ids=["two tiers", "one tier"])
def test_everything_away(device, pages):
    """Prompts in chunks over pages that were written before, then decodes chained in two lanes."""
    run = runner(Tiny().to(device), 4, pages, device=device, relayed=True)
    drive, texts = Drive(run), {uid: prompt(9 + 4 * uid, uid) for uid in range(4)}
    for begin, end in ((0, 6), (6, 99)):
        chunks = []
        for uid, tokens in texts.items():
            part, last = tokens[begin:end], end >= len(tokens)
            chunks.append(drive.chunk(uid, begin, part, sample=EVERY if last else None, tier=1))
        result = drive.go(chunks)
    for uid, tokens in texts.items():
        tokens.append(agrees(Tiny(), tokens, result, uid))
    for _ in range(6):
        decodes = [
            drive.chunk(uid, len(tokens) - 1, [], sample=EVERY, tier=1)
            for uid, tokens in texts.items()
        ]
        result = drive.go(decodes[:1], decodes[1:])
        for uid, tokens in texts.items():
            tokens.append(agrees(Tiny(), tokens, result, uid))
    run.relay.close()


def test_lanes_of_both_kinds(drive):
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
            tokens.append(agrees(Tiny(), tokens, result, other))


def test_one_lane_of_both(drive):
    tokens, others = prompt(10), prompt(7, 1)
    result = drive.go(
        [
            drive.chunk(1, 0, tokens, sample=EVERY, tier=1),
            drive.chunk(2, 0, others, sample=EVERY, tier=0),
        ]
    )
    tokens.append(agrees(Tiny(), tokens, result, 1))
    others.append(agrees(Tiny(), others, result, 2))
    for _ in range(5):
        pair = [
            drive.chunk(1, len(tokens) - 1, [], sample=EVERY, tier=1),
            drive.chunk(2, len(others) - 1, [], sample=EVERY, tier=1),
        ]
        result = drive.go(pair)
        tokens.append(agrees(Tiny(), tokens, result, 1))
        others.append(agrees(Tiny(), others, result, 2))


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
def test_warming_up_leaves_nothing_behind(device, pages):
    run = runner(Tiny().to(device), 4, pages, device=device, relayed=True)
    warm_up_away(run)
    assert not run.tables.row
    run.relay.close()
