"""The choice of tokens on a GPU, or in Triton's interpreter, against the same choice in PyTorch."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weir.ops import sample

pytest.importorskip("triton", minversion=None if torch.cuda.is_available() else "3.9")

from weir.ops import triton as gpu

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy: exp of -inf
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MANY = torch.cuda.is_available()


def choose(
    logits: Tensor, temperature: Tensor, u: Tensor, filters: sample.Filters | None = None
) -> list[int]:
    there = [x.to(DEVICE) for x in (logits, temperature, u)]
    cut = filters and tuple(x.to(DEVICE) for x in (filters.top_k, filters.top_p, filters.min_p))
    return gpu.choose(*there, cut).tolist()


def uniform(n: int, seed: int = 5) -> Tensor:
    return torch.from_numpy(sample.uniform(np.full(n, seed, np.uint64), np.arange(n)))


def filters_of(rows: list[tuple[int, float, float]]) -> sample.Filters:
    k, p, least = zip(*rows, strict=True)
    double = torch.float64
    return sample.Filters(
        torch.tensor(k), torch.tensor(p, dtype=double), torch.tensor(least, dtype=double)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("vocab", [7, 2048, 5003])
def test_plain_and_greedy_rows(vocab: int, dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(vocab)
    rows = 200 if MANY else 12
    logits = (torch.randn(rows, vocab + 3, generator=g) * 6).to(dtype)[:, :vocab]  # rows lie apart
    heat = torch.rand(rows, generator=g) + 0.3
    heat[::3] = 0.0
    u = uniform(rows)
    assert choose(logits, heat, u) == sample.choose(logits.float(), heat, u).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocab", "width"), [(7, 1), (4100, 513), (5003, 300), (5003, 700)])
def test_masked_rows(vocab: int, width: int, dtype: torch.dtype) -> None:
    """Masks that end with the vocabulary, before it and after it; some rows have none."""
    g = torch.Generator().manual_seed(width)
    masks = torch.randint(0, 256, (3, width), generator=g, dtype=torch.uint8)
    rows, which = torch.tensor([4, 0, 2, 5]), torch.tensor([1, 0, 2, 1])
    logits = torch.randn(6, vocab + 3, generator=g).to(dtype)
    got = logits.to(DEVICE)
    gpu.restrict(got[:, :vocab], *(x.to(DEVICE) for x in (rows, which, masks)))
    sample.restrict(logits[:, :vocab], rows, which, masks)
    assert torch.equal(got.cpu(), logits)


CUTS = [(0, 1.0, 0.0), (1, 1.0, 0.0), (50, 1.0, 0.0), (0, 0.9, 0.0), (0, 1.0, 0.05), (40, 0.8, 0.0)]
CUTS += [(40, 1.0, 0.02), (0, 0.7, 0.001), (9, 0.5, 0.01), (3000, 0.99, 0.0), (0, 1e-9, 0.0)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.01, 3.0, 12.0])
def test_filtered_rows(spread: float, dtype: torch.dtype) -> None:
    """Flat rows, whose prefixes are nearly all there is, and steep ones; some rows are greedy."""
    g = torch.Generator().manual_seed(1)
    rows = len(CUTS) * (9 if MANY else 1)
    logits = (torch.randn(rows, 4100, generator=g) * spread - 2).to(dtype)
    filters = filters_of([CUTS[i % len(CUTS)] for i in range(rows)])
    heat = torch.rand(rows, generator=g) + 0.5
    heat[4] = 0.0
    u = uniform(rows)
    assert choose(logits, heat, u, filters) == (
        sample.choose(logits.float(), heat, u, filters).tolist()
    )


@settings(max_examples=200 if MANY else 8, deadline=None)
@given(
    values=st.lists(st.integers(-20, 20).map(lambda x: x / 4), min_size=1, max_size=200),
    cut=st.sampled_from(CUTS[1:]),
    heat=st.sampled_from([0.3, 1.0, 3.0]),
    u=st.floats(0, 1, exclude_max=True),
)
def test_ties_are_cut_by_id(
    values: list[float], cut: tuple[int, float, float], heat: float, u: float
) -> None:
    logits = torch.tensor([values] * 3)
    us = torch.tensor([0.0, u, 1 - 2**-53], dtype=torch.float64)
    heats = torch.full((3,), heat)
    filters = filters_of([cut] * 3)
    got, want = choose(logits, heats, us, filters), sample.draw(logits, heats, us, filters)
    for mine, theirs in zip(got, want.tolist(), strict=True):
        # exp may differ in its last bit, and so may where a variate on a boundary falls
        assert mine == theirs or abs(u * 2**20 - round(u * 2**20)) < 1e-3


def test_every_cut_of_equals() -> None:
    logits = torch.zeros(4, 5000)
    logits[:, 4000] = 1.0
    one = torch.ones(4, dtype=torch.float64)
    filters = filters_of([(k, 1.0, 0.0) for k in (3, 128, 129, 2500)])
    assert choose(logits, torch.ones(4), one * (1 - 2**-53), filters) == [1, 126, 127, 2498]
    filters = filters_of([(0, p, 0.0) for p in (0.001, 0.1, 0.5, 1.0)])
    mass = 4999 + math.e
    fewest = [math.ceil(p * mass - math.e) for p in (0.001, 0.1, 0.5)]
    got = choose(logits, torch.ones(4), one * (1 - 2**-53), filters)
    assert got == [n - 1 for n in fewest] + [4999]


@pytest.mark.parametrize("cut", [None, (5, 0.9, 0.0)])
def test_rows_that_cannot_be_sampled_are_told(cut: tuple[int, float, float] | None) -> None:
    logits = torch.zeros(5, 3000)
    logits[1, 2999], logits[2], logits[3, 0] = math.nan, -math.inf, math.inf
    logits[4, :2999] = -math.inf
    for heat in (0.0, 1.0):
        filters = filters_of([cut] * 5) if cut else None
        got = choose(logits, torch.full((5,), heat), uniform(5), filters)
        assert got[0] >= 0 and got[1:] == [-1, -1, -1, 2999]


@pytest.mark.parametrize("cut", [None, (0, 0.8, 0.0), (20, 1.0, 0.02)])
def test_draws_have_the_right_distribution(cut: tuple[int, float, float] | None) -> None:
    """Chi-square, with fixed seeds."""
    if not MANY:
        pytest.skip("takes minutes without a GPU, and the tests above compare each draw")
    n, vocab = 20_000, 300
    row = torch.randn(vocab, generator=torch.Generator().manual_seed(1)) * 1.5
    logits, heat = row.expand(n, -1).contiguous(), torch.full((n,), 0.9)
    filters = filters_of([cut] * n) if cut else None
    got = torch.tensor(choose(logits, heat, uniform(n), filters))
    probs = (row.double() / 0.9).softmax(-1)
    if cut:
        k, p, least = cut
        order = probs.argsort(descending=True)
        order = order[probs[order] >= least * probs.max()][: k or vocab]
        before = probs[order].cumsum(0) - probs[order]
        order = order[before < p * probs[order].sum()]
        probs = torch.zeros_like(probs).index_copy(0, order, probs[order])
    expected = probs / probs.sum() * n
    counts = torch.bincount(got, minlength=vocab).double()
    assert counts[expected == 0].sum() == 0
    common = expected >= 5
    chi = ((counts - expected) ** 2 / expected)[common].sum()
    freedom = int(common.sum()) - 1
    assert chi < freedom + 4 * math.sqrt(2 * freedom) + 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_may_hold_it() -> None:
    """Other settings, same recording: the choices of a batch of any rows, and of one row alone."""
    logits = torch.randn(9, 20_000, device="cuda", dtype=torch.bfloat16) * 4
    heat, u = torch.ones(9, device="cuda"), uniform(9).cuda()
    cut = [
        x.cuda() for x in (torch.zeros(9).long(), torch.ones(9).double(), torch.zeros(9).double())
    ]
    gpu.choose(logits, heat, u, tuple(cut))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = gpu.choose(logits, heat, u, tuple(cut))
    for k, p, t in ((0, 1.0, 1.0), (0, 1.0, 0.0), (7, 1.0, 0.5), (0, 0.5, 2.0)):
        cut[0].fill_(k), cut[1].fill_(p), heat.fill_(t)
        graph.replay()
        filters = sample.Filters(*(x.cpu() for x in cut))
        want = sample.choose(logits.float().cpu(), heat.cpu(), u.cpu(), filters)
        assert tokens.tolist() == want.tolist()
        assert gpu.choose(logits[4:5], heat[4:5], u[4:5], tuple(x[4:5] for x in cut)) == tokens[4]
