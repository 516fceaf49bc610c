"""Linear layers: x @ W.T; rows may be normed or gated first, bias and residual added after."""

from __future__ import annotations

from ctypes import addressof
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache

import torch
from torch import Tensor

from weir.ops import native
from weir.ops.dispatch import floats, gpu_kernels, kernels
from weir.ops.mlp import ACTIVATIONS, gated
from weir.ops.norm import rms_norm

GROUP = 32
"""Neighbours along K that share a scale and an offset."""


class Codec(IntEnum):
    """How a weight is stored; the first are panels for the CPU, numbered as `Kind` of
    linear_kinds.h."""

    FLOAT32 = 0
    BFLOAT16 = 1
    CODES4 = 2
    CODES8 = 3
    PLAIN = 4


PANELS = frozenset((Codec.FLOAT32, Codec.BFLOAT16, Codec.CODES4, Codec.CODES8))


@dataclass(slots=True, eq=False)
class Linear:
    """A weight [n, k] in the layout its device computes fastest, made by `pack` and its kin.

    All that may lie elsewhere is in the fields that hold tensors, so `dataclasses.replace` moves a
    weight to other memory.
    """

    n: int
    k: int
    codec: Codec
    weight: Tensor  # [n, k] where PLAIN, else as its codec has it
    bias: Tensor | None = None  # [n]
    record: native.Linear | None = field(init=False, default=None)  # what a kernel is told of it

    def __post_init__(self) -> None:
        if self.codec in PANELS:
            add = self.bias.data_ptr() if self.bias is not None else None
            at = self.weight.data_ptr()
            self.record = native.Linear(at, add, self.n, self.k, self.codec)

    @property
    def stored(self) -> str:
        """The type of the weights, in a word."""
        if self.codec is Codec.PLAIN:
            return str(self.weight.dtype).removeprefix("torch.")
        return self.codec.name.lower()


