"""The work that a plan asks of a device, as counts that every cost model prices.

Also the sizes of a model. Only counts: no rates, no times.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from weir.core import Chunk, Plan
from weir.spec import Spec


@dataclass(slots=True)
class Work:
    """The work of a step. Every chunk of one token counts as a decode."""

    rows: int = 0  # rows of logits
    contexts: list[int] = field(default_factory=list)  # per decode, tokens that its attention reads
    prompts: list[tuple[int, int]] = field(default_factory=list)  # (length, start) of other chunks

    @staticmethod
    def of(plan: Plan) -> Work:
        work = Work()
        for lane in plan.lanes:
            for chunk in lane:
                work.add(chunk)
        return work

    def add(self, chunk: Chunk, here: bool = True) -> None:
        """Count a chunk. here: whether this device attends to it, if it is a decode."""
        length = len(chunk.ids)
        if length <= 1:
            self.contexts.append(chunk.start + 1 if here else 0)
        else:
            self.prompts.append((length, chunk.start))
        if chunk.sample is not None:
            self.rows += 1

    @property
    def tokens(self) -> int:
        return len(self.contexts) + sum(length for length, _ in self.prompts)

    def read(self, window: int | None) -> int:
        """Tokens whose keys and values the decodes read, in a layer with this window."""
        if window is None:
            return sum(self.contexts)
        return sum(min(context, window) for context in self.contexts)

    def pairs(self, window: int | None) -> float:
        """Query-key pairs of the prompts' chunks, in a layer with this window."""
        return sum(_pairs(length, start, window) for length, start in self.prompts)


def _pairs(length: int, start: int, window: int | None) -> float:
    if window is None or start + length <= window:
        return length * (start + (length + 1) / 2)
    growing = max(0, window - start)  # queries that see less than a whole window
    return growing * (start + (growing + 1) / 2) + (length - growing) * window


def layer_weights(spec: Spec) -> int:
    """Weights of one layer's linears: grouped-query attention, and an MLP, gated except in OPT."""
    inner, cache = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    matrices = 2 if spec.architecture == "opt" else 3
    return spec.hidden * (2 * inner + 2 * cache + matrices * spec.ffn)


def head_weights(spec: Spec) -> int:
    """Weights of the output layer, which computes logits."""
    return spec.vocab * (spec.embed_dim or spec.hidden)


def weights(spec: Spec) -> int:
    """All weights except norms and biases."""
    embeddings = 1 if spec.tied else 2
    return spec.layers * layer_weights(spec) + embeddings * head_weights(spec)


def activations(spec: Spec) -> int:
    """Numbers that the linears of one layer read and write for each token."""
    inner, cache = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    gates = 1 if spec.architecture == "opt" else 2
    attention = spec.hidden + inner + 2 * cache + inner + spec.hidden
    return attention + spec.hidden + gates * spec.ffn + spec.ffn + spec.hidden


def cache_bytes(spec: Spec, size: float = 2) -> float:
    """Bytes of a token's keys and values in all layers, at `size` bytes per number."""
    return size * sum(2 * layer.kv_heads * layer.head_dim for layer in spec.attention)
