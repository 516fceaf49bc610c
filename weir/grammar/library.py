"""The compiled grammars of an engine, from which it opens a matcher for each request.

Vocabulary and tokenizer live in the engine's process because masks and forced tokens are needed
between steps. A thread reads them while the engine starts. All slow work runs on threads: a request
waits for its grammar, a step never does.
"""

import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread

from weir.core import Grammar, Matcher
from weir.grammar.automaton import Automaton
from weir.grammar.guidance import Guidance
from weir.grammar.matcher import AutomatonMatcher, Cutter, context
from weir.grammar.patience import Patience
from weir.grammar.thought import ThoughtMatcher
from weir.grammar.tokens import Tokens
from weir.grammar.vocabulary import Masks, Vocabulary
from weir.linux import cores
from weir.ops import native

KEPT = 256
"""Opened grammars kept for later requests."""
PROCESSES = 4
"""Most llguidance processes, however many cores there are."""
FEW = 8
"""Matchers that one process holds before the next process is used."""
SWITCH = 1e-4
"""Seconds after which a thread gives the interpreter's lock back to the engine's thread, which asks
for it after each call that released it."""


class Library:
    """tokens: reads the tokenizer; runs on a thread of the library and in other processes, so it
    must be picklable. size: token ids of the model. seconds: time limit for opening a grammar.
    processes: llguidance processes, each started when needed; 0: one per four cores."""

    def __init__(
        self,
        tokens: Callable[[], Tokens],
        size: int,
        seconds: float = 10.0,
        processes: int = 0,
    ):
        sys.setswitchinterval(min(SWITCH, sys.getswitchinterval()))
        self._pool = ThreadPoolExecutor(1, "weir-grammar")  # one thread: jobs run in order
        self._patience = Patience()
        self.jumps = True  # False: to measure the gain of jumps
        self._size = size
        self._known: OrderedDict[str, Future[Masks]] = OrderedDict()
        self._vocabulary = self._pool.submit(self._read, tokens)
        Thread(target=native.library, daemon=True).start()  # walks are faster once it is compiled
        processes = processes or max(1, min(PROCESSES, cores() // 4))
        self._guidances = [
            Guidance(tokens, size, self._patience, seconds) for _ in range(processes)
        ]

    def open(
        self, grammar: Grammar, prompt: Sequence[int], most: int, jumps: bool
    ) -> Future[Matcher]:
        """A matcher for one request; done at once if the grammar is compiled here. most: limit of
        forced initial tokens. jumps: whether forced tokens may be taken without sampling."""
        thought, jumps = grammar.thought, jumps and self.jumps
        if thought is None:
            return self._opened(grammar, prompt, most, jumps)
        if thought.begin is None:
            prompt = [*prompt, thought.end, *thought.then]
        opened = self._opened(grammar, prompt, most if thought.begin is None else 0, jumps)
        thinking: Future[Matcher] = Future()

        def follow(_: Future[Matcher]) -> None:
            try:
                free = self._vocabulary.result()[0].free
                thinking.set_result(ThoughtMatcher(opened.result(), thought, free, jumps))
            except Exception as error:
                thinking.set_exception(error)

        opened.add_done_callback(follow)
        return thinking

    def _opened(
        self, grammar: Grammar, prompt: Sequence[int], most: int, jumps: bool
    ) -> Future[Matcher]:
        if grammar.kind == "guidance":
            least = min(self._guidances, key=lambda one: one.live // FEW)  # of equals the first
            return least.open(grammar, prompt, most, jumps)
        if grammar.key not in self._known:
            self._known[grammar.key] = self._pool.submit(self._compile, grammar)
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        compiled = self._known[grammar.key]
        self._known.move_to_end(grammar.key)
        if compiled.done():
            opened: Future[Matcher] = Future()
            try:
                opened.set_result(self._open(compiled, prompt, most, jumps))
            except Exception as error:
                opened.set_exception(error)
            return opened
        return self._pool.submit(self._open, compiled, prompt, most, jumps)

    def renew(self, seconds: float = 0.0) -> None:
        """Begin a step, which may wait `seconds` for masks. The tokens of the previous step are
        sent only now, after they were reported: their receiver may take this thread's core."""
        self._patience.renew(seconds)
        for guidance in self._guidances:
            guidance.receive()

    def hurry(self) -> None:
        """Stop waiting because the step is about to report its tokens; jumps go to the next."""
        self._patience.end()

    def forget(self) -> None:
        """Drop the opened grammars."""
        self._known.clear()

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for guidance in self._guidances:
            guidance.close()

    # -- on threads ----------------------------------------------------------------------------

    def _read(self, tokens: Callable[[], Tokens]) -> tuple[Vocabulary, Cutter]:
        read = tokens()
        return Vocabulary(read.pieces, self._size, read.ends), Cutter(read.encode, read.pieces)

    def _compile(self, grammar: Grammar) -> Masks:
        masks = Masks(Automaton.decode(grammar.data), self._vocabulary.result()[0])
        masks.mask(masks.automaton.start)
        return masks

    def _open(
        self, compiled: Future[Masks], prompt: Sequence[int], most: int, jumps: bool
    ) -> Matcher:
        vocabulary, cutter = self._vocabulary.result()
        before = context(vocabulary.pieces, prompt)
        cuts = cutter if jumps else None
        return AutomatonMatcher(compiled.result(), self._patience, cuts, before, most)
