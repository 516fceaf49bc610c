"""Lanes of fixed shapes, whose launches are recorded once and then replayed.

A decode step of a small batch takes the device less time than the host needs to launch it. Such a
lane is padded to one of a few shapes, and its arrays are always at the same addresses (see Stage).
It is then one CUDA graph for the forward pass and one for sampling. On a CPU the forward pass is a
tape of calls (tape.py), and sampling is not recorded.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from weir.core import Chunk
from weir.ops import native
from weir.runtime import tape
from weir.runtime.inputs import Lane, Shape
from weir.spec import Spec


def decode_sizes(most: int) -> list[int]:
    """Sizes to which decode lanes are padded: 1, 2, 4, multiples of 8 up to 256, then of 32."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, most, 32)]
    return [*(n for n in sizes if n < most), most]


def shared_sizes(sizes: Iterable[int]) -> list[int]:
    """The sizes of decode lanes also recorded with shared prefixes: few, and only larger ones."""
    return [n for n in sizes if n % 32 == 0]


MIXED = 256
"""Most sequences of a recorded lane of chunks: a token is sampled for each of them."""


def mixed_shapes(spec: Spec, requests: int) -> list[Shape]:
    """Shapes of lanes of chunks and decodes that a GPU computes faster than the host launches them.
    Launching 16 layers takes about a millisecond; an H100 multiplies at 600 TFLOP/s. None has as
    many sequences as tokens: that would be a lane of decodes."""
    widest = spec.hidden * (3 * spec.ffn + 2 * (spec.heads + spec.kv_heads) * spec.head_dim)
    tokens = 1e-3 / 16 * 6e14 / (2 * widest)
    sizes = [2**n for n in range(6, 12) if 2**n <= tokens and requests > 1]
    return [Shape(size, min(requests, size - 1, MIXED)) for size in sizes]


@dataclass(slots=True, eq=False)
class Recorded:
    """A padded lane, and the functions that replay its parts."""

    lane: Lane
    staged: int  # bytes of the stage that belong to it
    forward: list[Callable[[], None]]  # in order; layers of other lanes may run between them
    plain: Callable[[], None]  # samples if no row has filters
    filtered: Callable[[], None]


class Recorder:
    """Records what functions launch on a device. All recordings share one pool of memory, so only
    one may run at a time, and the largest should be made first."""

    def __init__(self, device: torch.device):
        self.on_device = device.type == "cuda"
        self.memory = tape.Memory()
        if self.on_device:
            self.stream = torch.cuda.Stream(device)
            self.pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], None], ours: bool = True) -> Callable[[], None]:
        """→ a function that repeats all launches of `run`. On a GPU `run` runs twice: the first
        time compiles and loads kernels, which is not allowed while recording. On a CPU `run` is
        recorded if it calls `ours`, the native kernels, which do not run then; otherwise it is
        returned as it is."""
        if not self.on_device:
            return tape.recorded(run, self.memory) if ours and native.library() else run
        run()
        graph = torch.cuda.CUDAGraph()
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            run()
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(self.stream)
        return graph.replay


class Graphs:
    """The recorded shapes, and their recordings once these are made.

    decodes: sequences of lanes with one token each. mixed: shapes of lanes of any chunks.
    shared: as decodes, for lanes that read shared prefixes once.
    """

    def __init__(
        self, decodes: Iterable[int] = (), mixed: Iterable[Shape] = (), shared: Iterable[int] = ()
    ):
        self.decodes = sorted(decodes)
        self.mixed = sorted(mixed)
        self.shared = sorted(shared)
        self.recorded: dict[Shape, Recorded] = {}

    @property
    def shapes(self) -> list[Shape]:
        """Largest first."""
        decodes = [Shape(n, n) for n in self.decodes] + [Shape(n, n, True) for n in self.shared]
        return sorted([*decodes, *self.mixed], reverse=True)

    def fit(self, chunks: Sequence[Chunk], shared: bool = False) -> Shape | None:
        """The smallest shape that holds the chunks, if `shared` preferably one for shared prefixes.
        None if there is none, or if prompt scores or pooling need rows that padded lanes drop."""
        if not self.recorded or any(c.score is not None or c.pool is not None for c in chunks):
            return None
        count, tokens = len(chunks), sum(c.length for c in chunks)
        if tokens == count:
            sizes = self.shared if shared and count <= max(self.shared, default=0) else self.decodes
            at = bisect_left(sizes, count)
            if at < len(sizes):
                return Shape(sizes[at], sizes[at], sizes is self.shared)
        for shape in self.mixed:  # one more sequence, for the padding tokens
            if shape.tokens >= tokens and shape.sequences > count:
                return shape
        return None
