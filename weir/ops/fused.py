"""What a linear layer does besides multiplying, in the same launch if a kernel can."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True, eq=False)
class Fused:
    """Before x is multiplied by the weight [N, K], it is normed, rms_norm(x, norm [K], eps), or
    gated, gated(x [M, 2K], act). Afterwards bias [N] and residual [M, N] are added."""

    norm: Tensor | None = None
    eps: float = 0.0
    act: str | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None  # may be overwritten by the result

    def rest(self) -> Fused:
        """What remains to be done once x is normed or gated."""
        return Fused(bias=self.bias, residual=self.residual)
