"""The ops' kernels for GPUs, in Triton: CUDA tensors in, CUDA tensors out, nothing waited for.

Importing this needs Triton, which PyTorch's CUDA build brings along. Callers are the dispatchers of
weir.ops, which check and document the arguments; nothing else may import it.
"""

from weir.ops.triton.attention import attend
from weir.ops.triton.coded import decode_groups, encode_groups
from weir.ops.triton.codes import few_rows_of_codes, unpacked
from weir.ops.triton.linear import few_rows
from weir.ops.triton.pages import copy_pages, write
from weir.ops.triton.restrict import restrict
from weir.ops.triton.rope import rope_
from weir.ops.triton.rows import gated, layer_norm, quantized, rms_norm
from weir.ops.triton.sample import choose

__all__ = [
    "attend",
    "choose",
    "copy_pages",
    "decode_groups",
    "encode_groups",
    "few_rows",
    "few_rows_of_codes",
    "gated",
    "layer_norm",
    "quantized",
    "restrict",
    "rms_norm",
    "rope_",
    "unpacked",
    "write",
]
