"""Lanes of fixed shapes, whose launches are recorded once and replayed from then on.

A decode step of a small batch takes the device less time than the host needs to launch it. Padded
to one of a few shapes, and with its arrays always at the same addresses (see Stage), a lane is one
CUDA graph for the forward pass and one for the choice of tokens. On a CPU the forward pass is a
tape of calls (tape.py), and the choice is called.
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
    """Sequences that decode lanes are padded to: 1, 2, 4, multiples of 8 up to 256, then of 32."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, most, 32)]
    return [*(n for n in sizes if n < most), most]


def shared_sizes(sizes: Iterable[int]) -> list[int]:
    """Those of decode lanes that may have prefixes worth reading once: the larger, and few."""
    return [n for n in sizes if n % 32 == 0]


MIXED = 256
"""Sequences of a lane of chunks, at most: the choice of a token is computed for each of them."""


def mixed_shapes(spec: Spec, requests: int) -> list[Shape]:
    """Lanes of chunks and decodes that a GPU computes in less time than the host launches them:
    16 layers take about a millisecond to launch, 600 TFLOP/s the products of an H100. None has as
    many sequences as tokens: that is a lane of decodes."""
    widest = spec.hidden * (3 * spec.ffn + 2 * (spec.heads + spec.kv_heads) * spec.head_dim)
    tokens = 1e-3 / 16 * 6e14 / (2 * widest)
    sizes = [2**n for n in range(6, 12) if 2**n <= tokens and requests > 1]
    return [Shape(size, min(requests, size - 1, MIXED)) for size in sizes]


@dataclass(slots=True, eq=False)
class Recorded:
    """A padded lane, and what replays its parts."""

    lane: Lane
    staged: int  # bytes of the stage that belong to it
    forward: list[Callable[[], None]]  # one after the other, others' layers between them
    plain: Callable[[], None]  # the choice, where no filter cuts a row
    filtered: Callable[[], None]


class Recorder:
    """Records what functions launch on a device. All recordings share one pool of memory, so only
    one may be under way at a time, and the largest should be made first."""

    def __init__(self, device: torch.device):
        self.on_device = device.type == "cuda"
        self.memory = tape.Memory()
        if self.on_device:
            self.stream = torch.cuda.Stream(device)
            self.pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], None], ours: bool = True) -> Callable[[], None]:
        """→ what launches again all that `run` launches now. On a GPU it runs twice: kernels are
        compiled and loaded by the first time, which no recording may do. On a CPU kernels of `ours`
        are recorded and do not run; what is PyTorch's is best called."""
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
    """The shapes there are, and their recordings once they are made.

    decodes: sequences of lanes with one token each. mixed: shapes of lanes of any chunks.
    shared: as decodes, of lanes that read the prefixes they have in common once.
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
        """The smallest shape that holds the chunks, for their prefixes too if those are `shared`;
        None: there is none, or they ask for rows that no padded lane keeps."""
        if not self.recorded or any(c.score is not None or c.pool is not None for c in chunks):
            return None
        count, tokens = len(chunks), sum(c.length for c in chunks)
        if tokens == count:
            sizes = self.shared if shared and count <= max(self.shared, default=0) else self.decodes
            at = bisect_left(sizes, count)
            if at < len(sizes):
                return Shape(sizes[at], sizes[at], sizes is self.shared)
        for shape in self.mixed:  # a sequence more, for the tokens that fill it up
            if shape.tokens >= tokens and shape.sequences > count:
                return shape
        return None
