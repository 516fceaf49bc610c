"""How fast a GPU copies and multiplies, from which the time of any step is estimated, and how fast
main memory reaches it."""

import timeit
from collections.abc import Callable

import torch
from torch import Tensor

from weir.ops.attention import attend
from weir.ops.batch import Batch
from weir.ops.fastest import milliseconds
from weir.runtime.pinned import host_zeros
from weir.spec import AttentionSpec

SIDE = 6144
"""Of the square matrices, each larger than a cache: 72 MiB in bfloat16."""
LINK = 2**28
"""Bytes of a copy over a link."""
READ = 2**28
"""Bytes of keys and values that attention on the host is timed with."""
SEQUENCES = 64


def rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes/s of a copy, read and written, and FLOP/s of a product, of random numbers. Takes about
    10 ms on an H100, and 0.2 GB that are free again afterwards."""
    a, b = (torch.randn(SIDE, SIDE, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    copying = _seconds(lambda: out.copy_(a))
    multiplying = _seconds(lambda: torch.mm(a, b, out=out))
    return 2 * a.nbytes / copying, 2 * SIDE**3 / multiplying


def links(device: torch.device) -> tuple[float, float, float]:
    """Bytes/s from pinned memory to a GPU, back, and of both at once. Takes 0.1 s, and 0.5 GB of
    each memory that are free again afterwards."""
    here, back = (host_zeros(LINK, pinned=True) for _ in range(2))
    there, other = (torch.empty(LINK, dtype=torch.uint8, device=device) for _ in range(2))
    aside = torch.cuda.Stream(device)

    def both() -> None:
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            back.copy_(other, non_blocking=True)
        there.copy_(here, non_blocking=True)
        torch.cuda.current_stream().wait_stream(aside)

    to_gpu = _seconds(lambda: there.copy_(here, non_blocking=True))
    to_cpu = _seconds(lambda: back.copy_(other, non_blocking=True))
    return LINK / to_gpu, LINK / to_cpu, 2 * LINK / _seconds(both)


def attention(kv: Tensor, spec: AttentionSpec, dtype: torch.dtype) -> float:
    """Bytes/s of a layer's keys and values, [pages, 2, Hkv, page, D] on the host, that attention
    with queries of `dtype` reads there. Takes some 10 ms."""
    pages = min(len(kv) // SEQUENCES, READ // (SEQUENCES * kv[0].nbytes)) or 1
    rows, tokens = min(SEQUENCES, len(kv)), pages * kv.shape[3]
    table = torch.randperm(rows * pages).to(torch.int32).view(rows, pages)
    start, length = torch.arange(rows + 1), torch.full((rows,), tokens)
    batch = Batch(start.int(), length.int(), table, torch.zeros(rows, dtype=torch.int64))
    q = torch.zeros(rows, spec.heads, spec.head_dim, dtype=dtype)
    best = min(timeit.repeat(lambda: attend(q, kv, batch, spec), number=1, repeat=4))
    return float(rows * pages * kv[0].nbytes / best)


def room(device: torch.device, share: float) -> int:
    """Bytes of a GPU's memory that are free, less what is beyond that share of it."""
    free, total = torch.cuda.mem_get_info(device)
    return int(free - (1 - share) * total)


def _seconds(work: Callable[[], object]) -> float:
    """The least of several."""
    return min(milliseconds((work,), 5)[0]) / 1e3
