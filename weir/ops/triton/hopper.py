"""Attention of chunks on a Hopper GPU: as prefill.py, with specialised warps.

One warp has the copy engine (TMA) load keys and values, page by page, into a ring of tiles in
shared memory. Two groups of four warps each multiply 64 rows of queries with them. A group starts
the product of its queries with the next tile of keys before it computes the softmax of the last
one, which keeps the tensor cores busy (FlashAttention-3, arXiv 2407.08608, sections 3.1 and 3.2).
There is one program per multiprocessor, which goes from tile to tile: the next tile's keys are
loaded while the last one's result is written. Written in Gluon, the layer below Triton in which
layouts and barriers are explicit.
"""

from functools import cache

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from weir.ops.batch import Batch
from weir.ops.triton.launch import Kernel, multiprocessors
from weir.ops.triton.tiles import tiles_of
from weir.ops.triton.warps import bring, item_of, multiply
from weir.spec import AttentionSpec

ROWS = 64  # of queries in a group of warps: what one instruction multiplies
GROUPS = 2
KEYS = 128
HALF = 64  # 16-bit numbers in 128 bytes, by which shared memory is swizzled
RING = 2  # tiles of keys, and of values
KNOWN = hasattr(gl.shared_memory_descriptor, "_reinterpret")  # Triton 3.9's Gluon renamed it


@cache
def hopper(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def takes(q: Tensor, kv: Tensor) -> bool:
    """Whether this kernel supports such queries and KV, and the device."""
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
        (min(multiprocessors(q.device), kv_heads * len(tiles.each)), 1, 1), q, lines, o, lse,
        tiles.each, tiles.count, batch.table, batch.table.stride(0), kv.numel() // size, spec.scale,
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
    """Computes its share of the items (`item_of`), each a tile and a kv head with its GROUP query
    heads; each group of warps takes half of a tile's tokens. `lines` is kv as lines of SIZE
    numbers, which end before line `beyond`."""
    everything = gl.load(count) * KV_HEADS
    items = everything // gl.num_programs(0)
    items += (item_of(items) < everything).to(gl.int32)
    if items == 0:
        return
    HALVES: gl.constexpr = SIZE // HALF
    BOXES: gl.constexpr = KEYS // BOX
    type: gl.constexpr = q.dtype.element_ty
    layout: gl.constexpr = lines.layout
    # a tile is its halves, of 128 bytes per line; each half is one box after another
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
        [4, 1],  # warps: of the second group, and of the copies; the first uses the kernel's own
        [240, 24],  # registers per thread of each
    )  # fmt: skip


_prefill = Kernel(
    gluon.jit(_kernel, do_not_specialize=["table_stride", "beyond", "scale", "softcap"])
)
