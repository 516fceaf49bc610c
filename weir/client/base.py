"""All that a frontend sees of the engine: no pages, no plans, and not where it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypedDict, Unpack

from weir.client.events import Finished, ModelInfo
from weir.client.stream import Stream
from weir.core import Grammar
from weir.errors import Overloaded
from weir.params import SamplingParams
from weir.text import Text
from weir.wire import Stats


class Details(TypedDict, total=False):
    """What a request may bring beside its prompt and `SamplingParams`."""

    priority: int  # smaller first; 0 without
    user: str
    program: str  # the program of many calls that this one belongs to, after a slash its branch
    pool: str | None  # "mean" or "last": a vector instead of an answer
    add_special_tokens: bool  # true without


class Client(Protocol):
    """All that a frontend sees of an engine. Used on one event loop, never from other threads."""

    model: ModelInfo  # `context` and `info` are known once started
    text: Text
    listeners: list[Callable[[Finished], None]]  # called once a request has ended
    rejected: dict[str, int]  # requests turned away, by reason

    async def start(self) -> None:
        """Return when the engine is ready; raise `EngineDead` saying why when it cannot start."""
        ...

    async def close(self, drain: float = 0) -> None:
        """Take no more requests, give those in hand `drain` seconds, abort the rest, end."""
        ...

    async def compile(self, params: SamplingParams) -> Grammar | None:
        """The grammar that `params` ask for, which `submit` must be given; None: they ask for none.

        May take seconds, while nothing else waits. Raises `BadRequest` saying what cannot be held
        to.
        """
        ...

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
        ...

    def abort(self, request_id: str | None) -> int:
        """Abort one request, or all when None; returns how many were live."""
        ...

    def flush(self) -> None:
        """Drop every cached prefix that nobody is using."""
        ...

    def unpin(self, name: str) -> None:
        """Let the prefix be dropped that a request pinned under this name."""
        ...

    @property
    def stats(self) -> Stats:
        """The engine as it last reported itself."""
        ...

    @property
    def health(self) -> str:
        """One of "ready", "starting", "restarting: why", "draining" and "dead: why"."""
        ...

    def unready(self) -> Overloaded:
        """What to tell those who ask while no request is taken: why, and when to try again."""
        ...
