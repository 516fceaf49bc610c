"""From token ids to text, at once or incrementally, by way of bytes.

A token is a sequence of bytes, which may end within a character. `Spelling` finds the bytes of each
token of a tokenizer; `Detokenizer` joins them and decodes UTF-8 incrementally.
"""

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from tokenizers import Tokenizer

from weir.errors import ConfigError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte: the byte's own if it is printable, else one from
    U+0100 on (Radford et al. 2019; openai/gpt-2 encoder.py)."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in plain)
    return {byte: chr(byte) for byte in plain} | {b: chr(256 + n) for n, b in enumerate(others)}


_BYTES = {ord(character): chr(byte) for byte, character in byte_alphabet().items()}


@dataclass(slots=True)
class Spelling:
    """How a tokenizer's decoder turns a token's name into bytes."""

    byte_level: bool = False  # names are in GPT-2's alphabet
    byte_fallback: bool = False  # tokens named such as <0x0A> are bytes
    replace: list[tuple[str, str]] = field(default_factory=list)  # such as "▁" → " "
    strips: bool = False  # one space at the beginning of a text is dropped

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """Read a tokenizer's decoder. Raises `ConfigError` if it does not work token by token."""
        if tokenizer.decoder is None:
            raise ConfigError("the tokenizer has no decoder; tokenizer.json must name one")
        spelling = cls()
        spelling._read(json.loads(tokenizer.decoder.__getstate__()))
        return spelling

    def _read(self, step: dict[str, Any]) -> None:
        match step:
            case {"type": "Sequence", "decoders": steps}:
                for inner in steps:
                    self._read(inner)
            case {"type": "ByteLevel"}:
                self.byte_level = True
            case {"type": "ByteFallback"}:
                self.byte_fallback = True
            case {"type": "Replace", "pattern": {"String": old}, "content": new}:
                self.replace.append((old, new))
            case {"type": "Metaspace", "replacement": old}:
                self.replace.append((old, " "))
                self.strips = step.get("prepend_scheme") != "never"
            case {"type": "Strip", "content": " ", "start": start, "stop": 0}:
                self.strips = start > 0
            case {"type": "Fuse"}:
                pass
            case _:
                raise ConfigError(
                    f"the tokenizer's decoder {step} is not supported: only byte-level and "
                    "byte-fallback tokenizers can be decoded token by token"
                )

    def spell(self, token: str) -> bytes:
        """The bytes of a token from its name; not for added tokens, whose name is their text."""
        if self.byte_level:
            try:
                return token.translate(_BYTES).encode("latin-1")
            except UnicodeEncodeError:  # the name is not in the alphabet
                return token.encode()
        if self.byte_fallback and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        for old, new in self.replace:
            token = token.replace(old, new)
        return token.encode()

    def pieces(self, tokenizer: Tokenizer) -> list[bytes]:
        """The bytes of every token id; none for ids without a token."""
        names: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        pieces = [b""] * (max(names.values(), default=-1) + 1)
        spell = self.spell
        for name, token in names.items():
            pieces[token] = spell(name)
        for token, added in tokenizer.get_added_tokens_decoder().items():
            pieces[token] = added.content.encode()
        return pieces


class Detokenizer:
    """The text of one sequence of tokens, a few at a time.

    Bytes that may still become a character wait for the next push. Bytes that cannot become one,
    and incomplete ones at the end, give U+FFFD.
    """

    def __init__(self, pieces: Sequence[bytes], strips: bool = False):
        """pieces: the bytes of each token id. strips: drop one space at the beginning, which some
        tokenizers put before a text. False if the tokens follow others."""
        self._pieces = pieces
        self._strip = strips
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` complete. Ids beyond the vocabulary, which models pad, have none."""
        pieces = self._pieces
        size = len(pieces)
        raw = b"".join([pieces[token] for token in ids if 0 <= token < size])
        if self._strip and raw:
            self._strip = False
            raw = raw.removeprefix(b" ")
        return self._decode(raw)

    def finish(self) -> str:
        """The rest, when no more tokens come: U+FFFD for an incomplete character, or empty."""
        return self._decode(b"", True)
