"""Linear layers against double precision, and that a row's result depends on that row alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weir.ops import linear as module
from weir.ops import native
from weir.ops.linear import gated_linear, linear, normed_linear, pack, pack_fp8, reference_linear
from weir.ops.mlp import gated
from weir.ops.norm import rms_norm
from weir.ops.quantize import to_fp8

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
needs_kernels = pytest.mark.skipif(native.library() is None, reason=native.status())


def inputs(m: int, n: int, k: int, dtype: torch.dtype) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(m * 1_000_003 + n * 1009 + k)
    x, w = torch.randn(m, k, generator=g), torch.randn(n, k, generator=g).to(dtype)
    return [x, w, torch.randn(n, generator=g), torch.randn(m, n, generator=g)]


def close(got: torch.Tensor, x: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> bool:
    """bfloat16 may round x once, to 8 bits, which averages out over k."""
    scale = want.abs().max().clamp(min=1.0)
    return bool((got - want).abs().max() / scale < (1e-2 if dtype == torch.bfloat16 else 3e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "m, n, k",
    [
        (1, 1, 1),
        (1, 33, 7),
        (3, 64, 80),
        (5, 100, 129),
        (13, 576, 576),
        (97, 31, 250),
        (800, 40, 9),
    ],
)
def test_it_multiplies_adds_bias_and_residual(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    x, w, bias, residual = inputs(m, n, k, dtype)
    want = x.double() @ w.double().T
    assert close(linear(x, pack(w)), x, want, dtype)
    assert close(linear(x, pack(w, bias)), x, want + bias, dtype)
    added = want + bias + residual
    assert close(linear(x, pack(w, bias), residual.clone()), x, added, dtype)
    assert close(reference_linear(x, w.float(), bias, residual), x, added, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_longer_than_a_block_is_carried_over(dtype: torch.dtype) -> None:
    x, w, bias, residual = inputs(14, 70, 5001, dtype)
    want = x.double() @ w.double().T + bias + residual
    assert close(linear(x, pack(w, bias), residual), x, want, dtype)


def test_bfloat16_is_exact_where_no_rounding_can_happen() -> None:
    x, w = torch.randint(-8, 8, (7, 96)).float(), torch.randint(-8, 8, (50, 96)).bfloat16()
    assert torch.equal(linear(x, pack(w)), x @ w.float().T)


@needs_kernels
@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 120),
    n=st.integers(1, 70),
    k=st.integers(1, 70),
    bf16=st.booleans(),
    data=st.data(),
)
def test_a_row_never_depends_on_the_others(
    m: int, n: int, k: int, bf16: bool, data: st.DataObject
) -> None:
    x, w, bias, residual = inputs(m, n, k, torch.bfloat16 if bf16 else torch.float32)
    packed = pack(w, bias)
    whole = linear(x, packed, residual)
    begin = data.draw(st.integers(0, m - 1))
    end = data.draw(st.integers(begin + 1, m))
    assert torch.equal(linear(x[begin:end], packed, residual[begin:end]), whole[begin:end])


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n, k", [(960, 576), (40, 4100), (2050, 64)])
def test_a_row_never_depends_on_threads(n: int, k: int, dtype: torch.dtype) -> None:
    x, w, bias, residual = inputs(200, n, k, dtype)
    packed, results = pack(w, bias), []
    try:
        for threads in (1, 2, 5):
            native.set_threads(threads)
            results += [linear(x, packed, residual), linear(x[:1], packed, residual[:1])]
    finally:
        native.set_threads(0)
    assert torch.equal(results[0], results[2]) and torch.equal(results[0], results[4])
    assert all(torch.equal(one, results[0][:1]) for one in results[1::2])


def test_no_rows_give_no_rows() -> None:
    assert linear(torch.empty(0, 8), pack(torch.ones(4, 8))).shape == (0, 4)


def test_rows_may_lie_apart() -> None:
    x, w, _, _ = inputs(6, 20, 16, torch.float32)
    assert torch.equal(linear(x[::2], pack(w)), linear(x[::2].contiguous(), pack(w)))


@needs_kernels
def test_what_the_kernel_cannot_read_is_refused() -> None:
    packed = pack(torch.ones(4, 8))
    with pytest.raises(TypeError, match="float32"):
        linear(torch.ones(2, 8, dtype=torch.float64), packed)
    with pytest.raises(TypeError, match="8"):
        linear(torch.ones(2, 7), packed)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("m", [1, 2, 7, 130, 800])
def test_normalising_and_gating_on_the_way_in_change_no_bit(
    m: int, act: str, dtype: torch.dtype
) -> None:
    x, w, bias, residual = inputs(m, 70, 100, dtype)
    norm, packed = 1 + torch.randn(100) / 9, pack(w, bias)
    assert torch.equal(
        normed_linear(x, norm, 1e-5, packed), linear(rms_norm(x, norm, 1e-5), packed)
    )
    gate_up = torch.cat([x, x.flip(0)], dim=1)
    want = linear(gated(gate_up, act), packed, residual)
    assert torch.equal(gated_linear(gate_up, act, packed, residual), want)
    with pytest.raises(TypeError, match="100"):
        normed_linear(gate_up, norm, 1e-5, packed)


@pytest.mark.parametrize("plus", [False, True])
def test_a_scale_a_row_may_be_refused(monkeypatch, plus: bool) -> None:
    """As cuBLAS does for some shapes of few rows."""
    x, w, bias, residual = inputs(5, 64, 128, torch.float32)
    x, weight = to_fp8(x), pack_fp8(to_fp8(w), bias)
    want = (x.floats() @ weight.weight.float().mul(weight.scales[:, None]).T + bias).bfloat16()
    if plus:
        want += residual.bfloat16()
    original, asked = torch._scaled_mm, []

    def refuse(a, b, rows, *more, **options):
        asked.append(rows.numel())
        if rows.numel() > 1:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling")
        return original(a, b, rows, *more, **options)

    monkeypatch.setattr(torch, "_scaled_mm", refuse)
    monkeypatch.setattr(module, "_without_scales", set())
    for _ in range(2):
        over = residual.bfloat16() if plus else None
        got = module._product_of_fp8(x.values, x.scales[:, None], weight, over)
        assert got.dtype == torch.bfloat16 and (got - want).norm() / want.norm() < 5e-3
    assert asked == [5, 1, 1]
