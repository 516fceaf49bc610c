"""What a request asks of its tokens, through whole plans."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import Tiny, dense, logprobs
from tests.runtime.drive import Drive, runner
from weir.core import Sampling

MODEL = Tiny()
V = MODEL.spec.vocab
TEXT = [7, 3, 60, 22, 3, 3, 41]


def raw(tokens: list[int]) -> torch.Tensor:
    return logprobs(MODEL, tokens)[-1]


def ask(sampling: Sampling, *, mask: bytes | None = None, prompt: int = 7, **chunk):
    """One token after TEXT."""
    drive = Drive(runner(MODEL))
    return drive.go([drive.chunk(1, 0, TEXT, sample=sampling, mask=mask, prompt=prompt, **chunk)])


def bits(tokens) -> bytes:
    out = bytearray(-(-V // 8))
    for t in tokens:
        out[t // 8] |= 1 << (t % 8)
    return bytes(out)


def test_bias_allowed_and_mask():
    order = raw(TEXT).argsort(descending=True).tolist()
    allowed = order[5:9]
    for kwargs in (
        {"sampling": Sampling(temperature=0, allowed=allowed)},
        {"sampling": Sampling(temperature=0), "mask": bits(allowed)},
        {"sampling": Sampling(temperature=0, allowed=allowed), "mask": bits(order[4:7])},
    ):
        assert ask(**kwargs).tokens == {1: order[5]}
    bias = {order[30]: 100.0, order[0]: -100.0}
    assert ask(Sampling(temperature=0, logit_bias=bias)).tokens == {1: order[30]}
    assert ask(Sampling(temperature=0, logit_bias={order[0]: -100.0})).tokens == {1: order[1]}


def test_stops_wait_for_min_tokens():
    drive, tokens = Drive(runner(MODEL)), list(TEXT)
    # every token but two stops, so that a suppressed one shows; one is of no vocabulary
    free = raw(TEXT).topk(40).indices[-2:].tolist()
    sampling = Sampling(
        temperature=0, stops=[t for t in range(V + 5) if t not in free], min_tokens=3
    )
    for n in range(5):
        start, ids = (len(tokens) - 1, []) if n else (0, tokens)
        chunk = drive.chunk(1, start, ids, sample=sampling, prompt=7)
        logits = raw(tokens)
        want = max(free, key=lambda t: logits[t]) if n < 3 else int(logits.argmax())
        got = drive.go([chunk]).tokens[1]
        assert got == want
        tokens.append(got)


def test_logprobs_are_of_the_model_alone():
    want = raw(TEXT)
    order = want.argsort(descending=True).tolist()
    sampling = Sampling(temperature=0, allowed=[order[9]], logprobs=2, repetition_penalty=2.0)
    row = ask(sampling, history=[]).logprobs[1]
    assert (row.token, row.rank) == (order[9], 10)
    assert row.logprob == pytest.approx(float(want[order[9]]), abs=1e-5)
    assert [t for t, _ in row.top] == order[:2]
    assert ask(Sampling(temperature=0, logprobs=0)).logprobs[1].top == []
    assert ask(Sampling(temperature=0)).logprobs == {}


def test_each_row_gets_what_it_asked_for():
    """Greedy, plain, filtered, edited, penalised and scored rows of one batch, each as if alone."""
    wishes = [
        Sampling(temperature=0),
        Sampling(seed=1),
        Sampling(seed=2, top_k=5),
        Sampling(seed=3, top_p=0.7, logprobs=1),
        Sampling(seed=4, min_p=0.2, temperature=2.0),
        Sampling(seed=5, repetition_penalty=1.8),
        Sampling(temperature=0, allowed=[4, 5, 6]),
        Sampling(seed=6, logit_bias={9: 7.0}, logprobs=3),
        Sampling(temperature=1e-7),
        Sampling(seed=7, frequency_penalty=1.0, presence_penalty=0.5, top_k=9, min_tokens=1),
    ]
    history = [[] if s.penalised else None for s in wishes]
    order = list(range(len(wishes)))
    alone = [ask(s, history=h) for s, h in zip(wishes, history, strict=True)]
    for seed in range(3):
        random.Random(seed).shuffle(order)
        drive = Drive(runner(MODEL))
        drive.run.rows = 4  # draws are cut
        together = drive.go(
            [drive.chunk(i, 0, TEXT, sample=wishes[i], history=history[i], prompt=7) for i in order]
        )
        for i in order:
            assert together.tokens[i] == alone[i].tokens[1]
            assert (i in together.logprobs) == (wishes[i].logprobs is not None)


def test_a_draw_depends_on_seed_and_position_alone():
    """The same in one chunk or two, and with its last token on the device or sent again."""
    sampling = Sampling(seed=99, temperature=1.5)
    drive = Drive(runner(MODEL))
    tokens = list(TEXT)
    first = drive.go([drive.chunk(1, 0, TEXT, sample=sampling, prompt=7)]).tokens[1]
    second = drive.go([drive.chunk(1, 7, [], sample=sampling, prompt=7)]).tokens[1]
    other = Drive(runner(MODEL, page=1))
    other.go([other.chunk(5, 0, TEXT[:4], prompt=7)])
    assert other.go([other.chunk(5, 4, TEXT[4:], sample=sampling, prompt=7)]).tokens[5] == first
    again = other.chunk(5, 7, [first], sample=sampling, prompt=7)
    assert other.go([again]).tokens[5] == second
    tokens += [first, second]
    seen = {ask(Sampling(seed=s, temperature=1.5)).tokens[1] for s in range(20)}
    assert len(seen) > 3


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_penalties_counted_on_the_way_equal_penalties_recomputed(data):
    """Whatever is chunked, decoded on the device, preempted and resumed from whatever prefix."""
    sampling = Sampling(
        temperature=0,
        repetition_penalty=data.draw(st.sampled_from([1.0, 1.4, 8.0])),
        presence_penalty=data.draw(st.sampled_from([0.0, 2.0])),
        frequency_penalty=data.draw(st.sampled_from([0.5, 2.0])),
    )
    drive, tokens, n = Drive(runner(MODEL, page=1)), list(TEXT), len(TEXT)
    at, fresh, linked = 0, True, False
    while len(tokens) < n + 8:
        todo = len(tokens) - at
        length = data.draw(st.integers(1, todo))
        final = length == todo
        forget = []
        if not fresh and data.draw(st.integers(0, 4)) == 0:
            cached = data.draw(st.integers(0, at))
            pages, at = drive.pages[1][:cached], cached
            forget, fresh, linked, length = [1], True, False, len(tokens) - cached
            final = True
            drive.pages[1] = []
        else:
            pages = []
        chunk = drive.chunk(
            1,
            at,
            [] if linked and length == 1 and final else tokens[at : at + length],
            pages=pages,
            sample=sampling if final else None,
            prompt=n,
            history=tokens[:at] if fresh else None,
        )
        result = drive.run.run(drive.plan([chunk], forget=forget))
        assert not result.failed
        at, fresh = at + length, False
        if final:
            assert result.tokens[1] == int(penalised(tokens, n, sampling).argmax())
            table = drive.run.sampler.penalties
            slot = table.slot[1]
            assert table.seen[slot].tolist() == [t in tokens[:n] for t in range(V)]
            assert table.counts[slot].tolist() == [tokens[n:].count(t) for t in range(V)]
            tokens.append(result.tokens[1])
            linked = True


def penalised(tokens: list[int], prompt: int, sampling: Sampling) -> torch.Tensor:
    logits = MODEL.logits(dense(MODEL, tokens))[-1]
    for t in set(tokens):
        count = tokens[prompt:].count(t)
        r = sampling.repetition_penalty
        logits[t] = logits[t] / r if logits[t] > 0 else logits[t] * r
        logits[t] -= sampling.frequency_penalty * count + sampling.presence_penalty * (count > 0)
    return logits


def test_a_history_replaces_what_its_place_counted_before():
    drive = Drive(runner(MODEL))
    sampling = Sampling(temperature=0, presence_penalty=1.0)
    for round_ in range(3):
        uids = list(range(6))
        random.Random(round_).shuffle(uids)
        chunks = []
        for uid in uids:
            history = [uid, 10 + uid, 20 + uid, 20 + uid]
            pages = drive.take(1, 1)
            drive.pages.pop(uid, None)
            chunks.append(
                drive.chunk(
                    uid, 4, [30 + uid], pages=pages, sample=sampling, prompt=2, history=history
                )
            )
        drive.go(chunks, forget=list(range(6)) if round_ else [])
        table = drive.run.sampler.penalties
        for uid in uids:
            slot = table.slot[uid]
            assert table.seen[slot].nonzero().flatten().tolist() == [uid, 10 + uid]
            assert table.counts[slot].nonzero().flatten().tolist() == [20 + uid, 30 + uid]
            assert table.counts[slot].sum() == 3


def test_wishes_that_cannot_be_met_fail_alone():
    drive = Drive(runner(MODEL))
    wishes = {
        1: Sampling(temperature=0),
        2: Sampling(temperature=0, logit_bias={V: 1.0}),
        3: Sampling(seed=1, allowed=[0, -1]),
        4: Sampling(seed=1, allowed=[]),
        5: Sampling(temperature=0, logit_bias={3: 1e300}),
        6: Sampling(seed=3, top_k=10**30),
    }
    chunks = [drive.chunk(u, 0, TEXT, sample=s, prompt=7) for u, s in wishes.items()]
    chunks.append(drive.chunk(7, 0, TEXT, sample=Sampling(seed=1), mask=bytes(8), prompt=7))
    chunks.append(drive.chunk(8, 0, TEXT, sample=Sampling(seed=1, presence_penalty=1.0), prompt=7))
    result = drive.run.run(drive.plan(chunks))
    assert result.tokens.keys() == {1, 6}
    assert result.failed.keys() == {2, 3, 4, 5, 7, 8}
    assert "logit_bias holds 61" in result.failed[2] and "allowed_token_ids" in result.failed[3]
    assert result.tokens[1] == int(raw(TEXT).argmax())
    # the rows serve others afterwards
    drive.go(forget=list(range(1, 9)))
    result = drive.go([drive.chunk(u, 0, TEXT, sample=wishes[1], prompt=7) for u in range(11, 19)])
    assert set(result.tokens.values()) == {int(raw(TEXT).argmax())}


def test_penalties_of_a_request_that_was_carried_past_tokens():
    """A chunk that starts beyond the last one's end must bring its history again."""
    sampling = Sampling(temperature=0, repetition_penalty=1e9**0.1)
    for again in (True, False):
        drive = Drive(runner(MODEL))
        donor = drive.chunk(2, 0, TEXT[:4])
        drive.go([donor, drive.chunk(1, 0, TEXT[:2], history=[], prompt=7)])
        drive.pages[1] = []
        late = drive.chunk(
            1,
            4,
            TEXT[4:],
            pages=donor.pages,
            sample=sampling,
            prompt=7,
            history=TEXT[:4] if again else None,
        )
        result = drive.run.run(drive.plan([late], forget=[1] if again else []))
        assert (1 in result.tokens) == again == (1 not in result.failed)
