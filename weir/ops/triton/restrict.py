"""Excludes tokens on a GPU: what weir.ops.sample.restrict defines, in one launch."""

import triton.language as tl
from torch import Tensor

from weir.ops.triton.launch import kernel, take_turn

BYTES = 256  # of a mask per program


@kernel("width")
def exclude(
    logits, rows, which, masks, width,
    STRIDE: tl.constexpr, VOCAB: tl.constexpr, BYTES: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Handles BYTES bytes of a row's mask, one bit per token."""
    index, byte = tl.program_id(0), tl.program_id(1) * BYTES + tl.arange(0, BYTES)
    take_turn(EARLY)
    mask = masks + tl.load(which + index) * width
    kept = tl.load(mask + byte, mask=byte < width, other=0).to(tl.int32)
    bit = tl.arange(0, 8)[None, :]
    token = byte[:, None] * 8 + bit
    gone = ((kept[:, None] >> bit) & 1) == 0
    row = logits + tl.load(rows + index) * STRIDE
    tl.store(row + token, float("-inf"), mask=gone & (token < VOCAB))


def restrict(logits: Tensor, rows: Tensor, which: Tensor, masks: Tensor) -> None:
    """As weir.ops.sample.restrict. Reads the masks and writes only logits of excluded tokens."""
    vocab, stride = logits.shape[1], logits.stride(0)
    grid = len(rows), -(-vocab // (8 * BYTES)), 1
    exclude(
        grid, logits, rows, which, masks, masks.shape[1],
        STRIDE=stride, VOCAB=vocab, BYTES=BYTES,
        warps=4,
    )  # fmt: skip
