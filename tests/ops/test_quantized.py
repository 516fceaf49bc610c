"""Weights of 4 and 8 bits: what they stand for, and their products on a GPU or in Triton's
interpreter against plain PyTorch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", minversion=None if torch.cuda.is_available() else "3.9")

from weir.ops import fastest
from weir.ops.fused import Fused
from weir.ops.linear import gated_linear, linear, normed_linear, pack_codes, pack_fp8
from weir.ops.mlp import reference_gated
from weir.ops.norm import reference_rms_norm
from weir.ops.quantize import FP8, FP8_MOST, Codes, from_tiles, to_codes, to_fp8, to_tiles
from weir.ops.triton.codes import product_of_codes, unpacked
from weir.ops.triton.linear import Tile, product
from weir.ops.triton.rows import quantized, ready
from weir.ops.triton.single import single_of_bytes, single_of_codes

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# the interpreter rounds to bfloat16 in its own way
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16
PAIRS = {torch.float32: torch.float16, HALF: HALF}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 1.5e-2}
TILES = [
    Tile(64, 64, 1, 4, 3, tokens=16),
    Tile(32, 128, 3, 2, 2, tokens=32),
    Tile(128, 256, 2, 4, 2, tokens=64),
]


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    error = (got.cpu().double() - want).norm() / want.norm()
    return float(error.nan_to_num(torch.inf))


def poisoned() -> None:
    """Leave NaN in the memory that the next results are likely to get."""
    for size in (1 << 12, 1 << 16, 1 << 20):
        torch.full((size,), torch.nan, device=DEVICE)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 5), st.sampled_from([32, 64, 128]), st.integers(0, 99))
def test_a_group_is_off_by_half_a_step_at_most(n: int, groups: int, group: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, groups * group, generator=g) * torch.rand(n, 1, generator=g)
    found = to_codes(weight, group)
    step = found.pairs[..., 0].float().repeat_interleave(group, 1)
    most = weight.abs().max()
    assert ((found.floats() - weight).abs() <= step / 2 + most * 2**-9).all()  # pairs are float16
    assert torch.equal(found.regrouped(32).floats(), found.floats())
    if groups * group % 64 == 0:
        assert torch.equal(
            from_tiles(*to_tiles(found, 64, torch.float16), n).floats(), found.floats()
        )


def test_equal_weights_and_zeros_are_kept() -> None:
    weight = torch.tensor([0.0, 0.5, -3.0])[:, None].expand(3, 64)
    assert torch.equal(to_codes(weight).floats(), weight)
    assert torch.allclose(to_fp8(weight).floats(), weight)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_codes_unpack_to_what_they_stand_for(group: int, dtype: torch.dtype) -> None:
    n, k = 100, 1280
    found = to_codes(torch.randn(n, k), group)
    tiles, pairs = (x.to(DEVICE) for x in to_tiles(found, 64, PAIRS[dtype]))
    poisoned()
    want, got = found.floats(), unpacked(tiles, pairs, n, dtype)
    assert distance(got, want.double()) <= (0 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("m, n, k, group", [(1, 96, 320, 64), (5, 64, 512, 128), (37, 70, 192, 32)])
def test_a_product_of_codes(
    m: int, n: int, k: int, group: int, tile: Tile, dtype: torch.dtype
) -> None:
    found = to_codes(torch.randn(n, k) / k**0.5, group)
    tiles, pairs = (x.to(DEVICE) for x in to_tiles(found, 64, PAIRS[dtype]))
    weight, check = found.floats().double(), Check(m, n, k, dtype)

    def run(x: torch.Tensor, fused: Fused) -> torch.Tensor:
        return product_of_codes(x, tiles, pairs, n, tile, fused)

    check(run, weight)


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("m, n, k", [(1, 96, 320), (5, 64, 512), (20, 70, 72)])
def test_a_product_of_8_bit_floats(m: int, n: int, k: int, tile: Tile) -> None:
    found, dtype = to_fp8(torch.randn(n, k) / k**0.5), HALF if DEVICE == "cuda" else torch.float32
    values, scales = found.values.to(DEVICE), found.scales.to(DEVICE)

    def run(x: torch.Tensor, fused: Fused) -> torch.Tensor:
        return product(x, values, scales, tile, fused)

    Check(m, n, k, dtype)(run, found.floats().double())


@pytest.mark.parametrize(
    "n, k, group", [(96, 320, 64), (70, 192, 32), (130, 1024, 128), (9, 9000, 0)]
)
def test_products_of_one_row(n: int, k: int, group: int) -> None:
    """Of 8-bit floats, and of codes where there is a group of them."""
    weight, check = torch.randn(n, k) / k**0.5, Check(1, n, k, HALF)
    floats = to_fp8(weight)
    values, scales = floats.values.to(DEVICE), floats.scales.to(DEVICE)

    def of_bytes(x: torch.Tensor, fused: Fused) -> torch.Tensor:
        return single_of_bytes(ready(x, fused), values, scales, fused)

    check(of_bytes, floats.floats().double())
    if group:
        found = to_codes(weight, group)
        tiles, pairs = (x.to(DEVICE) for x in to_tiles(found, 64, HALF))

        def of_codes(x: torch.Tensor, fused: Fused) -> torch.Tensor:
            return single_of_codes(ready(x, fused), tiles, pairs, n, fused)

        check(of_codes, found.floats().double())


@pytest.mark.parametrize("offset", [0, 1, 4])
def test_one_row_may_begin_anywhere(offset: int) -> None:
    weight = to_fp8(torch.randn(8, 64))
    rows = torch.randn(2, 64 + 5).to(HALF)
    x = rows.to(DEVICE)[1:, offset : offset + 64]
    got = single_of_bytes(x, weight.values.to(DEVICE), weight.scales.to(DEVICE), Fused())
    want = rows[1:, offset : offset + 64].double() @ weight.floats().double().T
    assert distance(got, want) < TOLERANCE[HALF]


@pytest.mark.parametrize("factor", [2.0**-12, 1.0, 100.0])
def test_every_8_bit_float_and_every_code_is_its_number(factor: float) -> None:
    """Nothing of it is lost on its way, also where x is small or large."""
    every = torch.arange(256, dtype=torch.uint8).view(FP8)
    every = every[~every.float().isnan()]
    weight, x = torch.zeros(len(every), 64, dtype=FP8), torch.full((1, 64), 3.0, dtype=HALF)
    weight[:, 5], x[0, 5] = every, factor
    ones = torch.ones(len(every), device=DEVICE)
    got = single_of_bytes(x.to(DEVICE), weight.to(DEVICE), ones, Fused())
    assert torch.equal(got.cpu()[0], (every.double() * factor).to(HALF))
    codes = (torch.arange(64)[:, None] // 4 + torch.arange(64)).remainder(16).byte()
    pairs = torch.tensor([1.0, 0.0]).half().expand(64, 1, 2)
    tiles, pairs = (t.to(DEVICE) for t in to_tiles(Codes(codes, pairs, 4), 64, HALF))
    for column in (0, 5, 14, 23, 31, 32, 37, 63):
        x.zero_()[0, column] = factor
        got = single_of_codes(x.to(DEVICE), tiles, pairs, 64, Fused())
        assert torch.equal(got.cpu()[0], (codes[:, column].double() * factor).to(HALF))


def test_the_fastest_way_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = [lambda n=n: torch.full((1,), float(n)) for n in range(3)]
    assert fastest.fastest("not on a GPU", torch.zeros(1), *ways) == 0
    timed: list[int] = []
    monkeypatch.setattr(fastest, "_won", {})
    monkeypatch.setattr(
        fastest, "_times", lambda x, ways: timed.append(len(ways)) or [3.0, 1.0, 2.0]
    )
    x = torch.zeros(1, device=DEVICE)
    if DEVICE == "cpu":
        x = type("OnGPU", (), {"is_cuda": True})()
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert [int(fastest.fastest("some", x, *ways)) for _ in range(3)] == [1, 1, 1]
    assert timed == [3]


class Check:
    """Runs a product with all that can be fused into it, twice, since splits count themselves."""

    def __init__(self, m: int, n: int, k: int, dtype: torch.dtype):
        g = torch.Generator().manual_seed(m + n)
        self.k, self.dtype = k, dtype
        self.residual = torch.randn(m, n, generator=g).to(dtype)
        self.bias = torch.randn(n, generator=g).to(dtype)
        self.norm = torch.rand(k, generator=g) + 0.5
        self.x = torch.randn(m, 2 * k + 8, generator=g).to(dtype)  # rows lie apart

    def __call__(self, run, weight: torch.Tensor) -> None:  # type: ignore[no-untyped-def]
        x, residual, bias, norm = (
            t.to(DEVICE) for t in (self.x, self.residual, self.bias, self.norm)
        )
        one, two = self.x[:, : self.k].double(), self.x[:, : 2 * self.k].double()
        for _ in range(2):
            poisoned()
            got = run(x[:, : self.k], Fused(residual=residual, bias=bias))
            want = one @ weight.T + self.residual.double() + self.bias.double()
            assert got.dtype == self.dtype and distance(got, want) < TOLERANCE[self.dtype]
            got = run(x[:, : self.k], Fused(norm, 1e-5))
            want = reference_rms_norm(one.float(), self.norm, 1e-5).double() @ weight.T
            assert distance(got, want) < TOLERANCE[self.dtype]
            got = run(x[:, : 2 * self.k], Fused(residual=residual, act="silu"))
            want = reference_gated(two, "silu") @ weight.T + self.residual.double()
            assert distance(got, want) < TOLERANCE[self.dtype]


@pytest.mark.parametrize("rows, width", [(1, 64), (7, 200), (3, 1000)])
def test_rows_are_normed_or_gated_on_the_way_to_8_bits(rows: int, width: int) -> None:
    x, norm = torch.randn(rows, 2 * width) * 9, torch.rand(width) + 0.5
    x[0] = 0
    there, weight = x.to(DEVICE), norm.to(DEVICE)
    one = x[:, :width]
    part = 16 if DEVICE == "cuda" else 2  # the interpreter loses the carry of a rounded mantissa
    for got, want in (
        (quantized(there[:, :width], Fused()), one),
        (quantized(there[:, :width], Fused(weight, 1e-5)), reference_rms_norm(one, norm, 1e-5)),
        (quantized(there, Fused(act="silu")), reference_gated(x, "silu")),
    ):
        values, scales = got[0].float().cpu(), got[1].cpu()
        assert values.shape == (rows, width) and values.abs().max() <= FP8_MOST
        assert ((values * scales - want).abs() <= want.abs() / part + scales * 2**-9).all()
        best = to_fp8(want)
        assert torch.allclose(scales[:, 0], best.scales, rtol=1e-5)


@needs_gpu
@pytest.mark.parametrize("m", [1, 3, 16, 17, 64, 65, 300, 1500])
@pytest.mark.parametrize("n, k", [(1024, 3072), (4096, 14336)])
@pytest.mark.parametrize("kind", ["int4", "fp8"])
def test_linears_agree_whatever_computes_them(kind: str, m: int, n: int, k: int) -> None:
    torch.manual_seed(0)
    whole = torch.randn(n, k, device="cuda", dtype=HALF) / k**0.5
    bias = torch.randn(n, device="cuda") / 9
    found = to_codes(whole) if kind == "int4" else to_fp8(whole)
    w = pack_codes(found, bias) if isinstance(found, Codes) else pack_fp8(found, bias)
    few = 16 if kind == "fp8" else 10**6  # x is rounded to 8 bits above
    limit = 1e-2 if m <= few else 4e-2
    x = torch.randn(m, 2 * k, device="cuda", dtype=HALF)
    residual, norm = torch.randn(m, n, device="cuda", dtype=HALF), torch.rand(k, device="cuda")
    one, weight = x[:, :k].contiguous(), found.floats().T
    plus = residual.float() + bias
    poisoned()
    got = linear(one, w, residual.clone())
    assert distance(got, (one.float() @ weight + plus).double().cpu()) < limit
    want = reference_rms_norm(one.float(), norm, 1e-6) @ weight + bias
    assert distance(normed_linear(one, norm, 1e-6, w), want.double().cpu()) < limit
    want = reference_gated(x.float(), "silu") @ weight + plus
    assert distance(gated_linear(x, "silu", w, residual.clone()), want.double().cpu()) < limit
    first = linear(one, w)
    assert all(torch.equal(linear(one, w), first) for _ in range(3))
