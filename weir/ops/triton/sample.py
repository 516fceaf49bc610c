"""Chooses tokens on a GPU as weir.ops.sample defines, in three launches without a sort.

The first launch finds the largest logit of each chunk of a row, the second sums the weight of each
chunk relative to the row's largest. Weights are integers, so the order of summation does not
matter. The third finds the chunk where the variate falls, and the token in it. Logits are read in
place, in the type the model gives them.

Rows with filters take a fourth launch. Each filter keeps a prefix of the row's ranking, and the
drawn token is the end of a prefix, too. Ends are found by bisecting the values, only over those
lines of the row whose largest logit may be in the prefix.
"""

import torch
from torch import Tensor

from weir.ops.triton.draw import best_of_chunks, mass_of_chunks, pick
from weir.ops.triton.filters import pick_filtered
from weir.ops.triton.launch import power_of_2

CHUNK = 2048  # logits of a program
LINE = 64  # logits of a line, whose largest is known to filters
LINES = 128  # that a filter reads at once
FREE_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
"""Low bits of a float32 that are unused if it was converted from this type."""


def choose(
    logits: Tensor,
    temperature: Tensor,
    u: Tensor,
    filters: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """As weir.ops.sample.choose; `filters` are top_k, top_p and min_p.

    Reads the logits twice, 2 B V bytes each in bfloat16; the second time in part from the cache.
    """
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    rows, vocab = logits.shape
    tokens = torch.empty(rows, dtype=torch.int64, device=logits.device)
    if rows == 0:
        return tokens
    chunks, lines = -(-vocab // CHUNK), -(-vocab // LINE)
    best = torch.empty(rows, chunks, dtype=torch.float32, device=logits.device)
    mass = torch.empty(rows, chunks, dtype=torch.int64, device=logits.device)
    top = None
    if filters is not None:
        top = torch.empty(rows, lines, dtype=torch.float32, device=logits.device)
    shape = {"STRIDE": logits.stride(0), "VOCAB": vocab, "CHUNK": CHUNK}
    best_of_chunks((rows, chunks, 1), logits, best, top, **shape, LINE=LINE, warps=4)
    parts = {"CHUNKS": chunks, "PARTS": power_of_2(chunks)}
    mass_of_chunks((rows, chunks, 1), logits, temperature, best, mass, **shape, **parts, warps=4)
    numbers = filters or (None, None, None)
    pick(
        (rows, 1, 1), logits, temperature, u, best, mass, *numbers, tokens,
        **shape, **parts,
        warps=8,
    )  # fmt: skip
    if top is not None:
        kept = torch.empty(rows, lines, dtype=torch.int32, device=logits.device)
        pick_filtered(
            (rows, 1, 1), logits, temperature, u, best, mass, *numbers, top, kept, tokens,
            STRIDE=logits.stride(0), VOCAB=vocab, **parts, LINE=LINE, LINES=LINES, COUNT=lines,
            TOPS=power_of_2(lines), FREE=FREE_BITS[logits.dtype],
            warps=16,
        )  # fmt: skip
    return tokens
