"""Padded lanes give what lanes of their own size give; without a GPU, too."""

import random
from itertools import pairwise

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import Tiny, generate
from tests.runtime.drive import Drive, runner
from weir.core import Sampling, Score
from weir.ops.prefix import SAVED
from weir.runtime import attention
from weir.runtime.graphs import Graphs, decode_sizes, mixed_shapes
from weir.runtime.inputs import Shape
from weir.runtime.warmup import pages_needed, warm_up

MODEL = Tiny()
GREEDY = Sampling(temperature=0.0)
WISHES = [
    GREEDY,
    Sampling(seed=1),
    Sampling(seed=2, temperature=1.7),
    Sampling(seed=3, top_k=5),
    Sampling(seed=4, top_p=0.7, logprobs=2),
    Sampling(seed=5, repetition_penalty=1.8, frequency_penalty=0.3),
    Sampling(seed=6, logit_bias={9: 3.0}),
]


def graphs() -> Graphs:
    return Graphs([1, 2, 4, 8], [Shape(16, 4), Shape(32, 9)])


@pytest.mark.parametrize("most", [1, 2, 3, 4, 5, 8, 9, 64, 100, 256])
def test_sizes_reach_the_most_and_waste_little(most):
    sizes = decode_sizes(most)
    assert sizes[0] == 1 and sizes[-1] == most == max(sizes)
    assert sizes == sorted({*sizes})
    assert all(b - a <= max(8, a) for a, b in pairwise(sizes))


def test_lanes_of_chunks_are_recorded_where_launching_takes_longest():
    small = msgspec.structs.replace(MODEL.spec, hidden=1024, ffn=3072, heads=16, head_dim=128)
    large = msgspec.structs.replace(MODEL.spec, hidden=8192, ffn=28672, heads=64, head_dim=128)
    assert max(mixed_shapes(small, 64)).tokens >= 1024
    assert mixed_shapes(large, 64) == mixed_shapes(small, 1) == []
    for requests in (2, 64, 256, 1024):
        shapes = mixed_shapes(small, requests)
        assert all(1 < shape.sequences < shape.tokens for shape in shapes)
        assert all(shape.sequences <= requests for shape in shapes)


def test_the_smallest_shape_that_holds_the_chunks_is_chosen():
    drive = Drive(runner(MODEL, graphs=graphs()))
    fit = drive.run.graphs.fit

    def chunks(*lengths: int):
        return [drive.chunk(uid, 0, [1] * n) for uid, n in enumerate(lengths)]

    assert fit(chunks(1, 1, 1)) == Shape(4, 4)
    assert fit(chunks(5, 1)) == fit(chunks(14, 1, 1)) == Shape(16, 4)
    assert fit(chunks(5, 1, 1, 1)) == Shape(32, 9)  # the padding is a sequence of its own
    assert fit(chunks(*[1] * 9)) is None and fit(chunks(33)) is None
    assert fit([drive.chunk(9, 0, [1, 2], score=Score(0, [2], 1))]) is None
    assert fit([drive.chunk(9, 0, [1], pool="last", final=True)]) is None
    assert Graphs([4]).fit(chunks(1)) is None  # nothing is recorded yet


def tokens_of(run, wishes, seed: int):
    """Requests of any length come, decode beside each other's chunks, leave; all their tokens."""
    pick, drive = random.Random(seed), Drive(run)
    texts = {uid: pick.choices(range(61), k=pick.randrange(1, 20)) for uid in range(12)}
    at: dict[int, int] = {}
    out: dict[int, list[int]] = {uid: [] for uid in texts}
    ended: list[int] = []
    landings = []
    for _ in range(26):
        for uid in list(texts)[: pick.randrange(0, 4)]:
            if len(at) < 9:
                at.setdefault(uid, 0)
        chunks = []
        for uid in pick.sample(sorted(at), len(at)):
            wish, text = wishes[uid % len(wishes)], texts[uid]
            rest = text[at[uid] : at[uid] + pick.randrange(1, 12)]
            history = [] if wish.penalised and at[uid] == 0 else None
            done = at[uid] + (len(rest) or 1) >= len(text)
            chunks.append(
                drive.chunk(
                    uid,
                    at[uid],
                    rest,
                    sample=wish if done else None,
                    prompt=len(text),
                    history=history,
                )
            )
            at[uid] += len(rest) or 1
        landings.append(run.launch(drive.plan(chunks, forget=ended)))
        ended = [uid for uid in at if at[uid] > len(texts[uid]) + 7]
        for uid in ended:
            del at[uid], texts[uid]
    for landing in landings:  # after all were launched, so that none may overwrite another
        result = landing.result()
        assert not result.failed
        for uid, token in result.tokens.items():
            out[uid].append(token)
    return out


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_padded_lanes_give_the_tokens_of_unpadded_ones(seed):
    for wishes in ([GREEDY], WISHES[:3], [*WISHES[:4], Sampling(seed=8, min_p=0.1)], WISHES):
        got = tokens_of(runner(MODEL, graphs=graphs()), wishes, seed)
        assert got == tokens_of(runner(MODEL), wishes, seed)
        assert any(len(tokens) > 3 for tokens in got.values())


