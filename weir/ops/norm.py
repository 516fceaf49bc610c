"""Normalisation of each row over the hidden dimension."""

import torch
from torch import Tensor

from weir.ops.dispatch import floats, gpu_kernels, kernels


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [T, H] / rms(x) * weight [H]."""
    gpu, lib = gpu_kernels(x), kernels(x)
    if gpu is not None:
        return gpu.rms_norm(x, weight, eps)
    if lib is None:
        return reference_rms_norm(x, weight, eps)
    x, weight, out = x.contiguous(), floats(weight), torch.empty_like(x)
    lib.rms_norm(x.data_ptr(), weight.data_ptr(), *x.shape, eps, out.data_ptr())
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x [T, H] - mean) / sqrt(variance + eps) * weight [H] + bias [H]."""
    gpu, lib = gpu_kernels(x), kernels(x)
    if gpu is not None:
        return gpu.layer_norm(x, weight, bias, eps)
    if lib is None:
        return reference_layer_norm(x, weight, bias, eps)
    x, weight, bias, out = x.contiguous(), floats(weight), floats(bias), torch.empty_like(x)
    at = x.data_ptr(), weight.data_ptr(), bias.data_ptr()
    lib.layer_norm(*at, *x.shape, eps, out.data_ptr())
    return out


def reference_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    y = x.float()
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    return (y * weight.float()).to(x.dtype)


def reference_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    y = torch.nn.functional.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), eps)
    return y.to(x.dtype)