def pack(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """Lay out `weight` [N, K] and `bias` [N] for the device they are on.

    The result holds a copy: drop the original. On the CPU float16 becomes float32.
    """
    n, k = weight.shape
    lib = native.library() if weight.is_cpu else None
    if lib is None:
        if bias is not None and weight.is_cuda:
            bias = bias.to(weight.dtype)  # cuBLAS adds it in the epilogue
        return Linear(n, k, Codec.PLAIN, weight.contiguous(), bias)
    codec = Codec.BFLOAT16 if weight.dtype == torch.bfloat16 else Codec.FLOAT32
    weight = weight.contiguous() if codec is Codec.BFLOAT16 else floats(weight)
    panels = torch.empty(lib.packed_bytes(n, k, codec), dtype=torch.uint8)
    lib.pack(weight.data_ptr(), n, k, codec, panels.data_ptr())
    return Linear(n, k, codec, panels, floats(bias) if bias is not None else None)


def takes_codes() -> bool:
    """Whether this CPU multiplies bytes, so that `pack_codes` is worth its while."""
    lib = native.library()
    return lib is not None and bool(lib.has_byte_products())


def pack_codes(codes: Tensor, pairs: Tensor, bits: int, bias: Tensor | None = None) -> Linear:
    """Lay out a quantised weight: w = scale * code + offset, groups of 32 along K.

    codes uint8 [N, K], below 2^bits; pairs float16 [N, K / 32, 2]: scale and offset; bits 4 or 8.
    Only where `takes_codes`.
    """
    (n, k), lib = codes.shape, native.library()
    codec = Codec.CODES4 if bits == 4 else Codec.CODES8
    assert lib is not None and pairs.shape == (n, k // GROUP, 2) and pairs.dtype == torch.float16
    codes, pairs = codes.contiguous(), pairs.contiguous()
    panels = torch.empty(lib.packed_bytes(n, k, codec), dtype=torch.uint8)
    lib.pack_codes(codes.data_ptr(), pairs.data_ptr(), n, k, codec, panels.data_ptr())
    return Linear(n, k, codec, panels, floats(bias) if bias is not None else None)


def rows(w: Linear, ids: Tensor) -> Tensor:
    """Rows `ids` int64 [T] of a weight: an embedding. [T, K], float32 on the CPU."""
    if w.record is None:
        found = torch.nn.functional.embedding(ids, w.weight)
        return found.float() if found.is_cpu else found
    out = torch.empty(len(ids), w.k)
    ids = ids.contiguous()
    native.library().rows(addressof(w.record), ids.data_ptr(), len(ids), out.data_ptr())
    return out


def linear(x: Tensor, w: Linear, residual: Tensor | None = None) -> Tensor:
    """x [M, K] → x @ W.T + bias + residual, [M, N]; `residual` may be overwritten by the result.

    Reads the weight, 2 or 4 bytes an element, once per 96 rows; 2 M N K FLOP. With the native
    kernel a row of the result is the same to the last bit whatever M is. bfloat16 weights meet x
    rounded to bfloat16 where the CPU multiplies such pairs (AVX512-BF16), and x as it is elsewhere;
    codes meet x rounded to 8 bits in groups of 32, at 5 or 9 bits an element.
    """
    y = _few_rows(x, w, residual)
    if y is not None:
        return y
    if x.is_cuda and residual is not None and w.bias is None:
        rows = _cached_rows(x.device, w.k * x.element_size())
        for part, out in zip(x.split(rows), residual.split(rows), strict=True):
            out.addmm_(part, w.weight.t())
        return residual
    if w.record is None:
        return reference_linear(x, w.weight, w.bias, residual)
    return _multiply(x, w, w.k, residual)


def normed_linear(x: Tensor, norm: Tensor, eps: float, w: Linear) -> Tensor:
    """linear(rms_norm(x, norm, eps), w); the native kernel normalises rows as it takes them in."""
    if w.record is None:
        y = _few_rows(x, w, norm=norm, eps=eps)
        return linear(rms_norm(x, norm, eps), w) if y is None else y
    norm = floats(norm)
    return _multiply(x, w, w.k, None, norm.data_ptr(), eps)


def gated_linear(gate_up: Tensor, act: str, w: Linear, residual: Tensor | None = None) -> Tensor:
    """linear(gated(gate_up, act), w, residual), gate_up [M, 2K]; likewise."""
    if w.record is None:
        y = _few_rows(gate_up, w, residual, act=act)
        return linear(gated(gate_up, act), w, residual) if y is None else y
    return _multiply(gate_up, w, 2 * w.k, residual, gate=ACTIVATIONS.index(act))


def _few_rows(
    x: Tensor,
    w: Linear,
    residual: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    act: str | None = None,
) -> Tensor | None:
    """On a GPU, the result of the kernel for few rows; None where it is not the faster. It rounds
    x times the norm's weight before it scales, which would overflow float16."""
    gpu = gpu_kernels(x)
    if gpu is None or w.bias is not None or w.weight.dtype != torch.bfloat16:
        return None
    return gpu.few_rows(x, w.weight, residual, norm, eps, act)


@lru_cache
def _cached_rows(device: torch.device, row: int) -> int:
    """Rows of `row` bytes that half the GPU's cache holds; more of them are read several times,
    which is why a wide product of 4,096 rows takes longer than four of 1,024."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(1024, cache // (2 * row) // 256 * 256)


def _multiply(
    x: Tensor,
    w: Linear,
    width: int,
    residual: Tensor | None,
    norm: int | None = None,
    eps: float = 0.0,
    gate: int = -1,
) -> Tensor:
    """The native kernel on x [M, width]; `norm`, `eps` and `gate` as in `Input` of linear.cpp."""
    lib = kernels(x)
    if lib is None or x.shape[1] != width:
        raise TypeError(f"x must be float32 [M, {width}] on the CPU, got {x.dtype} {list(x.shape)}")
    x, out = x.contiguous(), x.new_empty(x.shape[0], w.n)
    if residual is not None:
        residual = floats(residual.view_as(out))
    lib.linear(
        addressof(w.record),
        x.data_ptr(),
        x.shape[0],
        norm,
        eps,
        gate,
        residual.data_ptr() if residual is not None else None,
        out.data_ptr(),
    )
    return out


def reference_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Multiplies in the weight's type; bias and residual are added in the type of `x`."""
    if bias is not None and bias.dtype == weight.dtype == x.dtype:
        y, bias = torch.nn.functional.linear(x, weight, bias), None
    else:
        y = torch.nn.functional.linear(x.to(weight.dtype), weight).to(x.dtype)
    if bias is not None:
        y += bias
    if residual is not None:
        y += residual
    return y
