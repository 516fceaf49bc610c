"""Activations between the linears of an MLP."""

from __future__ import annotations

import torch
from torch import Tensor


def gated(gate_up: Tensor, act: str) -> Tensor:
    """act(gate) * up for gate_up [T, 2F], the gate first → [T, F]. `act`: "silu" or "gelu_tanh"."""
    return reference_gated(gate_up, act)


def activate_(x: Tensor, act: str) -> None:
    """Apply `act` ("relu", "gelu_tanh" or "silu") in place."""
    x.copy_(reference_activate(x, act))


def reference_gated(gate_up: Tensor, act: str) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return reference_activate(gate, act) * up


def reference_activate(x: Tensor, act: str) -> Tensor:
    match act:
        case "silu":
            return torch.nn.functional.silu(x)
        case "gelu_tanh":
            return torch.nn.functional.gelu(x, approximate="tanh")
        case "relu":
            return torch.relu(x)
    raise ValueError(f"activation {act!r} is unknown: use 'silu', 'gelu_tanh' or 'relu'")
