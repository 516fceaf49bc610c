"""Pages are packed into records and back, by the kernel as by the reference."""

import pytest
import torch

from weir.ops import dispatch, pages
from weir.ops.coded import BYTES, decode, encode
from weir.ops.pages import Paged, pack, unpack

CPU = torch.device("cpu")
SIZES = [64, 192, 32]


def paged(count: int, sizes: list[int] = SIZES) -> Paged:
    memory = torch.randint(256, (count * sum(sizes),), dtype=torch.uint8)
    return Paged(memory, sizes, count, CPU)


@pytest.fixture(params=["reference", "kernel"])
def programs(request, monkeypatch) -> int:
    if request.param == "kernel":
        triton = pytest.importorskip("triton", minversion="3.9")
        assert triton is not None
        from weir.ops import triton as gpu

        monkeypatch.setattr("weir.ops.pages.gpu_kernels", lambda x: gpu)
    return 4


def test_a_record_is_a_page_of_each_layer(programs: int) -> None:
    some, at = paged(5), torch.tensor([3, 0])
    records = torch.empty(2, some.record, dtype=torch.uint8)
    pack(some, at, records, programs=programs)
    for row, page in zip(records, at, strict=True):
        assert torch.equal(row, torch.cat([layer[page] for layer in some.layers]))


def test_what_was_packed_is_unpacked_elsewhere(programs: int) -> None:
    here, there = paged(7), paged(4)
    before = [layer.clone() for layer in there.layers]
    records = torch.empty(3, here.record, dtype=torch.uint8)
    pack(here, torch.tensor([6, 2, 2]), records)
    unpack(there, torch.tensor([1, 3, 0]), records, programs=programs)
    for layer, source, old in zip(there.layers, here.layers, before, strict=True):
        assert torch.equal(layer[[1, 3, 0]], source[[6, 2, 2]])
        assert torch.equal(layer[2], old[2])
    unpack(there, torch.tensor([], dtype=torch.int64), records[:0])


@pytest.mark.parametrize("kind", BYTES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_records_may_be_of_fewer_bits(monkeypatch, programs: int, kind, dtype) -> None:
    """They are the codes of a page of each layer; and the codes of what they become again."""
    counts = [64, 192, 128]  # numbers
    numbers = torch.randn(5 * sum(counts), generator=torch.Generator().manual_seed(3)).to(dtype)
    sizes = [count * dtype.itemsize for count in counts]
    here = Paged(numbers.view(torch.uint8), sizes, 5, CPU, dtype, kind)
    there = Paged(torch.zeros(4 * sum(sizes), dtype=torch.uint8), sizes, 4, CPU, dtype, kind)
    at, others = torch.tensor([3, 0, 4]), torch.tensor([1, 3, 0])
    want = [encode(layer.view(dtype)[at], kind) for layer in here.layers]
    back = [decode(codes, kind, dtype) for codes in want]
    monkeypatch.setattr("weir.ops.coded.gpu_kernels", pages.gpu_kernels)
    monkeypatch.setattr(pages, "WIDE", 1)  # a page at a time
    records = torch.empty(3, here.record, dtype=torch.uint8)
    pack(here, at, records, programs=programs)
    assert torch.equal(records, torch.cat(want, 1))
    unpack(there, others, records, programs=programs)
    for layer, x in zip(there.layers, back, strict=True):
        assert torch.equal(layer.view(dtype)[others], x)
    pack(there, others, again := torch.empty_like(records))
    assert torch.equal(again, records)


def test_blocks_divide_the_pages_of_every_layer() -> None:
    assert paged(2).block == 32 and len(paged(2).blocks) == 9
    large = Paged(torch.zeros(3 << 16, dtype=torch.uint8), [1 << 16], 3, CPU)
    assert large.block == 1 << 14
    assert dispatch.gpu_kernels(large.memory) is None
