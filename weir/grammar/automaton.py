"""Deterministic automata over bytes: built from an expression, minimised, stored as tables.

The whole cost of a pattern arises here, once, and limits bound it. Running an automaton only looks
up a table.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from weir.grammar.expression import (
    ALL_BYTES,
    EDGE,
    OTHER,
    WORD,
    WORD_BYTES,
    Expressions,
    Node,
    context,
)

MAX_STATES = 20_000

DEAD, START = 0, 1
"""State 0 can no longer match; state 1 is the initial state."""


class TooComplex(Exception):
    """The automaton would exceed the limits."""


@dataclass(frozen=True, slots=True, eq=False)
class Automaton:
    """classes: uint8 [256], the class of each byte. table: uint16 [states, classes], the next
    state. accepting: bool [states]. Every state but `DEAD` can reach an accepting one. An automaton
    that matches nothing has the state `DEAD` alone.

    forced: int16 [states], the only possible next byte, where the text cannot end there either;
    else -1. final: bool [states], the text is complete and nothing can follow."""

    classes: NDArray[np.uint8]
    table: NDArray[np.uint16]
    accepting: NDArray[np.bool_]
    forced: NDArray[np.int16]
    final: NDArray[np.bool_]

    @property
    def states(self) -> int:
        return len(self.accepting)

    @property
    def start(self) -> int:
        return min(START, self.states - 1)

    def run(self, text: bytes, state: int = START) -> int:
        """The state after `text`."""
        classes, table = self.classes, self.table
        for byte in text:
            state = int(table[state, classes[byte]])
        return state

    def matches(self, text: bytes) -> bool:
        return bool(self.accepting[self.run(text, self.start)])

    def moves(self, state: int) -> list[tuple[int, int]]:
        """The successors of a state, each with the set of bytes that lead there, as 256 bits."""
        found: dict[int, int] = {}
        for byte, after in enumerate(self.table[state][self.classes].tolist()):
            if after != DEAD:
                found[after] = found.get(after, 0) | 1 << byte
        return list(found.items())

    def force(self, state: int, most: int) -> bytes:
        """The forced next bytes, at most `most`."""
        forced, text = self.forced, bytearray()
        while len(text) < most and (byte := int(forced[state])) >= 0:
            text.append(byte)
            state = int(self.table[state, self.classes[byte]])
        return bytes(text)

    def encode(self) -> bytes:
        """All arrays, compressed, so that `decode` computes nothing."""
        arrays = self.classes, self.table, self.accepting, self.forced, self.final
        return zlib.compress(msgspec.msgpack.encode([array.tobytes() for array in arrays]), 1)

    @classmethod
    def decode(cls, data: bytes) -> Automaton:
        found = msgspec.msgpack.decode(zlib.decompress(data), type=list[memoryview])
        kinds: list[Any] = [np.uint8, np.uint16, np.bool_, np.int16, np.bool_]
        arrays = [np.frombuffer(one, kind) for one, kind in zip(found, kinds, strict=True)]
        arrays[1] = arrays[1].reshape(len(arrays[2]), -1)
        return cls(*arrays)


Edges = list[list[tuple[int, int]]]
"""For each state: disjoint sets of bytes, 256 bits each, with the next state."""


def build(expressions: Expressions, expression: Node, max_states: int = MAX_STATES) -> Automaton:
    """The minimal automaton of an expression. Raises `TooComplex` beyond `max_states`."""
    edges, accepting = _explore(expressions, expression, max_states)
    edges = _trim(edges, accepting)
    return _tabulate(edges, accepting, _minimise(edges, accepting))


def _explore(
    expressions: Expressions, expression: Node, max_states: int
) -> tuple[Edges, list[bool]]:
    """All derivatives of an expression, itself first. Where an assertion depends on the preceding
    byte, a derivative is a separate state for each kind of that byte."""
    index: dict[tuple[Node, int], int] = {}
    nodes: list[tuple[Node, int]] = []
    edges: Edges = []

    def state(node: Node, before: int) -> int:
        key = (node, before if node.looks else OTHER)
        if key not in index:
            if len(nodes) >= max_states:
                raise TooComplex(f"it needs more than {max_states} states")
            index[key] = len(nodes)
            nodes.append(key)
        return index[key]

    state(expression, EDGE)
    while len(edges) < len(nodes):
        node, before = nodes[len(edges)]
        found = []
        for mask, after in expressions.moves(node, before):
            if after.looks:
                for kind, members in ((WORD, WORD_BYTES), (OTHER, ALL_BYTES ^ WORD_BYTES)):
                    if mask & members:
                        found.append((mask & members, state(after, kind)))
            else:
                found.append((mask, state(after, OTHER)))
        edges.append(found)
    accepting = [bool(node.empty & context(before, EDGE)) for node, before in nodes]
    return edges, accepting


def _predecessors(edges: Edges) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in edges]
    for state, moves in enumerate(edges):
        for _, after in moves:
            found[after].append(state)
    return found


def _trim(edges: Edges, accepting: list[bool]) -> Edges:
    """Remove the edges to states from which no accepting state is reachable."""
    before = _predecessors(edges)
    alive = list(accepting)
    stack = [state for state, yes in enumerate(accepting) if yes]
    while stack:
        for state in before[stack.pop()]:
            if not alive[state]:
                alive[state] = True
                stack.append(state)
    return [
        [move for move in moves if alive[move[1]]] if alive[state] else []
        for state, moves in enumerate(edges)
    ]


def _minimise(edges: Edges, accepting: list[bool]) -> list[int]:
    """The number of each state's block of equivalent states.

    States of a block are separated by the blocks of their successors, and compared again only when
    a successor's block has changed. The largest part of a block keeps its number, so a state's
    number changes at most log n times (Hopcroft's argument)."""
    before = _predecessors(edges)
    block = [int(yes) for yes in accepting]
    members: list[set[int]] = [set(), set()]
    for state, one in enumerate(block):
        members[one].add(state)
    dirty = set(range(len(edges)))
    while dirty:
        groups: dict[tuple[int, frozenset[tuple[int, int]]], set[int]] = defaultdict(set)
        for state in dirty:
            groups[block[state], _signature(edges[state], block)].add(state)
        parts: dict[int, list[set[int]]] = defaultdict(list)
        for (one, _), states in groups.items():
            parts[one].append(states)
        moved: set[int] = set()
        for one, found in parts.items():
            rest = members[one].difference(*found)
            found = sorted([*found, rest] if rest else found, key=len)
            members[one] = found.pop()
            for states in found:
                for state in states:
                    block[state] = len(members)
                members.append(states)
                moved |= states
        dirty = {state for one in moved for state in before[one]}
    return block


def _signature(moves: list[tuple[int, int]], block: list[int]) -> frozenset[tuple[int, int]]:
    """The blocks that a state leads to, each with its bytes."""
    found: dict[int, int] = {}
    for mask, after in moves:
        found[block[after]] = found.get(block[after], 0) | mask
    return frozenset(found.items())


def _tabulate(edges: Edges, accepting: list[bool], block: list[int]) -> Automaton:
    """Tables of the reachable blocks, numbered breadth first from `START`."""
    first = {one: state for state, one in reversed(list(enumerate(block)))}
    number = {block[0]: START}
    order = [0]
    rows: list[dict[int, int]] = []
    for state in order:
        row: dict[int, int] = {}
        rows.append(row)
        for mask, after in edges[state]:
            one = block[after]
            if one not in number:
                number[one] = len(number) + 1
                order.append(first[one])
            row[number[one]] = row.get(number[one], 0) | mask
    classes = _classes({mask for row in rows for mask in row.values()})
    table = np.zeros((len(rows) + 1, int(classes.max()) + 1), np.uint16)
    members = {}
    for at, row in enumerate(rows, START):
        for after, mask in row.items():
            if mask not in members:
                members[mask] = np.unique(classes[_bytes_of(mask)])
            table[at, members[mask]] = after
    ends = np.array([False, *(accepting[state] for state in order)])
    if not (accepting[0] or edges[0]):
        table, ends = table[:1], ends[:1]
    live = table != DEAD
    width = np.bincount(classes, minlength=table.shape[1])
    only = np.zeros(len(width), np.int16)
    only[classes] = np.arange(256)
    single = (live @ width == 1) & ~ends
    forced = np.where(single, only[live.argmax(axis=1)], -1).astype(np.int16)
    return Automaton(classes, table, ends, forced, ends & ~live.any(axis=1))


def _classes(masks: set[int]) -> NDArray[np.uint8]:
    """uint8 [256]: bytes that no mask distinguishes share a class."""
    blocks = [ALL_BYTES]
    for mask in masks:
        blocks = [part for one in blocks for part in (one & mask, one & ~mask) if part]
    classes = np.zeros(256, np.uint8)
    for number, one in enumerate(blocks):
        classes[_bytes_of(one)] = number
    return classes


def _bytes_of(mask: int) -> NDArray[np.int64]:
    bits = np.unpackbits(np.frombuffer(mask.to_bytes(32, "little"), np.uint8), bitorder="little")
    return np.flatnonzero(bits)
