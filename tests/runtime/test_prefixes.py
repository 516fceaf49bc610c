"""Decodes that share pages are found and named to attention, in padded lanes and in others."""

import pytest

from tests.reference import Tiny, generate
from tests.runtime.drive import Drive, runner
from weir.core import Sampling
from weir.runtime import attention
from weir.runtime.graphs import Graphs, Recorder, shared_sizes
from weir.runtime.inputs import Shape

MODEL = Tiny()
GREEDY = Sampling(temperature=0.0)
PROMPT = [n * 7 % 61 for n in range(140)]


@pytest.mark.parametrize("graphs", [None, Graphs([4, 8], shared=[8])])
def test_decodes_of_one_prompt_are_named_and_give_the_same_tokens(monkeypatch, graphs) -> None:
    """Three follow one prompt, one another; a chunk beside them ends their being alone."""
    told = []

    def attend(q, kv, batch, spec):
        shared = batch.shared
        told.append(None if shared is None else shared.keys.tolist())
        if shared is not None:
            taken = batch.kv_len.new_zeros(len(batch.kv_len))
            for members, keys in zip(shared.member.tolist(), shared.keys.tolist(), strict=True):
                rows = [s for s in members if s >= 0]
                pages = batch.table[rows, : keys // 4]
                assert (pages == pages[:1]).all() and (batch.kv_len[rows] > keys).all()
                taken[rows] += keys
            assert (taken == shared.skip).all()
        return original(q, kv, batch, spec)

    original = attention.attend
    monkeypatch.setattr(Recorder, "record", lambda self, run, ours=True: run)  # it is called again
    run = runner(MODEL, pages={1: 400}, context=200, graphs=graphs)
    run.shares, run.saved = True, 256
    monkeypatch.setattr(attention, "attend", attend)
    drive = Drive(run)
    texts = {uid: [*PROMPT[:136], uid, 3] for uid in (1, 2, 3)} | {4: [9, *PROMPT[:136]]}
    out: dict[int, list[int]] = {}
    first = drive.go([drive.chunk(uid, 0, texts[uid], sample=GREEDY) for uid in (1, 4)])
    held = drive.pages[1][:34]
    both = [drive.chunk(uid, 136, texts[uid][136:], sample=GREEDY, pages=held) for uid in (2, 3)]
    second = drive.go(both)
    for uid in texts:
        out[uid] = [(first.tokens | second.tokens)[uid]]
    for step in range(4):
        told.clear()
        chunks = [drive.chunk(u, len(texts[u]) + step, [], sample=GREEDY) for u in texts]
        if step == 3:
            chunks.append(drive.chunk(9, 0, [1, 2, 3], sample=GREEDY))
        for uid, token in drive.go(chunks).tokens.items():
            out.setdefault(uid, []).append(token)
        if graphs is None:
            assert all(keys == [136] for keys in told)
        elif step < 3:
            assert all(keys == [136, 0, 0, 0] for keys in told)
        assert told
    for uid, text in texts.items():
        assert out[uid] == generate(MODEL, text, 5)


def test_lanes_with_prefixes_have_shapes_of_their_own() -> None:
    drive = Drive(runner(MODEL, graphs=Graphs([4, 8, 16], shared=[8])))
    fit = drive.run.graphs.fit
    chunks = [drive.chunk(uid, 0, [1]) for uid in range(12)]
    assert fit(chunks[:3], shared=True) == Shape(8, 8, True)
    assert fit(chunks[:3]) == Shape(4, 4)
    assert fit(chunks, shared=True) == Shape(16, 16)  # read by each rather than not replayed
    assert shared_sizes([1, 2, 4, 8, 32, 40, 64]) == [32, 64]
