"""The frontend's view of an engine, wherever it runs.

`Client` checks, submits, aborts and delivers requests. `Local` and `Remote` carry the messages.
"""

import asyncio
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypedDict, Unpack

from weir.client.assemble import Assembly
from weir.client.events import ModelInfo
from weir.client.expect import Forecast, LengthListener, Ranker
from weir.client.ledger import Event, Ledger, Limits
from weir.client.stream import Stream
from weir.core import Delta, Grammar
from weir.errors import BadRequest, Overloaded
from weir.grammar.compiler import Compiler
from weir.params import SamplingParams
from weir.ranker.log import LengthLog
from weir.text import Text
from weir.wire import Abort, Flush, Stats, Unpin, Up

CLOSED = "dead: this client was closed"


class Details(TypedDict, total=False):
    """Optional details of a request besides its prompt and `SamplingParams`."""

    priority: int  # smaller goes first; default 0
    user: str
    program: str  # the program of many calls it belongs to; its branch after a slash
    pool: str | None  # "mean" or "last": a vector instead of an answer
    add_special_tokens: bool  # default true


class Options(TypedDict, total=False):
    """Options of a client besides its engine and `Text`."""

    limits: Limits | None
    seed: int | None  # for drawing the seeds of requests without one; default: from the system
    compiler: Compiler
    ranker: Ranker | None
    lengths: LengthLog | None  # that lengths of answers are added to
    sampling: SamplingParams  # defaults of requests


