"""Rotary position embedding (arXiv 2104.09864), with an optional norm of each head before it and an
optional write of keys and values to their pages after it."""

import math
from typing import Any

import torch
from torch import Tensor

from weir.ops.attention import write
from weir.ops.batch import Place
from weir.ops.dispatch import floats, gpu_kernels, kernels, packed_heads
from weir.spec import RopeSpec


def tables(
    rope: RopeSpec, head_dim: int, context: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Cosines, then sines, of every position: float32 [context, dim], of dim rotated elements."""
    dim = rope.dim or head_dim
    frequency, scale = frequencies(rope, dim, context)
    angle = torch.outer(torch.arange(context, dtype=torch.float32), frequency)
    return (torch.cat([angle.cos(), angle.sin()], dim=-1) * scale).to(device)


def frequencies(rope: RopeSpec, dim: int, context: int) -> tuple[Tensor, float]:
    """Radians per position of each pair, float32 [dim / 2], and the factor on cosine and sine.

    float32 on purpose: models were trained with angles rounded to it. `rope.scaling` is
    config.json's `rope_scaling`. Raises ValueError if its type is unknown.
    """
    scaling = rope.scaling
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    factor = float(scaling.get("factor", 1.0))
    trained = int(scaling.get("original_max_position_embeddings") or context)
    plain = _powers(rope.theta, dim)
    match kind:
        case "default":
            return plain, 1.0
        case "linear":
            return plain / factor, 1.0
        case "dynamic":
            stretch = factor * max(context, trained) / trained - (factor - 1)
            return _powers(rope.theta * stretch ** (dim / (dim - 2)), dim), 1.0
        case "llama3":
            return _llama3(plain, factor, trained, scaling), 1.0
        case "yarn":
            return _yarn(plain, rope.theta, factor, trained, scaling)
        case "longrope":
            return _longrope(plain, context, trained, scaling)
    raise ValueError(
        f"rope type {kind!r} is unknown: "
        "use 'default', 'linear', 'dynamic', 'llama3', 'yarn' or 'longrope'"
    )


def _powers(theta: float, dim: int) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def _llama3(plain: Tensor, factor: float, trained: int, scaling: dict[str, Any]) -> Tensor:
    """Long wavelengths are stretched, short ones kept, and those between blended linearly."""
    low = float(scaling.get("low_freq_factor", 1.0))
    high = float(scaling.get("high_freq_factor", 4.0))
    turns = trained * plain / (2 * math.pi)  # over the trained context
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return plain * keep + plain / factor * (1 - keep)


def _yarn(
    plain: Tensor, theta: float, factor: float, trained: int, scaling: dict[str, Any]
) -> tuple[Tensor, float]:
    """NTK by parts (arXiv 2309.00071, section 3.2) and its temperature (section 3.4)."""
    half = plain.numel()

    def pair(turns: float) -> float:  # the index of the pair that makes these turns over `trained`
        return half * math.log(trained / (turns * 2 * math.pi)) / math.log(theta)

    low = pair(float(scaling.get("beta_fast") or 32.0))
    high = pair(float(scaling.get("beta_slow") or 1.0))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    ramp = (torch.arange(half, dtype=torch.float32) - low) / max(high - low, 0.001)
    stretch = ramp.clamp(0, 1)

    def temperature(weight: float = 1.0) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    scale = scaling.get("attention_factor")
    if scale is None:
        top, bottom = scaling.get("mscale"), scaling.get("mscale_all_dim")
        scale = temperature(top) / temperature(bottom) if top and bottom else temperature()
    return plain / factor * stretch + plain * (1 - stretch), float(scale)


def _longrope(
    plain: Tensor, context: int, trained: int, scaling: dict[str, Any]
) -> tuple[Tensor, float]:
    """One divisor per pair (arXiv 2402.13753); the long set if the context exceeds training's."""
    name = "long_factor" if context > trained else "short_factor"
    divisor = torch.tensor(scaling[name], dtype=torch.float32)
    scale = scaling.get("attention_factor")
    if scale is None:
        grown = float(scaling.get("factor") or context / trained)
        scale = math.sqrt(1 + math.log(grown) / math.log(trained)) if grown > 1 else 1.0
    return plain / divisor, float(scale)


def rope_(
    q: Tensor,
    k: Tensor,
    pos: Tensor,
    cos_sin: Tensor,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    v: Tensor | None = None,
    place: Place | None = None,
) -> None:
    """Rotate q [T, Hq, D] and k [T, Hkv, D] in place to positions `pos` int32 or int64 [T].

    cos_sin: see `tables`; dim = cos_sin.shape[1]. Element i pairs with i + dim / 2 (rotate-half);
    elements from dim on stay. With `q_norm` or `k_norm` [D] each head is RMS-normalised first, as
    in `rms_norm`.

    With a `place`, rotated k and v [T, Hkv, D] are stored there, and k itself is undefined
    afterwards. On a GPU all this is one launch.
    """
    gpu = gpu_kernels(q)
    if gpu is not None and packed_heads(q) is q and packed_heads(k) is k:
        kv, slots = (place.kv, place.slots) if place is not None else (None, None)
        v = packed_heads(v) if v is not None else None
        return gpu.rope_(q, k, v, pos, cos_sin, q_norm, k_norm, eps, kv, slots)
    _rotate_(q, pos, cos_sin, q_norm, eps)
    _rotate_(k, pos, cos_sin, k_norm, eps)
    if place is not None:
        write(place.kv, k, v, place.slots)


def _rotate_(x: Tensor, pos: Tensor, cos_sin: Tensor, norm: Tensor | None, eps: float) -> None:
    lib = kernels(x)
    if lib is None or packed_heads(x) is not x:
        return reference_rotate_(x, pos, cos_sin, norm, eps)
    pos, (tokens, heads, size) = pos.long(), x.shape
    norm = floats(norm) if norm is not None else None
    lib.rope(
        x.data_ptr(), tokens, x.stride(0), heads, size, pos.data_ptr(), cos_sin.data_ptr(),
        cos_sin.shape[1], norm.data_ptr() if norm is not None else None, eps,
    )  # fmt: skip


def reference_rotate_(
    x: Tensor, pos: Tensor, cos_sin: Tensor, norm: Tensor | None, eps: float
) -> None:
    dim = cos_sin.shape[1]
    cos, sin = cos_sin[pos.long()].unsqueeze(1).chunk(2, dim=-1)
    y = x.float()
    if norm is not None:
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
        y = y * norm.float()
    a, b, rest = y[..., : dim // 2], y[..., dim // 2 : dim], y[..., dim:]
    x.copy_(torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1))
