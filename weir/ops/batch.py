"""What attention takes beside queries and pages: which belong together, and where new keys go."""

from dataclasses import dataclass

from torch import Tensor

from weir.ops.prefix import Shared


@dataclass(slots=True, eq=False)
class Tiles:
    """Chunks of several tokens, cut into tiles, each of the tokens that one program attends with.

    A row of `each`: the tile's first row of q, its number of tokens, the position of the first, the
    end of the keys that it sees (positions as in the batch), and its sequence."""

    span: int  # most tokens of a tile
    each: Tensor  # int32 [N, 5]
    count: Tensor  # int32 [1]: tiles in use; the others have no tokens


@dataclass(slots=True, eq=False)
class Batch:
    """The S sequences of one call, with T query tokens in all. Tensors are contiguous and on the
    device.

    Query i of a chunk of length n is at position kv_len - n + i and sees keys 0 to its own
    position. If a tier holds only part of the context, `first` gives the position of each chunk's
    first query instead, counted from the first key that this tier holds. The rest only helps a GPU:
    `lengths` are bounds that follow from q_start, `shared` are common prefixes that follow from the
    table, and `tiles` is a cache that the first layer's attention fills for the others.
    """

    q_start: Tensor  # int32 [S + 1]: first row of q of each chunk, and T
    kv_len: Tensor  # int32 [S]: keys to attend to, those of this chunk included
    table: Tensor  # int32 [S, P]: page index in the store
    slots: Tensor  # int64 [T]: page * page_size + offset where each token's k, v go
    first: Tensor | None = None  # int32 [S]
    lengths: tuple[int, int] | None = None  # tokens of the shortest and the longest chunk
    shared: Shared | None = None
    tiles: Tiles | None = None


@dataclass(slots=True, eq=False)
class Place:
    """Where the keys and values of T tokens go in one layer."""

    kv: Tensor  # [pages, 2, Hkv, page, D]
    slots: Tensor  # int64 [T], as those of a Batch
