"""A trie of a model's tokens as bytes, which finds the tokens an automaton allows in a state.

The trie is built once per model and shared by all grammars. Once the native library is loaded, C++
walks it without the interpreter's lock.
"""

import ctypes
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import count

import numpy as np
from numpy.typing import NDArray

from weir.grammar.automaton import DEAD, Automaton
from weir.ops import native

MEMORY = 1 << 30
"""Bytes of masks kept for one vocabulary, over all grammars."""
STEPS = 1 << 16
"""Transitions (state, token) that one grammar caches."""


class Trie:
    """One node per distinct prefix of the tokens' non-empty pieces, in depth-first order: a node's
    descendants follow it. Tokens with equal pieces have a node each."""

    letter: NDArray[np.uint8]  # [nodes]: the last byte of the prefix
    depth: NDArray[np.uint16]  # [nodes]: bytes of the prefix, at least 1
    skip: NDArray[np.int32]  # [nodes]: the next node that is not a descendant
    token: NDArray[np.int32]  # [nodes]: the token that ends there, or `none`

    def __init__(self, pieces: Sequence[bytes], tokens: Iterable[int], none: int):
        order = sorted(tokens, key=pieces.__getitem__)
        length = np.array([len(pieces[t]) for t in order], np.int64)
        self.none, self.deepest = none, int(length.max(initial=0))
        joined = b"".join(pieces[t].ljust(self.deepest + 1, b"\0") for t in order)
        text = np.frombuffer(joined, np.uint8).reshape(len(order), self.deepest + 1)
        shared = np.zeros_like(length)  # bytes each piece has in common with the previous one
        differs = text[1:] != text[:-1]
        differs[:, -1] = True
        shared[1:] = np.minimum(differs.argmax(axis=1), np.minimum(length[:-1], length[1:] - 1))
        rows = np.repeat(np.arange(len(order)), length - shared)
        first = np.cumsum(length - shared) - length  # each piece's first node, less `shared`
        depth = np.arange(len(rows)) - first[rows] + 1
        self.letter = text[rows, depth - 1]
        self.depth = depth.astype(np.uint16)
        self.token = np.where(depth == length[rows], np.array(order, np.int32)[rows], none)
        self.token = self.token.astype(np.int32)
        self.skip = np.full(len(rows), len(rows), np.int32)
        for level in range(1, self.deepest + 1):
            border = np.flatnonzero(depth <= level).astype(np.int32)
            here = depth[border[:-1]] == level
            self.skip[border[:-1][here]] = border[1:][here]

    @cached_property
    def levels(self) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """The nodes of each depth, and the indices of their parents in the level above."""
        nodes = [np.flatnonzero(self.depth == level) for level in range(1, self.deepest + 1)]
        above = [np.full(1, -1), *nodes]
        return [(one, np.searchsorted(up, one) - 1) for up, one in zip(above, nodes, strict=False)]


class Vocabulary:
    """pieces: the bytes of each token id; tokens without any, such as special ones, are never
    allowed. size: token ids of the model, maybe more or fewer. ends: ids that end an answer."""

    def __init__(self, pieces: Sequence[bytes], size: int, ends: Iterable[int]):
        self.pieces = pieces
        self.size = size
        self.ends = sorted({end for end in ends if 0 <= end < size})
        self.mask_bytes = -(-size // 8)
        texts = set(range(min(size, len(pieces)))) - set(self.ends)
        self.trie = Trie(pieces, (token for token in texts if pieces[token]), self.mask_bytes * 8)
        self.kept: dict[tuple[int, int], bytes] = {}  # masks by a grammar's number and state
        self._most = MEMORY // max(1, self.mask_bytes)
        self._lock = threading.Lock()

    @cached_property
    def free(self) -> bytes:
        """The mask of all tokens except those that end an answer."""
        flags = np.ones(self.size, np.bool_)
        flags[self.ends] = False
        return np.packbits(flags, bitorder="little").tobytes()

    def keep(self, key: tuple[int, int], mask: bytes) -> None:
        """Cache a mask; when the cache is full, drop the oldest one."""
        with self._lock:
            self.kept[key] = mask
            if len(self.kept) > self._most:
                del self.kept[next(iter(self.kept))]


_numbers = count()


class Masks:
    """The tokens that one automaton allows, by state: computed at first use, then cached as long as
    there is room. Thread-safe."""

    def __init__(self, automaton: Automaton, vocabulary: Vocabulary):
        self.automaton = automaton
        self.vocabulary = vocabulary
        trie = vocabulary.trie
        arrays = trie.skip, trie.token, trie.depth, trie.letter, automaton.classes, automaton.table
        pointers = (array.ctypes.data for array in arrays)
        sizes = len(trie.skip), trie.deepest, trie.none, automaton.table.shape[1]
        self._native = native.Walk(*pointers, *sizes)
        self._number = next(_numbers)
        self._outgrown: dict[tuple[int, int], bool] = {}
        self._after: dict[tuple[int, int], int] = {}

    def known(self, state: int) -> bytes | None:
        """The mask if it is cached, else None."""
        return self.vocabulary.kept.get((self._number, state))

    def after(self, state: int, token: int) -> int:
        """The state after a token; `DEAD` if the token is not allowed."""
        found = self._after.get((state, token))
        if found is None:
            pieces = self.vocabulary.pieces
            piece = pieces[token] if token < len(pieces) else b""
            found = self.automaton.run(piece, state) if piece else DEAD
            if len(self._after) >= STEPS:
                self._after.clear()
            self._after[state, token] = found
        return found

    def mask(self, state: int) -> bytes:
        """The allowed tokens, one bit each, lowest bit first. Ending tokens are included where the
        answer may end."""
        found = self.known(state)
        if found is None:
            flags = self._allowed(state)
            if self.automaton.accepting[state]:
                flags[self.vocabulary.ends] = True
            found = np.packbits(flags[:-1], bitorder="little").tobytes()
            self.vocabulary.keep((self._number, state), found)
        return found

    def outgrown(self, state: int, forced: int) -> bool:
        """Whether an allowed token extends beyond the next `forced` bytes, which are forced: the
        next token is then a choice although the next bytes are not."""
        found = self._outgrown.get((state, forced))
        if found is None:
            library = native.loaded()
            if library is not None:
                found = bool(library.walk(ctypes.byref(self._native), state, forced, None))
            else:
                levels = enumerate(self._levels(state), 1)
                found = any(length > forced and len(tokens) for length, tokens in levels)
            self._outgrown[state, forced] = found
        return found

    def _allowed(self, state: int) -> NDArray[np.bool_]:
        """A flag per token: whether it may follow the state. The last flag has no meaning."""
        flags = np.zeros(self.vocabulary.trie.none + 1, np.bool_)
        library = native.loaded()
        if library is not None:
            library.walk(ctypes.byref(self._native), state, 0, flags.ctypes.data)
        else:
            for tokens in self._levels(state):
                flags[tokens] = True
        return flags

    def _levels(self, state: int) -> Iterator[NDArray[np.int32]]:
        """The ids of the allowed tokens, by length, without the native library. One level at a
        time, so that each operation is short and no other thread waits long for the interpreter."""
        trie, table, classes = self.vocabulary.trie, self.automaton.table, self.automaton.classes
        states = np.array([state])
        for nodes, parents in trie.levels:
            before = states[parents]
            alive = np.flatnonzero(before)
            after = table[before[alive], classes[trie.letter[nodes[alive]]]]
            states = np.zeros(len(nodes), np.uint16)
            states[alive] = after
            yield (tokens := trie.token[nodes[alive[after != DEAD]]])[tokens != trie.none]
            if not after.any():
                return
