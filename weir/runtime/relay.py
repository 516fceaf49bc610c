"""Attention on the host's cores for a lane that is computed on a device.

The device itself writes new keys and values to the host's pages, and then queries to pinned
buffers, on a stream of its own for copies. The CPU kernel starts when these have arrived. The
lane's stream waits for its results; no Python thread does. Knows pages and streams, but neither
requests nor plans.
"""

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from weir.ops import native
from weir.ops.attention import native_call, stored, write
from weir.ops.coded import decode, type_of
from weir.runtime.parts import Part
from weir.spec import AttentionSpec

SEATS = 64
"""Most lanes with attention on the host in progress at once."""
PATIENCE = 2000
"""Microseconds that the CPU kernels' threads spin between two layers: waking them takes longer."""
PROGRAMS = 32
"""Programs of the kernel that writes to the host's pages: enough to saturate the link, and so few
that other kernels are hardly delayed."""
GEQ = 0  # CU_STREAM_WAIT_VALUE_GEQ


class Mapped:
    """Pinned host memory as a device sees it, for `torch.as_tensor`."""

    def __init__(self, host: Tensor):
        self.host = host
        self.__cuda_array_interface__ = {
            "shape": (host.numel() * host.element_size(),),
            "typestr": "|u1",
            "data": (host.data_ptr(), False),
            "version": 3,
        }


def mapped(host: Tensor, device: torch.device) -> Tensor:
    """The same memory as a tensor of `device`: `host` is contiguous and pinned, or on a CPU."""
    if device.type == "cpu":
        return host
    alias = torch.as_tensor(Mapped(host), device=device)
    return alias.view(host.dtype).view(host.shape)


class Signals:
    """Words in host memory, int32 [count], by which the device's streams and the CPU kernel's
    thread wait for each other. On a CPU there are no streams: what was called is done."""

    def __init__(self, device: torch.device, count: int):
        self.on_device = device.type == "cuda"
        self.words = torch.zeros(count, dtype=torch.int32, pin_memory=self.on_device)
        self.driver = ctypes.CDLL("libcuda.so.1") if self.on_device else None

    def address(self, word: int) -> int:
        return self.words.data_ptr() + 4 * word

    def set(self, word: int, ticket: int) -> None:
        """Have the current stream write `ticket` to a word, after its earlier work."""
        if self.driver is None:
            ctypes.c_uint32.from_address(self.address(word)).value = ticket
        else:
            self._call(self.driver.cuStreamWriteValue32_v2, word, ticket, 0)

    def wait(self, word: int, ticket: int) -> None:
        """Have the current stream wait until a word is at least `ticket`, modulo 2**32."""
        if self.driver is not None:
            return self._call(self.driver.cuStreamWaitValue32_v2, word, ticket, GEQ)
        while ctypes.c_int32(self.words[word].item() - ticket).value < 0:
            pass

    def _call(self, function: Any, word: int, ticket: int, flags: int) -> None:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        address, value = ctypes.c_uint64(self.address(word)), ctypes.c_uint32(ticket)
        if error := function(stream, address, value, ctypes.c_uint32(flags)):
            raise RuntimeError(f"the device cannot wait for its host: CUDA error {error}")


class Seat:
    """Host buffers for the queries and results of one lane, which all its layers use in turn. size:
    elements of q and of o. ticket: of the last call."""

    def __init__(self, size: int, dtype: torch.dtype, device: torch.device, ticket: int):
        pin = device.type == "cuda"
        self.q = torch.empty(size, dtype=dtype, pin_memory=pin)
        self.o = torch.empty(size, dtype=dtype, pin_memory=pin)
        self.lse = torch.empty(size, dtype=torch.float32, pin_memory=pin)
        self.there = [mapped(x, device) for x in (self.q, self.o, self.lse)]
        self.ticket = ticket


