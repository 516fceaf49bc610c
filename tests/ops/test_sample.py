"""Each filter, penalty and choice against a plain implementation of one row."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weir.ops import sample

ROWS = 3


def reference_filter(row: Tensor, temperature: float, k: int, p: float, least: float) -> set[int]:
    """The tokens that min-p, top-k and top-p leave, one row, in double."""
    probs = (row.double() / temperature).softmax(-1)
    order = sorted(range(len(row)), key=lambda t: (-float(row[t]), t))
    order = [t for t in order if probs[t] >= least * probs.max()]
    order = order[: k or len(order)]
    mass, kept, total = sum(float(probs[t]) for t in order), [], 0.0
    for token in order:
        if total >= p * mass:
            break
        kept.append(token)
        total += float(probs[token])
    return set(kept)


def seeds(n: int, seed: int = 7) -> np.ndarray:
    return sample.uniform(np.full(n, seed, np.uint64), np.arange(n))


def test_uniform_is_the_published_splitmix64():
    # first outputs of splitmix64 seeded with 0, and with 1234567
    state = np.array([0, 1234567], np.uint64) + sample.GOLDEN
    assert sample._mix(state).tolist() == [16294208416658607535, 6457827717110365317]


def test_uniform_is_uniform_and_its_streams_differ():
    u = seeds(40_000)
    counts = np.histogram(u, 100, (0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 149  # chi-square of 99, p = 0.001
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.02
    # the seeds of one request's choices are a constant apart: no choice lags another by a step
    n = np.arange(1000)
    other = sample.uniform(np.full(1000, 7, np.uint64) + sample.GOLDEN, n)
    assert not np.isin(other, u[:2000]).any()


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40), st.data())
def test_ranked_is_a_stable_sort(values, data):
    k = data.draw(st.integers(1, len(values)))
    got, ids = sample.ranked(torch.tensor([values, values[::-1]]), k)
    for row, mine, best in zip((values, values[::-1]), ids.tolist(), got.tolist(), strict=True):
        want = sorted(range(len(row)), key=lambda t: (-row[t], t))[:k]
        assert best == [row[t] for t in want] == [row[t] for t in mine]
        ends = [t for t in want if row[t] > best[-1]]  # of those equal to the last, any
        assert mine[: len(ends)] == ends and sorted(mine[len(ends) :]) == mine[len(ends) :]


def test_greedy_takes_the_lowest_of_equals():
    logits = torch.tensor(
        [[0.0, 3, 1, 3], [-0.0, 0, -1, 0], [1, math.nan, 2, 0], [math.inf, 0, 0, 0]]
    )
    assert sample.greedy(logits).tolist() == [1, 0, -1, -1]
    assert sample.greedy(torch.full((1, 4), -math.inf)).tolist() == [-1]
    for vocab in (96, 128, 131):
        logits = torch.randint(0, 60, (200, vocab), generator=torch.Generator().manual_seed(1))
        assert sample.greedy(logits.float()).tolist() == [
            row.index(max(row)) for row in logits.tolist()
        ]
        logits = logits.float()
        logits[7, vocab - 1] = math.nan
        assert (sample.greedy(logits) < 0).nonzero().tolist() == [[7]]


@given(
    values=st.lists(st.integers(-30, 30).map(lambda x: x / 4), min_size=2, max_size=300),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    k=st.sampled_from([0, 1, 3, 50, 1000]),
    p=st.sampled_from([0.01, 0.5, 0.9, 1.0]),
    least=st.sampled_from([0.0, 0.05, 0.6, 1.0]),
    u=st.floats(0, 1, exclude_max=True),
)
@settings(deadline=None, max_examples=200)
def test_filters_keep_what_the_plain_ones_keep(values, temperature, k, p, least, u):
    row = torch.tensor(values)
    want = reference_filter(row, temperature, k, p, least)
    us = torch.tensor([u, 0.0, 1 - 2**-53], dtype=torch.float64)
    many = row.expand(3, -1).contiguous()

    def full(value, dtype):
        return torch.full((3,), value, dtype=dtype)

    filters = sample.Filters(
        full(k, torch.int64), full(p, torch.float64), full(least, torch.float64)
    )
    got = sample.draw(many, full(temperature, torch.float32), us, filters)
    probs = (row.double() / temperature).softmax(-1)
    order = sorted(want, key=lambda t: (-float(row[t]), t))
    # u = 0 and u → 1 name the first and the last that are kept; rounding may move a boundary
    assert got[1] == order[0]
    last = probs[order[-1]]
    assert got[2] == order[-1] or last < 1e-9 or _borderline(row, temperature, k, p, least)
    assert int(got[0]) in want or _borderline(row, temperature, k, p, least)


def _borderline(row: Tensor, temperature: float, k: int, p: float, least: float) -> bool:
    """Whether a hair more or less of p or min-p changes what is kept."""
    a = reference_filter(row, temperature, k, p * (1 - 1e-6), least * (1 - 1e-6))
    b = reference_filter(row, temperature, k, p * (1 + 1e-6), least * (1 + 1e-6))
    c = reference_filter(row, temperature, k, p * (1 + 1e-6), least * (1 - 1e-6))
    return not a == b == c


@pytest.mark.parametrize(
    ("temperature", "k", "p", "least"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.5, 0, 1.0, 0.0),
        (1.5, 7, 1.0, 0.0),
        (1.0, 0, 0.8, 0.0),
        (1.0, 0, 1.0, 0.1),
        (2.0, 20, 0.9, 0.02),
        (1.0, 0, 0.999, 0.0),
        (1.0, 200, 0.6, 0.0),
    ],
)
def test_draws_have_the_right_distribution(temperature, k, p, least):
    """Chi-square of 20,000 draws with fixed seeds; deep filters included (V = 300 > 128)."""
    row = torch.randn(300, generator=torch.Generator().manual_seed(1)) * 1.5
    n = 20_000
    kept = sorted(reference_filter(row, temperature, k, p, least))
    many, u = row.expand(n, -1), torch.from_numpy(seeds(n))
    heat = torch.full((n,), temperature)
    plain = (k, p, least) == (0, 1.0, 0.0)
    filters = sample.Filters(
        torch.full((n,), k),
        torch.full((n,), p, dtype=torch.float64),
        torch.full((n,), least, dtype=torch.float64),
    )
    got = sample.draw(many, heat, u, None if plain else filters)
    probs = (row.double() / temperature).softmax(-1)[kept]
    expected = probs / probs.sum() * n
    counts = torch.bincount(got, minlength=300)
    assert counts.sum() == counts[kept].sum() == n
    counts = counts[kept].double()
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    live = expected > 0
    chi = ((observed - expected) ** 2 / expected)[live].sum()
    freedom = max(1, int(live.sum()) - 1)
    assert chi < freedom + 4 * math.sqrt(2 * freedom) + 8


def test_a_choice_does_not_depend_on_the_batch():
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(33, 5001, generator=g) * 3
    n = len(logits)
    heat = torch.rand(n, generator=g) + 0.3
    k = torch.randint(0, 400, (n,), generator=g)
    p = torch.rand(n, generator=g).double() * 0.5 + 0.5
    least = torch.rand(n, generator=g).double() * 0.01
    u = torch.from_numpy(seeds(n))
    threads = torch.get_num_threads()
    try:
        for draw, args in (
            (sample.draw, (logits, heat, u)),
            (sample.draw, (logits, heat, u, sample.Filters(k, p, least))),
        ):
            torch.set_num_threads(2)
            whole = draw(*args)
            torch.set_num_threads(1)
            for rows in (slice(0, 1), slice(5, 8), slice(32, 33), slice(None, None, 3)):
                part = [a[rows] for a in args]
                assert draw(*part).tolist() == whole[rows].tolist()
            assert torch.equal(
                sample.weights(logits[7:9], heat[7:9]), sample.weights(logits, heat)[7:9]
            )
    finally:
        torch.set_num_threads(threads)


def test_rows_that_cannot_be_sampled_are_told():
    logits = torch.zeros(4, 9)
    logits[1, 3], logits[2] = math.nan, -math.inf
    logits[3, 0] = math.inf
    ones, half = torch.ones(4), torch.full((4,), 0.5, dtype=torch.float64)
    k = torch.zeros(4, dtype=torch.int64)
    for got in (
        sample.draw(logits, ones, half),
        sample.draw(logits, ones, half, sample.Filters(k, half, half * 0)),
    ):
        assert got[0] >= 0 and got[1:].tolist() == [-1, -1, -1]


def test_equals_are_cut_by_id_however_many_there_are():
    """All but one token are equal, so every cut, however deep, falls among equals."""
    logits = torch.zeros(4, 5000)
    logits[:, 4000] = 1.0
    one = torch.ones(4, dtype=torch.float64)
    top_k = torch.tensor([3, 128, 129, 2500])
    filters = sample.Filters(top_k, one, one * 0)
    last = sample.draw(logits, torch.ones(4), one * (1 - 2**-53), filters)
    assert last.tolist() == [1, 126, 127, 2498]  # after the best one
    top_p = torch.tensor([0.001, 0.1, 0.5, 1.0], dtype=torch.float64)
    mass = 4999 + math.e
    fewest = [math.ceil(p * mass - math.e) for p in top_p.tolist()]  # beside the best one
    filters = sample.Filters(top_k * 0, top_p, one * 0)
    last = sample.draw(logits, torch.ones(4), one * (1 - 2**-53), filters)
    assert last.tolist() == [n - 1 for n in fewest[:3]] + [4999]


def test_excluded_tokens_are_never_drawn():
    logits = torch.full((1, 50), -math.inf)
    logits[0, [4, 17]] = torch.tensor([1.0, 1.0])
    for u, want in ((0.0, 4), (0.4999, 4), (0.5, 17), (1 - 2**-53, 17)):
        u = torch.tensor([u], dtype=torch.float64)
        assert sample.draw(logits, torch.ones(1), u).tolist() == [want]


@given(
    tokens=st.lists(st.integers(0, 11), max_size=30),
    prompt=st.integers(0, 30),
    repetition=st.sampled_from([0.5, 1.0, 1.3]),
    presence=st.sampled_from([-1.0, 0.0, 0.7]),
    frequency=st.sampled_from([-0.5, 0.0, 0.4]),
)
def test_penalties(tokens, prompt, repetition, presence, frequency):
    logits = torch.linspace(-2, 2, 12)
    want = logits.clone()
    for t in range(12):
        count = tokens[prompt:].count(t)
        if t in tokens:
            want[t] = want[t] / repetition if want[t] > 0 else want[t] * repetition
        want[t] -= frequency * count + presence * (count > 0)
    seen = torch.tensor([[t in tokens[:prompt] for t in range(12)]])
    counts = torch.tensor([[tokens[prompt:].count(t) for t in range(12)]], dtype=torch.int32)
    numbers = [torch.tensor([x]) for x in (repetition, presence, frequency)]
    got = sample.penalise(logits[None], seen, counts, *numbers)
    torch.testing.assert_close(got[0], want)


@given(st.sets(st.integers(0, 40)), st.integers(1, 41), st.integers(0, 2))
def test_a_mask_excludes_what_it_lacks(allowed, vocab, spare):
    mask = np.zeros(-(-vocab // 8) + spare, np.uint8)
    for t in allowed:
        if t // 8 < len(mask):
            mask[t // 8] |= 1 << (t % 8)
    for some, most in ((mask, vocab), (mask[:1], 8)):
        logits = torch.randn(4, vocab)
        want = logits.clone()
        for t in range(vocab):
            if t not in allowed or t >= most:
                want[2, t] = want[0, t] = -torch.inf
            if t in allowed or t >= 8 * len(some):
                want[3, t] = -torch.inf
        masks = torch.from_numpy(np.stack([~some, some]))
        sample.restrict(logits, torch.tensor([2, 3, 0]), torch.tensor([1, 0, 1]), masks)
        assert torch.equal(logits, want)


def test_logprobs():
    logits = torch.randn(5, 200, generator=torch.Generator().manual_seed(2)) * 4
    tokens = torch.tensor([0, 3, 199, 50, 7])
    want = logits.double().log_softmax(-1)
    chosen, rank, ids, values = sample.logprobs(logits, tokens, 6)
    torch.testing.assert_close(chosen, want.gather(1, tokens[:, None])[:, 0], atol=1e-6, rtol=0)
    best = want.topk(6)
    assert ids.tolist() == best.indices.tolist()
    torch.testing.assert_close(values, best.values, atol=1e-6, rtol=0)
    assert rank.tolist() == [1 + int((w > w[t]).sum()) for w, t in zip(want, tokens, strict=True)]
    assert sample.logprobs(logits, tokens, 0)[2].shape == (5, 0)
