"""Paged attention: write keys and values to pages, attend to the pages of each sequence, merge
partial results.

One function serves decode and chunked prefill. It works on one layer and one tier; the caller knows
who owns a page.
"""

from ctypes import byref

import torch
from torch import Tensor

from weir.ops import native
from weir.ops.batch import Batch
from weir.ops.coded import BYTES, decode, encode, type_of
from weir.ops.dispatch import gpu_kernels, kernels, packed_heads
from weir.spec import AttentionSpec

QUERIES = (torch.float32, torch.bfloat16, torch.float16)
TYPES = (*QUERIES, *BYTES)  # types of kv, in the order of the kernel's enum


def write(kv: Tensor, k: Tensor, v: Tensor, slots: Tensor, *, programs: int = 0) -> None:
    """Store k, v [T, Hkv, D] at `slots` [T] of kv [pages, 2, Hkv, page, D], in the type of kv.

    kv may be coded (ops/coded.py), with rows of bytes; on a CPU `attend` takes that too. On a GPU
    kv may be pinned host memory. programs: GPU programs to use at most; 0: no limit."""
    gpu = gpu_kernels(k)
    if gpu is not None:
        k, v = stored(kv, k, v)
        if kv.dtype == torch.uint8:
            word = torch.int16 if kv.shape[4] % 4 else torch.int32
            kv, k, v = (x.view(word) for x in (kv, k, v))
        return gpu.write(kv, k, v, slots, programs)
    lib = kernels(k)
    if lib is None:
        return reference_write(kv, k, v, slots)
    k, v, slots = packed_heads(k), packed_heads(v), slots.long()
    heads, size = k.shape[1:]
    lib.write(
        kv.data_ptr(), TYPES.index(type_of(kv, size)), k.data_ptr(), k.stride(0), v.data_ptr(),
        v.stride(0), slots.data_ptr(), k.shape[0], heads, size, kv.shape[3],
    )  # fmt: skip


def stored(kv: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """k, v [T, Hkv, D] in the form in which `write` stores them: a GPU codes them first if kv is
    coded. Coded rows [T, Hkv, row] stay as they are."""
    if gpu_kernels(k) is None or k.dtype == torch.uint8:
        return k, v
    k, v = packed_heads(k), packed_heads(v)
    if kv.dtype != torch.uint8:
        return k, v
    dtype = type_of(kv, k.shape[2])
    return encode(k, dtype), encode(v, dtype)


def attend(q: Tensor, kv: Tensor, batch: Batch, spec: AttentionSpec) -> tuple[Tensor, Tensor]:
    """q [T, Hq, D] over kv [pages, 2, Hkv, page, D] → o [T, Hq, D], lse float32 [T, Hq].

    Query head h reads kv head h // (Hq / Hkv). A query that sees no key has o = 0, lse = -inf.
    """
    gpu = gpu_kernels(q)
    if gpu is not None:
        return gpu.attend(packed_heads(q), kv, batch, spec)
    lib = native.library() if q.is_cpu and q.dtype in QUERIES else None
    if lib is None:
        return reference_attend(q, kv, batch, spec)
    q = packed_heads(q)
    o, lse = q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)
    lib.attend(byref(native_call(q, kv, batch, spec, o, lse)))
    return o, lse


def native_call(
    q: Tensor, kv: Tensor, batch: Batch, spec: AttentionSpec, o: Tensor, lse: Tensor
) -> native.Attend:
    """The arguments of the CPU kernel, by address: all tensors must live until it has run.

    q, o [T, Hq, D] of one type, with a token's heads adjacent; o and lse contiguous."""
    _, heads, size = q.shape
    return native.Attend(
        q.data_ptr(), kv.data_ptr(), batch.q_start.data_ptr(), batch.kv_len.data_ptr(),
        batch.first.data_ptr() if batch.first is not None else None, batch.table.data_ptr(),
        o.data_ptr(), lse.data_ptr(),
        q.stride(0), len(batch.kv_len), batch.table.stride(0), heads,
        kv.shape[2], size, kv.shape[3], spec.window or 0,
        spec.scale, spec.softcap or 0.0, TYPES.index(type_of(kv, size)), QUERIES.index(q.dtype),
    )  # fmt: skip


def merge(o_a: Tensor, lse_a: Tensor, o_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Merge o [T, Hq, D] and lse float32 [T, Hq] exactly; a part that saw no key has lse = -inf.

    The softmax over the union is the mean of the parts weighted by exp(lse) (FlashInfer, arXiv
    2501.01005, section 2.2).
    """
    lse = torch.logaddexp(lse_a, lse_b)
    # if both parts are empty, the difference would be -inf - -inf
    base = torch.where(torch.isneginf(lse), 0.0, lse)
    o = o_a * torch.exp(lse_a - base).unsqueeze(-1) + o_b * torch.exp(lse_b - base).unsqueeze(-1)
    return o.to(o_a.dtype), lse


def reference_write(kv: Tensor, k: Tensor, v: Tensor, slots: Tensor) -> None:
    page, offset, dtype = slots // kv.shape[3], slots % kv.shape[3], type_of(kv, k.shape[-1])
    for kind, x in enumerate((k, v)):
        kv[page, kind, :, offset] = encode(x, dtype) if dtype in BYTES else x.to(dtype)


def reference_attend(
    q: Tensor, kv: Tensor, batch: Batch, spec: AttentionSpec
) -> tuple[Tensor, Tensor]:
    """`attend`, densely and one sequence at a time; scores and softmax in float32."""
    heads, kv_heads, size = q.shape[1], kv.shape[2], kv.shape[3]
    dtype = type_of(kv, q.shape[2])
    o, lse = torch.zeros_like(q), q.new_full(q.shape[:2], -torch.inf, dtype=torch.float32)
    starts, lengths = batch.q_start.tolist(), batch.kv_len.tolist()
    firsts = batch.first.tolist() if batch.first is not None else None
    for s, length in enumerate(lengths):
        rows = slice(starts[s], starts[s + 1])
        n = rows.stop - rows.start
        if n == 0 or length == 0:
            continue
        pages = batch.table[s, : -(-length // size)].long()
        kept = decode(kv[pages], dtype) if dtype in BYTES else kv[pages].float()
        k, v = kept.transpose(0, 1).transpose(1, 2).flatten(2, 3)[:, :, :length]
        grouped = q[rows].float().unflatten(1, (kv_heads, heads // kv_heads))
        score = torch.einsum("nhgd,hjd->nhgj", grouped, k) * spec.scale
        if spec.softcap is not None:
            score = spec.softcap * torch.tanh(score / spec.softcap)
        first = firsts[s] if firsts is not None else length - n
        behind = torch.arange(first, first + n, device=q.device).unsqueeze(1) - torch.arange(
            length, device=q.device
        )
        hidden = behind < 0 if spec.window is None else (behind < 0) | (behind >= spec.window)
        score = score.masked_fill(hidden[:, None, None], -torch.inf)
        total = torch.logsumexp(score, dim=-1)
        weight = torch.exp(score - total.unsqueeze(-1)).nan_to_num(0.0)
        o[rows] = torch.einsum("nhgj,hjd->nhgd", weight, v).flatten(1, 2).to(q.dtype)
        lse[rows] = total.flatten(1, 2)
    return o, lse
