"""The interface of a model: five functions around attention, and layers of packed weights.

A model knows no cache, no rank and no phase of a request. The runtime owns the forward loop:
    x = embed(ids, pos)
    for layer in layers:
        q, k, v = qkv(layer, x, pos, place); o = attend(q, k, v); x = out(layer, x, o)
    logits(x of the rows that sample)
On a CPU x is float32 whatever the type of the weights; on a GPU it has that type.
"""

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from weir.ops import rope
from weir.ops.batch import Place
from weir.ops.linear import Linear
from weir.spec import Spec

Shapes = dict[str, tuple[int, ...]]
T = TypeVar("T")


class Model(Protocol):
    """T tokens, B rows, H hidden, V vocabulary, Hq and Hkv heads of size D."""

    spec: Spec
    head: Linear
    """The output layer."""
    stored: str
    """The types of its weights, for people to read."""
    layers: Iterable[Any]
    """A plain dataclass of packed weights per layer. Only this model reads it; others may move it
    (`tensors`, `rebuilt`). Iterated once per step. If layers are streamed, layer i is invalid once
    layer i + 2 is requested."""

    def embed(self, ids: Tensor, pos: Tensor) -> Tensor:
        """ids, pos int64 [T] → [T, H]."""
        ...

    def qkv(
        self, layer: Any, x: Tensor, pos: Tensor, place: Place | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x [T, H] → q [T, Hq, D], k and v [T, Hkv, D], normed and rotated; views of one tensor.

        Given a `place`, a model may store k and v there itself; it then returns None for both."""
        ...

    def out(self, layer: Any, x: Tensor, o: Tensor) -> Tensor:
        """Output projection, residual and MLP: x [T, H], o [T, Hq, D] → [T, H]."""
        ...

    def hidden(self, x: Tensor) -> Tensor:
        """The final norm: [B, H] → [B, H]. Embeddings are pooled from its result."""
        ...

    def logits(self, x: Tensor) -> Tensor:
        """x [B, H] before the final norm → [B, V] of the type of x, or float32."""
        ...


def shape(name: str, n: int, k: int, bias: bool) -> Shapes:
    """The names and shapes of the tensors of one linear layer."""
    return {f"{name}.weight": (n, k)} | ({f"{name}.bias": (n,)} if bias else {})


def split_heads(y: Tensor, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
    """[T, (Hq + 2 Hkv) D] → q [T, Hq, D], k and v [T, Hkv, D]: views, rows strided."""
    heads = y.view(len(y), -1, spec.head_dim)
    q, k, v = heads.split((spec.heads, spec.kv_heads, spec.kv_heads), dim=1)
    return q, k, v


def tensors(part: Any) -> Iterator[Tensor]:
    """Every tensor of a layer or of a part of one, in field order."""
    for value in _values(part).values():
        if isinstance(value, Tensor):
            yield value
        else:
            yield from tensors(value)


def rebuilt(part: T, there: Iterator[Tensor]) -> T:
    """A copy of the layer with its tensors replaced by those of `there`, in the order of
    `tensors`."""
    changed = {
        name: next(there) if isinstance(value, Tensor) else rebuilt(value, there)
        for name, value in _values(part).items()
    }
    return replace(part, **changed)


def _values(part: Any) -> dict[str, Any]:
    """The fields that are tensors or dataclasses of tensors."""
    values = {f.name: getattr(part, f.name) for f in fields(part) if f.init}
    return {k: v for k, v in values.items() if isinstance(v, Tensor) or is_dataclass(v)}


class Ropes:
    """The rotation tables of a model, one for each distinct rope of its layers."""

    def __init__(self, spec: Spec, device: torch.device):
        distinct = [r for i, r in enumerate(spec.rope) if r not in spec.rope[:i]]
        self.of_layer = [distinct.index(r) for r in spec.rope]
        self.tables = [rope.tables(r, spec.head_dim, spec.context, device) for r in distinct]
