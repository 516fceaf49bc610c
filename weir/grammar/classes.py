"""Reads one character, escape or class of a regular expression as a set of characters."""

import re
from dataclasses import dataclass
from typing import NoReturn

from weir.grammar import charset
from weir.grammar.charset import Charset

ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a", "0": "\0"}
HEXADECIMAL = re.compile(
    r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|[xu]\{([0-9A-Fa-f]{1,8})\}"
)
PROPERTY = re.compile(r"[pP](?:\{(\^?)(?:gc=|General_Category=)?([A-Za-z_]+)\}|([A-Z]))")
RANGE = re.compile(r"-(?!\]|\Z)")
POSIX = re.compile(r"\[:(\^?)([a-z]+):\]")
POSIX_CLASSES = {
    "alpha": "A-Za-z", "digit": "0-9", "alnum": "A-Za-z0-9", "upper": "A-Z", "lower": "a-z",
    "xdigit": "0-9A-Fa-f", "word": "A-Za-z0-9_", "space": " \t-\r", "blank": " \t",
    "cntrl": "\0-\x1f\x7f", "punct": "!-/:-@[-`{-~", "graph": "!-~", "print": " -~",
    "ascii": "\0-\x7f",
}  # fmt: skip


class BadPattern(Exception):
    """A pattern is not a regular expression, or not one that an automaton can match."""


@dataclass(frozen=True, slots=True)
class Flags:
    ignore_case: bool = False  # i
    dot_all: bool = False  # s
    verbose: bool = False  # x
    unicode: bool = False  # u: \d, \w and \s include all scripts
    schema: bool = False  # \s includes all scripts, as in JSON Schema


class Scanner:
    """A position in a pattern and the flags in effect there."""

    def __init__(self, source: str, flags: Flags):
        self.source = source
        self.flags = flags
        self.at = 0

    def _fail(self, why: str) -> NoReturn:
        raise BadPattern(f"{why}, at character {self.at} of the pattern")

    def _peek(self, text: str) -> bool:
        return self.source.startswith(text, self.at)

    def _take(self, text: str) -> bool:
        if not self._peek(text):
            return False
        self.at += len(text)
        return True

    def _match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self.source, self.at)
        if found is not None:
            self.at = found.end()
        return found

    def _escaped(self) -> Charset:
        """The set of characters of an escape, whose backslash has been read."""
        letter = self.source[self.at]
        if letter in "dwsDWS":
            self.at += 1
            if self.flags.schema and letter in "sS":
                wide = charset.SCHEMA_SPACES
                return wide if letter == "s" else charset.negate(wide)
            return charset.shorthand(letter, self.flags.unicode)
        if letter in "pP" and (found := self._match(PROPERTY)):
            try:
                named = charset.category(found[2] or found[3])
            except KeyError:
                self._fail(f"the class \\p{{{found[2] or found[3]}}}, which is not known")
            return charset.negate(named) if (letter == "P") != bool(found[1]) else named
        if found := self._match(HEXADECIMAL):
            return self._code(int(found[1] or found[2] or found[3] or found[4], 16))
        if found := self._match(re.compile(r"0[0-7]{0,2}|[1-3][0-7]{2}")):
            return self._code(int(found[0], 8))
        if found := self._match(re.compile(r"c([A-Za-z])")):
            return charset.single(ord(found[1]) % 32)
        self.at += 1
        if letter in ESCAPES:
            return charset.of(ESCAPES[letter])
        if letter.isascii() and letter.isalnum():
            self._fail(f"the escape \\{letter}, which is not known")
        return charset.of(letter)

    def _code(self, code: int) -> Charset:
        if 0xD800 <= code < 0xDC00:  # the first half of a pair, as JSON Schema writes characters
            if pair := self._match(re.compile(r"\\u([dD][c-fC-F][0-9A-Fa-f]{2})")):
                code = 0x10000 + (code - 0xD800) * 0x400 + int(pair[1], 16) - 0xDC00
        if code > charset.LAST:
            self._fail(f"the character {code:#x}, beyond Unicode")
        return charset.single(code)

    def _class(self) -> Charset:
        self.at += 1
        negative = self._take("^")
        found: list[Charset] = []
        while not found or not self._peek("]"):
            low, single = self._member()
            start = self.at
            if single and self._match(RANGE):
                high, single = self._member()
                if single:
                    low = self._range(low, high)
                else:
                    self.at = start  # the hyphen is literal
            found.append(low)
        self.at += 1
        whole = charset.union(*found)
        if self.flags.ignore_case:
            whole = charset.fold(whole)
        return charset.negate(whole) if negative else whole

    def _range(self, low: Charset, high: Charset) -> Charset:
        if not low or not high:
            self._fail("half a surrogate pair as the end of a range")
        if high[0][0] < low[0][0]:
            self._fail("a range whose ends are the wrong way round")
        return charset.charset([(low[0][0], high[0][0])])

    def _member(self) -> tuple[Charset, bool]:
        """The next member of a class, and whether it is a single character."""
        if found := self._match(POSIX):
            if found[2] not in POSIX_CLASSES:
                self._fail(f"the class [:{found[2]}:], which is not known")
            whole = Scanner(f"[{POSIX_CLASSES[found[2]]}]", Flags())._class()
            return (charset.negate(whole) if found[1] else whole), False
        if self.at >= len(self.source):
            self._fail("a [ without its ]")
        if not self._take("\\"):
            self.at += 1
            return charset.of(self.source[self.at - 1]), True
        if self.at == len(self.source):
            self._fail("a backslash at the end")
        if self._take("b"):
            return charset.single(8), True
        several = self.source[self.at] in "dwsDWSpP"
        return self._escaped(), not several
