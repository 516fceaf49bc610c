"""The state of one request's answer in an automaton, which equal grammars share.

Forced bytes are jumped: tokenized together with the token before them, as the tokenizer would
tokenize the whole text. A jump takes only tokens with which no longer token competes and leaves the
rest to the model, so it decides nothing that the model could have decided otherwise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from weir.errors import GrammarError
from weir.grammar.automaton import DEAD
from weir.grammar.patience import Patience
from weir.grammar.vocabulary import Masks

JUMP = 64
"""Most bytes of a jump, so that none delays a step; the rest follows in the next."""
CONTEXT = 48
"""Bytes before a jump that are tokenized with it."""


@dataclass(frozen=True, slots=True, eq=False)
class Cutter:
    """Tokenizes forced text. encode: text to token ids, without special tokens. pieces: the bytes
    of each token id."""

    encode: Callable[[str], Sequence[int]]
    pieces: Sequence[bytes]

    def cut(self, before: bytes, text: bytes) -> list[int]:
        """The tokens of `text` after `before`; empty if no token begins where `text` does. An
        incomplete character at the end is left out."""
        text = whole(text)
        joined = self._encode(before, text)
        return joined if joined or not before else self._encode(b"", text)

    def _encode(self, before: bytes, text: bytes) -> list[int]:
        try:
            tokens = list(self.encode((before + text).decode()))
        except UnicodeDecodeError:
            return []
        pieces = [self.pieces[token] for token in tokens]
        joined = b"".join(pieces)
        extra = len(joined) - len(before) - len(text)  # a space that some tokenizers prepend
        if joined[extra:] != before + text or extra not in (0, 1):
            return []
        at = 0
        for index, piece in enumerate(pieces):
            if at == len(before) + extra:
                return tokens[index:]
            at += len(piece)
        return []


def whole(text: bytes) -> bytes:
    """`text` without an incomplete character at its end."""
    for back in range(1, min(4, len(text) + 1)):
        if text[-back] >= 0xC0:
            lead = text[-back]
            needed = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return text[:-back] if needed > back else text
        if text[-back] < 0x80:
            break
    return text


def context(pieces: Sequence[bytes], tokens: Sequence[int]) -> bytes:
    """The last bytes of a prompt: from a character boundary, and after the last special token."""
    found = b""
    for token in reversed(tokens):
        piece = pieces[token] if token < len(pieces) else b""
        if not piece or len(found) >= CONTEXT:
            break
        found = piece + found
    return trim(found)


def trim(text: bytes) -> bytes:
    """The last `CONTEXT` bytes, from a character boundary on."""
    text = text[-CONTEXT:]
    while text and 0x80 <= text[0] < 0xC0:
        text = text[1:]
    return text


class AutomatonMatcher:
    """before: the last bytes of the prompt. most: limit of forced initial tokens. cutter: None:
    never jump."""

    def __init__(
        self,
        masks: Masks,
        patience: Patience,
        cutter: Cutter | None,
        before: bytes = b"",
        most: int = 0,
    ):
        self._masks = masks
        self._patience = patience
        self._automaton = masks.automaton
        self._pieces = masks.vocabulary.pieces
        self._cutter = cutter
        self._before = before
        self._state = self._automaton.start
        self._most = most
        self._next: bytes | None = None  # the next mask, once computed
        self.complete = False

    def begin(self) -> list[int]:
        forced = self._automaton.force(self._state, JUMP)
        if not forced or self._cutter is None:
            return []
        whole = self._cutter.cut(trim(self._before), forced)
        tokens = self._kept(whole, self._state, len(forced), 0)
        text = self._text(tokens)
        state = self._automaton.run(text, self._state)
        if len(tokens) > self._most or self._automaton.accepting[state]:
            return []  # the model must sample at least one token
        self._take(text, state)
        return tokens

    def mask(self, alone: bool = False) -> bytes | None:
        if self._next is None:
            self._next = self._masks.known(self._state)
        if self._next is None:
            self._next = self._patience.make(partial(self._masks.mask, self._state), alone)
        return self._next

    def advance(self, token: int, alone: bool = False) -> list[int] | None:
        after = self._masks.after(self._state, token)
        if after == DEAD:
            raise GrammarError(f"token {token} does not fit the grammar")
        if self._cutter is not None and self._automaton.forced[after] >= 0:
            jump = partial(self._jump, self._cutter, token, after)
            return self._patience.make(jump, alone)
        self._take(self._pieces[token], after)
        return [token]

    def _jump(self, cutter: Cutter, token: int, after: int) -> list[int]:
        """Accept a token that leads to the state `after`, with the forced text that follows."""
        start, piece = self._state, self._pieces[token]
        forced = self._automaton.force(after, JUMP)
        whole = cutter.cut(trim(self._before), piece + forced)
        kept = self._kept(whole, start, len(piece) + len(forced), 1)
        text = self._text(kept)
        if len(text) >= len(piece):
            self._take(text, self._automaton.run(text, start))
            return kept
        self._take(piece, after)
        return [token]

    def _text(self, tokens: list[int]) -> bytes:
        return b"".join(self._pieces[token] for token in tokens)

    def _take(self, text: bytes, state: int) -> None:
        self._state = state
        self._before = (self._before + text)[-CONTEXT:]
        self.complete = bool(self._automaton.final[state])
        self._next = b"" if self.complete else None

    def _kept(self, tokens: list[int], state: int, length: int, free: int) -> list[int]:
        """The tokens of `length` forced bytes up to the first that the model might replace by one
        that extends beyond them. The first `free` tokens are not checked."""
        for index, token in enumerate(tokens):
            if index >= free and self._masks.outgrown(state, length):
                return tokens[:index]
            state = self._automaton.run(self._pieces[token], state)
            length -= len(self._pieces[token])
        return tokens
