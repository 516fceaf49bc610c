"""What attention is given beside queries and pages: whose they are, and where new keys go."""

from dataclasses import dataclass

from torch import Tensor

from weir.ops.prefix import Shared


@dataclass(slots=True, eq=False)
class Tiles:
    """Chunks of several tokens, cut into as many as a program attends with at a time.

    Rows of `each`: the tile's first row of q, its tokens, the position of the first and the end of
    the keys it sees, both counted as the batch's are, and its sequence."""

    span: int  # tokens at most
    each: Tensor  # int32 [N, 5]
    count: Tensor  # int32 [1]: those that there are, the others have no tokens


@dataclass(slots=True, eq=False)
class Batch:
    """The sequences of one call, S of them with T query tokens in all; contiguous, on the device.

    Query i of a chunk of length n sits at position kv_len - n + i and sees keys 0 to its own
    position. `first` says otherwise where a tier holds only part of the context: the position of
    each chunk's first query, counted from the first key that this tier holds. `lengths` spares a
    GPU what it need not look for: it says no more than q_start does. Nor does `shared` say more
    than the table: it lets a GPU read what several decodes have in common once. `tiles` is what a
    GPU has cut the batch's chunks into for the first of its layers.
    """

    q_start: Tensor  # int32 [S + 1]: row of q where each chunk starts, and T
    kv_len: Tensor  # int32 [S]: keys to attend to, those of this chunk included
    table: Tensor  # int32 [S, P]: page index in the store
    slots: Tensor  # int64 [T]: page * page_size + offset where each token's k, v go
    first: Tensor | None = None  # int32 [S]
    lengths: tuple[int, int] | None = None  # tokens of the shortest and of the longest chunk
    shared: Shared | None = None
    tiles: Tiles | None = None


@dataclass(slots=True, eq=False)
class Place:
    """Where the keys and values of T tokens go in one layer."""

    kv: Tensor  # [pages, 2, Hkv, page, D]
    slots: Tensor  # int64 [T], as those of a Batch
