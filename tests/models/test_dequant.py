"""Every quantised type unpacks bit for bit as the `gguf` package does it."""

import gguf
import numpy as np
import pytest
import torch

from weir.errors import ConfigError
from weir.gguf import FORMATS
from weir.models.dequant import CHUNK, PLAIN, SPLITS, dequantize

READABLE = [kind for kind in gguf.quants._type_traits if int(kind) not in PLAIN]


def random_blocks(kind: gguf.GGMLQuantizationType, values: int) -> np.ndarray:
    form = FORMATS[kind]
    generator = np.random.default_rng(int(kind))
    return generator.integers(0, 256, (values // form.block, form.size), dtype=np.uint8)


@pytest.mark.parametrize("kind", READABLE, ids=lambda kind: kind.name)
def test_bit_exact(kind):
    """Any bytes, infinite and not-a-number scales among them, over more than one chunk."""
    blocks = random_blocks(kind, CHUNK + 5 * 256)
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(blocks, kind).reshape(-1)
        got = torch.empty(want.size)
        dequantize(kind, torch.from_numpy(blocks).view(-1), got)
    number = ~np.isnan(want)
    assert number.mean() > 0.5
    assert np.array_equal(got.numpy()[number].view(np.uint32), want[number].view(np.uint32))
    assert np.isnan(got.numpy()[~number]).all()


def test_the_common_types_are_our_own():
    common = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K".split()
    assert {FORMATS[kind].name for kind in SPLITS} == set(common)


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_types(kind):
    values = torch.arange(-8, 8).to(PLAIN[kind])
    out = torch.empty(2, 8)
    dequantize(kind, values.view(torch.uint8), out)
    assert out.flatten().tolist() == list(range(-8, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounds_once_to_the_type_of_the_output(dtype):
    kind = gguf.GGMLQuantizationType.Q4_1
    blocks = gguf.quants.quantize(np.random.default_rng(0).normal(size=(4, 64)), kind)
    out = torch.empty(4, 64, dtype=dtype)
    dequantize(kind, torch.from_numpy(blocks).reshape(-1), out)
    want = torch.from_numpy(gguf.quants.dequantize(blocks, kind))
    assert torch.equal(out, want.to(dtype))


@pytest.mark.parametrize("kind", [k for k in FORMATS if k not in PLAIN and k not in READABLE])
def test_types_that_nothing_reads_are_refused_by_name(kind):
    form = FORMATS[kind]
    with pytest.raises(ConfigError, match=form.name):
        dequantize(kind, torch.zeros(form.size, dtype=torch.uint8), torch.empty(form.block))
