"""The referee: a small random model in plain PyTorch, and a decoder that recomputes everything.

`Tiny` follows the Model protocol with none of weir's ops; `dense` runs it over a whole sequence
with no cache, no pages and no batch.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, rms_norm, silu

from weir.spec import AttentionSpec, Spec


@dataclass(slots=True)
class Layer:
    qkv: Tensor
    o: Tensor
    gate_up: Tensor
    down: Tensor


class Tiny:
    """Random weights of a Llama-like model; positions are added to the embedding."""

    def __init__(self, vocab=61, hidden=32, layers=2, heads=4, kv_heads=2, size=8, window=None):
        g = torch.Generator().manual_seed(0)

        def weight(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g) * shape[-1] ** -0.5

        attention = AttentionSpec(heads, kv_heads, size, scale=size**-0.5)
        local = AttentionSpec(heads, kv_heads, size, scale=size**-0.5, window=window)
        self.spec = Spec(
            architecture="tiny",
            vocab=vocab,
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=size,
            ffn=2 * hidden,
            context=512,
            attention=[local if i % 2 else attention for i in range(layers)],
        )
        self.layers = [
            Layer(
                weight((heads + 2 * kv_heads) * size, hidden),
                weight(hidden, heads * size),
                weight(4 * hidden, hidden),
                weight(hidden, 2 * hidden),
            )
            for _ in range(layers)
        ]
        self.embedding = torch.randn(vocab, hidden, generator=g)
        self.position = torch.randn(512, hidden, generator=g) * 0.5
        self.head = 4 * weight(vocab, hidden)

    def to(self, device: torch.device) -> Tiny:
        """A copy there: what the referee computes with stays where it is."""
        moved = copy(self)
        moved.layers = [
            Layer(*(getattr(layer, name).to(device) for name in Layer.__slots__))
            for layer in self.layers
        ]
        for name in ("embedding", "position", "head"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def embed(self, ids: Tensor, pos: Tensor) -> Tensor:
        return embedding(ids, self.embedding) + self.position[pos]

    def qkv(
        self, layer: Layer, x: Tensor, pos: Tensor, place=None
    ) -> tuple[Tensor, Tensor, Tensor]:
        s = self.spec
        heads = linear(self.hidden(x), layer.qkv).unflatten(1, (-1, s.head_dim))
        return heads.split((s.heads, s.kv_heads, s.kv_heads), dim=1)

    def out(self, layer: Layer, x: Tensor, o: Tensor) -> Tensor:
        x = x + linear(o.flatten(1), layer.o)
        gate, up = linear(self.hidden(x), layer.gate_up).chunk(2, dim=-1)
        return x + linear(silu(gate) * up, layer.down)

    def hidden(self, x: Tensor) -> Tensor:
        return rms_norm(x, x.shape[-1:])

    def logits(self, x: Tensor) -> Tensor:
        return linear(self.hidden(x), self.head)


def dense(model: Tiny, tokens: list[int]) -> Tensor:
    """The last hidden states [T, H] of a whole sequence, before the final norm."""
    pos = torch.arange(len(tokens))
    x = model.embed(torch.tensor(tokens), pos)
    behind = pos[:, None] - pos
    for layer, spec in zip(model.layers, model.spec.attention, strict=True):
        q, k, v = (t.transpose(0, 1) for t in model.qkv(layer, x, pos))
        k, v = (t.repeat_interleave(spec.heads // spec.kv_heads, dim=0) for t in (k, v))
        hidden = (behind < 0) | (behind >= (spec.window or len(tokens)))
        score = (q @ k.transpose(1, 2) * spec.scale).masked_fill(hidden, -torch.inf)
        x = model.out(layer, x, (score.softmax(-1) @ v).transpose(0, 1))
    return x


def logprobs(model: Tiny, tokens: list[int]) -> Tensor:
    """log_softmax of the token that follows each position: [T, V]."""
    return model.logits(dense(model, tokens)).double().log_softmax(-1)


def generate(model: Tiny, prompt: list[int], n: int) -> list[int]:
    """n greedy tokens."""
    tokens = list(prompt)
    for _ in range(n):
        tokens.append(int(logprobs(model, tokens)[-1].argmax()))
    return tokens[len(prompt) :]