def test_a_padded_decode_goes_on_from_the_token_the_device_has():
    drive, tokens = Drive(runner(MODEL, graphs=graphs())), [5, 9, 1]
    want = generate(MODEL, tokens, 6)
    landings = [drive.run.launch(drive.plan([drive.chunk(1, 0, tokens, sample=GREEDY)]))]
    for n in range(5):
        plan = drive.plan([drive.chunk(1, 3 + n, [], sample=GREEDY)])
        landings.append(drive.run.launch(plan))
    assert [landing.result().tokens[1] for landing in landings] == want


def test_padding_writes_to_no_request_s_page():
    run = runner(MODEL, pages={1: 3}, graphs=Graphs([2]))
    drive = Drive(run)
    for n in range(4):
        drive.go([drive.chunk(1, n, [7], sample=GREEDY)])
    assert all(not kv[1:3].any() and kv[0].any() and kv[3].any() for kv in run.store.kv[1])


def test_warming_up_leaves_nothing_behind():
    run = runner(MODEL, graphs=graphs())
    warm_up(run, 64, 8)
    assert not run.tables.row and len(run.tables.free) == run.tables.padding
    assert not run.sampler.penalties.slot and not run.pooler.sums
    drive, tokens = Drive(run), [5, 9, 1]
    result = drive.go([drive.chunk(1, 0, tokens, sample=GREEDY)])
    assert [result.tokens[1]] == generate(MODEL, tokens, 1)


@pytest.mark.parametrize(("tokens", "requests"), [(64, 8), (7, 64), (2, 1), (100, 3)])
def test_warming_up_fills_a_step_and_takes_the_pages_and_rows_it_names(tokens, requests):
    most = []
    run = runner(MODEL, pages={1: pages_needed(tokens, requests, 4)}, requests=requests)
    launch = run.launch
    run.launch = lambda plan: most.append(plan.tokens) or launch(plan)
    warm_up(run, tokens, requests)
    assert tokens - max(2, tokens // requests) < max(most) <= max(tokens, 3)


@pytest.mark.parametrize("recorded", [False, True])
def test_warming_up_compiles_what_reads_prefixes_once(monkeypatch, recorded):
    """In lanes of decodes and in those with a chunk beside them, of few sequences and, where time
    matters, of as many as there may be; after it sharing must pay again."""
    seen = set()

    def attend(q, kv, batch, spec):
        seen.add((len(q), batch.shared is not None))
        return original(q, kv, batch, spec)

    original = attention.attend
    monkeypatch.setattr(attention, "attend", attend)
    run = runner(MODEL, pages={1: pages_needed(400, 8, 4)}, context=400)
    run.graphs.mixed = [Shape(64, 8)] * recorded  # not recorded yet: nothing is padded
    run.shares = True
    warm_up(run, 400, 8)
    assert {(2, True), (6, False), (6, True)} <= seen and run.saved == SAVED
    many = {(7, True), (11, False), (11, True), (50, False), (300, False)}
    assert (many <= seen) if recorded else not (many - {(50, False)}) & seen
    assert not run.tables.row


@pytest.mark.parametrize("requests", [1, 8])
def test_a_context_shorter_than_a_step_is_warmed_up_as_far_as_it_goes(requests):
    run = runner(MODEL, pages={1: 200}, context=40)
    run.shares = True
    warm_up(run, 400, requests)
    assert not run.tables.row


@pytest.mark.parametrize("parts", [2, 3])
def test_parts_of_a_forward_pass_make_the_whole(parts):
    """Each may be called again before the next, as recording on a GPU does."""
    run = runner(Tiny(layers=3), graphs=Graphs([4]))
    padded = run.padded
    with torch.inference_mode():
        lane, _, _ = padded._nothing(Shape(4, 4))
        for part in padded._forward(lane, 1):
            part()
        whole = padded.states.clone()
        padded.states.zero_()
        for part in padded._forward(lane, parts):
            part()
            part()
    assert whole.any() and torch.equal(padded.states, whole)
