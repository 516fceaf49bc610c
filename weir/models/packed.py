"""Quantised safetensors: AWQ and GPTQ (codes of 4 bits, eight to an int32), and 8-bit floats.

All formats become `Codes` or `Scaled`.
"""

from pathlib import Path

import torch
from torch import Tensor

from weir.errors import ConfigError
from weir.models.checkpoint import FLOATS, Safetensors
from weir.models.scheme import Scheme
from weir.ops.quantize import Codes, Scaled
from weir.spec import Spec

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""The nibble of an int32 in which AWQ stores each of eight columns."""
EIGHT = 8  # codes in an int32
PARTS = ("qweight", "qzeros", "scales", "g_idx", "weight_scale", "weight_scale_inv")
IGNORED = ("input_scale", "k_scale", "v_scale")  # Weir scales activations dynamically


class Packed(Safetensors):
    """The `*.safetensors` of a folder, some of whose weights are quantised by `scheme`."""

    types = FLOATS | {"I32", "F8_E4M3"}

    def __init__(self, folder: Path, spec: Spec, scheme: Scheme):
        super().__init__(folder, spec)
        self.scheme = scheme
        self.stored = scheme.method
        self.parts = {name: self.shapes.pop(name) for name in self._names(*PARTS)}
        for name in self._names(*IGNORED):
            del self.shapes[name]
        for name, shape in self.parts.items():
            layer, _, part = name.rpartition(".")
            if part == "qweight":
                k, n = shape
                whole = (n * EIGHT, k) if scheme.method == "awq" else (n, k * EIGHT)
                self.shapes[f"{layer}.weight"] = whole

    def read(self, name: str, out: Tensor, row: int = 0) -> None:
        found = self.kept(name)
        if found is None:
            super().read(name, out, row)
        else:
            out.copy_(found.floats()[row : row + len(out)])

    def kept(self, name: str) -> Codes | Scaled | None:
        layer = name.removesuffix(".weight")
        if f"{layer}.qweight" in self.parts:
            return self._codes(layer)
        if f"{layer}.weight_scale" in self.parts or f"{layer}.weight_scale_inv" in self.parts:
            return self._scaled(layer)
        return None

    def _names(self, *parts: str) -> list[str]:
        return [name for name in self.shapes if name.rpartition(".")[2] in parts]

    def _tensor(self, name: str) -> Tensor:
        shard, key = self.sources[name]
        found: Tensor = shard.get_tensor(key)
        return found

    def _codes(self, layer: str) -> Codes:
        words, zeros = self._tensor(f"{layer}.qweight"), self._tensor(f"{layer}.qzeros")
        scales = self._tensor(f"{layer}.scales").float()  # [K / group, N]
        n, k = self.shapes[f"{layer}.weight"]
        group = k // len(scales)
        if k % len(scales) or (group != 32 and group % 64):
            raise ConfigError(f"{layer} has {len(scales)} groups over {k} inputs: not supported")
        if self.scheme.method == "awq":
            codes = _eights(words)[..., AWQ_ORDER].reshape(k, n).t()
            zero = _eights(zeros)[..., AWQ_ORDER].reshape(-1, n)
        else:
            self._in_order(layer, group)
            codes = _eights(words).permute(1, 0, 2).reshape(n, k)
            zero = _eights(zeros).reshape(-1, n) + self.scheme.zero_step
        pairs = torch.stack((scales, scales * -zero.float()), dim=-1).transpose(0, 1)
        return Codes(codes.contiguous(), pairs.half().contiguous(), 4)

    def _in_order(self, layer: str, group: int) -> None:
        """Raise ConfigError unless groups are of neighbours, whatever the configuration says."""
        if f"{layer}.g_idx" not in self.parts:
            return
        index = self._tensor(f"{layer}.g_idx")
        if not torch.equal(index.long(), torch.arange(len(index)) // group):
            raise ConfigError(
                f"{layer} is quantised by GPTQ with desc_act, which is not supported: "
                "use a file made without it"
            )

    def _scaled(self, layer: str) -> Scaled:
        values = self._tensor(f"{layer}.weight")
        name = next(n for n in self.parts if n.startswith(f"{layer}.weight_scale"))
        scales = self._tensor(name).float().flatten()
        if len(scales) not in (1, len(values)):
            raise ConfigError(
                f"{name} is {list(self.parts[name])}: only one scale a weight or a row is supported"
            )
        return Scaled(values, scales.expand(len(values)).contiguous())


def _eights(words: Tensor) -> Tensor:
    """int32 [..., m] → the eight codes of each, lowest first: uint8 [..., m, 8]."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    return (words.unsqueeze(-1) >> shifts & 15).to(torch.uint8)
