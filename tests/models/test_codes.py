"""Quantised weights kept as codes: the same numbers as unpacked, nearly the same products."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from weir.gguf import FORMATS
from weir.models import codes
from weir.models.dequant import dequantize
from weir.ops import native
from weir.ops.linear import linear, pack_codes, rows

EXACT = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
ROUNDED = {"Q4_K": 2e-3, "Q5_K": 2e-3, "Q6_K": 3e-4, "Q3_K": 3e-4, "Q2_K": 8e-3, "IQ4_NL": 6e-3}


def blocks(name: str, shape: tuple[int, int], seed: int = 0) -> tuple[int, torch.Tensor]:
    """A weight as a model would have it, quantised by the `gguf` package or, for types that it
    only reads, random bytes with sane scales."""
    kind = GGMLQuantizationType[name]
    rng = np.random.default_rng(seed)
    try:
        data = quants.quantize(rng.normal(0, 0.05, shape).astype(np.float32), kind)
    except NotImplementedError:
        form = FORMATS[kind]
        data = rng.integers(0, 256, (shape[0] * shape[1] // form.block, form.size), dtype=np.uint8)
        half = np.frombuffer(np.float16(0.001).tobytes(), np.uint8)
        at = {"Q6_K": 208, "Q3_K": 108, "Q2_K": 80}.get(name, 0)
        data[:, at : at + 2] = half
        if name in ("Q4_K", "Q5_K"):
            data[:, 2:4] = half
        if name == "Q2_K":
            data[:, 82:84] = half
    return int(kind), torch.from_numpy(np.ascontiguousarray(data).reshape(-1))


def eighths(m: int, k: int) -> torch.Tensor:
    """Numbers [m, k] that 8 bits hold, as groups of 32 are rounded to: the largest of each is 127
    times a power of two."""
    x = torch.randint(-127, 128, (m, k // 32, 32)).float()
    x[..., 5] = 127
    return (x / 8).view(m, k)


@pytest.mark.parametrize("name", [*EXACT, *ROUNDED])
def test_codes_stand_for_the_same_weights(name):
    shape = (24, 512)
    kind, data = blocks(name, shape)
    want = torch.empty(shape)
    dequantize(kind, data, want)
    found = codes.read(kind, data, *shape)
    assert int(found.codes.max()) < 1 << found.bits
    error = (found.floats() - want).norm() / want.norm()
    assert error <= ROUNDED.get(name, 1e-6)


@pytest.mark.skipif(native.library() is None, reason=native.status())
@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q6_K", "Q8_0"])
@pytest.mark.parametrize(
    ("n", "k", "m"), [(32, 64, 1), (100, 96, 5), (33, 2080, 13), (70, 544, 40)]
)
def test_products_of_codes(name, n, k, m):
    k += -k % FORMATS[GGMLQuantizationType[name]].block
    kind, data = blocks(name, (n, k), seed=n)
    found = codes.read(kind, data, n, k)
    weight = pack_codes(found, bias := torch.randn(n))
    x, residual = eighths(m, k), torch.randn(m, n)
    want = x.double() @ found.floats().double().T + bias + residual
    got = linear(x, weight, residual)
    assert (got - want).norm() / want.norm() < 1e-4
    alone = torch.cat([linear(x[i : i + 1], weight, residual[i : i + 1]) for i in range(m)])
    assert torch.equal(got, alone)
    ids = torch.randint(0, n, (7,))
    assert torch.allclose(rows(weight, ids), found.floats()[ids], atol=1e-6)


def test_weights_that_are_alike_are_joined():
    first, second = (codes.read(*blocks("Q4_1", (rows, 64)), rows, 64) for rows in (4, 8))
    assert first.alike(second)
    both = first.join(second)
    assert torch.equal(both.floats(), torch.cat([first.floats(), second.floats()]))
    order = torch.randperm(12)
    assert torch.equal(both.shuffle(order).floats(), both.floats()[order])
    others = [codes.read(*blocks(name, (4, 256)), 4, 256) for name in ("Q4_0", "Q5_1", "Q6_K")]
    assert not any(one.alike(other) for one in others for other in [first, *others] if one != other)
