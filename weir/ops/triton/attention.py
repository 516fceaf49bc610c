"""Paged attention on a GPU: decodes by one kernel, chunks of several tokens by another.

Which of them are launched, and with what grids, follows from shapes and from the bounds in the
batch; all about single sequences is read on the device. So calls can be captured in a CUDA graph
and replayed for other sequences within those bounds.
"""

import torch
from torch import Tensor

from weir.ops.batch import Batch
from weir.ops.prefix import fits
from weir.ops.triton import hopper
from weir.ops.triton.decode import decode
from weir.ops.triton.prefill import prefill
from weir.spec import AttentionSpec


def attend(q: Tensor, kv: Tensor, batch: Batch, spec: AttentionSpec) -> tuple[Tensor, Tensor]:
    """As weir.ops.attention.attend. Keys and values are converted to q's type; sums are float32."""
    o = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    if len(q) == 0:
        return o, lse
    shortest, longest = batch.lengths or (1, len(q))
    mixed = shortest == 1 and longest > 1
    if longest > 1:
        run = hopper.prefill if hopper.takes(q, kv) else prefill
        run(q, kv, o, lse, batch, spec)
    if shortest == 1:
        shared = batch.shared
        if shared is not None:
            members = shared.member.shape[1]
            if batch.first is not None or not fits(q.shape[1], kv.shape[2], spec.window, members):
                shared = None  # it is only an optimisation: the table has these pages, too
        decode(q, kv, o, lse, batch, spec, mixed, shared)
    return o, lse
