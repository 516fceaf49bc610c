"""Positions of a lane's chunks: in the lane, in their sequences and in `Tables`. No tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weir.core import Chunk
from weir.runtime.tables import Tables


@dataclass(frozen=True, slots=True, order=True)
class Shape:
    """The size to which a lane is padded so that its launches can be recorded: `tokens` sequences
    of one token each, or fewer of any length. shared: common prefixes are read once."""

    tokens: int
    sequences: int
    shared: bool = False


@dataclass(slots=True, eq=False)
class Spans:
    """Where the S chunks of a lane lie, T rows in all. Those after the first `real` are padding."""

    real: int
    rows: NDArray[np.int64]  # [S] rows of Tables
    start: NDArray[np.int64]  # [S] position
    length: NDArray[np.int64]  # [S]
    bound: NDArray[np.int64]  # [S + 1]: first row of each chunk, and T
    owner: NDArray[np.int64]  # [T] chunk of each row
    pos: NDArray[np.int64]  # [T] position of each row

    @classmethod
    def of(cls, chunks: Sequence[Chunk], tables: Tables, shape: Shape | None) -> Spans:
        rows = tables.rows([c.uid for c in chunks])
        start = np.array([c.start for c in chunks], np.int64)
        length = np.array([len(c.ids) or 1 for c in chunks], np.int64)
        real, tokens = len(chunks), int(length.sum())
        if shape is not None:
            more, rest = shape.sequences - real, shape.tokens - tokens
            padding = np.zeros(more, np.int64)
            start = np.concatenate([start, padding])
            rows = np.concatenate([rows, padding + tables.padding])
            if rest == more:
                padding += 1
            elif rest:
                padding[0] = rest
            length = np.concatenate([length, padding])
        bound = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(length, out=bound[1:])
        owner = np.repeat(np.arange(len(rows)), length)
        pos = np.arange(bound[-1]) + (start - bound[:-1])[owner]
        pos[tokens:] = 0
        return cls(real, rows, start, length, bound, owner, pos)
