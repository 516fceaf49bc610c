"""OPT: learned positions, layer norms with biases, a plain MLP (arXiv 2205.01068).

OPT-350m differs: it norms after each block, and its embedding is narrower, with projections.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from weir.models.base import Shapes, shape, split_heads
from weir.models.weights import Weights
from weir.ops.batch import Place
from weir.ops.linear import Linear, linear, rows
from weir.ops.mlp import activate_
from weir.ops.norm import layer_norm
from weir.spec import Spec

FIRST_POSITION = 2  # row of position 0 in the position table
EPS = 1e-5


@dataclass(slots=True, eq=False)
class Norm:
    weight: Tensor  # [H]
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, EPS)


@dataclass(slots=True, eq=False)
class Layer:
    norm: Norm
    qkv: Linear
    out: Linear
    mlp_norm: Norm
    up: Linear
    down: Linear


class OPT:
    def __init__(self, spec: Spec, weights: Weights):
        self.spec = spec
        self.dtype = weights.activation
        self.embedding, self.head = weights.embedding(spec.tied)
        self.positions = weights.matrix("embed_positions.weight")
        self.project_in = weights.linear("project_in") if spec.embed_dim else None
        self.project_out = weights.linear("project_out") if spec.embed_dim else None
        self.norm = _norm(weights, "final_layer_norm") if spec.final_norm else None
        self.layers = weights.layers(lambda i: self._layer(weights, i), spec.layers)
        self.stored = weights.stored

    @staticmethod
    def tensors(spec: Spec) -> Shapes:
        """Every tensor this model reads and its shape, in the names of its safetensors."""
        h, f, width = spec.hidden, spec.ffn, spec.embed_dim or spec.hidden
        shapes: Shapes = {
            "embed_tokens.weight": (spec.vocab, width),
            "embed_positions.weight": (spec.context + FIRST_POSITION, h),
        }
        if spec.embed_dim:
            shapes |= {"project_in.weight": (h, width), "project_out.weight": (width, h)}
        if spec.final_norm:
            shapes |= {"final_layer_norm.weight": (h,), "final_layer_norm.bias": (h,)}
        if not spec.tied:
            shapes["lm_head.weight"] = (spec.vocab, width)
        for i in range(spec.layers):
            at = f"layers.{i}."
            for norm in ("self_attn_layer_norm", "final_layer_norm"):
                shapes |= {f"{at}{norm}.weight": (h,), f"{at}{norm}.bias": (h,)}
            for part in "qkv":
                shapes |= shape(f"{at}self_attn.{part}_proj", h, h, spec.qkv_bias)
            shapes |= shape(f"{at}self_attn.out_proj", h, h, spec.out_bias)
            shapes |= shape(f"{at}fc1", f, h, spec.mlp_bias)
            shapes |= shape(f"{at}fc2", h, f, spec.mlp_bias)
        return shapes

    def _layer(self, weights: Weights, i: int) -> Layer:
        at = f"layers.{i}."
        return Layer(
            norm=_norm(weights, f"{at}self_attn_layer_norm"),
            qkv=weights.linear(*(f"{at}self_attn.{part}_proj" for part in "qkv")),
            out=weights.linear(f"{at}self_attn.out_proj"),
            mlp_norm=_norm(weights, f"{at}final_layer_norm"),
            up=weights.linear(f"{at}fc1"),
            down=weights.linear(f"{at}fc2"),
        )

    def embed(self, ids: Tensor, pos: Tensor) -> Tensor:
        x = rows(self.embedding, ids).to(self.dtype)
        if self.project_in is not None:
            x = linear(x, self.project_in)
        return x + torch.nn.functional.embedding(pos + FIRST_POSITION, self.positions)

    def qkv(
        self, layer: Layer, x: Tensor, pos: Tensor, place: Place | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        y = x if self.spec.norm_after else layer.norm(x)
        return split_heads(linear(y, layer.qkv), self.spec)

    def out(self, layer: Layer, x: Tensor, o: Tensor) -> Tensor:
        after = self.spec.norm_after
        x = linear(o.flatten(1), layer.out, x)
        del o  # the MLP needs the room
        if after:
            x = layer.norm(x)
        y = linear(x if after else layer.mlp_norm(x), layer.up)
        activate_(y, self.spec.activation)
        x = linear(y, layer.down, x)
        return layer.mlp_norm(x) if after else x

    def hidden(self, x: Tensor) -> Tensor:
        x = x if self.norm is None else self.norm(x)
        return x if self.project_out is None else linear(x, self.project_out)

    def logits(self, x: Tensor) -> Tensor:
        return linear(self.hidden(x), self.head)


def _norm(weights: Weights, name: str) -> Norm:
    return Norm(weights.vector(f"{name}.weight"), weights.vector(f"{name}.bias"))
