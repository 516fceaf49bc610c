"""Gemma 3, its text part: norms before and after, local and global rope, a scaled embedding.

Norm weights arrive as what they multiply by (1 + w is applied when they are read).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from weir.core import Spec
from weir.models.base import Ropes, Shapes, split_heads
from weir.models.llama import layer_tensors
from weir.models.weights import Weights
from weir.ops.attention import Place
from weir.ops.linear import Linear, gated_linear, linear, normed_linear, rows
from weir.ops.norm import rms_norm
from weir.ops.rope import rope_


@dataclass(slots=True, eq=False)
class Layer:
    rope: int  # which of the model's tables: local or global
    norm: Tensor  # [H]
    qkv: Linear
    q_norm: Tensor  # [D]
    k_norm: Tensor
    out: Linear
    out_norm: Tensor  # [H]
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear
    down_norm: Tensor


class Gemma3:
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
        """Every tensor this model reads and its shape, in the names of its safetensors."""
        h = spec.hidden
        shapes: Shapes = {"embed_tokens.weight": (spec.vocab, h), "norm.weight": (h,)}
        if not spec.tied:
            shapes["lm_head.weight"] = (spec.vocab, h)
        for i in range(spec.layers):
            at = f"layers.{i}."
            shapes |= layer_tensors(spec, at)
            shapes |= {f"{at}{when}_feedforward_layernorm.weight": (h,) for when in ("pre", "post")}
        return shapes

    def _layer(self, weights: Weights, i: int) -> Layer:
        at = f"layers.{i}."
        return Layer(
            rope=self.ropes.of_layer[i],
            norm=weights.vector(f"{at}input_layernorm.weight"),
            qkv=weights.linear(*(f"{at}self_attn.{part}_proj" for part in "qkv")),
            q_norm=weights.vector(f"{at}self_attn.q_norm.weight"),
            k_norm=weights.vector(f"{at}self_attn.k_norm.weight"),
            out=weights.linear(f"{at}self_attn.o_proj"),
            out_norm=weights.vector(f"{at}post_attention_layernorm.weight"),
            mlp_norm=weights.vector(f"{at}pre_feedforward_layernorm.weight"),
            gate_up=weights.linear(f"{at}mlp.gate_proj", f"{at}mlp.up_proj"),
            down=weights.linear(f"{at}mlp.down_proj"),
            down_norm=weights.vector(f"{at}post_feedforward_layernorm.weight"),
        )

    def embed(self, ids: Tensor, pos: Tensor) -> Tensor:
        x = rows(self.embedding, ids).to(self.dtype)
        return x.mul_(self.spec.embed_scale)

    def qkv(
        self, layer: Layer, x: Tensor, pos: Tensor, place: Place | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        eps = self.spec.eps
        q, k, v = split_heads(normed_linear(x, layer.norm, eps, layer.qkv), self.spec)
        table = self.ropes.tables[layer.rope]
        rope_(q, k, pos, table, layer.q_norm, layer.k_norm, eps, v=v, place=place)
        return (q, k, v) if place is None else (q, None, None)

    def out(self, layer: Layer, x: Tensor, o: Tensor) -> Tensor:
        eps = self.spec.eps
        x = x + rms_norm(linear(o.flatten(1), layer.out), layer.out_norm, eps)
        y = normed_linear(x, layer.mlp_norm, eps, layer.gate_up)
        y = gated_linear(y, self.spec.activation, layer.down)
        return rms_norm(y, layer.down_norm, eps).add_(x)

    def hidden(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.norm, self.spec.eps)

    def logits(self, x: Tensor) -> Tensor:
        y = normed_linear(x, self.norm, self.spec.eps, self.head)
        cap = self.spec.logit_softcap
        return y if cap is None else y.float().div_(cap).tanh_().mul_(cap)
