"""From token ids to text, whole or as they come, on the level of bytes.

A token is a run of bytes, which need not end where a character ends. `Spelling` reads out of a
tokenizer what bytes each token stands for; `Detokenizer` joins them and decodes UTF-8 as it goes.
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
    """GPT-2's printable stand-in for each byte: itself where printable, else U+0100 and up
    (Radford et al. 2019; openai/gpt-2 encoder.py)."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in plain)
    return {byte: chr(byte) for byte in plain} | {b: chr(256 + n) for n, b in enumerate(others)}


_BYTES = {ord(character): chr(byte) for byte, character in byte_alphabet().items()}


@dataclass(slots=True)
class Spelling:
    """How a tokenizer's decoder turns a token's name into bytes."""

    byte_level: bool = False  # GPT-2's alphabet
    byte_fallback: bool = False  # tokens named <0x0A> are bytes
    replace: list[tuple[str, str]] = field(default_factory=list)  # such as "▁" → " "
    strips: bool = False  # one space is dropped where a text begins

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        """Read the decoder. Raises `ConfigError` for one that does not work token by token."""
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
        """The bytes of a token that is not an added one (those stand for themselves)."""
        if self.byte_level:
            try:
                return token.translate(_BYTES).encode("latin-1")
            except UnicodeEncodeError:  # not written in the alphabet
                return token.encode()
        if self.byte_fallback and (byte := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        for old, new in self.replace:
            token = token.replace(old, new)
        return token.encode()

    def pieces(self, tokenizer: Tokenizer) -> list[bytes]:
        """The bytes of every token id; ids without a token stand for nothing."""
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

    Never gives out half a character: bytes that may yet become one wait for the next push. Bytes
    that cannot become one give U+FFFD, as does what is incomplete at the end.
    """

    def __init__(self, pieces: Sequence[bytes], strips: bool = False):
        """pieces: the bytes of each token id. strips: a space is dropped where the text begins, as
        where tokens do not follow others and the tokenizer puts a space before a text."""
        self._pieces = pieces
        self._strip = strips
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` complete. An id beyond the vocabulary (models pad it) has none."""
        pieces = self._pieces
        size = len(pieces)
        raw = b"".join([pieces[token] for token in ids if 0 <= token < size])
        if self._strip and raw:
            self._strip = False
            raw = raw.removeprefix(b" ")
        return self._decode(raw)

    def finish(self) -> str:
        """What is left when no more tokens come: U+FFFD for an incomplete character, or nothing."""
        return self._decode(b"", True)
