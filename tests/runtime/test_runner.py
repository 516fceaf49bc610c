"""Whatever the plan looks like, the tokens and logits are those of the dense reference."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import Tiny, dense, generate, logprobs
from tests.runtime.drive import EVERY, Drive, runner
from weir.core import Move, Page, Sampling, Score
from weir.ops import native

MODEL = Tiny()
LOCAL = Tiny(window=6)
GREEDY = Sampling(temperature=0.0)


def prompt(n: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(MODEL.spec.vocab), k=n)


def agrees(model: Tiny, tokens: list[int], result, uid: int) -> int:
    """Check a sampled token's whole distribution against the reference; returns the token."""
    want = logprobs(model, tokens)[-1]
    got = result.logprobs[uid]
    assert got.token == result.tokens[uid] == int(want.argmax()) and got.rank == 1
    ids, values = zip(*got.top, strict=True)
    assert sorted(ids) == list(range(model.spec.vocab))
    torch.testing.assert_close(torch.tensor(values).double(), want[list(ids)], atol=1e-5, rtol=1e-5)
    return got.token


def decode(drive: Drive, uid: int, tokens: list[int], n: int, model: Tiny = MODEL) -> None:
    """n steps of one token, fed back by the device; `tokens` grows."""
    for _ in range(n):
        chunk = drive.chunk(uid, len(tokens) - 1, [], sample=EVERY)
        tokens.append(agrees(model, tokens, drive.go([chunk]), uid))


@pytest.mark.parametrize("page", [1, 4, 16])
@pytest.mark.parametrize("step", [1, 2, 5, 7, 19])
@pytest.mark.parametrize("model", [MODEL, LOCAL], ids=["full", "window"])
def test_prompt_in_chunks(model, page, step):
    drive, tokens = Drive(runner(model, page)), prompt(19)
    for at in range(0, 19, step):
        part = tokens[at : at + step]
        last = at + step >= 19
        result = drive.go([drive.chunk(1, at, part, sample=EVERY if last else None)])
        assert bool(result.tokens) == last
    tokens.append(agrees(model, tokens, result, 1))
    decode(drive, 1, tokens, 5, model)


def test_a_batch_mixes_prompts_and_decodes():
    drive = Drive(runner(MODEL))
    a, b, c = prompt(9, 1), prompt(14, 2), prompt(3, 3)
    result = drive.go(
        [
            drive.chunk(1, 0, a, sample=EVERY),
            drive.chunk(2, 0, b[:6]),
            drive.chunk(3, 0, c, sample=EVERY),
        ]
    )
    a.append(agrees(MODEL, a, result, 1))
    c.append(agrees(MODEL, c, result, 3))
    result = drive.go(
        [
            drive.chunk(3, 3, [], sample=EVERY),
            drive.chunk(2, 6, b[6:], sample=EVERY),
            drive.chunk(1, 9, a[-1:], sample=EVERY),
        ]
    )
    for uid, tokens in ((1, a), (2, b), (3, c)):
        tokens.append(agrees(MODEL, tokens, result, uid))
    result = drive.go(
        [drive.chunk(uid, len(t) - 1, [], sample=EVERY) for uid, t in ((2, b), (1, a))]
    )
    for uid, tokens in ((1, a), (2, b)):
        agrees(MODEL, tokens, result, uid)


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_chunk_attends_pages_that_the_same_plan_writes(lanes):
    drive, shared = Drive(runner(MODEL)), prompt(8)
    first, second = shared + prompt(3, 1), shared + prompt(5, 2)
    one = drive.chunk(1, 0, first, sample=EVERY)
    two = drive.chunk(2, 8, second[8:], sample=EVERY, pages=one.pages[:2])
    result = drive.go([one, two]) if lanes == 1 else drive.go([one], [two])
    agrees(MODEL, first, result, 1)
    agrees(MODEL, second, result, 2)


