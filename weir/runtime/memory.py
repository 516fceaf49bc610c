"""What the steps of a GPU need beside weights and KV pages, found by running the largest."""

from __future__ import annotations

import torch

from weir.runtime.runner import Runner
from weir.runtime.warmup import warm_up

RECORDING = 4 << 20
"""Bytes that the driver takes for the recording of one shape, about."""


def rehearse(runner: Runner, tokens: int, requests: int, lane: int) -> int:
    """Run the largest steps, in lanes of so many tokens, of a runner that has yet to record.

    PyTorch keeps the memory that they took, so it no longer counts as free. → bytes that recording
    will take besides: its pool is as large as the largest lane needs."""
    warm_up(runner, tokens, requests, lane)
    shapes = runner.graphs.shapes
    if not shapes:
        return 0
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    runner.pad(shapes[0])
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before + RECORDING * len(shapes)
