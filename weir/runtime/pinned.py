"""Pinned (page-locked) host memory, which a GPU reads and writes by itself."""

import contextlib
import logging
import mmap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from weir.errors import ConfigError
from weir.linux import cores

log = logging.getLogger(__name__)

PART = 1 << 30
"""Bytes that are locked at once, so that a driver which refuses does so early."""
READABLE_BY_ALL = 1
"""cudaHostRegisterPortable"""


class Memory(mmap.mmap):
    """Zeroed private memory in huge pages, which shared memory seldom gets. It occupies memory once
    first written or locked. Child processes do not inherit it."""

    locked: list[int]  # addresses

    def unlock(self) -> None:
        while getattr(self, "locked", None):
            torch.cuda.cudart().cudaHostUnregister(self.locked.pop())

    def __del__(self) -> None:
        self.unlock()


def host_zeros(size: int, *, pinned: bool = False, part: int = 0) -> Tensor:
    """uint8 [size], zero. pinned: lock it, so that a GPU copies asynchronously; if that is refused,
    log one warning and return it unlocked (see `is_pinned`). part: bytes locked at once (0:
    `PART`); no copy may cross a multiple of it. Raises `ConfigError` if there is no memory."""
    if size == 0:
        return torch.zeros(0, dtype=torch.uint8)
    try:
        memory = Memory(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise ConfigError(
            f"{size / 2**30:.1f} GiB of main memory cannot be had ({error.strerror}): give a"
            " smaller --kv-cache-memory, --cpu-cache or --cpu-memory"
        ) from None
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
        memory.madvise(mmap.MADV_DONTFORK)  # copy-on-write would give us other pages than the GPU
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    if pinned:
        _lock(memory, tensor, part or PART)
    return tensor


def _lock(memory: Memory, tensor: Tensor, part: int) -> None:
    first, size = tensor.data_ptr(), len(tensor)
    memory.locked = []
    parts = [(first + at, min(part, size - at)) for at in range(0, size, part)]
    _touch(tensor)
    for address, length in parts:
        try:
            torch.cuda.check_error(
                int(torch.cuda.cudart().cudaHostRegister(address, length, READABLE_BY_ALL))
            )
        except RuntimeError as error:
            memory.unlock()
            _forget_error()
            log.warning(
                "%.1f GiB of memory could not be locked for the GPU (%s): copies will be slower; "
                "raise the limit (ulimit -l, or the container's) or ask for less",
                size / 2**30,
                str(error).splitlines()[0],
            )
            return
        memory.locked.append(address)


def _forget_error() -> None:
    """Launch something: CUDA reports the error again at the next launch."""
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")


def _touch(tensor: Tensor) -> None:
    """Write a byte of each page on several threads; the driver would use one."""
    pages = tensor.numpy()[:: mmap.PAGESIZE]
    threads = min(16, cores())
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda some: some.fill(0), np.array_split(pages, 4 * threads)))
