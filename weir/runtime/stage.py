"""Copies host arrays to the device, once per plan, and tensors back.

On the CPU both are the same memory and nothing is copied twice.
"""

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SIZE = 4 << 20
ALIGN = 16
VIEWS = 4096


@dataclass(slots=True, eq=False)
class Buffer:
    """Host memory, and the event after which the device has read it."""

    memory: Tensor  # uint8
    bytes: NDArray[np.uint8]  # the same memory
    read: torch.cuda.Event | None


class Stage:
    """Collects the arrays of one plan. Tensors that `put` returns are valid from `send` until the
    next plan is sent.

    On the device the arrays are adjacent in memory that never moves: plans that put arrays of the
    same shapes in the same order find them at the same addresses. Recorded graphs rely on that.
    Host memory is not reused before the device has read it, so several plans may be in flight.
    """

    def __init__(self, device: torch.device, size: int = SIZE):
        self.device = device
        self.there = torch.empty(size, dtype=torch.uint8, device=device)
        self.views: dict[tuple[int, np.dtype[Any], tuple[int, ...]], Tensor] = {}
        self.buffers: deque[Buffer] = deque([self._buffer()])
        self.used = 0

    def begin(self) -> None:
        """Start on the next plan."""
        self.used = 0
        if self.buffers[-1].read is not None:
            if self.buffers[0].read.query():
                self.buffers.rotate(-1)
            else:
                self.buffers.append(self._buffer())

    def put(self, array: NDArray[Any], device: torch.device | None = None) -> Tensor:
        """Stage `array`; returns its tensor on the stage's device, or on the CPU if `device` is."""
        if device is not None and device.type == "cpu" != self.device.type:
            return torch.from_numpy(np.ascontiguousarray(array))
        begin, end = self.used, self.used + array.nbytes
        if end > len(self.there):  # rare, and never in a plan that runs a graph
            return upload(torch.from_numpy(np.ascontiguousarray(array)), self.device)
        self.used = -(-end // ALIGN) * ALIGN
        here = self.buffers[-1].bytes[begin:end].view(array.dtype)
        here.reshape(array.shape)[...] = array
        key = (begin, array.dtype, array.shape)
        view = self.views.get(key)
        if view is None:
            if len(self.views) >= VIEWS:
                self.views.clear()
            dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
            view = self.views[key] = self.there[begin:end].view(dtype).view(array.shape)
        return view

    def send(self) -> None:
        buffer = self.buffers[-1]
        if buffer.read is not None and self.used:
            self.there[: self.used].copy_(buffer.memory[: self.used], non_blocking=True)
            buffer.read.record()

    def _buffer(self) -> Buffer:
        if self.device.type == "cpu":
            return Buffer(self.there, self.there.numpy(), None)
        memory = torch.empty(len(self.there), dtype=torch.uint8, pin_memory=True)
        return Buffer(memory, memory.numpy(), torch.cuda.Event())


def upload(host: Tensor, device: torch.device) -> Tensor:
    """Copy a host tensor to the device asynchronously, for data that outlives a plan."""
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


def fetch(tensor: Tensor) -> Tensor:
    """A copy in host memory, valid once the device's stream has reached this point."""
    if tensor.device.type == "cpu":
        return tensor.clone()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
