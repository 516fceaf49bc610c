"""llguidance behind the matcher: for grammars that no finite automaton holds.

It is called beside the engine's thread alone: what takes long makes its own request wait. Compiling
and masks release the interpreter's lock; taking a token in holds it (docs/structured.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from weir.errors import GrammarError
from weir.grammar.beside import Beside
from weir.grammar.matcher import JUMP, Cutter, trim
from weir.grammar.vocabulary import Vocabulary


class _Tokens:
    """The vocabulary as llguidance reads it."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, encode: Callable[[str], Sequence[int]]):
        size, pieces = vocabulary.size, vocabulary.pieces
        known = [pieces[t] if t < len(pieces) else b"" for t in range(size)]
        ends = set(vocabulary.ends)
        self.eos_token_id = vocabulary.ends[0] if vocabulary.ends else size - 1
        self.special_token_ids = [t for t in range(size) if not known[t] or t in ends]
        special = set(self.special_token_ids)
        self.tokens = [b"\xff<%d>" % t if t in special else known[t] for t in range(size)]
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        return list(self._encode(text))


class Guidance:
    """llguidance for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary, cutter: Cutter):
        self.vocabulary = vocabulary
        self.cutter = cutter
        wrapper = TokenizerWrapper(_Tokens(vocabulary, cutter.encode))
        ends = vocabulary.ends or None
        self._tokenizer = LLTokenizer(wrapper, n_vocab=vocabulary.size, eos_token=ends)

    def compile(self, grammar: str) -> LLMatcher:
        """Raises `GrammarError` saying why it cannot."""
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise GrammarError(matcher.get_error())
        return matcher


class GuidedMatcher:
    """matcher: at its start, and this request's own. cutter: None: never jump. most: tokens with
    which it may begin. May take long to make.

    One job at a time has the matcher: after each token it is taken in, what must follow is looked
    up, and the next mask is made."""

    def __init__(
        self,
        matcher: LLMatcher,
        vocabulary: Vocabulary,
        beside: Beside,
        cutter: Cutter | None,
        before: bytes,
        most: int,
    ):
        self._matcher = matcher
        self._pieces = vocabulary.pieces
        self._size = vocabulary.mask_bytes
        self._beside = beside
        self._cutter = cutter
        self._before = before
        self.complete = False
        start = self._forced(b"")
        self._start = start if len(start) <= most else []
        if self._start:
            self._consume(self._start)
        self._note(self._start)
        self._mask = self._compute()
        self._job: Future[tuple[list[int], bytes]] | None = None

    def begin(self) -> list[int]:
        return self._start

    def mask(self, alone: bool = False) -> bytes:
        return self._mask

    def advance(self, token: int, alone: bool = False) -> list[int] | None:
        if self._job is None:
            self._job = self._beside.start(partial(self._follow, token))
            return None
        followed = self._beside.take(self._job, alone)
        if followed is None:
            return None
        self._job = None
        tokens, self._mask = followed
        return tokens

    def _follow(self, token: int) -> tuple[list[int], bytes]:
        """What stands in place of a token, and the mask after it."""
        try:
            return self._place(token), self._compute()
        except GrammarError:
            raise
        except BaseException as error:  # a panic of llguidance's too ends its request alone
            raise GrammarError(f"the grammar cannot go on: {error!r}") from None

    def _place(self, token: int) -> list[int]:
        tokens, piece = [token], self._pieces[token]
        self._consume(tokens)
        kept = self._forced(piece)
        if kept and kept != tokens and self._matcher.rollback(1):
            tokens = kept
            self._consume(tokens)
        self._note(tokens)
        return tokens

    def _consume(self, tokens: list[int]) -> None:
        if not self._matcher.consume_tokens(tokens):
            raise GrammarError(f"the grammar cannot go on: {self._matcher.get_error()}")

    def _forced(self, piece: bytes) -> list[int]:
        """Tokens of `piece`, which has been taken in, and what must follow it, without the last
        one, which the model might choose longer; empty if that says no more than `piece`."""
        if self._cutter is None:
            return []
        forced = self._matcher.compute_ff_bytes()
        if not forced:
            return []
        tokens = self._cutter.cut(self._before, piece + forced[:JUMP])[:-1]
        told = sum(len(self._pieces[token]) for token in tokens)
        return tokens if told >= len(piece) else []

    def _note(self, tokens: list[int]) -> None:
        self._before = trim(self._before + b"".join(self._pieces[t] for t in tokens))
        self._check()
        self.complete = self._matcher.is_stopped()

    def _compute(self) -> bytes:
        if self.complete:
            return b""
        mask = bytes(self._matcher.compute_bitmask()[: self._size])
        self._check()
        return mask

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(f"the grammar cannot go on: {self._matcher.get_error()}")
