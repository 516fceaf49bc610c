"""The ops' Triton kernels for GPUs. They take and return CUDA tensors and never synchronise.

Importing this needs Triton, which PyTorch's CUDA build includes. Only the dispatchers of weir.ops
may import it; they check and document the arguments.
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
