"""Reads a model's tensors from a checkpoint, joins them and packs them for the device.

Each thread reads one layer at a time, so loading needs memory for a few layers beyond the model.
"""

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from weir.errors import ConfigError
from weir.models.base import Shapes
from weir.ops.linear import Linear, pack, pack_codes, pack_fp8, takes_codes, takes_fp8
from weir.ops.quantize import GROUP, Codes, Scaled, to_codes, to_fp8

SLICE = 4096  # rows of an embedding read at a time
NAMED = 5  # tensors that an error names at most

T = TypeVar("T")

log = logging.getLogger(__name__)


class Checkpoint:
    """Tensors by name, from any file format. stored: how the file quantises weights; empty if it
    does not.

    Names are those of the model's safetensors without the leading "model.". Values follow one
    convention: heads rotate by halves, and a norm multiplies by its weight.
    """

    shapes: Shapes
    device = torch.device("cpu")
    stored = ""

    def read(self, name: str, out: Tensor, row: int = 0) -> None:
        """Fill `out`, contiguous on `device`, with the tensor's rows from `row` on."""
        raise NotImplementedError

    def kept(self, name: str) -> Codes | Scaled | None:
        """A quantised weight [N, K] in its stored form; None if it is not quantised."""
        return None


class LayerStore(Protocol):
    """Stores layers in other memory than that where they are made."""

    def add(self, layer: Any) -> None:
        """Store the next layer."""
        ...

    def done(self) -> Iterable[Any]:
        """An iterable over all stored layers, in order; it can be iterated repeatedly."""
        ...


class Weights:
    """Makes packed weights from a checkpoint.

    quantization: "auto" leaves quantised weights as they are if the device can multiply them;
    "none" unpacks them; "fp8" and "int4" also quantise the other weights of the layers, but not the
    embedding and the output layer. layer_store: takes each layer as soon as it is made, so
    that few are on the device at once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        threads: int,
        quantization: str = "auto",
        layer_store: LayerStore | None = None,
    ):
        self.quantization = quantization
        self.layer_store = layer_store
        self.kinds: dict[str, None] = {}  # types in which weights are stored, in order
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = device
        self.activation = torch.float32 if device.type == "cpu" else dtype
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="load")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def each(self, make: Callable[[int], T], count: int) -> list[T]:
        """[make(0), …, make(count - 1)], made on several threads."""
        return list(self.pool.map(make, range(count)))

    def layers(self, make: Callable[[int], T], count: int) -> Iterable[T]:
        """[make(0), …, make(count - 1)], or these layers from the store if there is one."""
        if self.layer_store is None:
            return self.each(make, count)
        coming = self.pool.submit(make, 0)
        for i in range(1, count + 1):
            layer = coming.result()
            if i < count:
                coming = self.pool.submit(make, i)
            self.layer_store.add(layer)
        return self.layer_store.done()

    def vector(self, name: str) -> Tensor:
        """float32 [N]: a norm's weight or a bias."""
        out = self._empty(self.checkpoint.shapes[name], torch.float32)
        self.checkpoint.read(name, out)
        return out.to(self.device)

    def matrix(self, name: str) -> Tensor:
        """[N, K], not packed: an embedding."""
        out = self._empty(self.checkpoint.shapes[name], self.dtype)
        slices = out.split(SLICE)
        self.each(lambda i: self.checkpoint.read(name, slices[i], i * SLICE), len(slices))
        return out.to(self.device)

    @property
    def stored(self) -> str:
        """The types of all weights made so far, for people to read."""
        return " and ".join(self.kinds)

    def linear(self, *names: str) -> Linear:
        """The named layers as one, with their outputs concatenated."""
        return self._noted(self._linear(names))

    def _noted(self, made: Linear) -> Linear:
        self.kinds |= {part.stored: None for part in made.parts}
        return made

    def _linear(self, names: tuple[str, ...]) -> Linear:
        bias = None
        if f"{names[0]}.bias" in self.checkpoint.shapes:
            bias = torch.cat([self.vector(f"{name}.bias") for name in names])
        if kept := self._kept(*(f"{name}.weight" for name in names)):
            return self._packed(kept, bias)
        shapes = [self.checkpoint.shapes[f"{name}.weight"] for name in names]
        rows = [shape[0] for shape in shapes]
        weight = self._empty((sum(rows), shapes[0][1]), self.dtype)
        for name, part in zip(names, weight.split(rows), strict=True):
            self.checkpoint.read(f"{name}.weight", part)
        weight = weight.to(self.device)
        if self.quantization == "int4" and weight.shape[1] % GROUP:
            raise ConfigError(
                f"{names[0]} has {weight.shape[1]} inputs, which are no groups of {GROUP}: "
                "use --quantization fp8 or none"
            )
        if self.quantization == "fp8":
            return pack_fp8(to_fp8(weight), bias)
        if self.quantization == "int4":
            codes = to_codes(weight)
            del weight  # the largest take gigabytes
            return pack_codes(codes, bias, self.dtype)
        return pack(weight, bias)

    def table(self, name: str) -> Linear:
        """A weight [V, H]: an embedding, of which rows are taken, or an output layer."""
        kept = self._kept(f"{name}.weight")
        return self._noted(self._packed(kept) if kept else pack(self.matrix(f"{name}.weight")))

    def embedding(self, tied: bool) -> tuple[Linear, Linear]:
        """The embedding [V, H] and the output layer: the same object if tied."""
        table = self.table("embed_tokens")
        return table, table if tied else self.table("lm_head")

    def _kept(self, *names: str) -> list[Codes | Scaled]:
        """The quantised weights on the device, like neighbours joined; empty if the device cannot
        multiply them or one of them is not quantised."""
        if self.quantization == "none":
            return []
        found: list[Any] = []
        for name in names:
            part = self.checkpoint.kept(name)
            if part is None:
                return []
            found.append(found.pop().join(part) if found and found[-1].alike(part) else part)
        if len(found) > 1 and self.device.type != "cpu":
            return []  # only panels have weights of another codec below
        if all(self._fits(part) for part in found):
            return [part.to(self.device) for part in found]
        self.quantization = "none"
        log.warning("quantised weights are unpacked: this device does not multiply them")
        return []

    def _fits(self, part: Codes | Scaled) -> bool:
        if isinstance(part, Scaled):
            return takes_fp8(self.device)
        return takes_codes(self.device, part.bits, part.codes.shape[1])

    def _packed(self, kept: list[Codes | Scaled], bias: Tensor | None = None) -> Linear:
        """Pack the first of `kept`, with the rest below it."""
        first, rest = kept[0], kept[1:]
        if isinstance(first, Scaled):
            return pack_fp8(first, bias)
        n = len(first.codes)
        made = pack_codes(first, None if bias is None else bias[:n], self.dtype)
        if rest:
            made.below = self._packed(rest, None if bias is None else bias[n:])
        return made

    def _empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.checkpoint.device)


def verify(found: Shapes, expected: Shapes) -> None:
    """Raises ConfigError that names tensors which are missing, unexpected or mis-shaped."""
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
