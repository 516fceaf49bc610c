"""Finds prefixes that several decodes of a batch have in common, so that a GPU reads them once a
step.

The host finds them from page numbers alone: requests share the pages that the radix tree gave them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from weir.spec import AttentionSpec

MEMBERS = 16  # decodes of a tile
ROWS = 128  # most query heads of a tile: those of one kv head, of all members
LEAST = 128  # fewest keys of a prefix
SAVED = 24_576  # keys that a step must save, or the second pass costs more (docs/results.md)


@dataclass(slots=True, eq=False)
class Shared:
    """N tiles, on the device, each of up to MEMBERS decodes that begin with the same pages."""

    member: Tensor  # int32 [N, MEMBERS]: sequences, -1 for none; the first has the tile's pages
    keys: Tensor  # int32 [N]: keys in common, in whole pages; 0: the tile is not used
    skip: Tensor  # int32 [S]: keys of each sequence that its tile covers; 0: it has no tile


class Prefixes(NamedTuple):
    """`Shared` as arrays."""

    member: NDArray[np.int32]
    keys: NDArray[np.int32]
    skip: NDArray[np.int32]


def padded(found: Prefixes | None, sequences: int) -> Prefixes:
    """The same, padded to `sequences` and to as many tiles as these can have: one for each two."""
    tiles = sequences // 2
    member = np.full((tiles, MEMBERS), -1, np.int32)
    whole = Prefixes(member, np.zeros(tiles, np.int32), np.zeros(sequences, np.int32))
    for array, into in zip(found or (), whole, strict=False):
        into[: len(array)] = array
    return whole


def fits(heads: int, kv_heads: int, window: int | None, members: int = MEMBERS) -> bool:
    """Whether attention of this kind can read prefixes once. A window would leave them behind."""
    return window is None and heads // kv_heads * members <= ROWS


def shares(layers: Iterable[AttentionSpec]) -> bool:
    """Whether any layer can read prefixes once."""
    return any(fits(layer.heads, layer.kv_heads, layer.window) for layer in layers)


def find(
    table: NDArray[np.int32],
    rows: NDArray[np.int64],
    keys: NDArray[np.int64],
    page: int,
    saved: int = SAVED,
) -> Prefixes | None:
    """Tiles of S sequences. The pages of sequence s are in row rows[s] of table [R, P], and it may
    share up to keys[s] keys; 0: none.

    Sequences that begin with the same page form a group, which shares what all of them have in
    common. Returns None if a step would save fewer than `saved` keys.
    """
    able = np.flatnonzero(keys >= LEAST)
    order = able[np.argsort(table[rows[able], 0], kind="stable")]
    head = np.flatnonzero(np.diff(table[rows[order], 0], prepend=-1))  # where a group begins
    size = np.diff(head, append=len(order))
    if np.sum(size - 1) * int(keys.max(initial=0)) < saved:
        return None
    pages = table[rows[order], : int(keys.max()) // page]
    differs = np.ones((len(order), pages.shape[1] + 1), bool)
    np.not_equal(pages[1:], pages[:-1], out=differs[1:, :-1])
    common = differs.argmax(axis=1)  # pages in common with the one before
    common[head] = pages.shape[1]
    common = np.minimum(common, keys[order] // page)
    shared = np.minimum.reduceat(common, head) * page
    shared[(size < 2) | (shared < LEAST)] = 0
    if np.sum(shared * (size - 1)) < saved:
        return None
    each = np.repeat(shared, size)
    rank = np.arange(len(order)) - np.repeat(head, size)  # within the group
    begins = (rank % MEMBERS == 0) & (each > 0)
    member = np.full((int(begins.sum()), MEMBERS), -1, np.int32)
    tile = np.cumsum(begins) - 1
    member[tile[each > 0], rank[each > 0] % MEMBERS] = order[each > 0]
    skip = np.zeros(len(rows), np.int32)
    skip[order] = each
    return Prefixes(member, each[begins].astype(np.int32), skip)
