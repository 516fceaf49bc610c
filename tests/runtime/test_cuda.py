"""The runner on a GPU, with and without a second tier on the CPU: as on the CPU alone."""

import pytest
import torch

from tests.executor.test_local import local
from tests.reference import Tiny
from tests.runtime.drive import CPU, EVERY, Drive, runner
from weir.core import Move, Page, Sampling, Score
from weir.runtime.rates import rates

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WISHES = [
    EVERY,
    Sampling(seed=1, logprobs=3),
    Sampling(seed=2, top_p=0.8),
    Sampling(seed=3, top_k=9, min_p=0.01, logit_bias={4: 2.0}),
    Sampling(seed=4, repetition_penalty=1.7, frequency_penalty=0.5),
    Sampling(temperature=0.0, allowed=[1, 2, 3]),
]
TEXTS = [[7, 3, 60, 22, 3 + uid, 3, 41, 9 * uid, 5] for uid in range(len(WISHES))]


def results(device: torch.device, tiers: int):
    """Prompts in two chunks, then decodes chained on the device, in flight two at a time."""
    run = runner(Tiny().to(device), 2, dict.fromkeys(range(tiers), 64), device=device)
    drive, executor = Drive(run), local(run)
    try:
        plans = []
        for start, end in ((0, 4), (4, 9), *((n, 0) for n in range(9, 15))):
            chunks = []
            for uid, (sampling, text) in enumerate(zip(WISHES, TEXTS, strict=True)):
                penalised = sampling.penalised and start == 0
                chunks.append(
                    drive.chunk(
                        uid,
                        start,
                        text[start:end],
                        sample=sampling if end != 4 else None,
                        tier=min(tiers - 1, start // 8),
                        prompt=9,
                        history=[] if penalised else None,
                        score=Score(0, text[1:4], 2) if end == 4 else None,
                    )
                )
            chunks.append(drive.chunk(100 + start, 0, [3, start], pool="last", final=True, tier=0))
            plans.append(drive.plan(chunks[:4], chunks[4:]))
        plans.insert(3, drive.plan(moves=[Move(Page(0, 60), Page(tiers - 1, 61))]))
        handles = [executor.submit(plan) for plan in plans]
        return [handle.result() for handle in handles]
    finally:
        executor.close()


@pytest.mark.parametrize("tiers", [1, 2])
def test_a_gpu_gives_what_a_cpu_gives(tiers):
    for got, want in zip(results(torch.device("cuda"), tiers), results(CPU, 1), strict=True):
        assert not got.failed and got.seconds > 0
        assert got.tokens == want.tokens
        assert got.vectors.keys() == want.vectors.keys()
        for uid, vector in want.vectors.items():
            assert got.vectors[uid] == pytest.approx(vector, abs=1e-4)
        for mine, theirs in ((got.scores, want.scores), (got.logprobs, want.logprobs)):
            assert mine.keys() == theirs.keys()
        rows = [(got.logprobs[uid], want.logprobs[uid]) for uid in want.logprobs]
        for uid in want.scores:
            rows += zip(got.scores[uid], want.scores[uid], strict=True)
        for mine, theirs in rows:
            assert (mine.token, mine.rank) == (theirs.token, theirs.rank)
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-3)
            assert [t for t, _ in mine.top][:3] == [t for t, _ in theirs.top][:3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rates_are_those_of_a_gpu(dtype):
    """Also of one that others use at the same time: no more than a hundred times too low."""
    copy, product = rates(torch.device("cuda"), dtype)
    assert 1e10 < copy < 1e14 and 1e11 < product < 1e16
