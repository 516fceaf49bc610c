"""Join attention over two disjoint sets of keys into attention over their union."""

from __future__ import annotations

import torch
from torch import Tensor


def merge(o_a: Tensor, lse_a: Tensor, o_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Exact merge of o [T, Hq, D] and lse float32 [T, Hq]; a part that saw no key has lse = -inf.

    With weights exp(lse) the softmax over the union is the weighted mean of the parts
    (FlashInfer, arXiv 2501.01005, section 2.2).
    """
    lse = torch.logaddexp(lse_a, lse_b)
    # where both parts are empty the difference would be -inf - -inf
    base = torch.where(torch.isneginf(lse), 0.0, lse)
    o = o_a * torch.exp(lse_a - base).unsqueeze(-1) + o_b * torch.exp(lse_b - base).unsqueeze(-1)
    return o.to(o_a.dtype), lse
