"""The process that runs llguidance: `python -m weir.grammar.guide`. A `Guidance` starts it and
kills it if it takes too long.

llguidance may hold the interpreter's lock for milliseconds; in this process no step waits for it.
One thread opens grammars, another accepts tokens, so a slow opening delays no other request.
"""

import contextlib
import os
import pickle
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from io import BufferedIOBase
from threading import Lock

import msgspec
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from weir.errors import GrammarError
from weir.grammar.job import Close, Follow, Followed, Open
from weir.grammar.matcher import JUMP, Cutter, context, trim
from weir.grammar.process import parent, read, write
from weir.grammar.shared import Row
from weir.grammar.tokens import Tokens, Wrapped

NICE = 5
MEMORY = 8 << 30
"""Bytes of address space this process may use."""
COMPILED = 64
"""Compiled grammars kept for later requests."""


class Guide:
    """The matcher of one request's answer. matcher: in its initial state, not shared. before: the
    end of the prompt. jumps: whether forced tokens may be taken without sampling."""

    def __init__(self, matcher: LLMatcher, cutter: Cutter, before: bytes, jumps: bool, row: Row):
        self._matcher = matcher
        self._cutter = cutter
        self._pieces = cutter.pieces
        self._before = before
        self._jumps = jumps
        self._row = row
        self.complete = False

    def begin(self, most: int) -> list[int]:
        """Take the tokens with which every answer begins; none if they are more than `most`."""
        start = self._forced(b"")
        start = start if len(start) <= most else []
        self.take(start)
        return start

    def take(self, tokens: list[int]) -> None:
        """Accept tokens of the answer as they are."""
        self._consume(tokens)
        self._note(tokens)

    def follow(self, token: int) -> list[int]:
        """Accept a token. Returns the tokens that replace it."""
        tokens, piece = [token], self._pieces[token]
        self._consume(tokens)
        kept = self._forced(piece)
        if kept and kept != tokens and self._matcher.rollback(1):
            tokens = kept
            self._consume(tokens)
        self._note(tokens)
        return tokens

    def mask(self) -> None:
        """Write the mask of allowed next tokens to the shared row."""
        if not self.complete:
            self._matcher.unsafe_compute_mask_ptr(self._row.address(), self._row.size)
            self._check()

    def _consume(self, tokens: list[int]) -> None:
        if tokens and not self._matcher.consume_tokens(tokens):
            raise GrammarError(self._matcher.get_error())

    def _forced(self, piece: bytes) -> list[int]:
        """The tokens of `piece`, already accepted, and the forced text after it. The last token is
        left out, as the model might choose a longer one. Empty if they do not cover `piece`."""
        forced = self._matcher.compute_ff_bytes() if self._jumps else b""
        if not forced:
            return []
        tokens = self._cutter.cut(self._before, piece + forced[:JUMP])[:-1]
        told = sum(len(self._pieces[token]) for token in tokens)
        return tokens if told >= len(piece) else []

    def _note(self, tokens: list[int]) -> None:
        self._before = trim(self._before + b"".join(self._pieces[t] for t in tokens))
        self._check()
        self.complete = self._matcher.is_stopped()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarError(self._matcher.get_error())


class Guides:
    """Serves all matchers. engine: the stream of messages. size: token ids of the model. memory:
    descriptor of the shared masks."""

    def __init__(self, engine: BufferedIOBase, tokens: Tokens, size: int, memory: int):
        self._engine = engine
        self._cutter = Cutter(tokens.encode, tokens.pieces)
        self._size, self._memory = size, memory
        ends = sorted(end for end in tokens.ends if 0 <= end < size) or None
        wrapper = TokenizerWrapper(Wrapped(tokens, size))
        self._tokenizer = LLTokenizer(wrapper, n_vocab=size, eos_token=ends)
        self._guides: dict[int, Guide] = {}
        self._lock = Lock()
        self._compiled = lru_cache(COMPILED)(self._compile)

    def serve(self) -> None:
        """Answer messages until the engine closes the stream."""
        write(self._engine, b"")
        decoder = msgspec.msgpack.Decoder(Open | Follow | Close)
        opener = ThreadPoolExecutor(1)
        while message := read(self._engine):
            asked = decoder.decode(message)
            if isinstance(asked, Open):
                opener.submit(self._answer, asked.number, partial(self._open, asked))
            elif isinstance(asked, Follow):
                self._answer(asked.number, partial(self._follow, asked))
            else:
                self._guides.pop(asked.number, None)

    def _answer(self, number: int, work: Callable[[], tuple[Guide, list[int]]]) -> None:
        try:
            guide, tokens = work()
            guide.mask()
            self._guides[number] = guide
            followed = Followed(number, tokens, guide.complete)
        except BaseException as error:  # a panic in llguidance, too, ends only its request
            reason = str(error) if isinstance(error, GrammarError) else repr(error)
            followed = Followed(number, error=reason)
        with self._lock:
            write(self._engine, msgspec.msgpack.encode(followed))

    def _open(self, asked: Open) -> tuple[Guide, list[int]]:
        matcher = self._compiled(asked.key, asked.grammar).deep_copy()
        before = context(self._cutter.pieces, asked.prompt)
        row = Row(self._memory, asked.row, self._size)
        guide = Guide(matcher, self._cutter, before, asked.jumps, row)
        if asked.taken is None:
            return guide, guide.begin(asked.most)
        guide.take(asked.taken)
        return guide, []

    def _follow(self, asked: Follow) -> tuple[Guide, list[int]]:
        guide = self._guides[asked.number]
        return guide, guide.follow(asked.token)

    def _compile(self, key: str, grammar: str) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise GrammarError(matcher.get_error())
        return matcher


def main() -> None:
    os.nice(NICE)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    engine = parent()
    tokens, size, memory = pickle.loads(read(engine))
    sys.setswitchinterval(1e-4)
    guides = Guides(engine, tokens(), size, memory)
    with contextlib.suppress(OSError):  # the engine has ended
        guides.serve()
    os._exit(0)  # even while a grammar is being opened


if __name__ == "__main__":
    main()
