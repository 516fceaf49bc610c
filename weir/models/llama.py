"""The Llama family: Llama 2 and 3, Mistral, Qwen 2, 2.5 and 3, SmolLM2.

They differ only in biases, per-head norms and windows, which the Spec and the weights determine.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from weir.models.base import Ropes, Shapes, shape, split_heads
from weir.models.weights import Weights
from weir.ops.batch import Place
from weir.ops.linear import Linear, gated_linear, linear, normed_linear, rows
from weir.ops.norm import rms_norm
from weir.ops.rope import rope_
from weir.spec import Spec

MLP_NORM = "post_attention_layernorm.weight"


@dataclass(slots=True, eq=False)
class Layer:
    rope: int  # index of the rotation table
    norm: Tensor  # [H]
    qkv: Linear
    q_norm: Tensor | None  # [D]
    k_norm: Tensor | None
    out: Linear
    mlp_norm: Tensor  # [H]
    gate_up: Linear
    down: Linear


class Llama:
    def __init__(self, spec: Spec, weights: Weights):
        self.spec = spec
        self.dtype = weights.activation
        self.ropes = Ropes(spec, weights.device)
        self.embedding, self.head = weights.embedding(spec.tied)
        self.norm = weights.vector("norm.weight")
        self.layers = weights.layers(lambda i: self._layer(weights, i), spec.layers)
        self.stored = weights.stored

    @staticmethod
    def tensors(spec: Spec) -> Shapes:
        """Every tensor that this model reads: its name in safetensors and its shape."""
        h = spec.hidden
        shapes: Shapes = {"embed_tokens.weight": (spec.vocab, h), "norm.weight": (h,)}
        if not spec.tied:
            shapes["lm_head.weight"] = (spec.vocab, h)
        for i in range(spec.layers):
            shapes |= layer_tensors(spec, f"layers.{i}.")
        return shapes

    def _layer(self, weights: Weights, i: int) -> Layer:
        return Layer(**self._parts(weights, i))

    def _parts(self, weights: Weights, i: int, mlp_norm: str = MLP_NORM) -> dict[str, Any]:
        at = f"layers.{i}."
        head_norm = self.spec.qk_norm
        return {
            "rope": self.ropes.of_layer[i],
            "norm": weights.vector(f"{at}input_layernorm.weight"),
            "qkv": weights.linear(*(f"{at}self_attn.{part}_proj" for part in "qkv")),
            "q_norm": weights.vector(f"{at}self_attn.q_norm.weight") if head_norm else None,
            "k_norm": weights.vector(f"{at}self_attn.k_norm.weight") if head_norm else None,
            "out": weights.linear(f"{at}self_attn.o_proj"),
            "mlp_norm": weights.vector(f"{at}{mlp_norm}"),
            "gate_up": weights.linear(f"{at}mlp.gate_proj", f"{at}mlp.up_proj"),
            "down": weights.linear(f"{at}mlp.down_proj"),
        }

    def embed(self, ids: Tensor, pos: Tensor) -> Tensor:
        return rows(self.embedding, ids).to(self.dtype)

    def qkv(
        self, layer: Layer, x: Tensor, pos: Tensor, place: Place | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        eps = self.spec.eps
        q, k, v = split_heads(normed_linear(x, layer.norm, eps, layer.qkv), self.spec)
        table = self.ropes.tables[layer.rope]
        rope_(q, k, pos, table, layer.q_norm, layer.k_norm, eps, v=v, place=place)
        return (q, k, v) if place is None else (q, None, None)

    def out(self, layer: Layer, x: Tensor, o: Tensor) -> Tensor:
        x = linear(o.flatten(1), layer.out, x)
        del o  # the MLP needs the memory
        y = normed_linear(x, layer.mlp_norm, self.spec.eps, layer.gate_up)
        return gated_linear(y, self.spec.activation, layer.down, x)

    def hidden(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.norm, self.spec.eps)

    def logits(self, x: Tensor) -> Tensor:
        return normed_linear(x, self.norm, self.spec.eps, self.head)


def layer_tensors(spec: Spec, at: str) -> Shapes:
    """The names and shapes of the tensors of one layer; names begin with `at`."""
    h, d, f = spec.hidden, spec.head_dim, spec.ffn
    q, kv = spec.heads * d, spec.kv_heads * d
    shapes: Shapes = {f"{at}input_layernorm.weight": (h,), f"{at}{MLP_NORM}": (h,)}
    if spec.qk_norm:
        shapes |= {f"{at}self_attn.{part}_norm.weight": (d,) for part in "qk"}
    return (
        shapes
        | shape(f"{at}self_attn.q_proj", q, h, spec.qkv_bias)
        | shape(f"{at}self_attn.k_proj", kv, h, spec.qkv_bias)
        | shape(f"{at}self_attn.v_proj", kv, h, spec.qkv_bias)
        | shape(f"{at}self_attn.o_proj", h, q, spec.out_bias)
        | shape(f"{at}mlp.gate_proj", f, h, spec.mlp_bias)
        | shape(f"{at}mlp.up_proj", f, h, spec.mlp_bias)
        | shape(f"{at}mlp.down_proj", h, f, spec.mlp_bias)
    )