class Client(ABC):
    """The frontend's view of an engine. Use it on one event loop only, never from other threads.

    `model` describes what is served, its `context` and `info` once started. `listeners` are called
    when a request has ended. `rejected` counts refused requests by reason.

    send: passes a message to the engine at once, or drops it if there is none."""

    def __init__(
        self,
        text: Text,
        names: list[str],
        send: Callable[[Up], None],
        options: Options,
    ):
        self._compiler = options.get("compiler") or Compiler()
        self.text = text
        self.model = ModelInfo(names[0], names, context=0, vocab=text.vocab, eos=text.eos)
        self.model.sampling = options.get("sampling") or self.model.sampling
        self._ledger = Ledger(text, self.model, options.get("limits"), seed=options.get("seed"))
        self.listeners: list[Callable[[Assembly], None]] = self._ledger.listeners
        self.rejected: dict[str, int] = self._ledger.rejected
        self._send = send
        ranker = options.get("ranker")
        self._forecast = Forecast(ranker, text, send) if ranker is not None else None
        if self._forecast is not None:
            self.listeners.append(self._forecast.settle)
        if (lengths := options.get("lengths")) is not None:
            self.listeners.append(LengthListener(text, self.model.name, lengths))
        self._streams: dict[str, Stream] = {}
        self._stats = Stats()
        self._health = "starting"
        self._start_seconds = 5.0  # how long the engine takes to start, as last measured

    @abstractmethod
    async def start(self) -> None:
        """Return once the engine is ready. Raises `EngineDead`, which says why it cannot start."""

    @abstractmethod
    async def close(self, drain: float = 0) -> None:
        """Accept no more requests, give live ones `drain` seconds, abort the rest and close."""

    @property
    def stats(self) -> Stats:
        """The engine's latest report."""
        return self._stats

    @property
    def health(self) -> str:
        """One of "ready", "starting", "restarting: why", "draining" and "dead: why"."""
        return self._health

    @property
    def ranking(self) -> dict[str, float]:
        """Kendall's tau-b of predicted lengths, by predictor; empty until enough answers ended."""
        return self._forecast.taus if self._forecast is not None else {}

    def unready(self) -> Overloaded:
        """The error for requests that arrive while none is accepted: why, and when to retry."""
        if self._health == CLOSED:
            return Overloaded("This client was closed: make another.", retry_after=0)
        dead = self._health.startswith("dead")
        seconds = 0 if dead else max(1, math.ceil(self._start_seconds))
        advice = "restart it" if dead else f"try again in {seconds} s"
        return Overloaded(f"The engine is {self._health}; {advice}.", retry_after=seconds)

    async def compile(self, params: SamplingParams) -> Grammar | None:
        """The compiled grammar of `params`, which `submit` needs; None if they have none.

        May take seconds, without blocking others. Raises `BadRequest`, which says what is not
        supported, and `Overloaded` once this client was closed.
        """
        asked = params.structured_outputs
        if asked is None:
            return None
        if self._health == CLOSED:
            raise self.unready()
        try:
            known = self._compiler.known(asked)
            if known is not None:
                return known
            return await asyncio.wrap_future(self._compiler.submit(asked))
        except BadRequest:
            self._ledger.reject("grammar")
            raise

    def submit(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        grammar: Grammar | None = None,
        **details: Unpack[Details],
    ) -> Stream:
        """Check everything at once and hand the request to the engine; never waits for it.

        Raises `BadRequest` (too long, ids out of range, a request id in use) and `Overloaded`
        (queue full, engine starting, restarting, draining or dead).
        """
        if self._health != "ready":
            self._ledger.reject("not_ready")
            raise self.unready()
        assembly = self._ledger.admit(
            prompt, params, now=time.monotonic(), request_id=request_id, grammar=grammar, **details
        )
        stream = self._streams[assembly.id] = Stream(assembly, self._end)
        try:
            self._hand_over(assembly)
        except (OverflowError, TypeError, ValueError) as error:  # it cannot be written as msgpack
            self._end(assembly)
            raise BadRequest(f"the request cannot be passed to the engine: {error}") from None
        return stream

    def abort(self, request_id: str | None, error: str = "") -> int:
        """Abort one request, or all if None; returns how many were live.

        error: if nobody asked to abort, the reason; `finish_reason` is "error" then."""
        live = self._ledger.live
        found = list(live.values() if request_id is None else filter(None, [live.get(request_id)]))
        for assembly in found:
            self._end(assembly, "error" if error else "abort", error)
        return len(found)

    def flush(self) -> None:
        """Drop every cached prefix that no request uses."""
        self._send(Flush())

    def unpin(self, name: str) -> None:
        """Unpin the prefix that a request pinned under this name."""
        self._send(Unpin(name))

    async def _drain(self, seconds: float) -> None:
        """Accept no more requests, wait for live ones, and abort what is left after `seconds`."""
        if not self._health.startswith("dead"):
            self._health = "draining"
        deadline = time.monotonic() + seconds
        while self._ledger.live and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        self.abort(None)
        self._compiler.close()
        if self._forecast is not None:
            self._forecast.close()

    def _hand_over(self, assembly: Assembly) -> None:
        for choice in assembly.choices:
            if choice.finish_reason is None:
                self._send(choice.submit)
        if self._forecast is not None:
            self._forecast.add(assembly)

    def _end(self, assembly: Assembly, reason: str = "abort", error: str = "") -> None:
        self._publish(*self._ledger.end(assembly, reason, error))

    def _deliver(self, deltas: list[Delta], stats: Stats) -> None:
        """Process the deltas of an engine step."""
        self._stats = stats
        self._ledger.running = stats.running
        self._publish(*self._ledger.settle(deltas, time.monotonic()))

    def _publish(self, events: list[Event], aborts: list[int]) -> None:
        for assembly, output in events:
            self._streams[assembly.id].put(output)
        for assembly, _ in events:
            if assembly.finished:
                self._streams.pop(assembly.id, None)
        if aborts:
            self._send(Abort(aborts))

    def _lose(self, assembly: Assembly, reason: str) -> None:
        """End a request whose engine is gone."""
        stream = self._streams.get(assembly.id)
        if stream is not None:
            stream.die(reason)
        self._end(assembly, "error", reason)

    def _lose_all(self, reason: str) -> None:
        for assembly in list(self._ledger.live.values()):
            self._lose(assembly, reason)
