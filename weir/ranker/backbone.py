"""The first layers of a Llama-like model, differentiable, with a head that scores a prompt.

Plain PyTorch, so that it trains on any device. Knows tokens, not text, and no lengths of answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from weir.errors import ConfigError
from weir.models.weights import Checkpoint
from weir.ops import rope
from weir.spec import Spec

PADDED = 1 << 14
"""Tokens computed at once, those that pad among them."""

RIDGE, NARROW = 0.3, 0.5


class Layer(nn.Module):
    def __init__(self, spec: Spec):
        super().__init__()
        h, d = spec.hidden, spec.head_dim
        self.heads = (spec.heads, spec.kv_heads, spec.kv_heads)
        self.norm = nn.RMSNorm(h, spec.eps)
        self.qkv = nn.Linear(h, sum(self.heads) * d, bias=False)
        self.out = nn.Linear(spec.heads * d, h, bias=False)
        self.mlp_norm = nn.RMSNorm(h, spec.eps)
        self.gate_up = nn.Linear(h, 2 * spec.ffn, bias=False)
        self.down = nn.Linear(spec.ffn, h, bias=False)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """x [P, L, H], table [L, D] of cosines, then sines."""
        heads = self.qkv(self.norm(x)).unflatten(-1, (sum(self.heads), -1)).transpose(1, 2)
        q, k, v = heads.split(self.heads, dim=1)  # [P, heads, L, D]
        q, k = rotated(q, table), rotated(k, table)
        o = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(o.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.mlp_norm(x)).chunk(2, dim=-1)
        found: Tensor = x + self.down(functional.silu(gate) * up)
        return found

    def read(self, checkpoint: Checkpoint, at: str) -> None:
        joined = {
            self.norm.weight: ("input_layernorm",),
            self.qkv.weight: ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            self.out.weight: ("self_attn.o_proj",),
            self.mlp_norm.weight: ("post_attention_layernorm",),
            self.gate_up.weight: ("mlp.gate_proj", "mlp.up_proj"),
            self.down.weight: ("mlp.down_proj",),
        }
        for weight, names in joined.items():
            row = 0
            for name in (f"{at}{name}.weight" for name in names):
                rows = checkpoint.shapes[name][0]
                checkpoint.read(name, weight.data[row : row + rows])
                row += rows


def regression(like: Tensor, target: Tensor, share: Tensor) -> Tensor:
    """What each prompt adds to those like it: of least squared error, weighted by `share`, plus
    RIDGE times the norm. like: [P, P], target and share: [P] → float32 [P]."""
    error = target.double() - (share * target).sum() / share.sum()
    found: Tensor = torch.linalg.solve(like.double() + torch.diag(RIDGE / share.double()), error)
    return found.float()


class Kernel(nn.Module):
    """Kernel ridge regression: a prompt's score is what prompts with a like state had. Takes the
    place of a linear head where the layers stay as they are."""

    def __init__(self, count: int, width: int):
        """count: prompts that are remembered. width: numbers of a state."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        self.register_buffer("anchors", torch.zeros(count, width))
        self.register_buffer("weight", torch.zeros(count, 1))

    @classmethod
    def fitted(cls, states: Tensor, target: Tensor, share: Tensor) -> Kernel:
        """states: float32 [P, K], target and share: [P]."""
        made = cls(*states.shape).to(states.device)
        made.mean, made.scale = states.mean(0), states.std(0) + 1e-4
        made.anchors = made.standard(states)
        made.weight = regression(made.like(made.anchors), target, share)[:, None]
        return made

    def standard(self, states: Tensor) -> Tensor:
        """States [P, K] in units of their spread among those that it was fitted to."""
        found: Tensor = (states.float() - self.get_buffer("mean")) / self.get_buffer("scale")
        return found

    def like(self, x: Tensor) -> Tensor:
        """How like each of x [P, K] is to each anchor, from 0 to 1: [P, count]."""
        apart = torch.cdist(scaled(x), scaled(self.get_buffer("anchors")))
        return apart.square().neg().exp()

    def forward(self, x: Tensor) -> Tensor:
        """[P, K] → float32 [P, 1]."""
        with torch.autocast(x.device.type, enabled=False):
            return self.like(self.standard(x)) @ self.get_buffer("weight")


