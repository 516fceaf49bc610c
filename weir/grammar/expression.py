"""Regular expressions over UTF-8 bytes as hash-consed values, and their derivatives.

What an expression matches after a byte is again an expression, its derivative (Brzozowski 1964;
Owens, Reppy and Turon 2009). Equal expressions are one object, so derivatives are the states of an
automaton, and intersection and complement cost nothing extra. This module knows no syntax.

Assertions (`^`, `$`, word boundaries) depend on the bytes on both sides of a position. Only three
kinds of these matter: none, a byte of a word, another byte. The positions where an expression
matches the empty text are therefore a set of nine contexts, stored as bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import reduce
from operator import and_, or_

from weir.grammar.charset import ANY, WORDS, Charset, intersect, single

EDGE, OTHER, WORD = range(3)
"""Kinds of neighbour: none (the text begins or ends), a byte outside words, a byte of a word."""

EVERYWHERE = (1 << 9) - 1
ALL_BYTES = (1 << 256) - 1
WORD_BYTES = sum(1 << byte for low, high in WORDS for byte in range(low, high + 1))

Moves = tuple[tuple[int, "Node"], ...]
"""Disjoint sets of bytes, 256 bits each, with the derivative. A byte in no set cannot follow."""


@dataclass(slots=True, eq=False)
class Node:
    """An expression. Only `Expressions` makes them, so equal ones are identical."""

    serial: int
    kind: str
    arguments: tuple[object, ...]
    empty: int  # contexts in which it matches the empty text
    looks: bool  # depends on the preceding byte
    whole: bool  # matches whole characters only
    moves: dict[int, Moves] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[Node, ...]:
        return tuple(a for a in self.arguments if isinstance(a, Node))


def context(before: int, after: int) -> int:
    return 1 << (3 * before + after)


class Expressions:
    """Makes expressions and derives them."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], Node] = {}
        self._machines: list[Callable[[int], Moves]] = []
        self.nothing = self._make("nothing")
        self.empty = self._make("empty", empty=EVERYWHERE)
        self.anything = self._make("anything", empty=EVERYWHERE, whole=False)  # any bytes
        self.start = self._assertion(lambda before, after: before == EDGE, looks=True)
        self.end = self._assertion(lambda before, after: after == EDGE, looks=False)
        self.boundary = self._assertion(lambda b, a: (b == WORD) != (a == WORD), looks=True)
        self.no_boundary = self._assertion(lambda b, a: (b == WORD) == (a == WORD), looks=True)
        self.text = self.repeat(self.chars(ANY), 0, None)

    # -- making --------------------------------------------------------------------------------

    def _make(
        self, kind: str, *arguments: object, empty: int = 0, looks: bool = False, whole: bool = True
    ) -> Node:
        key = (kind, *(a.serial if isinstance(a, Node) else a for a in arguments))
        node = self._known.get(key)
        if node is None:
            node = Node(len(self._known), kind, arguments, empty, looks, whole)
            self._known[key] = node
        return node

    def _assertion(self, holds: Callable[[int, int], bool], *, looks: bool) -> Node:
        kinds = (EDGE, OTHER, WORD)
        bits = sum(context(b, a) for b in kinds for a in kinds if holds(b, a))
        return self._make("assertion", bits, empty=bits, looks=looks)

    def chars(self, characters: Charset) -> Node:
        """Matches one character of a set."""
        return self._make("chars", characters) if characters else self.nothing

    def _rest(self, count: int, values: Charset) -> Node:
        """Matches `count` continuation bytes whose joined payload bits are one of `values`."""
        if count == 0:
            return self.empty
        return self._make("rest", count, values, whole=False)

    def machine(self, moves: Callable[[int], Moves]) -> int:
        """Register an existing automaton by its transition function, state → moves. Returns its
        number, for `state`."""
        self._machines.append(moves)
        return len(self._machines) - 1

    def state(self, machine: int, state: int, *, accepting: bool) -> Node:
        """What a machine matches from a state on. It does not count as `whole`."""
        empty = EVERYWHERE if accepting else 0
        return self._make("state", machine, state, empty=empty, whole=False)

    def literal(self, text: str) -> Node:
        return self.sequence(self.chars(single(ord(one))) for one in text)

    def sequence(self, nodes: Iterable[Node]) -> Node:
        found = self.empty
        for node in reversed(list(nodes)):
            found = self.concat(node, found)
        return found

    def concat(self, head: Node, tail: Node) -> Node:
        if head is self.empty or tail is self.nothing:
            return tail
        if tail is self.empty or head is self.nothing:
            return head
        if head.kind == "concat":  # nested to the right, a derivative changes only the first part
            first, second = head.parts
            return self.concat(first, self.concat(second, tail))
        looks = head.looks or (head.empty != 0 and tail.looks)
        empty, whole = head.empty & tail.empty, head.whole and tail.whole
        return self._make("concat", head, tail, empty=empty, looks=looks, whole=whole)

    def either(self, nodes: Iterable[Node]) -> Node:
        found = self._flat("either", nodes)
        found.pop(self.nothing.serial, None)
        if self.anything.serial in found:
            return self.anything
        if self.text.serial in found:
            found = {s: n for s, n in found.items() if n is self.text or not n.whole}
        if not found:
            return self.nothing
        empty = reduce(or_, (part.empty for part in found.values()))
        return self._joined("either", found, empty, all(part.whole for part in found.values()))

    def both(self, nodes: Iterable[Node]) -> Node:
        """The intersection: matches what all nodes match."""
        found = self._flat("both", nodes)
        found.pop(self.anything.serial, None)
        if self.nothing.serial in found:
            return self.nothing
        if not found:
            return self.anything
        empty = reduce(and_, (part.empty for part in found.values()))
        return self._joined("both", found, empty, any(part.whole for part in found.values()))

    def _flat(self, kind: str, nodes: Iterable[Node]) -> dict[int, Node]:
        """Nodes by serial number; nodes of this kind are replaced by their parts."""
        found: dict[int, Node] = {}
        for node in nodes:
            for one in node.parts if node.kind == kind else (node,):
                found[one.serial] = one
        return found

    def _joined(self, kind: str, found: dict[int, Node], empty: int, whole: bool) -> Node:
        parts = [found[serial] for serial in sorted(found)]
        if len(parts) == 1:
            return parts[0]
        looks = any(part.looks for part in parts)
        return self._make(kind, *parts, empty=empty, looks=looks, whole=whole)

    def complement(self, node: Node) -> Node:
        """Matches every byte string that `node` does not match."""
        if node.kind == "complement":
            return node.parts[0]
        if node is self.nothing:
            return self.anything
        if node is self.anything:
            return self.nothing
        empty = EVERYWHERE & ~node.empty
        return self._make("complement", node, empty=empty, looks=node.looks, whole=False)

    def repeat(self, node: Node, least: int, most: int | None) -> Node:
        if most is not None and most < least:
            return self.nothing
        if most == 0 or node is self.empty:
            return self.empty
        if node is self.nothing:
            return self.empty if least == 0 else node
        if (least, most) == (1, 1):
            return node
        if node.empty == EVERYWHERE:
            least = 0
        elif node.empty and least:  # an assertion in it must hold once
            rest = self.repeat(node, least - 1, None if most is None else most - 1)
            return self.concat(node, rest)
        if node.kind == "repeat" and least == 0 and node.arguments[1:] == (0, None):
            return node
        empty = node.empty if least else EVERYWHERE
        looks, whole = node.looks, node.whole
        return self._make("repeat", node, least, most, empty=empty, looks=looks, whole=whole)

    # -- deriving ------------------------------------------------------------------------------

    def moves(self, node: Node, before: int) -> Moves:
        """The derivative by each byte, if the preceding byte is of kind `before`."""
        before = before if node.looks else OTHER
        found = node.moves.get(before)
        if found is None:
            found = node.moves[before] = self._derive(node, before)
        return found

    def _derive(self, node: Node, before: int) -> Moves:
        if node.kind == "chars":
            return self._lead(node.arguments[0])  # type: ignore[arg-type]
        if node.kind == "rest":
            return self._continue(*node.arguments)  # type: ignore[arg-type]
        if node.kind == "state":
            machine, state = node.arguments
            assert isinstance(machine, int) and isinstance(state, int)
            return self._machines[machine](state)
        if node.kind == "anything":
            return ((ALL_BYTES, node),)
        if node.kind == "concat":
            head, tail = node.parts
            found = [tuple((m, self.concat(n, tail)) for m, n in self.moves(head, before))]
            through = WORD_BYTES if head.empty & context(before, WORD) else 0
            through |= ALL_BYTES ^ WORD_BYTES if head.empty & context(before, OTHER) else 0
            if through:
                found.append(restrict(self.moves(tail, before), through))
            return self._union(found)
        if node.kind == "either":
            return self._union([self.moves(part, before) for part in node.parts])
        if node.kind == "both":
            return self._intersection([self.moves(part, before) for part in node.parts])
        if node.kind == "complement":
            inner = self.moves(node.parts[0], before)
            rest = ALL_BYTES
            for mask, _ in inner:
                rest &= ~mask
            return self._tidy([*((m, self.complement(n)) for m, n in inner), (rest, self.anything)])
        if node.kind == "repeat":
            (part,), least, most = node.parts, *node.arguments[1:]
            assert isinstance(least, int) and (most is None or isinstance(most, int))
            again = self.repeat(part, max(0, least - 1), None if most is None else most - 1)
            return self._tidy((m, self.concat(n, again)) for m, n in self.moves(part, before))
        return ()

    def _union(self, parts: list[Moves]) -> Moves:
        if len(parts) == 1:
            return parts[0]
        blocks: list[tuple[int, list[Node]]] = []
        for moves in parts:
            for mask, node in moves:
                cut: list[tuple[int, list[Node]]] = []
                for block in blocks:
                    common = block[0] & mask
                    if not common:
                        cut.append(block)
                    elif common == block[0]:
                        block[1].append(node)
                        cut.append(block)
                    else:
                        cut.append((block[0] ^ common, block[1]))
                        cut.append((common, [*block[1], node]))
                    mask ^= common
                if mask:
                    cut.append((mask, [node]))
                blocks = cut
        return self._tidy((mask, self.either(nodes)) for mask, nodes in blocks)

    def _intersection(self, parts: list[Moves]) -> Moves:
        blocks: list[tuple[int, list[Node]]] = [(ALL_BYTES, [])]
        for moves in parts:
            blocks = [
                (common, [*nodes, node])
                for have, nodes in blocks
                for mask, node in moves
                if (common := have & mask)
            ]
        return self._tidy((mask, self.both(nodes)) for mask, nodes in blocks)

    def _tidy(self, moves: Iterable[tuple[int, Node]]) -> Moves:
        """Join moves with equal derivatives; drop those that match nothing."""
        found: dict[int, tuple[int, Node]] = {}
        for mask, node in moves:
            if mask and node is not self.nothing:
                have = found.get(node.serial)
                found[node.serial] = (mask | have[0] if have else mask, node)
        return tuple(found.values())

    def _lead(self, characters: Charset) -> Moves:
        """Derivatives by the first byte of a character (RFC 3629)."""
        ascii_mask = 0
        for low, high in characters:
            if low > 0x7F:
                break
            ascii_mask |= (1 << min(high, 0x7F) + 1) - (1 << low)
        found = [(ascii_mask, self.empty)]
        if characters[-1][1] > 0x7F:
            for count, first, last, least in (
                (1, 0xC2, 0xDF, 0x80),
                (2, 0xE0, 0xEF, 0x800),
                (3, 0xF0, 0xF4, 0x10000),
            ):
                size = 64**count
                proper = intersect(characters, ((least, 0x10FFFF),))
                for lead in range(first, last + 1):
                    values = window(proper, (lead & (0x3F >> count)) * size, size)
                    if values:
                        found.append((1 << lead, self._rest(count, values)))
        return self._tidy(found)

    def _continue(self, count: int, values: Charset) -> Moves:
        """Derivatives by the next of `count` continuation bytes."""
        size = 64 ** (count - 1)
        found = []
        for bits in range(64):
            rest = window(values, bits * size, size)
            if rest:
                found.append((1 << (0x80 | bits), self._rest(count - 1, rest)))
        return self._tidy(found)


def restrict(moves: Moves, mask: int) -> Moves:
    return tuple((m & mask, node) for m, node in moves if m & mask)


def window(values: Charset, start: int, size: int) -> Charset:
    """The values in [start, start + size), relative to `start`."""
    inside = intersect(values, ((start, start + size - 1),))
    return tuple((low - start, high - start) for low, high in inside)
