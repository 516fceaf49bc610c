"""Gemma 3, its text part: a Llama with norms also after each block, local and global rope, and a
scaled embedding.

Checkpoints return norm weights with the 1 of 1 + w added.
"""

from dataclasses import dataclass

from torch import Tensor

from weir.models import llama
from weir.models.base import Shapes
from weir.models.weights import Weights
from weir.ops.linear import gated_linear, linear, normed_linear
from weir.ops.norm import rms_norm
from weir.spec import Spec

OUT_NORM = llama.MLP_NORM  # "post_attention_layernorm", which in Gemma does follow attention
MLP_NORM, DOWN_NORM = (f"{when}_feedforward_layernorm.weight" for when in ("pre", "post"))


@dataclass(slots=True, eq=False)
class Layer(llama.Layer):
    out_norm: Tensor  # [H]
    down_norm: Tensor


class Gemma3(llama.Llama):
    @staticmethod
    def tensors(spec: Spec) -> Shapes:
        """Every tensor this model reads and its shape, in the names of its safetensors."""
        more = (f"layers.{i}.{norm}" for i in range(spec.layers) for norm in (MLP_NORM, DOWN_NORM))
        return llama.Llama.tensors(spec) | dict.fromkeys(more, (spec.hidden,))

    def _layer(self, weights: Weights, i: int) -> Layer:
        return Layer(
            **self._parts(weights, i, MLP_NORM),
            out_norm=weights.vector(f"layers.{i}.{OUT_NORM}"),
            down_norm=weights.vector(f"layers.{i}.{DOWN_NORM}"),
        )

    def embed(self, ids: Tensor, pos: Tensor) -> Tensor:
        return super().embed(ids, pos).mul_(self.spec.embed_scale)

    def out(self, layer: Layer, x: Tensor, o: Tensor) -> Tensor:
        eps = self.spec.eps
        x = x + rms_norm(linear(o.flatten(1), layer.out), layer.out_norm, eps)
        del o  # the MLP needs the room
        y = normed_linear(x, layer.mlp_norm, eps, layer.gate_up)
        y = gated_linear(y, self.spec.activation, layer.down)
        return rms_norm(y, layer.down_norm, eps).add_(x)

    def logits(self, x: Tensor) -> Tensor:
        y, cap = super().logits(x), self.spec.logit_softcap
        return y if cap is None else y.float().div_(cap).tanh_().mul_(cap)
