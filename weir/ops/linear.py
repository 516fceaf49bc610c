"""Linear layers: x @ W.T, optionally with a norm or gate before, and bias and residual after."""

from __future__ import annotations

from ctypes import addressof
from dataclasses import dataclass, field
from enum import IntEnum
from types import ModuleType

import torch
from torch import Tensor

from weir.ops import dispatch, native
from weir.ops.dispatch import floats, gpu_kernels, kernels
from weir.ops.fused import Fused
from weir.ops.mlp import ACTIVATIONS, gated
from weir.ops.norm import rms_norm
from weir.ops.quantize import Codes, Scaled, from_tiles, to_tiles

BF16 = torch.bfloat16
FP8_CAPABILITY = (8, 9)
TILE_ROWS, TILE_COLUMNS = 64, 64  # of 4-bit weights on a GPU

NATIVE_GROUP = 32
"""Adjacent weights along K that share a scale and an offset in the CPU kernel."""


class Codec(IntEnum):
    """How a weight is stored. The first ones are panels for the CPU, numbered as in `Kind` of
    linear_kinds.h."""

    FLOAT32 = 0
    BFLOAT16 = 1
    CODES4 = 2
    CODES5 = 3
    SYMMETRIC4 = 4
    SYMMETRIC5 = 5
    SYMMETRIC6 = 6
    SYMMETRIC8 = 7
    PLAIN = 8  # [n, k]
    FP8 = 9  # e4m3 [n, k], scales float32 [n]
    INT4 = 10  # `to_tiles` with 64 rows; `scales` holds its pairs


PANELS = frozenset(range(Codec.PLAIN))
OFFSET = {4: Codec.CODES4, 5: Codec.CODES5}
SYMMETRIC = {n: Codec[f"SYMMETRIC{n}"] for n in (4, 5, 6, 8)}
"""Bits of a code → its codec in the CPU's panels. 6-bit codes are in groups of 16."""


@dataclass(slots=True, eq=False)
class Linear:
    """A weight [n, k] in the fastest layout for its device, made by one of the `pack` functions.

    Everything that can move is in fields that hold tensors, so `dataclasses.replace` moves a weight
    to other memory.
    """

    n: int
    k: int
    codec: Codec
    weight: Tensor  # laid out by its codec
    bias: Tensor | None = None  # [n]
    scales: Tensor | None = None
    below: Linear | None = None  # the rows after these, in another codec; panels only
    record: native.Linear | None = field(init=False, default=None)  # for the CPU kernel

    def __post_init__(self) -> None:
        if self.codec in PANELS:
            add = self.bias.data_ptr() if self.bias is not None else None
            at = self.weight.data_ptr()
            self.record = native.Linear(at, add, self.n, self.k, self.codec)

    @property
    def parts(self) -> list[Linear]:
        """This weight and those below it."""
        return [self, *(self.below.parts if self.below is not None else ())]

    @property
    def stored(self) -> str:
        """The type of this weight, for people to read; not of those below."""
        if self.codec is Codec.PLAIN:
            return str(self.weight.dtype).removeprefix("torch.")
        return self.codec.name.lower()

    def numbers(self, dtype: torch.dtype) -> Tensor:
        """The weight [n, k], unpacked to `dtype`; a PLAIN weight in its own type. Not for
        PANELS."""
        if self.codec is Codec.PLAIN:
            return self.weight
        assert self.scales is not None
        if self.codec is Codec.FP8:
            return self.weight.to(dtype).mul_(self.scales.to(dtype).unsqueeze(1))
        gpu = gpu_kernels(self.weight)
        if gpu is not None:
            return gpu.unpacked(self.weight, self.scales, self.n, dtype)
        return from_tiles(self.weight, self.scales, self.n).floats().to(dtype)


