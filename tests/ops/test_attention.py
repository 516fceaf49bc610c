"""Paged attention against a dense float64 softmax, and what its result must not depend on."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weir.ops import native
from weir.ops.attention import attend, merge, reference_attend, reference_write, write
from weir.ops.batch import Batch
from weir.ops.coded import BYTES, decode, encode, row_bytes
from weir.spec import AttentionSpec

needs_kernels = pytest.mark.skipif(native.library() is None, reason=native.status())


@dataclass(slots=True)
class Case:
    """Sequences of (context, chunk) tokens on randomly scattered pages; other pages hold NaN."""

    spec: AttentionSpec
    kv: Tensor
    batch: Batch
    q: Tensor
    k: list[Tensor]  # per sequence, [context, Hkv, D], as the store holds them
    v: list[Tensor]


def stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What memory of that type gives back."""
    return decode(encode(x, dtype), dtype) if dtype in BYTES else x.to(dtype)


def make(
    sequences: list[tuple[int, int]],
    heads: int = 6,
    kv_heads: int = 2,
    size: int = 64,
    page: int = 16,
    dtype: torch.dtype = torch.float32,
    window: int | None = None,
    softcap: float | None = None,
    seed: int = 0,
) -> Case:
    g = torch.Generator().manual_seed(seed)
    spec = AttentionSpec(heads, kv_heads, size, size**-0.5, window, softcap)
    needed = [-(-context // page) for context, _ in sequences]
    free = torch.randperm(sum(needed) + 3, generator=g).to(torch.int32)
    if dtype in BYTES:  # a scale of all ones is no number either
        kv = torch.full((len(free), 2, kv_heads, page, row_bytes(dtype, size)), 255).byte()
    else:
        kv = torch.full((len(free), 2, kv_heads, page, size), torch.nan, dtype=dtype)
    table = torch.full((len(sequences), max([1, *needed])), -1, dtype=torch.int32)
    keys, values, slots, used = [], [], [], 0
    for s, (context, chunk) in enumerate(sequences):
        table[s, : needed[s]] = free[used : used + needed[s]]
        used += needed[s]
        at = torch.arange(context)
        where = table[s, at // page].long() * page + at % page
        k, v = (torch.randn(context, kv_heads, size, generator=g) for _ in "kv")
        reference_write(kv, k, v, where)
        keys.append(stored(k, dtype).double())
        values.append(stored(v, dtype).double())
        slots.append(where[context - chunk :])
    chunks = [chunk for _, chunk in sequences]
    batch = Batch(
        torch.tensor([0, *torch.tensor(chunks).cumsum(0).tolist()], dtype=torch.int32),
        torch.tensor([context for context, _ in sequences], dtype=torch.int32),
        table,
        torch.cat(slots),
    )
    q = torch.randn(sum(chunks), heads, size, generator=g) * 2
    return Case(spec, kv, batch, q, keys, values)


def dense(case: Case) -> tuple[Tensor, Tensor]:
    """float64, one query at a time, from the keys themselves rather than from pages."""
    spec, outs, totals, row = case.spec, [], [], 0
    group = spec.heads // spec.kv_heads
    for s, (k, v) in enumerate(zip(case.k, case.v, strict=True)):
        n = int(case.batch.q_start[s + 1] - case.batch.q_start[s])
        for i in range(n):
            position = len(k) - n + i
            low = 0 if spec.window is None else max(0, position - spec.window + 1)
            seen = slice(low, position + 1)
            score = torch.einsum(
                "hd,jhd->hj", case.q[row].double(), k[seen].repeat_interleave(group, 1)
            )
            score = score * spec.scale
            if spec.softcap is not None:
                score = spec.softcap * torch.tanh(score / spec.softcap)
            values = v[seen].repeat_interleave(group, 1)
            outs.append(torch.einsum("hj,jhd->hd", score.softmax(-1), values))
            totals.append(score.logsumexp(-1))
            row += 1
    return torch.stack(outs), torch.stack(totals)


def check(case: Case) -> None:
    want_o, want_lse = dense(case)
    for op in (attend, reference_attend):
        o, lse = op(case.q, case.kv, case.batch, case.spec)
        assert (o - want_o).abs().max() < 1e-5
        assert (lse - want_lse).abs().max() < 1e-5
        assert lse.dtype == torch.float32


RAGGED = [(1, 1), (40, 40), (300, 1), (77, 13), (600, 3), (16, 16)]


@pytest.mark.parametrize("page", [1, 16, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_ragged_batches(page: int, dtype: torch.dtype) -> None:
    check(make(RAGGED, page=page, dtype=dtype))


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("heads, kv_heads, size, page", [(6, 2, 64, 16), (8, 1, 128, 1)])
def test_coded_keys_and_values(
    heads: int, kv_heads: int, size: int, page: int, dtype: torch.dtype
) -> None:
    """Read as the format says they are; what that loses is a matter of the format."""
    check(make(RAGGED, heads, kv_heads, size, page, dtype, window=70))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(8, 1, 64, 16), (6, 6, 128, 16), (6, 2, 48, 4), (8, 2, 96, 1)])
def test_queries_of_a_gpu(dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    """In 16 bits, as they come and as the answer goes; weights may be rounded too."""
    for window, softcap in ((None, None), (40, None), (None, 5.0)):
        case = make(RAGGED, *shape, dtype=dtype, window=window, softcap=softcap)
        case.q = case.q.to(dtype)
        o, lse = attend(case.q, case.kv, case.batch, case.spec)
        case.q = case.q.float()
        want_o, want_lse = dense(case)
        assert o.dtype == dtype and lse.dtype == torch.float32
        assert (o - want_o).abs().max() < 2e-2 and (lse - want_lse).abs().max() < 1e-4


@pytest.fixture
def tiles() -> Iterator[None]:
    """Matrix tiles even where the CPU has none."""
    lib = native.library()
    if lib is None:
        pytest.skip(native.status())
    lib.use_tiles(2)
    yield
    lib.use_tiles(1)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", [torch.bfloat16, *BYTES])
@pytest.mark.parametrize(
    "shape", [(16, 1, 128, 16), (32, 2, 64, 1), (16, 1, 192, 16), (24, 1, 256, 4)]
)
def test_matrix_tiles(dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    for window, softcap in ((None, None), (40, None), (None, 5.0)):
        case = make(RAGGED, *shape, dtype=dtype, window=window, softcap=softcap)
        case.q = case.q.bfloat16()
        o, lse = attend(case.q, case.kv, case.batch, case.spec)
        case.q = case.q.float()
        want_o, want_lse = dense(case)
        coarse = 2e-2 if dtype in BYTES else 1e-4  # what was coded is rounded to bfloat16
        assert (o - want_o).abs().max() < 3e-2 and (lse - want_lse).abs().max() < coarse


@pytest.mark.parametrize(
    "heads, kv_heads, size",
    [(9, 3, 64), (8, 8, 80), (4, 2, 128), (4, 1, 256), (5, 1, 8), (40, 1, 20), (14, 2, 36)],
)
def test_heads_and_sizes(heads: int, kv_heads: int, size: int) -> None:
    check(make(RAGGED, heads, kv_heads, size, dtype=torch.bfloat16))


@pytest.mark.parametrize("window", [1, 7, 32, 256, 1000])
def test_windows(window: int) -> None:
    check(make(RAGGED, window=window))


@pytest.mark.parametrize("window", [None, 20])
def test_softcap(window: int | None) -> None:
    check(make(RAGGED, softcap=5.0, window=window))


def test_keys_that_left_the_window_are_never_read() -> None:
    case = make([(400, 5)], window=40, page=16)
    case.kv[case.batch.table[0, :20].long()] = torch.nan  # 320 keys; the first query sees 356 on
    o, lse = attend(case.q, case.kv, case.batch, case.spec)
    want, _ = dense(case)
    assert (o - want).abs().max() < 1e-5 and lse.isfinite().all()


@needs_kernels
@settings(max_examples=25, deadline=None)
@given(
    context=st.integers(1, 700),
    chunks=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    window=st.sampled_from([None, 1, 50, 300]),
    pages=st.tuples(st.sampled_from([1, 16, 32]), st.sampled_from([1, 16, 32])),
    threads=st.integers(1, 3),
    shape=st.sampled_from([(6, 2, 32), (32, 2, 64)]),
)
@pytest.mark.usefixtures("tiles")
def test_a_query_depends_only_on_the_keys_it_sees(
    context: int,
    chunks: list[int],
    window: int | None,
    pages: tuple[int, int],
    threads: int,
    shape: tuple[int, int, int],
) -> None:
    """A prompt at once or in chunks, other pages, beside others, other threads: the same bits, by
    vectors and by matrix tiles."""
    heads, kv_heads, size = shape
    options = {"heads": heads, "kv_heads": kv_heads, "size": size}
    options |= {"window": window, "dtype": torch.bfloat16, "seed": 5}
    whole = make([(context, context)], page=pages[0], **options)
    whole.q = whole.q.bfloat16()
    o, lse = attend(whole.q, whole.kv, whole.batch, whole.spec)
    native.set_threads(threads)
    try:
        end = context
        for chunk in chunks:
            if end == 0:
                break
            n = min(chunk, end)
            part = make([(90, 2), (end, n), (7, 7)], page=pages[1], **options)
            part.q = part.q.bfloat16()
            for x, kind in ((whole.k[0], 0), (whole.v[0], 1)):
                at = torch.arange(end)
                page = part.batch.table[1, at // pages[1]].long()
                part.kv[page, kind, :, at % pages[1]] = x[:end].bfloat16()
            part.q[2 : 2 + n] = whole.q[end - n : end]
            got_o, got_lse = attend(part.q, part.kv, part.batch, part.spec)
            assert torch.equal(got_o[2 : 2 + n], o[end - n : end])
            assert torch.equal(got_lse[2 : 2 + n], lse[end - n : end])
            end -= n
    finally:
        native.set_threads(0)


@pytest.mark.parametrize("op", [attend, reference_attend])
@pytest.mark.parametrize("window", [None, 30])
def test_two_parts_of_a_context_merge_into_the_whole(op, window: int | None) -> None:
    case = make([(200, 6), (100, 100)], window=window)
    want, want_lse = op(case.q, case.kv, case.batch, case.spec)
    split = torch.tensor([128, 0], dtype=torch.int32)  # keys in the first part, on page borders
    position = torch.tensor([194, 0], dtype=torch.int32)
    b = case.batch
    head = Batch(b.q_start, split, b.table, b.slots, first=position)
    tail = Batch(
        b.q_start,
        b.kv_len - split,
        torch.stack([torch.roll(b.table[0], -8), b.table[1]]),
        b.slots,
        first=position - split,
    )
    first, second = (op(case.q, case.kv, part, case.spec) for part in (head, tail))
    assert first[1][6:].eq(-torch.inf).all() and first[0][6:].eq(0).all()  # saw no key
    o, lse = merge(*first, *second)
    assert torch.allclose(o, want, atol=1e-5) and torch.allclose(lse, want_lse, atol=1e-5)


def test_merging_nothing_with_nothing_is_nothing() -> None:
    o, lse = torch.zeros(2, 3, 4), torch.full((2, 3), -torch.inf)
    merged, total = merge(o, lse, o, lse)
    assert merged.eq(0).all() and total.eq(-torch.inf).all()


def test_no_sequences() -> None:
    case = make([(5, 5)])
    none = torch.zeros(0, dtype=torch.int32)
    batch = Batch(torch.zeros(1, dtype=torch.int32), none, none.view(0, 1), none.long())
    o, lse = attend(case.q[:0], case.kv, batch, case.spec)
    assert o.shape == (0, 6, 64) and lse.shape == (0, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size, page", [(64, 16), (80, 1), (6, 32)])
def test_write_rounds_as_pytorch_does(size: int, page: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    fused = torch.randn(50, 12, size) * torch.logspace(-9, 4, 50).view(50, 1, 1)
    k, v = fused[:, 4:8], fused[:, 8:]
    slots = torch.randperm(4 * 32 // page * page)[:50]
    got, want = (torch.zeros(128 // page, 2, 4, page, size, dtype=dtype) for _ in "ab")
    write(got, k, v, slots)
    reference_write(want, k, v, slots)
    assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", BYTES)
def test_write_codes_as_the_format_says(dtype: torch.dtype) -> None:
    x = torch.randn(50, 4, 128, generator=torch.Generator().manual_seed(1))
    x *= torch.logspace(-9, 4, 50).view(50, 1, 1)
    x[3, 1], x[4, 0, :64], x[5, 2, 7], x[6, 3, 70] = 0.0, -2.5, torch.nan, torch.inf
    slots = torch.randperm(64)[:50]
    got, want = (torch.zeros(4, 2, 4, 16, row_bytes(dtype, 128)).byte() for _ in "ab")
    write(got, x, -x, slots)
    reference_write(want, x, -x, slots)
    a, b = decode(got, dtype), decode(want, dtype)
    assert torch.equal(a.isnan(), b.isnan()) and a.isnan().sum() == 4 * 64
    assert torch.equal(a.nan_to_num(), b.nan_to_num())


def test_queries_of_a_fused_projection_need_no_copy() -> None:
    case = make([(40, 10)])
    fused = torch.randn(10, 10, 64)
    fused[:, :6] = case.q
    got = attend(fused[:, :6], case.kv, case.batch, case.spec)[0]
    assert torch.equal(got, attend(case.q, case.kv, case.batch, case.spec)[0])


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_not_a_number_stays_one(dtype: torch.dtype) -> None:
    case = make([(40, 2), (300, 1)], heads=32, dtype=dtype)
    case.q = case.q.to(dtype)
    case.q[1, 3] = torch.nan
    o, lse = attend(case.q, case.kv, case.batch, case.spec)
    assert o[1, 3].isnan().all() and lse[1, 3].isnan()
    lse[1, 3], o[1, 3] = 0.0, 0.0
    assert o.isfinite().all() and lse.isfinite().all()


@needs_kernels
def test_callers_on_several_threads_get_their_own_results() -> None:
    cases = [make([(500, 40), (30, 1)], seed=s) for s in range(4)]
    want = [attend(c.q, c.kv, c.batch, c.spec)[0] for c in cases]
    wrong: list[int] = []

    def call(n: int) -> None:
        for _ in range(15):
            c = cases[n]
            if not torch.equal(attend(c.q, c.kv, c.batch, c.spec)[0], want[n]):
                wrong.append(n)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    assert not wrong and not any(t.is_alive() for t in threads)
