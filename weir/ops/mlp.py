"""Activations between the linears of an MLP."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from weir.ops.dispatch import gpu_kernels, kernels

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": partial(functional.silu, inplace=True),
    "gelu_tanh": partial(torch.ops.aten.gelu_, approximate="tanh"),
    "relu": torch.relu_,
}
"""In place: these are a step's widest rows, and a GPU may have no room for a second copy."""
ACTIVATIONS = tuple(FUNCTIONS)
"""In the order of the kernel's enum."""


def gated(gate_up: Tensor, act: str) -> Tensor:
    """act(gate) * up for gate_up [T, 2F], the gate first → [T, F]. `act`: "silu" or "gelu_tanh"."""
    code = _code(act)
    gpu = gpu_kernels(gate_up)
    if gpu is not None:
        return gpu.gated(gate_up, act)
    lib = kernels(gate_up)
    if lib is None:
        return reference_gated(gate_up, act)
    gate_up = gate_up.contiguous()
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    lib.gated(gate_up.data_ptr(), rows, width, code, out.data_ptr())
    return out


def activate_(x: Tensor, act: str) -> None:
    """Apply `act` ("relu", "gelu_tanh" or "silu") in place."""
    lib, code = kernels(x), _code(act)
    if lib is None or not x.is_contiguous():
        FUNCTIONS[act](x)
    else:
        lib.activate(x.data_ptr(), x.numel(), code)


def reference_gated(gate_up: Tensor, act: str) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return reference_activate(gate, act) * up


def reference_activate(x: Tensor, act: str) -> Tensor:
    return FUNCTIONS[act](x.clone())


def _code(act: str) -> int:
    """The number of an activation in the kernel's enum."""
    if act not in ACTIVATIONS:
        raise ValueError(f"activation {act!r} is unknown: use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS.index(act)