def test_lanes_do_not_disturb_each_other():
    drive = Drive(runner(MODEL))
    texts = {uid: prompt(4 + uid, uid) for uid in range(5)}
    for _ in range(4):
        chunks = []
        for uid, tokens in texts.items():
            start = len(tokens) - 1 if uid in drive.pages else 0
            chunks.append(drive.chunk(uid, start, [] if start else tokens, sample=EVERY))
        result = drive.go(chunks[:2], chunks[2:3], chunks[3:])
        for uid, tokens in texts.items():
            tokens.append(agrees(MODEL, tokens, result, uid))


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_two_tiers(data):
    """A request's context lies on two tiers, cut anywhere, whatever chunk crosses the cut."""
    model = data.draw(st.sampled_from([MODEL, LOCAL]))
    page = data.draw(st.sampled_from([1, 2, 4]))
    relayed = native.library() is not None and data.draw(st.booleans())
    drive = Drive(runner(model, page, {0: 64, 1: 64}, relayed=relayed))
    texts = {}
    for uid in range(data.draw(st.integers(1, 3))):
        texts[uid] = prompt(data.draw(st.integers(1, 14)), uid)
    hot = {uid: data.draw(st.integers(0, 6)) for uid in texts}  # pages on the hotter tier
    at = dict.fromkeys(texts, 0)
    for _ in range(8):
        chunks, wants = [], []
        for uid, tokens in texts.items():
            n = data.draw(st.integers(1, len(tokens) - at[uid]))
            end = at[uid] + n
            held = len(drive.pages.get(uid, ()))
            need = -(-end // page)
            new = drive.take(0, max(0, min(hot[uid], need) - held))
            done = end == len(tokens)
            chunks.append(
                drive.chunk(
                    uid,
                    at[uid],
                    tokens[at[uid] : end],
                    pages=new,
                    tier=1,
                    sample=EVERY if done else None,
                )
            )
            at[uid] = end
            wants += [uid] * done
        result = drive.go(chunks)
        assert result.tokens.keys() == set(wants)
        for uid in wants:
            texts[uid].append(agrees(model, texts[uid], result, uid))


def test_pages_move_and_keep_their_content():
    drive, tokens = Drive(runner(MODEL, 4, {0: 8, 1: 8})), prompt(11)
    result = drive.go([drive.chunk(1, 0, tokens, sample=EVERY, tier=0)])
    tokens.append(agrees(MODEL, tokens, result, 1))
    # pages 0 1 2 of the hot tier change places, by way of the cold one and in one chain
    moves = [
        Move(Page(0, 0), Page(1, 5)),
        Move(Page(0, 1), Page(0, 0)),
        Move(Page(0, 2), Page(0, 1)),
        Move(Page(1, 5), Page(0, 2)),
    ]
    pages = [Page(0, 2), Page(0, 0), Page(0, 1)]
    drive.pages.clear()
    again = drive.chunk(1, 11, tokens[-1:], sample=EVERY, pages=pages)
    result = drive.run.run(drive.plan([again], moves=moves, forget=[1]))
    agrees(MODEL, tokens, result, 1)


def test_a_forgotten_request_resumes_from_its_pages():
    drive, tokens = Drive(runner(MODEL)), prompt(10)
    result = drive.go([drive.chunk(1, 0, tokens, sample=EVERY)])
    tokens.append(agrees(MODEL, tokens, result, 1))
    decode(drive, 1, tokens, 3)
    cached = drive.pages[1][:2]
    drive.go(forget=[1])
    assert drive.run.tables.row == {}
    result = drive.go([drive.chunk(1, 8, tokens[8:], pages=cached, sample=EVERY)])
    tokens.append(agrees(MODEL, tokens, result, 1))
    decode(drive, 1, tokens, 2)


def test_rows_are_reused():
    run = runner(MODEL, 4, {1: 1024}, requests=70)
    drive = Drive(run)
    for round_ in range(3):
        uids = range(1000 * round_, 1000 * round_ + 70)
        texts = {uid: prompt(3, uid) for uid in uids}
        result = drive.go([drive.chunk(uid, 0, texts[uid], sample=GREEDY) for uid in uids])
        second = drive.go([drive.chunk(uid, 3, [], sample=GREEDY) for uid in uids])
        for uid in (uids[0], uids[69]):
            assert [result.tokens[uid], second.tokens[uid]] == generate(MODEL, texts[uid], 2)
        drive.go(forget=list(uids))
        drive.used[1] = 0
    with pytest.raises(RuntimeError, match="more than 70 requests"):
        drive.go([drive.chunk(uid, 0, [1]) for uid in range(71)])


def test_prompt_logprobs_over_chunks():
    tokens = prompt(13)
    want = logprobs(MODEL, tokens)
    run = runner(MODEL)
    run.rows = 4  # so that slices of logits are cut inside a chunk
    drive = Drive(run)
    got = []
    for at, end in ((0, 6), (6, 13)):
        score = Score(2 if at == 0 else 0, tokens[max(at, 2) + 1 : end + 1], 3)
        other = drive.chunk(at, 0, prompt(5, 9), sample=EVERY, score=Score(0, prompt(5, 9)[1:3], 0))
        result = drive.go([other, drive.chunk(7, at, tokens[at:end], score=score)])
        got += result.scores[7]
        assert [len(row.top) for row in result.scores[at]] == [0, 0]
        agrees(MODEL, prompt(5, 9), result, at)
    assert [row.token for row in got] == tokens[3:]
    for row, expected in zip(got, want[2:], strict=False):
        assert row.logprob == pytest.approx(float(expected[row.token]), abs=1e-5)
        assert row.rank == 1 + int((expected > expected[row.token]).sum())
        assert [i for i, _ in row.top] == expected.topk(3).indices.tolist()


@pytest.mark.parametrize("step", [3, 5, 11])
def test_pooling(step):
    tokens, drive = prompt(11), Drive(runner(MODEL))
    states = MODEL.hidden(dense(MODEL, tokens))
    for at in range(0, 11, step):
        part, final = tokens[at : at + step], at + step >= 11
        result = drive.go(
            [
                drive.chunk(1, at, part, pool="mean", final=final),
                drive.chunk(2, at, part, pool="last", final=final),
                drive.chunk(3, at, part, sample=GREEDY if final else None),
            ]
        )
        assert result.vectors.keys() == ({1, 2} if final else set())
    for uid, vector in ((1, states.mean(0)), (2, states[-1])):
        unit = vector / vector.norm()
        torch.testing.assert_close(torch.tensor(result.vectors[uid]), unit, atol=1e-5, rtol=0)
    assert result.tokens == {3: generate(MODEL, tokens, 1)[0]}


def test_a_mean_that_skips_positions_fails_alone():
    drive = Drive(runner(MODEL))
    bad = drive.chunk(1, 4, prompt(3), pool="mean", final=True)
    good = drive.chunk(2, 0, prompt(3), pool="mean", final=True)
    result = drive.run.run(drive.plan([bad, good]))
    assert result.failed.keys() == {1} and result.vectors.keys() == {2}


def test_a_token_outside_the_vocabulary_fails_alone():
    drive, tokens = Drive(runner(MODEL)), prompt(5)
    chunks = [
        drive.chunk(1, 0, [3, 61, 4], sample=EVERY),
        drive.chunk(2, 0, tokens, sample=EVERY),
        drive.chunk(3, 0, [-1], sample=EVERY),
        drive.chunk(4, 0, [1, 2], score=Score(0, [99], 0), sample=EVERY),
    ]
    result = drive.run.run(drive.plan(chunks))
    assert result.failed.keys() == {1, 3, 4}
    assert result.tokens.keys() == {2} and not result.scores
    agrees(MODEL, tokens, result, 2)


def test_a_poisoned_request_does_not_spoil_the_batch_or_its_pages():
    model = Tiny()
    model.embedding[60] = torch.nan
    drive, good = Drive(runner(model)), [t % 60 for t in prompt(6)]
    chunks = [
        drive.chunk(1, 0, [5, 60, 7, 1, 2], sample=EVERY),
        drive.chunk(2, 0, good, sample=EVERY),
        drive.chunk(3, 0, [60, 1], score=Score(0, [1], 2)),
        drive.chunk(4, 0, [60, 1], pool="last", final=True),
    ]
    result = drive.run.run(drive.plan(chunks))
    assert result.failed.keys() == {1, 3, 4}
    good.append(agrees(model, good, result, 2))
    # the next plan was made before this was known
    late = [drive.chunk(1, 5, [], sample=EVERY), drive.chunk(2, 6, [], sample=EVERY)]
    result = drive.run.run(drive.plan(late))
    assert 1 in result.failed
    agrees(model, good, result, 2)
    # its pages serve another, whose tokens end inside one
    pages = drive.pages[1][:1]
    result = drive.go([drive.chunk(5, 0, [9], pages=pages, sample=EVERY)], forget=[1])
    agrees(model, [9], result, 5)


@pytest.mark.parametrize(
    ("pages", "why"),
    [
        ([Page(1, 999)], "no page 999"),
        ([Page(0, 0)], "no page 0 of tier 0"),
        ([Page(1, -1)], "no page -1"),
    ],
)
def test_a_plan_that_names_no_page_is_refused(pages, why):
    drive = Drive(runner(MODEL))
    with pytest.raises(RuntimeError, match=why):
        drive.go([drive.chunk(1, 0, [1], pages=pages)])


def test_a_plan_that_goes_on_from_an_unknown_token_is_refused():
    drive = Drive(runner(MODEL))
    with pytest.raises(RuntimeError, match="never sampled"):
        drive.go([drive.chunk(1, 0, [])])


def test_a_plan_that_reaches_past_its_pages_is_refused():
    drive = Drive(runner(MODEL))
    drive.pages[1] = drive.take(1, 1)  # never told
    with pytest.raises(RuntimeError, match="past the pages"):
        drive.go([drive.chunk(1, 0, [1])])
