"""Hands a model its tensors: read from a checkpoint, joined, packed for the device.

One layer is read at a time by each thread, so what is in memory beyond the model is a few layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from weir.errors import ConfigError
from weir.models.base import Shapes
from weir.models.codes import Codes
from weir.ops.linear import Linear, pack, pack_codes, takes_codes

SLICE = 4096  # rows of an embedding read at a time
NAMED = 5  # tensors named in an error

T = TypeVar("T")


class Checkpoint(Protocol):
    """Tensors by name, wherever they are kept.

    Names are those of the model's safetensors less the leading "model."; values are in one
    convention: heads rotate by halves, and a norm's weight is what it multiplies by.
    """

    shapes: Shapes
    device: torch.device

    def read(self, name: str, out: Tensor, row: int = 0) -> None:
        """Fill `out`, contiguous on `device`, with a tensor, or with its rows from `row` on."""
        ...

    def codes(self, name: str) -> Codes | None:
        """A quantised weight [N, K] as it is kept; None where it is not."""
        ...


class Shelf(Protocol):
    """Keeps layers elsewhere than where they are made."""

    def add(self, layer: Any) -> None:
        """Take the next layer in."""
        ...

    def done(self) -> Iterable[Any]:
        """What hands the layers out again, all of them each time."""
        ...


class Weights:
    """keep_codes: leave quantised weights as they are, where the device multiplies them. shelf:
    where layers are put as they are made, so that few are on the device at once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        threads: int,
        keep_codes: bool = False,
        shelf: Shelf | None = None,
    ):
        self.shelf = shelf
        self.keep_codes = keep_codes and device.type == "cpu" and takes_codes()
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = device
        self.activation = torch.float32 if device.type == "cpu" else dtype
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="load")

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.pool.shutdown(cancel_futures=True)

    def each(self, make: Callable[[int], T], count: int) -> list[T]:
        """[make(0), …, make(count - 1)], several at a time."""
        return list(self.pool.map(make, range(count)))

    def layers(self, make: Callable[[int], T], count: int) -> Iterable[T]:
        """[make(0), …, make(count - 1)], or what a shelf makes of them."""
        if self.shelf is None:
            return self.each(make, count)
        coming = self.pool.submit(make, 0)
        for i in range(1, count + 1):
            layer = coming.result()
            if i < count:
                coming = self.pool.submit(make, i)
            self.shelf.add(layer)
        return self.shelf.done()

    def vector(self, name: str) -> Tensor:
        """float32 [N]: a norm's weight or a bias."""
        out = self._empty(self.checkpoint.shapes[name], torch.float32)
        self.checkpoint.read(name, out)
        return out.to(self.device)

    def matrix(self, name: str) -> Tensor:
        """[N, K] as it is: an embedding."""
        out = self._empty(self.checkpoint.shapes[name], self.dtype)
        slices = out.split(SLICE)
        self.each(lambda i: self.checkpoint.read(name, slices[i], i * SLICE), len(slices))
        return out.to(self.device)

    def linear(self, *names: str) -> Linear:
        """The named layers as one, their outputs side by side."""
        bias = None
        if f"{names[0]}.bias" in self.checkpoint.shapes:
            bias = torch.cat([self.vector(f"{name}.bias") for name in names])
        if self.keep_codes:
            parts = [self.checkpoint.codes(f"{name}.weight") for name in names]
            if all(parts):
                whole = Codes.join([part for part in parts if part is not None])
                return pack_codes(whole.codes, whole.pairs, whole.bits, bias)
        shapes = [self.checkpoint.shapes[f"{name}.weight"] for name in names]
        rows = [shape[0] for shape in shapes]
        weight = self._empty((sum(rows), shapes[0][1]), self.dtype)
        for name, part in zip(names, weight.split(rows), strict=True):
            self.checkpoint.read(f"{name}.weight", part)
        return pack(weight.to(self.device), bias)

    def table(self, name: str) -> Linear:
        """A weight [V, H] of which rows are taken, or that all of V are multiplied by."""
        codes = self.checkpoint.codes(f"{name}.weight") if self.keep_codes else None
        if codes is not None:
            return pack_codes(codes.codes, codes.pairs, codes.bits)
        return pack(self.matrix(f"{name}.weight"))

    def embedding(self, tied: bool) -> tuple[Linear, Linear]:
        """The embedding [V, H] and the output layer: the same where tied."""
        table = self.table("embed_tokens")
        return table, table if tied else self.table("lm_head")

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.checkpoint.device)


def verify(found: Shapes, expected: Shapes) -> None:
    """Raise ConfigError naming tensors that are missing, unexpected or of another shape."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    shapes = [
        f"{name} is {list(found[name])} instead of {list(shape)}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:NAMED])}{', …' if len(names) > NAMED else ''}"
        for what, names in (("missing", missing), ("unexpected", extra), ("mis-shaped", shapes))
        if names
    ]
    if problems:
        raise ConfigError(
            f"the weights do not fit the model's configuration: {'; '.join(problems)}"
        )
