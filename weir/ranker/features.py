"""What the light ranker sees of a prompt: its words and pairs of words, hashed, and its shape.

A file of weights holds for this very code: whoever changes what comes out raises `VERSION`.
"""

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

VERSION = 3

BUCKETS = 1 << 15
HEAD, TAIL = 2000, 1000
"""Characters read of a prompt that is longer than both: what is asked stands at an end."""

FIRST, LAST = 3, 4
"""Words that also count as the ones a prompt begins or ends with."""

WORD = re.compile(r"[a-z']+|[0-9]+|[^\sa-z0-9]|\n")
BRACKETS = re.compile(r"[{}();]")
COUNTS = {
    **{"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6},
    **{"seven": 7, "eight": 8, "nine": 9, "ten": 10, "twenty": 20, "fifty": 50, "hundred": 100},
}
UNITS = {
    **{"character": 0.25, "letter": 0.25, "word": 1.3, "token": 1, "line": 12, "sentence": 25},
    **{"bullet": 30, "step": 40, "stanza": 50, "paragraph": 110, "minute": 200, "page": 600},
}
"""Tokens in one of what a prompt may ask for."""
NUMBER = rf"\b(\d{{1,5}}|{'|'.join(COUNTS)})\b"
SIZE = re.compile(rf"{NUMBER}[ -]+(?:\w+ )?({'|'.join(UNITS)})s?\b")
LIST = re.compile(rf"{NUMBER} (?:[a-z-]+ ){{0,2}}[a-z]+s\b")
LENGTHS = [
    re.compile(rf"\b(?:{words})\b")
    for words in (
        "short|shortly|brief|briefly|concise|concisely|succinct|summar(?:y|ise|ize)|quick|simple",
        "only|just|directly|yes or no|true or false|which|choose|classify|extract|translate",
        "detailed|in detail|in depth|in-depth|thorough|comprehensive|elaborate|step by step|guide",
        "essay|article|story|report|blog|chapter|script|speech|letter|novel|poem|song|lyrics",
        "code|function|program|class|implement|python|java|javascript|c|sql|html|bash|api|regex",
    )
]
SHAPE = 28
"""Numbers in the shape of a prompt."""


@dataclass(frozen=True, slots=True)
class Features:
    """Of prompts P. grams: buckets of all, one prompt after another; int64, each once a prompt.
    starts: of each prompt within them, int64 [P]. shapes: float32 [P, SHAPE]."""

    grams: NDArray[np.int64]
    starts: NDArray[np.int64]
    shapes: NDArray[np.float32]

    @property
    def counts(self) -> NDArray[np.int64]:
        return np.diff(self.starts, append=len(self.grams))


def features(prompts: list[str]) -> Features:
    each = [_grams(prompt) for prompt in prompts]
    counts = [len(grams) for grams in each]
    return Features(
        np.fromiter((gram for grams in each for gram in grams), np.int64, sum(counts)),
        np.cumsum([0, *counts[:-1]], dtype=np.int64),
        np.array([_shape(prompt) for prompt in prompts], np.float32).reshape(-1, SHAPE),
    )


def _grams(prompt: str) -> list[int]:
    """Never empty: a prompt without words has the bucket of the empty one."""
    if len(prompt) > HEAD + TAIL:
        prompt = prompt[:HEAD] + "\n" + prompt[-TAIL:]
    words = WORD.findall(prompt.lower()) or [""]
    names = {
        *words,
        *map(" ".join, pairwise(words)),
        *("^" + word for word in words[:FIRST]),
        *(word + "$" for word in words[-LAST:]),
    }
    return sorted({crc32(name.encode("utf-8", "replace")) % BUCKETS for name in names})


def _shape(prompt: str) -> list[float]:
    size, words = max(1, len(prompt)), max(1, len(prompt.split()))
    end = prompt.rstrip()[-1:]
    sample = prompt[: HEAD + TAIL]
    lower = (prompt if sample is prompt else prompt[:HEAD] + "\n" + prompt[-TAIL:]).lower()
    share = 1 / max(1, len(sample))
    asked = max((_number(n) * UNITS[unit] for n, unit in SIZE.findall(lower)), default=0.0)
    items = max((_number(n) for n in LIST.findall(lower)), default=0)
    return [
        math.log1p(len(prompt)),
        math.log1p(words),
        math.log1p(prompt.count("\n")),
        math.log1p(prompt.count("?")),
        float(end == "?"),
        share * sum(map(str.isdigit, sample)),
        share * sum(map(str.isupper, sample)),
        share * sum(character > "\x7f" for character in sample),
        size / words / 10,
        float("```" in prompt),
        math.log1p(prompt.count("\\")),
        math.log1p(prompt.count("$")),
        math.log1p(len(BRACKETS.findall(sample))),
        math.log1p(prompt.count('"')),
        math.log1p(prompt.count(",")),
        math.log1p(prompt.count(".")),
        float(prompt[:1].isupper()),
        float(end != "" and end in ".!?:"),
        math.log1p(asked),
        float(asked > 0),
        math.log1p(min(items, 100)),
        *(math.log1p(len(words.findall(lower))) for words in LENGTHS),
        math.log1p(len(lower.rstrip().rpartition("\n")[2])),
        math.log1p(len(re.split(r"[.!?]\s|\n", lower, maxsplit=1)[0])),
    ]


def _number(word: str) -> int:
    return COUNTS.get(word) or int(word)
