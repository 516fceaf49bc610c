"""Prefixes that several decodes of a batch have in common, so that a GPU reads them once a step.

Found on the host from page numbers alone: requests share what the radix tree gave them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

MEMBERS = 16  # decodes of a tile: with 4 query heads a kv head they fill a tile of tensor cores
LEAST = 128  # keys of a prefix
SAVED = 24_576  # keys that a step must be spared, or the second pass costs more (docs/results.md)


@dataclass(slots=True, eq=False)
class Shared:
    """N tiles of up to MEMBERS decodes that begin with the same pages; on the device."""

    member: Tensor  # int32 [N, MEMBERS]: sequences, -1 for none; the first has the tile's pages
    keys: Tensor  # int32 [N]: those in common, whole pages of them; 0: the tile is not used
    skip: Tensor  # int32 [S]: keys of each sequence that its tile takes; 0: it has none


@dataclass(slots=True, eq=False)
class Prefixes:
    """`Shared` as arrays."""

    member: NDArray[np.int32]
    keys: NDArray[np.int32]
    skip: NDArray[np.int32]


def find(table: NDArray[np.int32], keys: NDArray[np.int64], page: int) -> Prefixes | None:
    """Tiles of the sequences of table [S, P] with `keys` [S] to share, 0 for one that must not.

    Sequences that begin with the same page form a group, and share what all of it has in common.
    Returns None where that does not pay.
    """
    order = np.argsort(table[:, 0], kind="stable")
    order = order[keys[order] >= LEAST]
    if (len(order) - 1) * int(keys.max(initial=0)) < SAVED:
        return None
    head = np.flatnonzero(np.diff(table[order, 0], prepend=-1))  # where a group begins
    size = np.diff(head, append=len(order))
    rows = table[order, : int(keys.max()) // page]
    differs = np.ones((len(order), rows.shape[1] + 1), bool)
    np.not_equal(rows[1:], rows[:-1], out=differs[1:, :-1])
    common = differs.argmax(axis=1)  # pages in common with the one before
    common[head] = rows.shape[1]
    common = np.minimum(common, keys[order] // page)
    shared = np.minimum.reduceat(common, head) * page
    shared[(size < 2) | (shared < LEAST)] = 0
    if np.sum(shared * (size - 1)) < SAVED:
        return None
    each = np.repeat(shared, size)
    rank = np.arange(len(order)) - np.repeat(head, size)  # in the group
    begins = (rank % MEMBERS == 0) & (each > 0)
    member = np.full((int(begins.sum()), MEMBERS), -1, np.int32)
    tile = np.cumsum(begins) - 1
    member[tile[each > 0], rank[each > 0] % MEMBERS] = order[each > 0]
    skip = np.zeros(len(table), np.int32)
    skip[order] = each
    return Prefixes(member, each[begins].astype(np.int32), skip)
