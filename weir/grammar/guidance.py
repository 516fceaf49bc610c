"""llguidance in a separate process, for grammars that no finite automaton can match.

The engine's thread sends a token to the process and goes on; a later step reads the answer. A
process that takes too long is killed, one that died is restarted, and matchers are reopened in
their states. Only the request that caused it ends. This module does not call llguidance.
"""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from weakref import WeakValueDictionary, finalize

import msgspec

from weir.core import Grammar, Matcher
from weir.errors import GrammarError
from weir.grammar.job import Close, Follow, Followed, Open
from weir.grammar.matcher import CONTEXT
from weir.grammar.patience import Patience
from weir.grammar.process import Process
from weir.grammar.shared import Row, Rows
from weir.grammar.tokens import Tokens

START = 60.0
"""Seconds that the process may take to start; not part of a grammar's time."""
FOLLOWING = 5.0
"""Seconds that one token may take: hundreds of times the slowest observed."""
DEATHS = 2
"""Deaths of the process at work on a matcher until that matcher is considered the cause."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Followed).decode


class GuidedMatcher:
    """opened: the message with which the process opens or reopens it. row: receives its masks."""

    def __init__(self, guidance: Guidance, opened: Open, row: Row):
        self._guidance = guidance
        self.opened = opened
        self._row = row
        self.deaths = 0  # of processes that were at work on it
        self.error = ""  # why it cannot go on
        self.complete = False
        self._mask = b""
        self._call: Call | None = None

    def begin(self) -> list[int]:
        return list(self.opened.taken or [])

    def mask(self, alone: bool = False) -> bytes:
        return self._mask

    def advance(self, token: int, alone: bool = False) -> list[int] | None:
        call = self._call
        if call is None and not self.error:
            self._call = self._guidance.follow(self, token)
            return None
        if call is not None and not call.done:
            self._guidance.wait(call, alone)
        if self.error or call is None:
            raise GrammarError(self.error)
        if not call.done:
            return None
        self._call = None
        return call.tokens

    def note(self, followed: Followed) -> None:
        """Adopt the new state from the process."""
        if self.opened.taken is None:
            self.opened.taken = []
        self.opened.taken += followed.tokens
        self.complete = followed.complete
        self._mask = b"" if followed.complete else self._row.read()


@dataclass(slots=True)
class Call:
    """A call to the process. token: None: open the matcher. opened: completed once it is open."""

    matcher: GuidedMatcher
    token: int | None = None
    opened: Future[Matcher] | None = None
    since: float = field(default_factory=time.monotonic)
    tokens: list[int] = field(default_factory=list)  # once done, what replaces `token`
    done: bool = False


@dataclass(slots=True)
class Lane:
    """Calls that the process executes in order, one at a time."""

    seconds: float  # time limit of one call
    calls: dict[int, Call] = field(default_factory=dict)  # by matcher, oldest first
    heard: float = 0.0  # when it last answered a call or became ready

    @property
    def hand(self) -> Call | None:
        return next(iter(self.calls.values()), None)


class Guidance:
    """Used from one thread. tokens: reads the tokenizer; runs in the process, so it must be
    picklable. size: token ids of the model. seconds: time limit for opening a grammar."""

    def __init__(self, tokens: Callable[[], Tokens], size: int, patience: Patience, seconds: float):
        self._size = size
        self._patience = patience
        self._rows = Rows(size)
        self._orders = pickle.dumps((tokens, size, self._rows.memory))
        self._opening, self._following = self._lanes = Lane(seconds), Lane(FOLLOWING)
        self._process: Process | None = None
        self._numbers = count()
        self._matchers: WeakValueDictionary[int, GuidedMatcher] = WeakValueDictionary()
        self._anew: set[int] = set()  # matchers that a new process must still reopen
        self._held: list[Call] = []  # calls sent after that: if it dies before, the cause is known
        self._gone: deque[tuple[int, int]] = deque()  # numbers and rows of collected matchers

    def open(
        self, grammar: Grammar, prompt: Sequence[int], most: int, jumps: bool
    ) -> Future[Matcher]:
        """See `Library.open`."""
        row, number = self._rows.take(), next(self._numbers)
        end = list(prompt[-CONTEXT:])
        text = grammar.data.decode()
        opened = Open(number, row.number, grammar.key, text, end, most, jumps)
        matcher = GuidedMatcher(self, opened, row)
        finalize(matcher, self._gone.append, (number, row.number)).atexit = False
        process = self._started()
        self._matchers[number] = matcher
        told: Future[Matcher] = Future()
        self._open(process, Call(matcher, opened=told))
        return told

    def follow(self, matcher: GuidedMatcher, token: int) -> Call:
        """Advance by a token and get the tokens that replace it. The next `receive` sends the
        call."""
        call, process = Call(matcher, token), self._started()
        if self._anew:
            self._held.append(call)
        else:
            self._follow(process, call)
        return call

    @property
    def live(self) -> int:
        """Number of matchers in use."""
        return len(self._matchers)

    def wait(self, call: Call, alone: bool) -> None:
        """See `Patience.wait`."""
        self._patience.wait(call, alone, partial(self._wait, call))

    def receive(self, seconds: float = 0.0) -> None:
        """Send queued calls and process answers; waits at most `seconds` for one. Kills a process
        that takes too long and restarts one that has died."""
        process = self._process
        while self._gone:
            number, row = self._gone.popleft()
            self._rows.give_back(row)
            if process is not None:
                process.send(_encode(Close(number)))
        if process is None:
            return
        try:
            messages = process.receive(seconds)
        except OSError:
            return self._died()
        now = time.monotonic()
        for message in messages:
            self._answered(process, message, now)
        for lane in self._lanes:
            call = lane.hand
            if call is not None and now - max(call.since, lane.heard) > lane.seconds:
                del lane.calls[call.matcher.opened.number]
                self._fail(call, f"it takes more than {lane.seconds:g} s")
                return self._replace()

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.stop()
        self._rows.close()

    def _started(self) -> Process:
        """The process. A new one reopens the matchers of the previous one."""
        if self._process is None:
            self._process = Process("weir.grammar.guide", [self._rows.memory])
            self._process.send(self._orders)
            opening = self._opening.calls
            self._held += self._following.calls.values()
            for lane in self._lanes:
                lane.calls, lane.heard = {}, time.monotonic() + START
            for number, matcher in list(self._matchers.items()):
                self._open(self._process, opening.get(number) or Call(matcher))
            self._anew = set(self._opening.calls)
        return self._process

    def _open(self, process: Process, call: Call) -> None:
        self._opening.calls[call.matcher.opened.number] = call
        process.send(_encode(call.matcher.opened))

    def _follow(self, process: Process, call: Call) -> None:
        assert call.token is not None
        number, call.since = call.matcher.opened.number, time.monotonic()
        self._following.calls[number] = call
        process.queue(_encode(Follow(number, call.token)))

    def _wait(self, call: Call, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not call.done and (left := deadline - time.monotonic()) > 0:
            self.receive(left)

    def _answered(self, process: Process, message: bytes, now: float) -> None:
        if not message:  # the process is ready
            self._opening.heard = self._following.heard = now
            return
        followed = _decode(message)
        lane = self._opening if followed.number in self._opening.calls else self._following
        call, lane.heard = lane.calls.pop(followed.number), now
        if followed.error:
            self._fail(call, followed.error)
        else:
            call.matcher.note(followed)
            call.tokens, call.done = followed.tokens, True
            if call.opened is not None:
                call.opened.set_result(call.matcher)
        self._anew.discard(followed.number)
        if self._held and not self._anew:
            for call in self._held:
                self._follow(process, call)
            self._held = []

    def _fail(self, call: Call, why: str) -> None:
        """End a matcher with an error."""
        matcher = call.matcher
        matcher.error = why if call.token is None else f"the grammar cannot go on: {why}"
        self._matchers.pop(matcher.opened.number, None)
        for one in (call, *self._held):
            one.done = one.done or one.matcher is matcher
        self._held = [held for held in self._held if not held.done]
        if call.opened is not None:
            call.opened.set_exception(GrammarError(why))

    def _died(self) -> None:
        """The process died. Ends matchers it too often died at; all, if it was never ready."""
        ready = self._opening.heard <= time.monotonic()
        for lane in self._lanes:
            if (call := lane.hand) is not None:
                call.matcher.deaths += 1
            for number, call in list(lane.calls.items()):
                if not ready or call.matcher.deaths >= DEATHS:
                    del lane.calls[number]
                    self._fail(call, "the process that follows it has died")
        self._replace()

    def _replace(self) -> None:
        """Stop the process, and start another if calls are pending."""
        assert self._process is not None
        self._process.stop()
        self._process = None
        if self._opening.calls or self._following.calls or self._held:
            self._started()