def pack(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """Lay out `weight` [N, K] and `bias` [N] for the device that holds them.

    The result holds a copy, so drop the original. On the CPU float16 becomes float32.
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


def takes_codes(device: torch.device, bits: int, k: int) -> bool:
    """Whether the device multiplies such codes: a GPU with Triton those of 4 bits, a CPU with byte
    products all."""
    if device.type == "cuda":
        return dispatch.triton is not None and bits == 4 and k % TILE_COLUMNS == 0
    lib = native.library()
    return lib is not None and bool(lib.has_byte_products()) and k % NATIVE_GROUP == 0


def takes_fp8(device: torch.device) -> bool:
    """Whether the device is a GPU that multiplies 8-bit floats: Ada, Hopper and later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def pack_codes(codes: Codes, bias: Tensor | None = None, dtype: torch.dtype = BF16) -> Linear:
    """Lay out a weight of codes for the device that holds them; a GPU multiplies them in `dtype`.
    Requires `takes_codes`."""
    (n, k), lib = codes.codes.shape, native.library()
    if codes.codes.is_cuda:
        exact = torch.float16 if dtype == torch.float32 else dtype
        tiles, pairs = to_tiles(codes, TILE_ROWS, exact)
        bias = bias.to(dtype) if bias is not None else None  # cuBLAS adds it in the epilogue
        return Linear(n, k, Codec.INT4, tiles, bias, pairs)
    codec = (SYMMETRIC if codes.symmetric else OFFSET)[codes.bits]
    pairs = codes.regrouped(NATIVE_GROUP // 2 if codec is Codec.SYMMETRIC6 else NATIVE_GROUP).pairs
    scales = (pairs[..., 0] if codes.symmetric else pairs).contiguous()
    assert lib is not None and scales.dtype == torch.float16
    panels = torch.empty(lib.packed_bytes(n, k, codec), dtype=torch.uint8)
    each = codes.codes.contiguous()
    lib.pack_codes(each.data_ptr(), scales.data_ptr(), n, k, codec, panels.data_ptr())
    return Linear(n, k, codec, panels, floats(bias) if bias is not None else None)


def pack_fp8(weight: Scaled, bias: Tensor | None = None) -> Linear:
    """Lay out a weight of 8-bit floats with one scale per row. Requires `takes_fp8`."""
    n, k = weight.values.shape
    bias = bias.to(torch.bfloat16) if bias is not None else None  # the only type cuBLAS adds
    return Linear(n, k, Codec.FP8, weight.values.contiguous(), bias, weight.scales.contiguous())


def rows(w: Linear, ids: Tensor) -> Tensor:
    """Look up rows `ids` int64 [T] of an embedding → [T, K], float32 on the CPU."""
    if w.record is None:
        found = torch.nn.functional.embedding(ids, w.weight)
        return found.float() if found.is_cpu else found
    out = torch.empty(len(ids), w.k)
    ids = ids.contiguous()
    native.library().rows(addressof(w.record), ids.data_ptr(), len(ids), out.data_ptr())
    return out


def linear(x: Tensor, w: Linear, residual: Tensor | None = None) -> Tensor:
    """x [M, K] → x @ W.T + bias + residual, [M, N]; the result may overwrite `residual`.

    2 M N K FLOP. On a CPU it reads the weight, 2 or 4 bytes per element, once per 96 rows. With the
    native kernel a row of the result is bitwise the same for every M. bfloat16 weights multiply x
    rounded to bfloat16 if the CPU has AVX512-BF16, otherwise unrounded x. Codes multiply x rounded
    to 8 bits in groups of 32; scales add half a bit per element, or one bit with offsets or in
    groups of 16. On a GPU, 4-bit weights multiply unrounded x, and so do 8-bit weights if M is
    small; otherwise x is rounded to 8-bit floats row by row.
    """
    return _apply(x, w, Fused(bias=w.bias, residual=residual))


def normed_linear(x: Tensor, norm: Tensor, eps: float, w: Linear) -> Tensor:
    """linear(rms_norm(x, norm, eps), w), fused if there is a kernel for it."""
    return _apply(x, w, Fused(norm, eps, bias=w.bias))


def gated_linear(gate_up: Tensor, act: str, w: Linear, residual: Tensor | None = None) -> Tensor:
    """linear(gated(gate_up, act), w, residual), gate_up [M, 2K], fused likewise."""
    return _apply(gate_up, w, Fused(act=act, bias=w.bias, residual=residual))


def _apply(x: Tensor, w: Linear, fused: Fused) -> Tensor:
    if w.record is not None:
        return _multiply(x, w, fused)
    residual, gpu = fused.residual, gpu_kernels(x)
    if gpu is not None:
        y = _few_rows(gpu, x, w, fused)
        if y is not None:
            return y
        if w.codec is Codec.FP8 and x.dtype == torch.bfloat16 and not (w.n | w.k) % 16:
            return _product_of_fp8(*gpu.quantized(x, fused), w, residual)
    if fused.norm is not None:
        x = rms_norm(x, fused.norm, fused.eps)
    if fused.act is not None:
        x = gated(x, fused.act)
    weight = w.numbers(x.dtype)
    if x.is_cuda and residual is not None and w.bias is None:
        return residual.addmm_(x, weight.t())
    return reference_linear(x, weight, w.bias, residual)


def _few_rows(gpu: ModuleType, x: Tensor, w: Linear, fused: Fused) -> Tensor | None:
    """The result of the GPU kernel for few rows; None where it is not faster. It rounds x times the
    norm's weight before scaling it, which would overflow float16."""
    if w.codec is Codec.INT4:
        return gpu.few_rows_of_codes(x, w.weight, w.scales, w.n, fused)
    if x.dtype != torch.bfloat16 or (w.codec is Codec.PLAIN and w.bias is not None):
        return None
    return gpu.few_rows(x, w.weight, w.scales, fused)


def _product_of_fp8(values: Tensor, scales: Tensor, w: Linear, residual: Tensor | None) -> Tensor:
    """values e4m3 [M, K] times scales float32 [M, 1], @ W.T + bias + residual → bfloat16 [M, N].

    Tensor cores accumulate with fewer bits than float32 but far more than e4m3. cuBLAS 13 has no
    kernel with row scales for some shapes of few rows and large K; there the scales are applied
    afterwards."""
    shape = (len(values), w.n, w.k)
    if shape not in _without_scales:
        try:
            y = _scaled_mm(values, w.weight, scales, w.scales.unsqueeze(0), w.bias, torch.bfloat16)
            return y if residual is None else residual.add_(y)
        except RuntimeError as error:
            if "NOT_SUPPORTED" not in str(error):
                raise
            _without_scales.add(shape)
    one = torch.ones((), device=values.device)
    y = _scaled_mm(values, w.weight, one, one, None, torch.float32).mul_(scales).mul_(w.scales)
    if w.bias is not None:
        y += w.bias
    return y.bfloat16() if residual is None else residual.add_(y)


_without_scales: set[tuple[int, int, int]] = set()
"""(M, N, K) for which cuBLAS has refused row scales."""


def _scaled_mm(
    x: Tensor, w: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return torch._scaled_mm(x, w.t(), rows, columns, bias, out_dtype=dtype, use_fast_accum=True)


def _multiply(x: Tensor, w: Linear, fused: Fused) -> Tensor:
    """Run the native kernel on x [M, K], or [M, 2K] if gated. Raises TypeError for other x."""
    lib, width = kernels(x), w.k if fused.act is None else 2 * w.k
    if lib is None or x.shape[1] != width:
        raise TypeError(f"x must be float32 [M, {width}] on the CPU, got {x.dtype} {list(x.shape)}")
    parts, at = w.parts, 0
    width = sum(part.n for part in parts)
    x, out = x.contiguous(), x.new_empty(x.shape[0], width)
    norm = floats(fused.norm) if fused.norm is not None else None
    residual = floats(fused.residual.view_as(out)) if fused.residual is not None else None
    for part in parts:
        lib.linear(
            addressof(part.record), x.data_ptr(), len(x),
            norm.data_ptr() if norm is not None else None, fused.eps,
            -1 if fused.act is None else ACTIVATIONS.index(fused.act),
            residual.data_ptr() + at if residual is not None else None, out.data_ptr() + at, width,
        )  # fmt: skip
        at += out.itemsize * part.n
    return out


def reference_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """Multiply in the weight's type and add the bias in that of `x`; `residual` is overwritten by
    the result."""
    if bias is not None and bias.dtype == weight.dtype == x.dtype:
        y, bias = torch.nn.functional.linear(x, weight, bias), None
    else:
        y = torch.nn.functional.linear(x.to(weight.dtype), weight).to(x.dtype)
    if bias is not None:
        y += bias
    return y if residual is None else residual.add_(y)
