"""Copies of pages between a device and its host."""

import numpy as np
import pytest
import torch

from weir.runtime import copies, pinned

DEVICES = [
    torch.device("cpu"),
    pytest.param(
        torch.device("cuda"),
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]


@pytest.mark.parametrize("batched", [True, False], ids=["one call", "one by one"])
@pytest.mark.parametrize("device", DEVICES, ids=["cpu", "gpu"])
def test_pages_go_and_come_back(device, batched, monkeypatch):
    """Pages of 3 KiB in memory that is locked in parts of 8 KiB: some lie in two of them."""
    for module in (pinned, copies):
        monkeypatch.setattr(module, "PART", 8192)
    if device.type == "cuda" and not batched:
        monkeypatch.setattr(copies, "driver", lambda: Old(copies.driver.__wrapped__()))
    memory = pinned.host_zeros(1024 + 20 * 3072, pinned=device.type == "cuda")
    host = memory[1024:].view(torch.float32).view(20, 3, 256)
    pages, into = np.array([19, 3, 7, 2, 0]), np.array([4, 0, 2, 1, 5])
    there = torch.randn(6, 3, 256, device=device)
    copies.copy_pages(host, pages, there, into)
    back = torch.zeros_like(there)
    copies.copy_pages(back, into, host, pages)
    if device.type == "cuda":
        torch.cuda.synchronize()
    assert torch.equal(host[torch.from_numpy(pages)], there[torch.from_numpy(into)].cpu())
    there[3] = 0  # was not copied
    assert torch.equal(back, there)
    others = sorted(set(range(20)) - set(pages.tolist()))
    assert not host[others].any()
    copies.copy_pages(host, pages[:0], there, into[:0])


class Old:
    """A driver that knows no batches."""

    def __init__(self, library):
        self.cuMemcpyAsync = library.cuMemcpyAsync