class Relay:
    """kv: the pages of `tier`, one tensor a layer, pinned, perhaps coded. device: of the lanes.

    Raises `RuntimeError` if there are no native kernels, or the device cannot wait for words in
    host memory."""

    def __init__(self, tier: int, kv: Sequence[Tensor], device: torch.device):
        library = native.library()
        if library is None:
            raise RuntimeError(native.status())
        self.library = library
        self.tier = tier
        self.device = device
        self.host = kv
        self.kv = [mapped(layer, device) for layer in kv]
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.signals = Signals(device, 2 * SEATS)  # of each seat: queries there, answer there
        self.signals.set(0, 0)  # or raise
        self.seats: dict[int, Seat] = {}
        self.outgrown: list[Seat] = []  # perhaps still in use
        self.reading: tuple[Tensor, ...] = ()  # by the stream of copies
        library.set_patience(PATIENCE)
        self.queue = library.relay_open()

    def close(self) -> None:
        """Finish the calls that have begun; drop those whose queries never arrived. Idempotent."""
        queue, self.queue = self.queue, None
        if queue is not None:
            self.library.relay_close(queue)

    def spent(self) -> float:
        """Seconds of attention on the host since the last call."""
        return self.library.relay_spent(self.queue) if self.queue is not None else 0.0

    @contextlib.contextmanager
    def _copying(self, *used: Tensor) -> Iterator[None]:
        """Work within goes to the copy stream, after all earlier work of the current stream. `used`
        are kept until the current stream has been told to wait for it, at its next copies: the host
        may be many layers ahead of the device, and their memory would be allocated again."""
        if self.stream is None:
            yield
            return
        self.join()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            yield
        self.reading = used

    def join(self) -> None:
        """Have the current stream wait for all copies."""
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)
        self.reading = ()

    def borrow(self, layer: int, pages: Tensor, count: int, k: Tensor) -> Tensor:
        """Memory for `count` pages on the device, [count, 2, Hkv, page, D]; the first n are copies
        of `pages`, int64 [n]. Coded ones are decoded to the dtype and D of k [T, Hkv, D]."""
        kv = self.kv[layer]
        coded = kv.dtype == torch.uint8
        if not len(pages):
            return k.new_empty(
                (count, *kv.shape[1:4], k.shape[2]), dtype=k.dtype if coded else kv.dtype
            )
        copies = torch.empty((count, *kv.shape[1:]), dtype=kv.dtype, device=kv.device)
        word = torch.int64 if kv[0].nbytes % 8 == 0 else torch.int32
        words, into = kv.flatten(1).view(word), copies.flatten(1).view(word)
        with self._copying():
            torch.index_select(words, 0, pages, out=into[: len(pages)])
        self.join()
        return decode(copies, type_of(kv, k.shape[2]), k.dtype) if coded else copies

    def start(
        self,
        seat: int,
        layer: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        part: Part,
        spec: AttentionSpec,
    ) -> Callable[[], tuple[Tensor, Tensor]] | None:
        """Write the part's rows of k, v [T, Hkv, D] to the host's pages and begin attention of its
        rows of q [T, Hq, D]. Returns None if it has no such rows; else a function that has the
        current stream wait for the results and returns them, o [rows, Hq, D] and lse [rows, Hq], as
        tensors of the device that are valid until the seat's next call. A seat has one call at a
        time, and the part's batch must be kept until its results are there."""
        batch, rows = part.batch, part.queries
        shape = (len(q) if rows is None else len(rows), *q.shape[1:])
        used = (q,) if shape[0] else ()
        if len(batch.slots):
            k, v = (x if part.writes is None else x[part.writes] for x in (k, v))
            k, v = stored(self.kv[layer], k, v)
            used += k, v
        with self._copying(*used):
            if len(batch.slots):
                write(self.kv[layer], k, v, batch.slots, programs=PROGRAMS)
            if not shape[0]:
                return None
            place = self._seat(seat, math.prod(shape), q.dtype)
            place.ticket = (place.ticket + 1) & 0xFFFFFFFF
            shapes = (shape, shape, shape[:2])
            here, o, lse = map(_cut, (place.q, place.o, place.lse), shapes)
            there = [*map(_cut, place.there, shapes)]
            if rows is None:
                there[0].copy_(q)
            else:
                torch.index_select(q, 0, rows, out=there[0])
            self.signals.set(seat, place.ticket)
        call = native_call(here, self.host[layer], batch, spec, o, lse)
        address = self.signals.address
        ticket = place.ticket
        job = native.Job(call, address(seat), address(SEATS + seat), ticket)
        self.library.relay_add(self.queue, ctypes.byref(job))

        def answer() -> tuple[Tensor, Tensor]:
            self.signals.wait(SEATS + seat, ticket)
            return there[1], there[2]

        return answer

    def _seat(self, number: int, size: int, dtype: torch.dtype) -> Seat:
        seat = self.seats.get(number)
        if seat is not None and len(seat.q) >= size and seat.q.dtype == dtype:
            return seat
        if seat is not None:
            self.outgrown.append(seat)
        ticket = 0 if seat is None else seat.ticket
        self.seats[number] = Seat(1 << (size - 1).bit_length(), dtype, self.device, ticket)
        return self.seats[number]


def _cut(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return x[: math.prod(shape)].view(shape)
