"""bench/beside_flashinfer.py says to FlashInfer what our batches say to us; nothing is timed."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from weir.ops.attention import reference_attend
from weir.ops.batch import Batch

BENCH = Path(__file__).parents[2] / "bench/beside_flashinfer.py"


class Fake:
    """FlashInfer's wrappers as their documentation has them, by our reference."""

    def __init__(self, space, layout, **how):
        assert layout == "HND"
        self.causal = how == {"backend": "fa3"}
        assert self.causal or how == {"use_tensor_cores": True}

    def plan(self, *arrays, causal=False, q_data_type):
        *starts, ends, pages, last, heads, kv_heads, size, page = arrays
        assert causal == self.causal == bool(starts) and q_data_type == torch.bfloat16
        count = len(last)
        self.starts = starts[0] if starts else torch.arange(count + 1, dtype=torch.int32)
        assert {x.dtype for x in (self.starts, ends, pages, last)} == {torch.int32}
        self.pages = [pages[ends[s] : ends[s + 1]] for s in range(count)]
        self.keys = [(len(p) - 1) * page + int(n) for p, n in zip(self.pages, last, strict=True)]
        self.shape = heads, kv_heads, size, page

    def run(self, q, kv, *, out, return_lse):
        assert return_lse and (q.shape[1], kv.shape[2], q.shape[2], kv.shape[3]) == self.shape
        table = torch.nn.utils.rnn.pad_sequence(self.pages, batch_first=True)
        batch = Batch(self.starts, torch.tensor(self.keys), table, torch.empty(0))
        o, lse = reference_attend(q, kv, batch, self.spec)
        return out.copy_(o), lse


@pytest.mark.parametrize("kind, chunks", [("decode", [1, 1, 1]), ("prefill", [2, 1, 5])])
def test_flashinfer_is_told_of_the_same_pages(kind, chunks, monkeypatch) -> None:
    found = importlib.util.spec_from_file_location("beside_flashinfer", BENCH)
    bench = importlib.util.module_from_spec(found)
    found.loader.exec_module(bench)
    monkeypatch.setattr(bench, "SPACE", 0)
    monkeypatch.setattr(Fake, "spec", bench.SPEC, raising=False)
    names = "BatchDecodeWithPagedKVCacheWrapper", "BatchPrefillWithPagedKVCacheWrapper"
    fake = SimpleNamespace(**dict.fromkeys(names, Fake))
    monkeypatch.setitem(sys.modules, "flashinfer", fake)
    torch.manual_seed(0)
    keys = torch.tensor([16, 17, 47], dtype=torch.int32)  # a whole page, one more key, one less
    table = torch.tensor([[5, 0, 0], [2, 4, 0], [1, 3, 0]], dtype=torch.int32)
    starts = torch.tensor([0, *chunks]).cumsum(0).int()
    batch = Batch(starts, keys, table, torch.empty(0))
    kv = torch.randn(6, 2, bench.KV_HEADS, bench.PAGE, bench.SIZE).bfloat16()
    q = torch.randn(sum(chunks), bench.HEADS, bench.SIZE).bfloat16()
    got = bench.flashinfer_way(kind, q, batch)(kv)
    for mine, theirs in zip(reference_attend(q, kv, batch, bench.SPEC), got, strict=True):
        assert torch.equal(mine, theirs)
