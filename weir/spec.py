"""The shape of a model, whatever file it came from. Plain values, without tensors."""

from typing import Any

from msgspec import Struct


class AttentionSpec(Struct, frozen=True):
    """The attention of one layer. `window`: each query sees itself and window - 1 tokens before."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None = None
    softcap: float | None = None


class RopeSpec(Struct, frozen=True):
    theta: float = 10000.0
    dim: int = 0  # rotated part of a head; 0: all of it
    scaling: dict[str, Any] = {}  # as config.json's rope_scaling


class Spec(Struct, frozen=True, kw_only=True):
    """The shape of a model, whatever file it came from."""

    architecture: str  # "llama", "qwen2", "qwen3", "mistral", "opt", "gemma3"
    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    context: int
    eps: float = 1e-5
    tied: bool = False
    activation: str = "silu"  # "silu", "gelu_tanh", "relu"
    attention: list[AttentionSpec] = []  # one a layer
    rope: list[RopeSpec] = []  # one a layer; empty: none
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    embed_scale: float = 1.0
    embed_dim: int = 0  # width of the embedding, projected to `hidden`; 0: the same
    norm_after: bool = False  # layer norms follow attention and MLP (OPT-350m)
    final_norm: bool = True
    logit_softcap: float | None = None
    bos: int | None = None
    eos: list[int] = []