def scaled(x: Tensor) -> Tensor:
    """Numbers [P, K] of spread 1, so that exp(-apart ** 2) says how alike two of them are."""
    return x * math.sqrt(NARROW / x.shape[1])


class Backbone(nn.Module):
    """Scores prompts of at most `context` tokens. layers: how many of the model's are used, from
    the first. Its embedding is not trained. A head gives scores of states."""

    def __init__(self, spec: Spec, layers: int, context: int, outputs: int = 1):
        """Raises `ConfigError` for a model that it cannot compute."""
        super().__init__()
        if spec.architecture not in ("llama", "mistral") or spec.qkv_bias or spec.mlp_bias:
            raise ConfigError(f"a ranker cannot be made of {spec.architecture}: take a Llama")
        if not 0 < layers <= spec.layers:
            raise ConfigError(f"layers must be from 1 to the model's {spec.layers}, not {layers}")
        self.embedding = nn.Embedding(spec.vocab, spec.hidden).requires_grad_(False)
        self.layers = nn.ModuleList(Layer(spec) for _ in range(layers))
        self.norm = nn.RMSNorm(2 * spec.hidden, spec.eps)
        self.head: nn.Module = nn.Linear(2 * spec.hidden, outputs, bias=False)
        nn.init.zeros_(self.head.weight)
        table = rope.tables(spec.rope[0], spec.head_dim, context)
        self.register_buffer("table", table, persistent=False)

    def read(self, checkpoint: Checkpoint) -> None:
        """Begin at a pretrained model, with all scores equal."""
        checkpoint.read("embed_tokens.weight", self.embedding.weight.data)
        for place, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            layer.read(checkpoint, f"layers.{place}.")

    def forward(self, prompts: Sequence[Tensor]) -> Tensor:
        """int64 [L] each, one token or more → float32 [P, outputs]."""
        return self._each(prompts, self.head)

    def states(self, prompts: Sequence[Tensor]) -> Tensor:
        """What the head is given: float32 [P, 2 H]."""
        return self._each(prompts, nn.Identity())

    def _each(self, prompts: Sequence[Tensor], head: nn.Module) -> Tensor:
        """Prompts of like lengths are computed together, so that little is padding."""
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        groups: list[list[Tensor]] = []
        rest = order
        while rest:
            several = max(1, PADDED // len(prompts[rest[-1]]))
            group, rest = rest[-several:], rest[:-several]
            groups.insert(0, [prompts[place] for place in group])
        with torch.autocast(self.embedding.weight.device.type, torch.bfloat16):  # casts once
            found = [self._group(group, head) for group in groups]
        back = torch.tensor(order, device=self.embedding.weight.device).argsort()
        return torch.cat(found)[back]

    def _group(self, prompts: Sequence[Tensor], head: nn.Module) -> Tensor:
        device = self.embedding.weight.device
        ids = nn.utils.rnn.pad_sequence(list(prompts), batch_first=True).to(device)
        counts = torch.tensor([len(prompt) for prompt in prompts]).to(device)
        found: Tensor = head(self.norm(self.hidden(ids, counts)))
        return found.float()

    def hidden(self, ids: Tensor, counts: Tensor) -> Tensor:
        """ids int64 [P, L], of which the first `counts` [P] are a prompt → [P, 2 H]: the state of
        its last token and the mean of all. What follows a prompt is never looked at."""
        x = self.embedding(ids)
        table = self.get_buffer("table")[: ids.shape[1]]
        for layer in self.layers:
            x = layer(x, table)
        inside = torch.arange(ids.shape[1], device=ids.device) < counts[:, None]
        mean = (x * inside[..., None]).sum(1) / counts[:, None]
        place = (counts - 1)[:, None, None].expand(-1, 1, x.shape[2])
        return torch.cat([x.gather(1, place)[:, 0], mean], dim=-1)


def rotated(x: Tensor, table: Tensor) -> Tensor:
    """x [.., L, D], its halves rotated by table [L, D]."""
    cos, sin = table.chunk(2, dim=-1)
    one, two = x.chunk(2, dim=-1)
    return torch.cat([one * cos - two * sin, two * cos + one * sin], dim=-1).to(x.dtype)
