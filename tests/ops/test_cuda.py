"""The Triton kernels against their references: on a GPU, or in Triton's interpreter without one."""

from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.test_attention import RAGGED, Case, dense, make
from weir.ops import mlp, norm, rope
from weir.ops.attention import attend as triton_attend
from weir.ops.attention import merge, reference_attend, reference_write, write
from weir.ops.batch import Batch
from weir.ops.coded import BITS, BYTES, decode, encode, row_bytes
from weir.ops.prefix import Shared
from weir.spec import RopeSpec

pytest.importorskip("triton", minversion=None if torch.cuda.is_available() else "3.9")
# older interpreters do not work with NumPy 2.4

from weir.ops import triton as gpu
from weir.ops.triton import decode as decodes
from weir.ops.triton import hopper
from weir.ops.triton.tiles import tiles_of

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy: exp of -inf
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# the interpreter rounds to bfloat16 in its own way
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16
QUERIES = sorted({torch.float32, torch.float16, HALF}, key=str)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}  # of the output's type


def attend(case: Case, batch: Batch | None = None, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    b, spec = batch or case.batch, case.spec
    tensors = [b.q_start, b.kv_len, b.table, b.slots, b.first]
    there = [None if x is None else x.to(DEVICE) for x in tensors]
    q, kv = case.q.to(DEVICE, dtype), case.kv.to(DEVICE)
    shared = b.shared
    if shared is not None:
        shared = Shared(*(x.to(DEVICE) for x in (shared.member, shared.keys, shared.skip)))
    torch.use_deterministic_algorithms(True)  # so that new memory holds NaN
    try:
        o, lse = gpu.attend(q, kv, Batch(*there, b.lengths, shared), spec)
    finally:
        torch.use_deterministic_algorithms(False)
    assert o.dtype == dtype and lse.dtype == torch.float32
    return o.cpu(), lse.cpu()


def check(case: Case, dtype: torch.dtype = torch.float32) -> None:
    case.q = case.q.to(dtype).float()
    want_o, want_lse = dense(case)
    o, lse = attend(case, dtype=dtype)
    assert (o - want_o).abs().max() < TOLERANCE[dtype]
    assert (lse - want_lse).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("page", [1, 16, 32])
@pytest.mark.parametrize("dtype", QUERIES)
def test_ragged_batches(page: int, dtype: torch.dtype) -> None:
    check(make(RAGGED, page=page, dtype=dtype), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_cache_may_be_of_another_type_than_the_queries(dtype: torch.dtype) -> None:
    check(make(RAGGED, dtype=dtype))


@pytest.mark.parametrize(
    "heads, kv_heads, size",
    [(9, 3, 64), (8, 8, 80), (4, 2, 128), (4, 1, 256), (5, 1, 8), (40, 1, 20), (14, 2, 96)],
)
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_heads_and_sizes(heads: int, kv_heads: int, size: int, dtype: torch.dtype) -> None:
    check(make(RAGGED, heads, kv_heads, size, dtype=torch.bfloat16), dtype)


@pytest.mark.parametrize("window", [1, 7, 32, 256, 1000])
def test_windows(window: int) -> None:
    check(make(RAGGED, window=window))


@pytest.mark.parametrize("window", [None, 20])
def test_softcap(window: int | None) -> None:
    check(make(RAGGED, softcap=5.0, window=window))


@pytest.mark.parametrize("programs, parts", [(1, 64), (7, 64), (7, 2), (40, 64)])
def test_programs_share_the_keys_of_decodes(monkeypatch, programs: int, parts: int) -> None:
    monkeypatch.setattr(decodes, "PROGRAMS", programs)
    monkeypatch.setattr(decodes, "PARTS", parts)
    monkeypatch.setattr(decodes, "multiprocessors", lambda device: 1)
    monkeypatch.setattr(decodes, "JOINED", 512)  # 8 parts at a time
    case = make([(2000, 1), (1, 1), (64, 1), (65, 1), (129, 1), (900, 2)], 4, 2, 16)
    for lengths in ((1, 2), None):
        case.batch.lengths = lengths
        check(case)
    there = case.q.to(DEVICE).device  # with its number
    assert decodes.arrived(there, programs).eq(0).all()


def test_a_batch_padded_with_sequences_of_no_key() -> None:
    case = make([(700, 1), (3, 1), (90, 1)], dtype=torch.bfloat16)
    want = attend(case, replace(case.batch, lengths=(1, 1)))
    b = case.batch
    padded = Batch(
        torch.arange(9, dtype=torch.int32),
        torch.cat([b.kv_len, b.kv_len.new_zeros(5)]),
        torch.nn.functional.pad(b.table, (0, 100, 0, 5)),
        b.slots,
        lengths=(1, 1),
    )
    case.q = torch.cat([case.q, torch.randn(5, *case.q.shape[1:])])
    o, lse = attend(case, padded)
    assert torch.allclose(o[:3], want[0], atol=1e-5) and torch.allclose(lse[:3], want[1], atol=1e-5)
    assert o[3:].eq(0).all() and lse[3:].eq(-torch.inf).all()


def sharing(sequences: list[tuple[int, int]], groups: list[tuple[list[int], int]], **options):
    """A case in which the sequences of each group begin with the same pages, so many of them."""
    case = make(sequences, **options)
    page = case.kv.shape[3]
    for members, pages in groups:
        first, *rest = members
        for s in rest:
            case.batch.table[s, :pages] = case.batch.table[first, :pages]
            case.k[s][: pages * page] = case.k[first][: pages * page]
            case.v[s][: pages * page] = case.v[first][: pages * page]
    chunks = [chunk for _, chunk in sequences]
    case.batch.lengths = min(chunks), max(chunks)
    member = torch.full((len(groups) + 1, 4), -1, dtype=torch.int32)  # and one that is not used
    keys, skip = torch.zeros(len(groups) + 1).int(), torch.zeros(len(sequences)).int()
    for n, (members, pages) in enumerate(groups):
        member[n, : len(members)] = torch.tensor(members)
        keys[n] = pages * page
        skip[members] = pages * page
    case.batch.shared = Shared(member, keys, skip)
    return case


@pytest.mark.parametrize("programs", [2, 9])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_shared_prefix_is_read_once(monkeypatch, programs: int, softcap: float | None) -> None:
    monkeypatch.setattr(decodes, "PROGRAMS", programs)
    sequences = [(300, 1), (64, 1), (400, 30), (301, 1), (70, 1), (320, 1), (1, 1), (333, 1)]
    groups = [([3, 0, 5, 7], 18), ([1, 4], 3)]
    case = sharing(sequences, groups, heads=6, kv_heads=2, size=16, softcap=softcap)
    check(case)
    case.kv[case.batch.table[0, :18].long()] = 0.0  # only the first of a tile has its pages read
    case.batch.table[[0, 5, 7], :18] = -1
    assert attend(case)[0].isfinite().all()


def test_a_shared_prefix_beyond_a_window_or_a_tile_is_read_by_each() -> None:
    groups = [([0, 1, 2], 10)]
    check(sharing([(200, 1), (210, 1), (220, 1)], groups, heads=2, kv_heads=1, size=16, window=30))
    check(sharing([(200, 1), (210, 1), (220, 1)], groups, heads=40, kv_heads=1, size=16))


@pytest.mark.gpu
@pytest.mark.skipif(
    not (hopper.KNOWN and hopper.hopper(torch.device(DEVICE))),
    reason="this needs a Hopper GPU, and Gluon as of Triton 3.6",
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "heads, kv_heads, size, page",
    [(8, 2, 128, 16), (4, 1, 128, 8), (8, 8, 64, 32), (16, 2, 128, 64), (64, 1, 64, 256)],
)
@pytest.mark.parametrize("options", [{}, {"window": 1}, {"window": 200}, {"softcap": 5.0}])
def test_chunks_on_hopper(
    heads: int, kv_heads: int, size: int, page: int, options: dict, dtype: torch.dtype
) -> None:
    sequences = [*RAGGED, (900, 700), (128, 128), (129, 129), (64, 5), (1000, 257)]
    case = make(sequences, heads, kv_heads, size, page, dtype, **options)
    assert hopper.takes(case.q.to(DEVICE, dtype), case.kv.to(DEVICE))
    check(case, dtype)
    longer = [(context, chunk) for context, chunk in sequences if chunk > 1]
    case = make(longer, heads, kv_heads, size, page, dtype, **options)
    case.batch.lengths = min(chunk for _, chunk in longer), max(chunk for _, chunk in longer)
    check(case, dtype)


@settings(max_examples=40 if DEVICE == "cuda" else 8, deadline=None)
@given(
    sequences=st.lists(st.tuples(st.integers(1, 90), st.integers(0, 200)), min_size=1, max_size=20),
    span=st.sampled_from([1, 7, 32]),
    shift=st.none() | st.integers(-50, 3),
)
def test_tiles_hold_every_token_once_from_the_last_of_each_chunk_on(
    sequences: list[tuple[int, int]], span: int, shift: int | None
) -> None:
    """sequences: chunks, and the keys before them."""

    def numbers(x: list[int]) -> Tensor:
        return torch.tensor(x, dtype=torch.int32, device=DEVICE)

    starts = [0, *accumulate(chunk for chunk, _ in sequences)]
    keys = [before + chunk for chunk, before in sequences]
    first = [before + (shift or 0) for _, before in sequences]
    there = None if shift is None else numbers(first)
    batch = Batch(numbers(starts), numbers(keys), numbers([0]), numbers([0]), there)
    tiles = tiles_of(batch, starts[-1], span)
    want = [
        (starts[s] + at, count, first[s] + at, min(first[s] + at + count, keys[s]), s)
        for s, (chunk, _) in enumerate(sequences)
        for at in range(0, chunk, span)
        if chunk > 1 and (count := min(span, chunk - at))
    ]
    got = [tuple(row) for row in tiles.each.tolist()]
    assert got[: len(want)] == want[::-1] and tiles.count.item() == len(want)
    assert all(row[1] == 0 for row in got[len(want) :])
    assert tiles_of(batch, starts[-1], span) is tiles


def test_other_kernels_take_what_hopper_s_does_not() -> None:
    case = make(RAGGED)
    assert not hopper.takes(case.q.to(DEVICE), case.kv.to(DEVICE))  # float32


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="a CUDA graph needs a CUDA device")
@pytest.mark.parametrize("chunk", [1, 40])
def test_a_captured_call_serves_other_lengths(chunk: int) -> None:
    """Static tensors and bounds; what they hold changes between replays."""
    spec = make([(1, 1)], 8, 2, 64).spec
    kv = torch.randn(64, 2, 2, 16, 64, device=DEVICE)
    tokens = 7 + chunk
    q = torch.randn(tokens, 8, 64, device=DEVICE)
    starts = torch.tensor([*range(8), tokens], dtype=torch.int32, device=DEVICE)
    lengths = torch.full((8,), 64, dtype=torch.int32, device=DEVICE)
    table = torch.arange(8 * 32, dtype=torch.int32, device=DEVICE).view(8, 32) % 64
    batch = Batch(starts, lengths, table, starts, lengths=(1, chunk))

    def run() -> tuple[Tensor, Tensor]:
        batch.tiles = None
        return triton_attend(q, kv, batch, spec)

    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o, lse = run()
    for seed in range(4):
        torch.manual_seed(seed)
        q.normal_()
        table.copy_(torch.randint(0, 64, (8, 32), device=DEVICE))
        lengths.copy_(torch.randint(0, 512, (8,), device=DEVICE))
        lengths[7] = max(chunk, int(lengths[7]))
        o.fill_(torch.nan), lse.fill_(torch.nan)
        graph.replay()
        want = reference_attend(q, kv, batch, spec)
        assert torch.allclose(o, want[0], atol=1e-4) and torch.allclose(lse, want[1], atol=1e-4)


@settings(max_examples=40 if DEVICE == "cuda" else 6, deadline=None)
@given(
    sequences=st.lists(
        st.tuples(st.integers(1, 500), st.integers(1, 300)).map(lambda x: (max(x), min(x))),
        min_size=1,
        max_size=6,
    ),
    window=st.sampled_from([None, 1, 50, 300]),
    page=st.sampled_from([1, 16]),
    known=st.booleans(),
)
def test_any_batch(
    sequences: list[tuple[int, int]], window: int | None, page: int, known: bool
) -> None:
    """Known lengths of chunks leave launches out, and nothing else."""
    case = make(sequences, 4, 2, 16, page, window=window)
    if known:
        chunks = [chunk for _, chunk in sequences]
        case.batch = replace(case.batch, lengths=(min(chunks), max(chunks)))
    check(case)


def test_the_same_call_gives_the_same_bits() -> None:
    case = make([(700, 1), (90, 40), (1200, 1)], dtype=torch.bfloat16, seed=3)
    for a, b in zip(attend(case), attend(case), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("window", [None, 30])
def test_two_parts_of_a_context_merge_into_the_whole(window: int | None) -> None:
    case = make([(200, 6), (100, 100), (150, 1)], window=window)
    want, want_lse = attend(case)
    split = torch.tensor([128, 0, 48], dtype=torch.int32)  # keys in the first part
    position = torch.tensor([194, 0, 149], dtype=torch.int32)
    b = case.batch
    tables = [torch.roll(row, -int(keys) // 16) for row, keys in zip(b.table, split, strict=True)]
    head = Batch(b.q_start, split, b.table, b.slots, first=position)
    tail = Batch(b.q_start, b.kv_len - split, torch.stack(tables), b.slots, first=position - split)
    first, second = attend(case, head), attend(case, tail)
    assert first[1][6:106].eq(-torch.inf).all() and first[0][6:106].eq(0).all()  # saw no key
    o, lse = merge(*first, *second)
    assert torch.allclose(o, want, atol=1e-5) and torch.allclose(lse, want_lse, atol=1e-5)


def test_no_sequences() -> None:
    case = make([(5, 5)])
    none = torch.zeros(0, dtype=torch.int32)
    case.q = case.q[:0]
    o, lse = attend(case, Batch(torch.zeros(1, dtype=torch.int32), none, none.view(0, 1), none))
    assert o.shape == (0, 6, 64) and lse.shape == (0, 6)


def test_not_a_number_stays_one() -> None:
    case = make([(40, 2), (300, 1)])
    case.q[1, 3] = case.q[2, 0] = torch.nan
    o, lse = attend(case)
    for row, head in ((1, 3), (2, 0)):
        assert o[row, head].isnan().all() and lse[row, head].isnan()
        lse[row, head], o[row, head] = 0.0, 0.0
    assert o.isfinite().all() and lse.isfinite().all()


@pytest.mark.parametrize("dtype", QUERIES)
@pytest.mark.parametrize("size, page", [(64, 16), (80, 1), (6, 32)])
def test_write_rounds_as_pytorch_does(size: int, page: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    fused = torch.randn(50, 12, size) * torch.logspace(-6, 4, 50).view(50, 1, 1)
    k, v = fused[:, 4:7], fused[:, 8:11]
    slots = torch.randperm(4 * 32 // page * page)[:50]
    got, want = (torch.zeros(128 // page, 2, 3, page, size, dtype=dtype) for _ in "ab")
    reference_write(want, k, v, slots)
    got, fused, slots = got.to(DEVICE), fused.to(DEVICE), slots.to(DEVICE)
    for programs in (0, 5):
        got.zero_()
        gpu.write(got, fused[:, 4:7], fused[:, 8:11], slots, programs)
        assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("dtype", BYTES)
def test_codes_are_those_of_the_definition(dtype: torch.dtype) -> None:
    """Of rows that lie apart, some of zeros, of equal numbers, and of what is not finite."""
    torch.manual_seed(1)
    fused = torch.randn(37, 5, 128) * torch.logspace(-6, 4, 37).view(37, 1, 1)
    fused[:, :, 64:] += 10
    fused[3], fused[4], fused[5, 1, 7], fused[6, 2, 70] = 0.0, 0.3, torch.inf, torch.nan
    x = fused[:, 1:4]
    want = encode(x, dtype)
    coded = torch.empty(want.shape, dtype=torch.uint8, device=DEVICE)
    gpu.encode_groups(fused.to(DEVICE)[:, 1:4], coded, BITS[dtype])
    back = torch.empty(x.shape, device=DEVICE)
    gpu.decode_groups(coded, back, BITS[dtype])
    assert torch.equal(back.cpu().nan_to_num(-1.0), decode(want, dtype).nan_to_num(-1.0))
    assert back.isnan().sum() == 2 * 64
    fine = ~decode(want, dtype).isnan().any(2)
    assert torch.equal(coded.cpu()[fine], want[fine])
    gpu.decode_groups(coded, half := back.half(), BITS[dtype])
    assert torch.equal(half.cpu().nan_to_num(-1.0), back.cpu().half().nan_to_num(-1.0))


@pytest.mark.parametrize("dtype", BYTES)
@pytest.mark.parametrize("size, page", [(64, 16), (128, 1)])
def test_write_codes_what_it_stores(monkeypatch, size: int, page: int, dtype) -> None:
    torch.manual_seed(0)
    fused, slots = torch.randn(50, 12, size), torch.randperm(64)[:50]
    k, v = fused[:, 4:7], fused[:, 8:11]
    got, want = (torch.zeros(64 // page, 2, 3, page, row_bytes(dtype, size)).byte() for _ in "ab")
    reference_write(want, k, v, slots)
    monkeypatch.setattr("weir.ops.attention.gpu_kernels", lambda x: gpu)
    monkeypatch.setattr("weir.ops.coded.gpu_kernels", lambda x: gpu)
    got = got.to(DEVICE)
    write(got, k.to(DEVICE), v.to(DEVICE), slots.to(DEVICE))
    assert torch.equal(got.cpu(), want)


def close(got: Tensor, want: Tensor, dtype: torch.dtype) -> bool:
    return bool(((got.cpu() - want).abs() <= TOLERANCE[dtype] * (1 + want.abs())).all())


SHAPES = [(1, 8), (3, 33), (7, 576), (2, 1), (5, 1640)]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_norms(shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape[0], 2 * shape[1]) * 3 + 1).to(dtype)[:, : shape[1]]  # rows lie apart
    w, b = torch.randn(shape[1]), torch.randn(shape[1])
    there = [t.to(DEVICE) for t in (x, w, b)]
    want = norm.reference_rms_norm(x.double().float(), w, 1e-5)
    assert close(gpu.rms_norm(there[0], there[1], 1e-5), want, dtype)
    want = norm.reference_layer_norm(x.float(), w, b, 1e-5)
    assert close(gpu.layer_norm(*there, 1e-5), want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("act", mlp.ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gated(shape: tuple[int, int], act: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (torch.randn(shape[0], 2 * shape[1]) * 6).to(dtype)
    x[0, 0], x[0, -1] = 90.0, -90.0
    want = mlp.reference_gated(x.double(), act)
    assert close(gpu.gated(x.to(DEVICE), act), want, dtype)
    assert gpu.gated(torch.full_like(x, torch.nan).to(DEVICE), act).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("page", [None, 1, 16])
@pytest.mark.parametrize(
    "heads, kv_heads, size, dim",
    [(9, 3, 64, 0), (4, 4, 80, 32), (2, 1, 6, 0), (33, 2, 128, 0), (20, 20, 128, 64)],
)
def test_rope(
    heads: int,
    kv_heads: int,
    size: int,
    dim: int,
    page: int | None,
    normed: bool,
    dtype: torch.dtype,
) -> None:
    """With and without the write of keys and values to pages; no other page is touched."""
    torch.manual_seed(0)
    pos = torch.tensor([0, 3, 77, 5, 1])
    table = rope.tables(RopeSpec(theta=1e4, dim=dim), size, 128)
    fused = torch.randn(5, heads + 2 * kv_heads, size).to(dtype)  # as a fused projection leaves it
    norms = [torch.randn(size) if normed else None for _ in "qk"]
    parts = (heads, kv_heads, kv_heads)
    want = fused.float().clone()
    for x, weight in zip(want.split(parts, dim=1), norms, strict=False):
        rope.reference_rotate_(x, pos, table, weight, 1e-6)
    got = fused.to(DEVICE)
    q, k, v = got.split(parts, dim=1)
    weights = [None if w is None else w.to(DEVICE) for w in norms]
    there = q, k, v, pos.to(DEVICE), table.to(DEVICE), *weights, 1e-6
    if page is None:
        gpu.rope_(*there, None, None)
        assert close(got, want, dtype)
        assert torch.equal(v.cpu(), fused[:, heads + kv_heads :])
        return
    slots = torch.randperm(32)[:5]
    kv = torch.full((32 // page, 2, kv_heads, page, size), torch.nan, dtype=HALF)
    stored = kv.clone()
    reference_write(stored, *(x for x in want.split(parts, dim=1)[1:]), slots)
    kv, slots = kv.to(DEVICE), slots.to(DEVICE)
    gpu.rope_(*there, kv, slots)
    assert close(q, want[:, :heads], dtype)
    kv = kv.cpu()
    assert torch.equal(kv.isnan(), stored.isnan())
    error = (kv.float() - stored.float()).nan_to_num().abs()
    assert (error <= TOLERANCE[HALF] * (1 + stored.float().nan_to_num().abs())).all()
