"""What `Local` and `Remote` share: submit, abort, deliver. How messages travel is theirs."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Unpack

from weir.client.assemble import Assembly
from weir.client.base import Details
from weir.client.events import Finished, ModelInfo
from weir.client.expect import Forecast, Ranker
from weir.client.ledger import Event, Ledger, Limits
from weir.client.stream import Stream
from weir.core import Delta, Grammar
from weir.errors import BadRequest, Overloaded
from weir.grammar.compiler import Compiler
from weir.params import SamplingParams
from weir.text import Text
from weir.wire import Abort, Flush, Stats, Unpin, Up

Send = Callable[[Up], None]

CLOSED = "dead: this client was closed"


class Dispatcher:
    """The half of a `Client` that does not depend on where the engine runs.

    send: hands a message to the engine at once, or drops it when there is none."""

    def __init__(
        self,
        text: Text,
        names: list[str],
        send: Send,
        limits: Limits | None,
        seed: int | None,
        compiler: Compiler | None,
        ranker: Ranker | None,
    ):
        self._compiler = compiler or Compiler()
        self.text = text
        self.model = ModelInfo(
            name=names[0], names=names, context=0, vocab=text.vocab, eos=text.eos
        )
        self._ledger = Ledger(text, self.model, limits, seed=seed)
        self.listeners: list[Callable[[Finished], None]] = self._ledger.listeners
        self.rejected: dict[str, int] = self._ledger.rejected
        self._send = send
        self._forecast = Forecast(ranker, text, send) if ranker is not None else None
        self._streams: dict[str, Stream] = {}
        self._stats = Stats()
        self._health = "starting"
        self._start_seconds = 5.0  # how long the engine takes to start, as last measured

    @property
    def stats(self) -> Stats:
        return self._stats

    @property
    def health(self) -> str:
        return self._health

    def unready(self) -> Overloaded:
        """See `Client.unready`."""
        seconds = max(1, math.ceil(self._start_seconds))
        dead = self._health.startswith("dead")
        advice = "restart the server" if dead else f"try again in {seconds} s"
        return Overloaded(f"The engine is {self._health}; {advice}.", retry_after=seconds)

    async def compile(self, params: SamplingParams) -> Grammar | None:
        """See `Client.compile`."""
        asked = params.structured_outputs
        if asked is None:
            return None
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
        """See `Client.submit`."""
        if self._health != "ready":
            self._ledger.reject("not_ready")
            raise self.unready()
        assembly = self._ledger.admit(
            prompt,
            params,
            now=time.monotonic(),
            request_id=request_id,
            grammar=grammar,
            **details,
        )
        stream = self._streams[assembly.id] = Stream(assembly, self._end)
        try:
            self._hand_over(assembly)
        except (OverflowError, TypeError, ValueError) as error:  # it cannot be written as msgpack
            self._end(assembly)
            raise BadRequest(f"the request cannot be passed to the engine: {error}") from None
        return stream

    def abort(self, request_id: str | None) -> int:
        if request_id is None:
            found = list(self._ledger.live.values())
        else:
            found = [a for a in (self._ledger.live.get(request_id),) if a is not None]
        for assembly in found:
            self._end(assembly)
        return len(found)

    def flush(self) -> None:
        self._send(Flush())

    def unpin(self, name: str) -> None:
        self._send(Unpin(name))

    async def _drain(self, seconds: float) -> None:
        """Take no more requests, wait for those in hand, and abort what is left after `seconds`."""
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
        for submit in assembly.submits:
            self._send(submit)
        if self._forecast is not None:
            self._forecast.add(assembly)

    def _end(self, assembly: Assembly, reason: str = "abort", error: str = "") -> None:
        self._publish(*self._ledger.end(assembly, reason, error))

    def _deliver(self, deltas: list[Delta], stats: Stats) -> None:
        """Take in what a step of the engine brought."""
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
