"""What grammars need from a tokenizer. Imports nothing, as servers without an engine import it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tokens:
    """pieces: the bytes of each token id. ends: ids that end an answer. encode: text to ids."""

    pieces: Sequence[bytes]
    ends: Iterable[int]
    encode: Callable[[str], Sequence[int]]


class Wrapped:
    """The tokens in llguidance's interface. size: token ids of the model."""

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
