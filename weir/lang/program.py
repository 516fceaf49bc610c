"""Programs: functions of a state that run alone, in batches, or as a stream of text."""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial, update_wrapper
from typing import Any, cast, overload

from weir.lang import ir, trace
from weir.lang.backend.base import Backend
from weir.lang.backend.choose import chosen
from weir.lang.loop import Crew, spawn, wait
from weir.lang.speculate import Ahead, Forms
from weir.lang.state import State, inside
from weir.lang.stream import Stream
from weir.lang.together import together
from weir.lang.words import gen
from weir.progress import progress

AT_ONCE = max(96, 16 * (os.cpu_count() or 1))
"""How many programs of a batch run at once by default (as in SGLang)."""
DEFAULTS = {"max_tokens": 128}
"""Settings of a `gen`, unless it or the program's caller gives others."""

SETTINGS = inspect.signature(gen).parameters.keys() - {"name", "choices", "choices_method"}

Arguments = Mapping[str, Any] | Sequence[Any]


class Program:
    """A function of a state, `def f(s, ...)`, and the ways to run it. Made by `function`."""

    def __init__(
        self,
        body: Callable[..., Any],
        bound: Mapping[str, Any] | None = None,
        num_api_spec_tokens: int | None = None,
    ):
        self.names = list(inspect.signature(body).parameters)[1:]
        if not inspect.signature(body).parameters:
            raise TypeError(f"{body.__name__} must take the state as its first argument")
        if inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body):
            raise TypeError(f"{body.__name__} must not yield: a program appends to its state")
        self.body = body
        self.bound = dict(bound or {})
        self.num_api_spec_tokens = num_api_spec_tokens
        update_wrapper(self, body)

    def bind(self, **arguments: Any) -> Program:
        """The program with some of its arguments given."""
        return Program(self.body, self.bound | arguments, self.num_api_spec_tokens)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """With a state as first argument, as inside another program, call the body; else `run`."""
        if arguments and isinstance(arguments[0], State):
            return self.body(*arguments, **self.bound | named)
        return self.run(*arguments, **named)

    def run(
        self,
        *arguments: Any,
        backend: Backend | str | None = None,
        stream: bool = False,
        **named: Any,
    ) -> State:
        """Run once, and return the state when everything is done.

        Keyword arguments that are not the program's are settings of every `gen` in it, such as
        `temperature` or `max_new_tokens`. With `stream` the state is returned at once, to be read
        with `text_iter`. Raises ProgramError, and what the body raises.
        """
        named, defaults = self._sort(named)
        state = State(self._stream(chosen(backend), defaults))
        whole = partial(self._whole, state, arguments, named)
        if stream:
            state.over = Future()
            threading.Thread(target=_apart, args=(state, whole), daemon=True).start()
            return state
        whole()
        failed = state.failure or state.error()
        if failed is not None:
            raise failed
        return state

    def run_batch(
        self,
        batch: Sequence[Arguments],
        *,
        backend: Backend | str | None = None,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        **settings: Any,
    ) -> list[State] | Iterator[State]:
        """Run once for each entry of `batch`, at most `num_threads` at once; returns the states in
        order.

        An entry is a mapping of arguments, or a sequence in the program's order. The prefix that
        the first two entries share before their first `gen` is computed once, before the others
        begin. A program that fails does not end the others: its state raises when it is read, and
        `error()` says what happened. Bodies take turns on the caller's thread, so one that blocks
        in anything but a read, such as a web request, delays the others. generator_style: return
        an iterator, which yields each state once it and all before it are done.
        """
        _, defaults = self._sort(settings)
        if any(name in settings for name in self.names):
            raise TypeError("arguments of the program belong into the batch, or use bind")
        size = AT_ONCE if num_threads == "auto" else int(num_threads)
        if size < 1:
            raise ValueError(f"num_threads must be 'auto' or positive, not {num_threads}")
        for entry in batch:
            if not isinstance(entry, Mapping | list | tuple):
                raise TypeError(f"a batch holds dicts or lists of arguments, not {entry!r}")
        bodies = self._bodies(batch, partial(self._stream, chosen(backend), defaults), size)
        states = self._crowd(bodies, len(batch), size, progress_bar)
        return states if generator_style else list(states)

    def _crowd(
        self, bodies: Iterator[Callable[[], State]], count: int, size: int, shown: bool
    ) -> Iterator[State]:
        with progress(count, "programs", hidden=not shown) as bar:
            for state in Crew(size).run(bodies):
                bar.advance(1)
                yield state

    def _bodies(
        self, batch: Sequence[Arguments], stream: Callable[[], Stream], size: int
    ) -> Iterator[Callable[[], State]]:
        """The bodies of a batch, each to be run as soon as it is taken. The first two run no nodes
        until the next body is asked for, so that `together` can compare them."""
        pair = [stream(), stream()] if min(size - 1, len(batch)) > 1 else []
        for one in pair:
            one.hold()
        for number, entry in enumerate(batch):
            yield partial(self._one, pair[number] if number < len(pair) else stream(), entry)
            if number + 1 == len(pair):
                wait(spawn(together(pair)))

    def _one(self, stream: Stream, entry: Arguments) -> State:
        state = State(stream)
        if isinstance(entry, Mapping):
            self._whole(state, (), entry)
        else:
            self._whole(state, entry, {})
        return state

    def _stream(self, backend: Backend, defaults: dict[str, Any]) -> Stream:
        if self.num_api_spec_tokens is None:
            return Stream(backend, defaults)
        kind = Forms if backend.chats else Ahead
        return kind(backend, defaults, self.num_api_spec_tokens)

    def _whole(self, state: State, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
        """Run the body and wait for all that it appended. The state keeps what the body raises."""
        try:
            returned = self.body(state, *arguments, **self.bound | dict(named))
            if inspect.iscoroutine(returned):
                returned = wait(spawn(returned))
            state.ret_value = returned
        except Exception as error:
            state.fail(error)
        except BaseException:
            state.stop()
            raise
        finally:
            state.finish()

    def trace(self, **arguments: Any) -> trace.Graph:
        """What the program does, as a graph, without running it. Arguments that are not given are
        abstract. Raises ProgramError if its control flow depends on a value."""
        return trace.graph(self.body, self.bound | arguments)

    def _sort(self, named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Split keyword arguments into the program's own and the settings of every `gen`."""
        own = {key: value for key, value in named.items() if key in self.names}
        settings = {key: value for key, value in named.items() if key not in own}
        if "max_new_tokens" in settings:
            settings["max_tokens"] = settings.pop("max_new_tokens")
        if unknown := sorted(settings.keys() - SETTINGS):
            takes = ", ".join(self.names) or "none"
            raise TypeError(f"{unknown[0]!r} is no setting of gen, nor an argument: {takes}")
        node = cast(ir.Gen, gen(None, **settings))
        return own, DEFAULTS | node.settings


def _apart(state: State, whole: Callable[[], None]) -> None:
    """Run a body on this thread, while other threads read its state."""
    inside.set(state)
    try:
        whole()
    finally:
        cast(Future[None], state.over).set_result(None)


@overload
def function(body: Callable[..., Any]) -> Program: ...
@overload
def function(
    body: None = None, *, num_api_spec_tokens: int | None = None
) -> Callable[[Callable[..., Any]], Program]: ...
def function(
    body: Callable[..., Any] | None = None, *, num_api_spec_tokens: int | None = None
) -> Program | Callable[[Callable[..., Any]], Program]:
    """Make a program of a function of a state: `@weir.function`.

    num_api_spec_tokens: ask a backend that bills its input for that many tokens in one call, which
    may serve the following `gen`s, too: see `weir.lang.speculate`.
    """
    if body is None:
        return partial(Program, num_api_spec_tokens=num_api_spec_tokens)
    return Program(body, num_api_spec_tokens=num_api_spec_tokens)
