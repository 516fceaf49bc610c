"""What a linear layer does besides multiplying, in the same launch where a kernel can."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(slots=True, eq=False)
class Fused:
    """Rows of x are normed, rms_norm(x, norm [K], eps), or gated, gated(x [M, 2K], act), before
    they meet the weight [N, K]; bias [N] and residual [M, N] are added after."""

    norm: Tensor | None = None
    eps: float = 0.0
    act: str | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None  # may be overwritten by the result

    def rest(self) -> Fused:
        """What remains to be done once the rows are ready."""
        return Fused(bias=self.bias, residual=self.residual)
