"""What a frontend sees of the engine: values that describe a request's life, and the `Client` protocol.

Nothing here knows pages, plans or where the engine runs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from msgspec import Struct

from weir.params import SamplingParams
from weir.wire import Stats


class ModelInfo(Struct):
    """What a frontend may know of the model."""

    name: str  # shown to callers: the first of `names`
    names: list[str]  # all that are accepted
    context: int  # longest sequence, prompt and answer together
    vocab: int
    eos: list[int]
    info: dict[str, Any] = {}  # device, dtype, kernels, start-up seconds: for /server_info


class Logprob(Struct):
    """One position, with text. Entries of `top` have an empty `top` themselves."""

    token_id: int
    token: str
    bytes: list[int]
    logprob: float
    rank: int  # 1: the most likely
    top: list[Logprob] = []


class Output(Struct):
    """One event of one choice: what is new since its last event."""

    index: int = 0
    text: str = ""  # held back while it could begin a stop string or is half a character
    token_ids: list[int] = []
    logprobs: list[Logprob] | None = None  # one a token id, when asked for
    finish_reason: str | None = None  # "stop", "length", "abort", "error": once a choice, at its end
    stop_reason: int | str | None = None  # the stop token id or string that matched; None: EOS
    error: str = ""  # with finish_reason "error": what happened and what to do


class Completion(Output):
    """One choice read to its end: all its events as one."""

    def add(self, output: Output) -> None:
        self.text += output.text
        self.token_ids.extend(output.token_ids)
        if output.logprobs is not None:
            self.logprobs = (self.logprobs or []) + output.logprobs
        if output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            self.stop_reason = output.stop_reason
            self.error = output.error


class Usage(Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0  # over all choices
    cached_tokens: int = 0  # prompt tokens found in the cache


class Timing(Struct):
    """Seconds of `time.monotonic()`, one clock for server and engine; -1: not yet."""

    arrival: float = -1.0
    started: float = -1.0  # first admitted by the scheduler
    first: float = -1.0  # first token
    last: float = -1.0  # latest token


class Finished(Struct):
    """A request that has ended, all choices of it: for metrics, logs and traces."""

    id: str
    usage: Usage
    timing: Timing
    gaps: list[float]  # seconds between successive token events of a choice
    finish_reasons: list[str]  # one a choice
    error: str = ""
    user: str = ""
    priority: int = 0
    preempted: int = 0
    max_tokens: int | None = None  # as asked
    replays: int = 0  # times it was given to a new engine after one died


class Stream(Protocol):
    """One submitted prompt, all its choices, as events in order of arrival.

    Leaving the iteration early, by break, exception or cancellation, aborts the request.
    """

    id: str
    prompt_ids: list[int]
    usage: Usage  # this and `timing` are up to date as events are read
    timing: Timing
    prompt_logprobs: list[Logprob | None] | None  # whole once the first event has come
    vector: list[float] | None  # of a pooled request, once it has ended

    def __aiter__(self) -> AsyncIterator[Output]: ...

    async def __anext__(self) -> Output:
        """The next event. If the engine died in the middle of this request, every choice ends with
        `finish_reason` "error", and `EngineDead` is raised where the iteration would have ended."""
        ...

    def ready(self) -> list[Output]:
        """The events that have already come and are not read yet; never waits."""
        ...

    def abort(self) -> None:
        """Stop generating; every choice still open ends with "abort". May be called at any time."""
        ...

    async def aclose(self) -> None: ...

    async def collect(self) -> list[Completion]:
        """Read to the end: one `Completion` a choice, in order."""
        ...


class Client(Protocol):
    """All that a frontend sees of an engine. Used on one event loop, never from other threads."""

    model: ModelInfo  # `context` and `info` are known once started
    text: Any  # weir.text.Text
    listeners: list[Callable[[Finished], None]]  # called once a request has ended
    rejected: dict[str, int]  # requests turned away, by reason

    async def start(self) -> None:
        """Return when the engine is ready; raise `EngineDead` saying why when it cannot start."""
        ...

    async def close(self, drain: float = 0) -> None:
        """Take no more requests, let those in hand run up to `drain` seconds, abort the rest, end."""
        ...

    def submit(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        priority: int = 0,
        user: str = "",
        pool: str | None = None,
        add_special_tokens: bool = True,
    ) -> Stream:
        """Check everything at once and hand the request to the engine; never waits for it.

        Raises `BadRequest` (too long, ids out of range, a request id in use) and `Overloaded` (queue
        full, engine starting, restarting, draining or dead).
        """
        ...

    def abort(self, request_id: str | None) -> int:
        """Abort one request, or all when None; returns how many were live."""
        ...

    def flush(self) -> None:
        """Drop every cached prefix that nobody is using."""
        ...

    @property
    def stats(self) -> Stats:
        """The engine as it last reported itself."""
        ...

    @property
    def health(self) -> str:
        """ "ready", "starting", "draining" or "dead: why"."""
        ...
