"""A model's tokens as bytes, in a trie: which of them an automaton allows in a state.

The trie is built once a model and shared by all grammars. Knows no tokenizer.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from weir.grammar.automaton import DEAD, Automaton

MEMORY = 1 << 30
"""Bytes of masks that are kept for one vocabulary, whatever grammars they belong to."""

DENSE = 0.2
"""The share of a level's nodes from which on all of them are computed: gathering some costs more
than computing one."""


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """The nodes of one depth, those of one parent next to each other. All int64, for indexing."""

    letters: NDArray[np.int64]  # [nodes]: the byte that leads here
    parents: NDArray[np.int64]  # [nodes]: in the level above
    first: NDArray[np.int64]  # [nodes above]: their first child
    count: NDArray[np.int64]  # [nodes above]: how many they have
    nodes: NDArray[np.int64]  # [tokens that end here]
    tokens: NDArray[np.int64]  # [tokens that end here]: their ids


class Vocabulary:
    """pieces: the bytes of each token id; an empty one, as special tokens have, is never allowed.
    size: ids the model has, which may be more or fewer. ends: ids that end an answer."""

    def __init__(self, pieces: Sequence[bytes], size: int, ends: Iterable[int]):
        self.pieces = pieces
        self.size = size
        self.ends = sorted({end for end in ends if 0 <= end < size})
        self.mask_bytes = -(-size // 8)
        self.end_mask = self.pack(np.array(self.ends, np.int64))
        texts = set(range(min(size, len(pieces)))) - set(self.ends)
        self.levels = list(self._levels(sorted(t for t in texts if pieces[t])))
        self._kept: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._most = MEMORY // max(1, self.mask_bytes)
        self._lock = threading.Lock()

    def kept(self, key: tuple[int, int]) -> bytes | None:
        """A mask that was made before, by its grammar's number and its state."""
        with self._lock:
            mask = self._kept.get(key)
            if mask is not None:
                self._kept.move_to_end(key)
            return mask

    def keep(self, key: tuple[int, int], mask: bytes) -> None:
        with self._lock:
            self._kept[key] = mask
            if len(self._kept) > self._most:
                self._kept.popitem(last=False)

    def _levels(self, tokens: list[int]) -> Iterable[Level]:
        """Lay the trie out from the sorted pieces: a node is a distinct prefix."""
        tokens = sorted(tokens, key=self.pieces.__getitem__)
        lengths = np.array([len(self.pieces[t]) for t in tokens], np.int64)
        width = int(lengths.max(initial=1))
        joined = b"".join(self.pieces[t].ljust(width, b"\0") for t in tokens)
        letters = np.frombuffer(joined, np.uint8).reshape(len(tokens), width)
        ids, rows = np.array(tokens, np.int64), np.arange(len(tokens))
        node, above = np.zeros(len(tokens), np.int64), 1
        for depth in range(width):
            byte = letters[rows, depth]
            new = np.ones(len(rows), np.bool_)
            new[1:] = (byte[1:] != byte[:-1]) | (node[1:] != node[:-1])
            parents = node[new]
            count = np.bincount(parents, minlength=above)
            node = np.cumsum(new) - 1
            ends = lengths[rows] == depth + 1
            yield Level(
                letters=byte[new].astype(np.int64),
                parents=parents,
                first=np.cumsum(count) - count,
                count=count,
                nodes=node[ends],
                tokens=ids[rows[ends]],
            )
            rows, node, above = rows[~ends], node[~ends], len(parents)

    def pack(self, tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        """One bit a token id, lowest first."""
        bits = np.zeros(self.mask_bytes * 8, np.bool_)
        bits[tokens] = True
        return np.packbits(bits, bitorder="little")


_numbers = count()


class Masks:
    """The tokens that one automaton allows, by state: computed when first asked for, then kept as
    long as there is room. May be called from several threads."""

    def __init__(self, automaton: Automaton, vocabulary: Vocabulary):
        self.automaton = automaton
        self.vocabulary = vocabulary
        self._table = automaton.table.ravel()
        self._width = automaton.table.shape[1]
        self._classes = [
            automaton.classes[level.letters].astype(np.int64) for level in vocabulary.levels
        ]
        self._number = next(_numbers)
        self._outgrown: dict[tuple[int, int], bool] = {}

    def known(self, state: int) -> bytes | None:
        """As `mask`, where that takes no time."""
        return self.vocabulary.kept((self._number, state))

    def mask(self, state: int) -> bytes:
        """One bit a token, lowest first; those that end an answer where it may end."""
        found = self.known(state)
        if found is None:
            mask = self.vocabulary.pack(np.concatenate(list(self._allowed(state))))
            if self.automaton.accepting[state]:
                mask |= self.vocabulary.end_mask
            found = mask.tobytes()
            self.vocabulary.keep((self._number, state), found)
        return found

    def outgrown(self, state: int, forced: int) -> bool:
        """Whether a token may come that says more than the `forced` bytes that must come, so that
        the next token is a choice although the next bytes are not."""
        found = self._outgrown.get((state, forced))
        if found is None:
            levels = enumerate(self._allowed(state), 1)
            found = any(length > forced and len(tokens) for length, tokens in levels)
            self._outgrown[state, forced] = found
        return found

    def _allowed(self, state: int) -> Iterator[NDArray[np.int64]]:
        """The tokens that may come, by their length: down the trie and the automaton together, a
        level at a time. `states` are those of the level's nodes: of all of them, or, once few are
        left, of the live ones alone."""
        states = np.array([state], np.int64) * self._width  # rows of the table, by their offset
        live: NDArray[np.int64] | None = None
        for level, classes in zip(self.vocabulary.levels, self._classes, strict=True):
            if live is None:
                states = self._table[states[level.parents] + classes]
                alive = states != DEAD
                yield level.tokens[alive[level.nodes]]
                some = np.flatnonzero(alive)
                if len(some) < DENSE * len(states):
                    live, states = some, states[some]
            else:
                count = level.count[live]
                first = level.first[live] - (np.cumsum(count) - count)
                children = np.repeat(first, count) + np.arange(int(count.sum()))
                after = self._table[np.repeat(states, count) + classes[children]]
                alive = after != DEAD
                live, states = children[alive], after[alive]
                reached = np.zeros(len(classes), np.bool_)
                reached[live] = True
                yield level.tokens[reached[level.nodes]]
            if live is not None and not len(live):
                break
            states = states * self._width
