"""Token masks in memory shared by two processes, one row per matcher."""

import ctypes
import mmap
import os


class Row:
    """The mask of one matcher. memory: descriptor of the shared memory. tokens: bits of a mask."""

    def __init__(self, memory: int, number: int, tokens: int):
        self.number = number
        self.size = -(-tokens // 32) * 4
        self._used = -(-tokens // 8)
        self._memory = mmap.mmap(memory, self.size, offset=number * stride(tokens))

    def address(self) -> int:
        """The address of the row's `size` bytes."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def read(self) -> bytes:
        return self._memory[: self._used]


class Rows:
    """Allocates rows. Used by the process that owns the memory."""

    def __init__(self, tokens: int):
        self.memory = os.memfd_create("weir-masks")
        self._tokens = tokens
        self._made = 0
        self._free: list[int] = []

    def take(self) -> Row:
        if not self._free:
            self._free.append(self._made)
            self._made += 1
            os.ftruncate(self.memory, self._made * stride(self._tokens))
        return Row(self.memory, self._free.pop(), self._tokens)

    def give_back(self, number: int) -> None:
        self._free.append(number)

    def close(self) -> None:
        """May be called twice, although the descriptor's number may be reused by then."""
        memory, self.memory = self.memory, -1
        if memory >= 0:
            os.close(memory)


def stride(tokens: int) -> int:
    """Bytes per row: whole pages, so that each row can be mapped alone."""
    page = mmap.ALLOCATIONGRANULARITY
    return -(-tokens // (8 * page)) * page
