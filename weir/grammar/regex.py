r"""Parses regular expressions in the syntax of Python and JSON Schema into `Expressions`.

Constructs that no automaton can match are refused by name. `parse` matches an answer as a whole;
`search` matches as JSON Schema does: anywhere in the text, unless anchored.

Three points differ from Python's `re`. Without the flag u, \d, \w and \s are ASCII, as in JSON
Schema, because a model might otherwise answer with digits of any script. `$` matches only at the
end of the text. Word boundaries know ASCII words only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from weir.grammar import charset
from weir.grammar.charset import ANY, Charset
from weir.grammar.classes import BadPattern, Flags, Scanner
from weir.grammar.expression import Expressions, Node

MAX_LENGTH = 64 * 1024
MAX_DEPTH = 100
MAX_REPEAT = 10_000


def parse(expressions: Expressions, pattern: str) -> Node:
    """An expression that matches what `pattern` matches as a whole. Raises `BadPattern`."""
    if len(pattern) > MAX_LENGTH:
        raise BadPattern(f"the pattern has more than {MAX_LENGTH} characters")
    return _Parser(expressions, pattern, Flags()).pattern()


def search(expressions: Expressions, pattern: str) -> Node:
    """An expression that matches the texts in which JSON Schema finds `pattern`."""
    text = expressions.text
    middle = _Parser(expressions, pattern, Flags(schema=True), after=text).pattern()
    return expressions.concat(text, middle)


# Nodes of the syntax tree: an expression, a lookahead (which depends on all that follows), or both.


@dataclass(frozen=True, slots=True)
class _Ahead:
    node: _Tree
    negative: bool


@dataclass(frozen=True, slots=True)
class _Several:
    """A sequence of parts, or a choice among them."""

    parts: list[_Tree]
    choice: bool


_Tree = Node | _Ahead | _Several

QUANTIFIER = re.compile(r"\{([0-9]*)(,?)([0-9]*)\}")
NAME = re.compile(r"\(\?P?<([A-Za-z_$][A-Za-z0-9_$]*)>")
REFUSED = {
    "(?<=": "lookbehind", "(?<!": "lookbehind", "(?>": "an atomic group",
    "(?(": "a conditional group", "(?P=": "a backreference", "(?P>": "recursion",
    "(?R": "recursion", "(?&": "recursion", "(?|": "a branch reset",
}  # fmt: skip
INLINE = re.compile(r"\(\?([aimsuxLU]*)(?:-([imsxU]+))?([:)])")


class _Parser(Scanner):
    """One pass over a pattern. after: what may follow the pattern; lookaheads at its end see it."""

    def __init__(
        self, expressions: Expressions, pattern: str, flags: Flags, after: Node | None = None
    ):
        super().__init__(pattern, flags)
        self.make = expressions
        self.after = expressions.empty if after is None else after
        self.depth = 0

    def pattern(self) -> Node:
        tree = self._alternatives()
        if self.at < len(self.source):
            self._fail("a ) without its (")
        return self._followed(tree, self.after)

    # -- lookaheads ----------------------------------------------------------------------------

    def _followed(self, tree: _Tree, after: Node) -> Node:
        """`tree` followed by `after`, which extends to the end of the text."""
        make = self.make
        if isinstance(tree, Node):
            return make.concat(tree, after)
        if isinstance(tree, _Ahead):
            seen = self._followed(tree.node, make.text)
            return make.both([make.complement(seen) if tree.negative else seen, after])
        if tree.choice:
            return make.either(self._followed(part, after) for part in tree.parts)
        for part in reversed(tree.parts):
            after = self._followed(part, after)
        return after

    def _several(self, parts: list[_Tree], choice: bool) -> _Tree:
        nodes = [part for part in parts if isinstance(part, Node)]
        if len(nodes) < len(parts):
            return _Several(parts, choice)
        return self.make.either(nodes) if choice else self.make.sequence(nodes)

    # -- syntax --------------------------------------------------------------------------------

    def _alternatives(self) -> _Tree:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._fail(f"groups nested more than {MAX_DEPTH} deep")
        choices = [self._items()]
        while self._take("|"):
            choices.append(self._items())
        self.depth -= 1
        return self._several(choices, choice=True)

    def _items(self) -> _Tree:
        parts: list[_Tree] = []
        while self.at < len(self.source) and self.source[self.at] not in "|)":
            if self.flags.verbose and self._blank():
                continue
            if (inline := INLINE.match(self.source, self.at)) and inline[3] == ")":
                self._set_flags(inline)
                continue
            parts.append(self._quantified(self._atom()))
        return self._several(parts, choice=False)

    def _blank(self) -> bool:
        if self.source[self.at] in " \t\n\r\f\v":
            self.at += 1
        elif self.source[self.at] == "#":
            end = self.source.find("\n", self.at)
            self.at = len(self.source) if end < 0 else end + 1
        else:
            return False
        return True

    def _quantified(self, tree: _Tree) -> _Tree:
        if (bounds := self._bounds()) is not None:
            if self._take("+"):
                self._fail("a possessive quantifier, which no automaton can match")
            self._take("?")  # lazy or greedy: the same texts match
            if not isinstance(tree, Node):
                self._fail("a lookahead that is repeated, which is not supported")
            tree = self.make.repeat(tree, *bounds)
            if self._bounds() is not None:
                self._fail("a quantifier that follows another")
        return tree

    def _bounds(self) -> tuple[int, int | None] | None:
        if self.flags.verbose:
            while self.at < len(self.source) and self._blank():
                pass
        for sign, bounds in (("*", (0, None)), ("+", (1, None)), ("?", (0, 1))):
            if self._take(sign):
                return bounds
        found = QUANTIFIER.match(self.source, self.at)
        if found is None or not (found[1] or found[3]):
            return None  # the brace is literal
        self.at = found.end()
        least = int(found[1][:9] or 0)
        most = (int(found[3][:9]) if found[3] else None) if found[2] else least
        if max(least, most or 0) > MAX_REPEAT:
            self._fail(f"a quantifier of more than {MAX_REPEAT}")
        if most is not None and most < least:
            self._fail("a quantifier whose bounds are the wrong way round")
        return least, most

    def _atom(self) -> _Tree:
        character = self.source[self.at]
        if character == "(":
            return self._group()
        if character == "[":
            return self._chars(self._class())
        if character == "\\":
            return self._escape()
        if character in "*+?" or (character == "{" and self._bounds() is not None):
            self._fail("a quantifier with nothing to repeat")
        self.at += 1
        if character == "^":
            return self.make.start
        if character == "$":
            return self.make.end
        if character == ".":
            newline = charset.single(10)
            return self.make.chars(ANY if self.flags.dot_all else charset.subtract(ANY, newline))
        return self._chars(charset.of(character))

    def _chars(self, characters: Charset) -> Node:
        if self.flags.ignore_case:
            characters = charset.fold(characters)
        return self.make.chars(characters)

    def _group(self) -> _Tree:
        flags = self.flags
        if self._take("(?#"):
            end = self.source.find(")", self.at)
            if end < 0:
                self._fail("a comment without its )")
            self.at = end + 1
            return self.make.empty
        negative = self._take("(?!")
        ahead = negative or self._take("(?=")
        if not ahead:
            self._open()
        tree = self._alternatives()
        if not self._take(")"):
            self._fail("a ( without its )")
        self.flags = flags
        return _Ahead(tree, negative) if ahead else tree

    def _open(self) -> None:
        """Read the opening of a group."""
        for text, what in REFUSED.items():
            if self._peek(text):
                self._fail(f"{what}, which no automaton can match")
        inline = INLINE.match(self.source, self.at)
        if inline:
            self._set_flags(inline)
        elif not self._match(NAME):
            if self._peek("(?"):
                self._fail("an unknown kind of group")
            self.at += 1

    def _set_flags(self, inline: re.Match[str]) -> None:
        self.at = inline.end()
        on, off = inline[1], inline[2] or ""
        if "m" in on:
            self._fail("the flag m, which is not supported: write \\n where lines end")
        if set(on + off) & set("LU"):
            self._fail(f"the flags {on}{off}, which are not supported")
        now = self.flags
        self.flags = Flags(
            ignore_case=("i" in on or now.ignore_case) and "i" not in off,
            dot_all=("s" in on or now.dot_all) and "s" not in off,
            verbose=("x" in on or now.verbose) and "x" not in off,
            schema=now.schema,
            unicode=("u" in on or now.unicode) and not ("a" in on or "u" in off),
        )

    # -- escapes and classes -------------------------------------------------------------------

    def _escape(self) -> Node:
        self.at += 1
        if self.at == len(self.source):
            self._fail("a backslash at the end")
        letter = self.source[self.at]
        assertions = {
            "A": self.make.start, "Z": self.make.end, "z": self.make.end,
            "b": self.make.boundary, "B": self.make.no_boundary,
        }  # fmt: skip
        if letter in assertions:
            self.at += 1
            if letter == "b" and self._peek("{"):
                self._fail("half a word boundary, which is not supported")
            return assertions[letter]
        if letter in "123456789":
            if re.match(r"[0-3][0-7][0-7]", self.source[self.at :]):
                return self._chars(self._escaped())
            self._fail("a backreference, which no automaton can match")
        if letter in "kgGKRX":
            self._fail(f"\\{letter}, which no automaton can match or is not supported")
        return self._chars(self._escaped())
