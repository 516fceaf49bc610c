"""Sets of Unicode characters as sorted intervals, and the named classes of regular expressions.

Surrogates are in no set, because they have no UTF-8 encoding.
"""

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

Charset = tuple[tuple[int, int], ...]
"""Disjoint, non-adjacent intervals of code points, both ends included, in ascending order."""

LAST = 0x10FFFF
ANY: Charset = ((0, 0xD7FF), (0xE000, LAST))


def charset(intervals: Iterable[tuple[int, int]]) -> Charset:
    """The union of intervals in any order."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(intervals):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(high, merged[-1][1])
        else:
            merged.append((low, high))
    return intersect(tuple(merged), ANY)


def single(code: int) -> Charset:
    return charset([(code, code)])


def of(characters: str) -> Charset:
    return charset((ord(one), ord(one)) for one in characters)


def union(*sets: Charset) -> Charset:
    return charset(interval for one in sets for interval in one)


def intersect(a: Charset, b: Charset) -> Charset:
    found, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        low, high = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if low <= high:
            found.append((low, high))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return tuple(found)


def negate(a: Charset) -> Charset:
    found, at = [], 0
    for low, high in a:
        if low > at:
            found.append((at, low - 1))
        at = high + 1
    if at <= LAST:
        found.append((at, LAST))
    return intersect(tuple(found), ANY)


def subtract(a: Charset, b: Charset) -> Charset:
    return intersect(a, negate(b))


def fold(a: Charset) -> Charset:
    """`a` plus all characters that differ from one of `a` only in case (simple folding)."""
    found = list(a)
    for code, others in _cases().items():
        if any(low <= code <= high for low, high in a):
            found += [(other, other) for other in others]
    return charset(found)


DIGITS = of("0123456789")
WORDS = charset([(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)])
SPACES = of(" \t\n\r\f\v")
SCHEMA_SPACES = charset(
    [*SPACES, *of("\u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"), (0x2000, 0x200A)]
)
"""White space as defined by ECMA-262, whose patterns JSON Schema uses."""


@cache
def shorthand(letter: str, every_script: bool) -> Charset:
    r"""The class \d, \w or \s, or its negation \D, \W or \S: in ASCII, or as in Python's `re`."""
    if letter.isupper():
        return negate(shorthand(letter.lower(), every_script))
    if not every_script:
        return {"d": DIGITS, "w": WORDS, "s": SPACES}[letter]
    return charset(
        (match.start(), match.end() - 1) for match in re.finditer(rf"\{letter}+", _everything())
    )


CATEGORIES = {
    "Letter": "L", "Cased_Letter": "LC", "Uppercase_Letter": "Lu", "Lowercase_Letter": "Ll",
    "Titlecase_Letter": "Lt", "Modifier_Letter": "Lm", "Other_Letter": "Lo", "Mark": "M",
    "Nonspacing_Mark": "Mn", "Spacing_Mark": "Mc", "Enclosing_Mark": "Me", "Number": "N",
    "Decimal_Number": "Nd", "Letter_Number": "Nl", "Other_Number": "No", "Punctuation": "P",
    "Connector_Punctuation": "Pc", "Dash_Punctuation": "Pd", "Open_Punctuation": "Ps",
    "Close_Punctuation": "Pe", "Initial_Punctuation": "Pi", "Final_Punctuation": "Pf",
    "Other_Punctuation": "Po", "Symbol": "S", "Math_Symbol": "Sm", "Currency_Symbol": "Sc",
    "Modifier_Symbol": "Sk", "Other_Symbol": "So", "Separator": "Z", "Space_Separator": "Zs",
    "Line_Separator": "Zl", "Paragraph_Separator": "Zp", "Other": "C", "Control": "Cc",
    "Format": "Cf", "Private_Use": "Co", "Unassigned": "Cn",
}  # fmt: skip
"""Long names of general categories (Unicode Standard Annex 44, table 12)."""


@cache
def category(name: str) -> Charset:
    r"""The class \p{name}: a general category such as L or Lu. Raises KeyError for any other."""
    name = CATEGORIES.get(name, name)
    if name == "Any":
        return ANY
    if name == "ASCII":
        return ((0, 0x7F),)
    if name == "LC":
        return union(*map(category, ("Lu", "Ll", "Lt")))
    if not re.fullmatch(r"[CLMNPSZ][a-z]?", name):
        raise KeyError(name)
    found = [
        (code, code)
        for code, one in enumerate(map(unicodedata.category, _everything()))
        if one.startswith(name)
    ]
    if not found:
        raise KeyError(name)
    return charset(found)


@cache
def _everything() -> str:
    """All characters, each at its own index; surrogates fill their places and are in no class."""
    return "".join(map(chr, range(LAST + 1)))


@cache
def _cases() -> dict[int, list[int]]:
    """Character → the characters that differ from it only in case."""
    groups: dict[str, list[int]] = {}
    for code, character in enumerate(_everything()):
        lower, upper = character.lower(), character.upper()
        if character not in (lower, upper) or lower != upper:
            for key in {lower, upper.lower()}:
                groups.setdefault(key, []).append(code)
    found: dict[int, set[int]] = {}
    for members in groups.values():
        for code in members:
            found.setdefault(code, set()).update(members)
    return {code: sorted(others - {code}) for code, others in found.items() if len(others) > 1}
