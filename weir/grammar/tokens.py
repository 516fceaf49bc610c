"""What grammars need of a tokenizer. Imports nothing: servers that compute nothing name it too."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a tokenizer says. ends: ids that end an answer."""

    pieces: Sequence[bytes]
    ends: Iterable[int]
    encode: Callable[[str], Sequence[int]]


class Wrapped:
    """The tokens as llguidance reads them. size: ids the model has."""

    bos_token_id = None

    def __init__(self, tokens: Tokens, size: int):
        known = [*tokens.pieces[:size], *[b""] * (size - len(tokens.pieces))]
        ends = {end for end in tokens.ends if 0 <= end < size}
        self.eos_token_id = min(ends, default=size - 1)
        self.special_token_ids = [t for t in range(size) if not known[t] or t in ends]
        special = set(self.special_token_ids)
        self.tokens = [b"\xff<%d>" % t if t in special else known[t] for t in range(size)]
        self._encode = tokens.encode

    def __call__(self, text: str) -> list[int]:
        return list(self._encode(text))
