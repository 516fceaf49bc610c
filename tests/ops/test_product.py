"""Linear layers of few rows on a GPU, or in Triton's interpreter, against plain PyTorch."""

import pytest
import torch

pytest.importorskip("triton", minversion=None if torch.cuda.is_available() else "3.9")

from weir.ops.fused import Fused
from weir.ops.linear import gated_linear, linear, normed_linear, pack
from weir.ops.mlp import reference_gated
from weir.ops.norm import reference_rms_norm
from weir.ops.triton.linear import FEW, SOME, Tile, product, tile_for
from weir.ops.triton.vector import MOST, vector_product

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# the interpreter rounds to bfloat16 in its own way
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16
TOLERANCE = {torch.float32: 1e-5, HALF: 1e-2}
TILES = [Tile(16, 64, 1, 4, 3), Tile(64, 128, 3, 4, 2, ahead=64), Tile(32, 32, 4, 4, 2)]


def distance(got: torch.Tensor, want: torch.Tensor) -> float:
    error = (got.cpu().double() - want).norm() / want.norm()
    return float(error.nan_to_num(torch.inf))


def multiply(x, w, tile, **fused):
    """By either kernel; None is the one whose weights wait in registers."""
    if tile is None:
        return vector_product(x, w, Fused(**fused))
    return product(x, w, None, tile, Fused(**fused))


SHAPES = [(1, 96, 160), (5, 64, 512), (20, 70, 72)]
CASES = [(*shape, tile) for shape in SHAPES for tile in TILES]
CASES += [(1, 96, 160, None), (MOST, 70, 72, None), (2, 9, 3000, None)]


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("m, n, k, tile", CASES, ids=str)
def test_a_product_of_any_shape(m, n, k, tile, dtype) -> None:
    """Twice, since the splits of a tile count themselves; with and without what can be fused."""
    g = torch.Generator().manual_seed(m + n)
    w = (torch.randn(n, k, generator=g) / k**0.5).to(dtype)
    residual, norm = torch.randn(m, n, generator=g).to(dtype), torch.rand(k, generator=g) + 0.5
    x = torch.randn(m, 2 * k + 8, generator=g).to(dtype)  # rows lie apart
    one, two = x[:, :k], x[:, : 2 * k]
    there = {t: t.to(DEVICE) for t in (w, residual, norm, x)}
    for _ in range(2):
        got = multiply(there[x][:, :k], there[w], tile, residual=there[residual])
        assert got.dtype == dtype
        want = one.double() @ w.double().T + residual.double()
        assert distance(got, want) < TOLERANCE[dtype]
        got = multiply(there[x][:, :k], there[w], tile, norm=there[norm], eps=1e-5)
        want = reference_rms_norm(one.double().float(), norm, 1e-5).double() @ w.double().T
        assert distance(got, want) < TOLERANCE[dtype]
        got = multiply(there[x][:, : 2 * k], there[w], tile, residual=there[residual], act="silu")
        want = reference_gated(two.double(), "silu") @ w.double().T + residual.double()
        assert distance(got, want) < TOLERANCE[dtype]


def test_not_a_number_stays_in_its_row() -> None:
    x, w = torch.randn(3, 64), torch.randn(32, 64)
    x[1, 5] = torch.nan
    for tile in (*TILES, None):
        norm = torch.ones(64, device=DEVICE)
        y = multiply(x.to(DEVICE), w.to(DEVICE), tile, norm=norm, eps=1e-5)
        assert y[1].isnan().all() and y[[0, 2]].isfinite().all()


def test_tiles_are_for_few_rows() -> None:
    for m in (1, FEW, FEW + 1, SOME, SOME + 1, 4096):
        for n, k in ((64, 128), (1024, 3072), (1000, 2100), (4096, 4096), (9, 900)):
            tile = tile_for(m, n, k)
            assert tile is None or (m <= SOME and tile.splits * max(tile.columns, tile.ahead) <= k)
    assert tile_for(1, 4096, 4096) and not tile_for(65, 1024, 1024)
    assert not tile_for(1, 128256, 4096)


@needs_gpu
@pytest.mark.parametrize("m", [1, 3, 16, 17, 64, 65, 1500])
@pytest.mark.parametrize("n, k", [(1024, 3072), (1000, 1024), (4096, 14336)])
def test_linears_agree_whatever_computes_them(m: int, n: int, k: int) -> None:
    torch.manual_seed(0)
    w = pack(torch.randn(n, k, device="cuda", dtype=HALF) / k**0.5)
    x = torch.randn(m, 2 * k, device="cuda", dtype=HALF)
    residual, norm = torch.randn(m, n, device="cuda", dtype=HALF), torch.rand(k, device="cuda")
    one, weight = x[:, :k].contiguous(), w.weight.float().T
    want = one.float() @ weight
    assert distance(linear(one, w), want.double().cpu()) < 1e-2
    want += residual.float()
    assert distance(linear(one, w, residual.clone()), want.double().cpu()) < 1e-2
    want = reference_rms_norm(one.float(), norm, 1e-6) @ weight
    assert distance(normed_linear(one, norm, 1e-6, w), want.double().cpu()) < 1e-2
    want = reference_gated(x.float(), "silu") @ weight + residual.float()
    assert distance(gated_linear(x, "silu", w, residual.clone()), want.double().cpu()) < 1e-2
    first = linear(one, w)
    assert all(torch.equal(linear(one, w), first) for _ in range(5))
