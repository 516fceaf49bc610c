"""Weights on disk: an unlinked file, written once from front to back and read by threads.

It bypasses the page cache where the file system allows, because data read once a step would only
evict what is needed sooner. The file disappears with the engine, however that ends. Knows bytes and
offsets; no layer, no device.
"""

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from torch import Tensor

from weir.errors import ConfigError

ALIGN = 4096
"""Addresses, sizes and offsets of reads and writes are multiples of this, as O_DIRECT demands."""
CHUNK = 16 * 2**20
"""Bytes of one read; several run at once."""
THREADS = 4


def aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


class Spill:
    """folder: created if missing; the file occupies space there only while this object lives.
    Raises `ConfigError` if the folder cannot be written."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.size = 0
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.file = _nameless(folder)
        except OSError as error:
            raise ConfigError(f"--offload-dir {folder}: {error.strerror}") from None
        self.pool = ThreadPoolExecutor(THREADS, thread_name_prefix="weir-spill")

    def append(self, data: Tensor) -> int:
        """Write host bytes aligned to `ALIGN` → their offset. Raises `ConfigError` without room."""
        offset, rest = self.size, memoryview(data.numpy())
        while rest:
            try:
                done = os.pwrite(self.file, rest[:CHUNK], self.size)
            except OSError as error:
                raise ConfigError(
                    f"--offload-dir {self.folder}: {error.strerror} after "
                    f"{self.size / 2**30:.1f} GiB of weights: choose another folder, or a smaller "
                    "share for the disk"
                ) from None
            self.size += done
            rest = rest[done:]
        return offset

    def read(
        self, offset: int, out: Tensor, first: Callable[[], object] | None = None
    ) -> list[Future[None]]:
        """Read into `out`, host bytes aligned to `ALIGN`; it is full once all returned futures are
        done. Each first calls `first`."""
        data = out.numpy()
        parts = [(at, data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)]
        return [self.pool.submit(_fill, self.file, offset + at, part, first) for at, part in parts]

    def __del__(self) -> None:
        if hasattr(self, "pool"):
            self.close()

    def close(self) -> None:
        """Close the file. May be called twice."""
        self.pool.shutdown(cancel_futures=True)
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


def _fill(file: int, offset: int, out: np.ndarray, first: Callable[[], object] | None) -> None:
    if first is not None:
        first()
    done = 0
    while done < len(out):
        count = os.preadv(file, [out[done:]], offset + done)
        if count <= 0:
            raise OSError("the weights on disk are cut short: start the engine again")
        done += count


def _nameless(folder: Path) -> int:
    past_cache = getattr(os, "O_DIRECT", 0)
    for more in (past_cache, 0):
        file, path = tempfile.mkstemp(prefix=".weir-weights-", dir=folder)
        os.close(file)
        try:
            return os.open(path, os.O_RDWR | more | getattr(os, "O_CLOEXEC", 0))
        except OSError:
            if not more:
                raise
        finally:
            os.unlink(path)
    raise AssertionError("unreachable")
