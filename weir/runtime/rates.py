"""Measures how fast a GPU copies and multiplies, how fast its link to main memory is, and how fast
the host attends. Step times are estimated from these rates."""

import timeit
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from weir.ops.attention import attend
from weir.ops.batch import Batch
from weir.ops.fastest import milliseconds
from weir.runtime.pinned import host_zeros
from weir.spec import AttentionSpec

SIDE = 6144
"""Rows of the square matrices, each larger than a cache: 72 MiB in bfloat16."""
LINK = 2**28
"""Bytes copied to time a link."""
READ = 2**28
"""Most bytes of keys and values read at once to time attention on the host."""
SEQUENCES, TURNS = 64, 4


def rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes/s of a copy, reads and writes added, and FLOP/s of a matrix product, of random numbers.
    Takes about 10 ms on an H100 and, for that time, 0.2 GB."""
    a, b = (torch.randn(SIDE, SIDE, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    copying = _seconds(lambda: out.copy_(a))
    multiplying = _seconds(lambda: torch.mm(a, b, out=out))
    return 2 * a.nbytes / copying, 2 * SIDE**3 / multiplying


def links(device: torch.device) -> tuple[float, float, float]:
    """Bytes/s from pinned memory to a GPU, back, and both ways at once. Takes 0.1 s and, for that
    time, 0.5 GB of each memory."""
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
    """Bytes/s at which attention on the host, with queries of `dtype`, reads a layer's keys and
    values `kv` [pages, 2, Hkv, page, D]. Each turn reads other pages, if there are enough: caches
    of servers hold hundreds of megabytes. Takes some 10 ms."""
    pages = min(len(kv) // SEQUENCES, READ // (SEQUENCES * kv[0].nbytes)) or 1
    rows, tokens = min(SEQUENCES, len(kv)), pages * kv.shape[3]
    start, length = torch.arange(rows + 1), torch.full((rows,), tokens)
    written = torch.zeros(rows, dtype=torch.int64)
    q = torch.zeros(rows, spec.heads, spec.head_dim, dtype=dtype)
    order = torch.randperm(len(kv)).to(torch.int32).repeat(2)
    batches = [
        Batch(start.int(), length.int(), order[at : at + rows * pages].view(rows, pages), written)
        for at in (turn * rows * pages % len(kv) for turn in range(TURNS))
    ]
    best = min(timeit.timeit(partial(attend, q, kv, one, spec), number=1) for one in batches)
    return float(rows * pages * kv[0].nbytes / best)


def room(device: torch.device, share: float) -> int:
    """Free bytes of a GPU's memory, less the part of all its memory beyond `share`."""
    free, total = torch.cuda.mem_get_info(device)
    return int(free - (1 - share) * total)


def _seconds(work: Callable[[], object]) -> float:
    """The shortest of several runs."""
    return min(milliseconds((work,), 5)[0]) / 1e3
