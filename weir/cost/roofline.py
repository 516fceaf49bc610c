"""Predicts the seconds of a step from a model's shape and a device's rates, without measuring.

Linears take the longer of reading their weights and multiplying, with a smooth transition. Decode
attention is bound by reading keys and values, prompt attention by arithmetic. Kernels run one after
another.
"""

from collections import Counter

from weir.cost.hardware import Hardware
from weir.cost.work import Work, activations, cache_bytes, head_weights, layer_weights
from weir.spec import AttentionSpec, Spec


class Roofline:
    """weight_bytes: of one weight. number_bytes: of one number in the KV cache; also of
    activations, if it is at least 2."""

    def __init__(
        self, spec: Spec, hardware: Hardware, weight_bytes: float = 2.0, number_bytes: float = 2.0
    ):
        self.spec = spec
        self.hardware = hardware
        self._weights = spec.layers * layer_weights(spec)
        self._head = head_weights(spec)
        self._streamed = self._weights * weight_bytes
        self._head_bytes = self._head * weight_bytes
        self._activations = spec.layers * activations(spec) * max(2.0, number_bytes)
        self._fixed = spec.layers * hardware.layer_seconds + hardware.step_seconds
        kinds: Counter[int | None] = Counter(layer.window for layer in spec.attention)
        share = cache_bytes(spec, number_bytes) / max(1, len(spec.attention))
        self._read = [
            (window, share * count / hardware.cache_rate) for window, count in kinds.items()
        ]
        flops = {window: _flops(spec.attention, window) for window in kinds}
        self._attend = [(window, n / hardware.attention_rate) for window, n in flops.items()]

    def seconds(self, work: Work) -> float:
        """Seconds of a step that does `work`; 0 if there is none."""
        tokens = work.tokens
        if not tokens:
            return 0.0
        hardware = self.hardware
        moved = (self._streamed + self._activations * tokens) / hardware.weight_rate
        total = self._fixed + _either(moved, 2 * self._weights * tokens / hardware.matrix_rate)
        if work.rows:
            moved = self._head_bytes / hardware.weight_rate
            total += _either(moved, 2 * self._head * work.rows / hardware.matrix_rate)
        if work.contexts:
            total += sum(work.read(window) * cost for window, cost in self._read)
        if work.prompts:
            total += sum(work.pairs(window) * cost for window, cost in self._attend)
        return total


def _flops(layers: list[AttentionSpec], window: int | None) -> int:
    """FLOP of a query-key pair, in all layers with that window: for scores and values, 2 each per
    element of a head."""
    return sum(4 * layer.heads * layer.head_dim for layer in layers if layer.window == window)


def _either(memory: float, compute: float) -> float:
    """The longer of two times, and up to a fifth more if they are equal, because loads and products
    do not overlap perfectly. The fourth power fits the H100's linears from 64 to 8,192 tokens."""
    return float((memory**4 + compute**4) ** 0.25)
