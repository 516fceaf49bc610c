"""An engine in a process of its own, which is replaced when it dies or hangs."""

import asyncio
import logging
import time
from collections import deque
from typing import Any, Unpack

from msgspec.structs import replace

from weir.client.assemble import Assembly
from weir.client.base import CLOSED, Client, Options
from weir.client.ledger import Event
from weir.client.process import EngineProcess, Timeouts
from weir.errors import EngineDead
from weir.text import Text
from weir.wire import Counters, Deltas, Ready, Stats, Up

log = logging.getLogger(__name__)

SUSPECT = 2
"""Engines that died while they served a request, before it is suspected as the cause."""

FAILURES, WINDOW = 5, 60.0
"""Give up after so many engines died within so many seconds without completing a request."""

COUNTERS = Counters.__struct_fields__


class Remote(Client):
    """A `Client` of an engine process.

    When the process dies or hangs, another is started and given the live requests, in the same
    order and with the same seeds. It repeats the tokens already delivered, which are not delivered
    again; a request whose tokens differ this time ends with `finish_reason` "error". So does one
    that had delivered anything when a second engine died. Requests that had delivered nothing when
    two engines died are suspects: they are tried one by one, and the one at whose turn an engine
    dies ends with an error that says so.

    config: the argument of the engine's factory: plain data, or a Struct.
    factory: "module:function"; imported only in the engine process.
    """

    def __init__(
        self,
        config: Any,
        text: Text,
        names: list[str],
        *,
        factory: str = "weir.build:engine",
        timeouts: Timeouts | None = None,
        **options: Unpack[Options],
    ):
        super().__init__(text, names, self._post, options)
        self._config = config
        self._factory = factory
        self._timeouts = timeouts or Timeouts()
        self._engine: EngineProcess | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._failures: deque[float] = deque(maxlen=FAILURES)
        self._suspects: deque[Assembly] = deque()  # the first is on trial, the others wait
        self._past = Stats()  # what engines now gone have counted
        self.restarts = 0

    async def start(self) -> None:
        try:
            engine = await self._spawn()
        except EngineDead as error:
            self._health = f"dead: {error}"
            raise
        self._supervisor = asyncio.create_task(self._supervise(engine))

    async def close(self, drain: float = 0) -> None:
        await self._drain(drain)
        self._health = CLOSED
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
            self._supervisor = None
        if self._engine is not None:
            await self._engine.stop()
            self._engine = None

    # -- the process ---------------------------------------------------------------------------

    async def _spawn(self) -> EngineProcess:
        began = time.monotonic()
        engine = EngineProcess(self._factory, self._config, self._receive, self._timeouts)
        ready = await engine.start()
        self._start_seconds = time.monotonic() - began
        self._engine = engine
        self._welcome(ready)
        phases = ready.info.get("start_seconds", {})
        rest = self._start_seconds - sum(phases.values())
        listed = ", ".join(f"{name} {seconds:.1f}" for name, seconds in phases.items())
        log.info("engine made in %.1f s: imports %.1f, %s", self._start_seconds, rest, listed)
        about = [ready.info[name] for name in ("device", "dtype", "kernels") if name in ready.info]
        room = ready.info.get("kv_tokens", 0)
        said = "runs on %s; KV cache of %s tokens, at most %d a request"
        log.info(said, ", ".join(about), f"{room:,}", ready.context)
        return engine

    def _welcome(self, ready: Ready) -> None:
        self.model.context = ready.context
        self.model.vocab = min(self.text.vocab, ready.info.get("vocab", self.text.vocab))
        self.model.info = ready.info
        if self._health.startswith(("starting", "restarting")):
            self._health = "ready"

    async def _supervise(self, engine: EngineProcess) -> None:
        """Replace the engine each time it dies, until it dies too often."""
        while True:
            reason = await engine.ended()
            self._mourn(engine, reason)
            while True:
                if len(self._failures) == FAILURES and (
                    time.monotonic() - self._failures[0] < WINDOW
                ):
                    return self._give_up(reason)
                await asyncio.sleep(0.1 * (2 ** len(self._failures) - 1))
                try:
                    engine = await self._spawn()
                    break
                except EngineDead as error:
                    reason = str(error)
                    self._restarting(reason)
                    log.error("the engine could not be restarted: %s", reason)
                    self._failures.append(time.monotonic())
            self.restarts += 1
            self._replay()

    def _restarting(self, reason: str) -> None:
        if self._health.startswith(("ready", "restarting")):
            self._health = f"restarting: {reason}"

    def _replay(self) -> None:
        """Submit the live requests to a new engine."""
        for assembly in self._ledger.live.values():
            if assembly.replays >= SUSPECT:
                self._suspects.append(assembly)
            else:
                self._hand_over(assembly)
        if self._suspects:
            self._hand_over(self._suspects[0])

    def _acquit(self) -> None:
        """Once the suspect on trial delivers something, or is aborted, try the next."""
        while self._suspects and self._suspects[0].streamed:
            self._suspects.popleft()
            if self._suspects and not self._suspects[0].streamed:
                self._hand_over(self._suspects[0])

    def _mourn(self, engine: EngineProcess, reason: str) -> None:
        """After an engine died: decide which requests are replayed or lost, and keep its counts."""
        self._engine = None
        self._restarting(reason)
        if engine.worked:
            self._failures.clear()
        else:
            self._failures.append(time.monotonic())
        tried, *untried = self._suspects or [None]
        self._suspects.clear()
        live = list(self._ledger.live.values())
        lost = [one for one in live if one is tried or (one.streamed and one.replays)]
        log.error("%s; %d requests are replayed, %d lost", reason, len(live) - len(lost), len(lost))
        for assembly in live:
            if assembly is tried:
                self._lose(assembly, f"{reason}, as others did that were given this request")
            elif assembly.streamed and assembly.replays:
                self._lose(assembly, f"{reason}. This request was in it: send it again")
            elif assembly not in untried:
                assembly.restart()
        self._past = replace(Stats(), **{name: getattr(self._stats, name) for name in COUNTERS})
        self._stats = self._past
        self._ledger.running = 0

    def _give_up(self, reason: str) -> None:
        self._health = f"dead: {reason}"
        log.critical("%d engines died within %g s: %s", FAILURES, WINDOW, reason)
        self._lose_all(reason)

    # -- messages ------------------------------------------------------------------------------

    def _publish(self, events: list[Event], aborts: list[int]) -> None:
        super()._publish(events, aborts)
        self._acquit()

    def _post(self, message: Up) -> None:
        if self._engine is not None:
            self._engine.send(message)

    def _receive(self, message: Deltas) -> None:
        stats = message.stats
        for name in COUNTERS:
            setattr(stats, name, getattr(stats, name) + getattr(self._past, name))
        self._deliver(message.deltas, stats)
