"""One copy to the device a plan, one copy back: host arrays become tensors here.

On the CPU both are the same memory and nothing is copied.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 1 << 20
ALIGN = 16


class Stage:
    """Collects the arrays of one plan. What `put` returns may be read once `send` was called.

    The pinned memory is not touched again until the copy is done: PyTorch's allocator holds it
    back. So several plans may be on their way at once.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.blocks: list[tuple[Tensor, Tensor, int]] = []  # pinned, on the device, bytes used

    def put(self, array: NDArray[Any], device: torch.device | None = None) -> Tensor:
        """The tensor that `array` becomes, on the stage's device or on the CPU if that is asked."""
        array = np.ascontiguousarray(array)
        host = torch.from_numpy(array)
        if (device or self.device).type == "cpu":
            return host
        if not self.blocks or self.blocks[-1][2] + array.nbytes > len(self.blocks[-1][0]):
            size = max(BLOCK, array.nbytes)
            pinned = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            self.blocks.append((pinned, torch.empty_like(pinned, device=self.device), 0))
        pinned, there, used = self.blocks[-1]
        end = used + array.nbytes
        pinned[used:end].view(host.dtype).view(host.shape).copy_(host)
        self.blocks[-1] = (pinned, there, -(-end // ALIGN) * ALIGN)
        return there[used:end].view(host.dtype).view(host.shape)

    def send(self) -> None:
        for pinned, there, used in self.blocks:
            there[:used].copy_(pinned[:used], non_blocking=True)
        self.blocks = []


def upload(host: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device, without waiting for it: for what outlives a plan."""
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


def fetch(tensor: Tensor) -> Tensor:
    """The tensor in host memory: valid once the device's stream has come this far."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
