"""Attention of chunks on a Hopper GPU: as prefill.py, with work divided among warps.

One warp has the copy engine (TMA) bring keys and values, page by page, into a ring of tiles in
shared memory; two groups of four warps each multiply 64 rows of queries with them. A group begins
the product of its queries with the next tile of keys before it takes the softmax of the last one,
so that the tensor cores have work meanwhile (FlashAttention-3, arXiv 2407.08608, sections 3.1
and 3.2). There is one program a multiprocessor, and its warps go from tile to tile: the next one's
keys are on their way while the last one's result is written. Written in Gluon, the layer below
Triton in which layouts and barriers are explicit.
"""

from functools import cache

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from weir.ops.batch import Batch
from weir.ops.triton.launch import Kernel, processors
from weir.ops.triton.tiles import tiles_of
from weir.ops.triton.warps import bring, item_of, multiply
from weir.spec import AttentionSpec

ROWS = 64  # of a group of warps: what one instruction multiplies
GROUPS = 2
KEYS = 128
HALF = 64  # numbers in the 128 bytes that shared memory is swizzled by
RING = 2  # tiles of keys, and of values
KNOWN = hasattr(gl.shared_memory_descriptor, "_reinterpret")  # Gluon changes: 3.9 has other names


@cache
def hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def takes(q: Tensor, kv: Tensor) -> bool:
    """Whether the kernel is for such queries and such a store."""
    page, size = kv.shape[3:]
    group = q.shape[1] // kv.shape[2]
    return (
        hopper(q.device)
        and KNOWN
        and q.dtype == kv.dtype
        and q.element_size() == 2
        and size in (64, 128)
        and page % 8 == 0
        and (KEYS % page == 0 or page % KEYS == 0)
        and ROWS % group == 0
    )


def prefill(
    q: Tensor, kv: Tensor, o: Tensor, lse: Tensor, batch: Batch, spec: AttentionSpec
) -> None:
    """As weir.ops.triton.prefill.prefill."""
    heads, size = q.shape[1:]
    kv_heads, page = kv.shape[2:4]
    group = heads // kv_heads
    span = GROUPS * ROWS // group
    tiles = tiles_of(batch, len(q), span)
    box = min(page, KEYS)
    swizzled = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    lines = TensorDescriptor(kv, [kv.numel() // size, size], [size, 1], [box, HALF], swizzled)
    _prefill(
        (min(processors(q.device), kv_heads * len(tiles.each)), 1, 1), q, lines, o, lse, tiles.each,
        tiles.count, batch.table, batch.table.stride(0), kv.numel() // size, spec.scale,
        spec.softcap or 0.0,
        STRIDE=q.stride(0), KV_HEADS=kv_heads, GROUP=group, SIZE=size, PAGE=page, BOX=box,
        WINDOW=spec.window or 0, SOFTCAP=spec.softcap is not None, ROWS=ROWS, SPAN=span, KEYS=KEYS,
        HALF=HALF, RING=RING,
        warps=4,
    )  # fmt: skip


def _kernel(
    q, lines, o, lse, tiles, count, table, table_stride, beyond, scale, softcap,
    STRIDE: gl.constexpr, KV_HEADS: gl.constexpr, GROUP: gl.constexpr, SIZE: gl.constexpr,
    PAGE: gl.constexpr, BOX: gl.constexpr, WINDOW: gl.constexpr, SOFTCAP: gl.constexpr,
    ROWS: gl.constexpr, SPAN: gl.constexpr, KEYS: gl.constexpr, HALF: gl.constexpr,
    RING: gl.constexpr,
):  # fmt: skip
    """Every so many tiles, each with every kv head and its GROUP heads; half of a tile's tokens to
    each group of warps. `lines` is kv as lines of SIZE numbers; line number `beyond` is past its
    end."""
    everything = gl.load(count) * KV_HEADS
    items = everything // gl.num_programs(0)
    items += (item_of(items) < everything).to(gl.int32)
    if items == 0:
        return
    HALVES: gl.constexpr = SIZE // HALF
    BOXES: gl.constexpr = KEYS // BOX
    type: gl.constexpr = q.dtype.element_ty
    layout: gl.constexpr = lines.layout
    # a tile is its halves of 128-byte lines, each one box after another
    keys = gl.allocate_shared_memory(type, [RING * HALVES * BOXES, BOX, HALF], layout)
    values = gl.allocate_shared_memory(type, [RING * HALVES * BOXES, BOX, HALF], layout)
    tile_keys = keys._reinterpret(type, [RING * HALVES, KEYS, HALF], layout)
    tile_values = values._reinterpret(type, [RING * HALVES, KEYS, HALF], layout)
    upper = gl.allocate_shared_memory(type, [HALVES, ROWS, HALF], layout)
    lower = gl.allocate_shared_memory(type, [HALVES, ROWS, HALF], layout)
    keys_full = gl.allocate_shared_memory(gl.int64, [RING, 1], mbarrier.MBarrierLayout())
    values_full = gl.allocate_shared_memory(gl.int64, [RING, 1], mbarrier.MBarrierLayout())
    keys_empty = gl.allocate_shared_memory(gl.int64, [RING, 1], mbarrier.MBarrierLayout())
    values_empty = gl.allocate_shared_memory(gl.int64, [RING, 1], mbarrier.MBarrierLayout())
    for n in gl.static_range(RING):
        mbarrier.init(keys_full.index(n), count=1)
        mbarrier.init(values_full.index(n), count=1)
        mbarrier.init(keys_empty.index(n), count=2)
        mbarrier.init(values_empty.index(n), count=2)
    fence_async_shared()

    gl.warp_specialize(
        [
            (multiply, (
                q, o, lse, tiles, items, upper, tile_keys, tile_values, values, keys_full,
                values_full, keys_empty, values_empty, 0, scale, softcap, STRIDE, KV_HEADS, GROUP,
                SIZE, BOX, WINDOW, SOFTCAP, ROWS, KEYS, HALF, RING,
            )),
            (multiply, (
                q, o, lse, tiles, items, lower, tile_keys, tile_values, values, keys_full,
                values_full, keys_empty, values_empty, SPAN // 2, scale, softcap, STRIDE, KV_HEADS,
                GROUP, SIZE, BOX, WINDOW, SOFTCAP, ROWS, KEYS, HALF, RING,
            )),
            (bring, (
                lines, tiles, items, table, keys, values, keys_full, values_full, keys_empty,
                values_empty, table_stride, beyond, KV_HEADS, SIZE, PAGE, BOX, WINDOW, KEYS, HALF,
                RING,
            )),
        ],
        [4, 1],  # warps: of the second group, and of the copies; the first has the kernel's
        [240, 24],  # registers of each of their threads
    )  # fmt: skip


_prefill = Kernel(
    gluon.jit(_kernel, do_not_specialize=["table_stride", "beyond", "scale", "softcap"])
)
