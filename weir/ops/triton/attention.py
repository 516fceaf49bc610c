"""Paged attention on a GPU: decodes by one kernel, chunks of several tokens by another.

Which of them are launched, and with what grids, follows from shapes and from the bounds that the
batch states; everything about single sequences is read on the device. So calls can be captured in
a CUDA graph and replayed for other sequences within those bounds.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weir.ops.prefix import Shared, fits
from weir.ops.triton import hopper
from weir.ops.triton.decode import decode
from weir.ops.triton.prefill import prefill


def attend(
    q: Tensor,
    kv: Tensor,
    q_start: Tensor,
    kv_len: Tensor,
    first: Tensor | None,
    table: Tensor,
    lengths: tuple[int, int] | None,
    scale: float,
    window: int | None,
    softcap: float | None,
    shared: Shared | None = None,
) -> tuple[Tensor, Tensor]:
    """As weir.ops.attention.attend, on the fields of its Batch. Products are of the type of q, to
    which keys and values are converted; sums are float32."""
    o = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    if len(q) == 0:
        return o, lse
    shortest, longest = lengths or (1, len(q))
    mixed = shortest == 1 and longest > 1
    if longest > 1:
        run = hopper.prefill if hopper.takes(q, kv) else prefill
        run(q, kv, o, lse, q_start, kv_len, first, table, scale, window, softcap, mixed)
    if shortest == 1:
        starts = q_start if mixed else None
        if shared is not None:
            members = shared.member.shape[1]
            if first is not None or not fits(q.shape[1], kv.shape[2], window, members):
                shared = None  # which says no more than the table
        decode(q, kv, o, lse, starts, kv_len, first, table, scale, window, softcap, shared)
    return o, lse
