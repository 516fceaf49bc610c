"""A small vocabulary, which a process that follows grammars can read, too."""

import os
import time

from weir.grammar.tokens import Tokens

WORDS = [
    '{"',
    '":',
    '": ',
    ', "',
    '"}',
    "na",
    "name",
    "age",
    "me",
    "ag",
    " [",
    "é",
    "12",
    "true",
    "  ",
]
PIECES = [bytes([byte]) for byte in range(256)] + [b""] + [word.encode() for word in WORDS]
END = 256
SIZE = len(PIECES) + 3
PANIC, CRASH, HANG = "panic", "crash", "hang"
"""Texts that cannot be cut into tokens without harm to the process that does it."""
BY_LENGTH = sorted(range(257, len(PIECES)), key=lambda token: -len(PIECES[token]))


def encode(text: str) -> list[int]:
    """The longest piece that fits, again and again."""
    data, tokens = text.encode(), []
    if text.endswith(PANIC):
        raise BaseException("in another language")
    if text.endswith(CRASH):
        os._exit(1)
    while text.endswith(HANG):
        time.sleep(1)
    while data:
        token = next((t for t in BY_LENGTH if data.startswith(PIECES[t])), data[0])
        tokens.append(token)
        data = data[len(PIECES[token]) :]
    return tokens


def tokens() -> Tokens:
    return Tokens(PIECES, [END], encode)
