"""How fast a GPU copies and multiplies, from which the time of any step is estimated."""

from __future__ import annotations

from collections.abc import Callable

import torch

SIDE = 6144
"""Of the square matrices, each larger than a cache: 72 MiB in bfloat16."""


def rates(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Bytes/s of a copy, read and written, and FLOP/s of a product, of random numbers. Takes about
    10 ms on an H100, and 0.2 GB that are free again afterwards."""
    a, b = (torch.randn(SIDE, SIDE, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    copying = _seconds(lambda: out.copy_(a))
    multiplying = _seconds(lambda: torch.mm(a, b, out=out))
    return 2 * a.nbytes / copying, 2 * SIDE**3 / multiplying


def _seconds(work: Callable[[], object]) -> float:
    """The least of several."""
    marks = []
    for _ in range(5):
        marks.append([torch.cuda.Event(enable_timing=True) for _ in range(2)])
        marks[-1][0].record()
        work()
        marks[-1][1].record()
    torch.cuda.synchronize()
    return min(start.elapsed_time(end) for start, end in marks) / 1e3
