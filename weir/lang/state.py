"""A program's state, to which it appends text and from which it reads values.

Appending never waits; reading a value waits only for that value.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partialmethod
from pathlib import Path
from typing import Any

from weir.lang import ir
from weir.lang.loop import spawn, wait
from weir.lang.stream import Answer, Fork, Join, Mark, ProgramError, Spoken, Stream, Value

inside: ContextVar[State | None] = ContextVar("inside", default=None)
"""The state whose body runs on this thread, if other threads read it meanwhile."""
_HERE = str(Path(__file__).parent), contextlib.__file__


def program_line() -> str:
    """The innermost line of code outside this package: "file.py:12"."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


class State:
    """The state of a program: `s += text`, `s += gen("x")`, `s["x"]`."""

    def __init__(self, stream: Stream, values: dict[str, Value] | None = None):
        self.stream = stream
        self.values = dict(values or {})
        self.failure: Exception | None = None  # what the program's body raised
        self.ret_value: Any = None  # what the program's body returned
        self.over: Future[None] | None = None  # done when a body on another thread has ended
        self._inherited = dict(self.values)
        self._told = False  # whether a read has raised the error of this state
        self._branches: list[State] = []

    def __iadd__(self, value: Any) -> State:
        line = program_line()
        for node in ir.parts(value):
            self._push(node, line)
        return self

    extend = __iadd__

    def _push(self, node: ir.Node, line: str) -> None:
        fill: dict[str, Value] = {}
        if isinstance(node, ir.Gen | ir.Select | ir.End) and node.name is not None:
            fill[node.name] = Future()
            if isinstance(node, ir.Gen) and node.thought is not None:
                fill[node.thought] = Future()
        elif isinstance(node, Join):
            fill = {name: Future() for name in node.gathered}
        self.values |= fill
        self.stream.push(node, line, fill)

    # values

    def __getitem__(self, name: str) -> Any:
        """Wait for the value of a variable. Raises KeyError if nothing sets it, ProgramError if the
        node that should set it failed."""
        return self._wait(name).value

    def __setitem__(self, name: str, value: Any) -> None:
        self.values[name] = Future()
        self.values[name].set_result(Answer(value))

    def __contains__(self, name: str) -> bool:
        return name in self.values

    async def get(self, name: str) -> Any:
        """`s[name]` for programs that are coroutines."""
        if late := self._late(name):
            await asyncio.wrap_future(late)
        try:
            return (await asyncio.wrap_future(self._value(name))).value
        except ProgramError:
            self._told = True
            raise

    def get_var(self, name: str) -> Any:
        return self[name]

    set_var = __setitem__

    def get_meta_info(self, name: str) -> dict[str, Any]:
        """What is known of a variable beside its value: finish reason, token counts and logprobs;
        for a `select`, the rating and logprobs of each choice."""
        return self._wait(name).meta

    def _wait(self, name: str) -> Answer:
        if late := self._late(name):
            wait(late)
        try:
            return wait(self._value(name))
        except ProgramError:
            self._told = True
            raise

    def _late(self, name: str) -> Future[None] | None:
        """If a body on another thread may still set a variable, the future of the body's end."""
        return None if name in self.values or inside.get() is self else self.over

    def _value(self, name: str) -> Value:
        if name not in self.values and self.failure is not None:
            raise ProgramError(f"the program failed: {self.failure!r}") from self.failure
        if name not in self.values:
            known = ", ".join(self.values) or "none yet"
            raise KeyError(f"{program_line()}: no variable {name!r}; there are: {known}")
        if not self.values[name].done():
            self.stream.need()
        return self.values[name]

    def made(self) -> dict[str, Value]:
        """The variables that were set here, not in the parent."""
        return {n: v for n, v in self.values.items() if self._inherited.get(n) is not v}

    # the whole

    def sync(self) -> None:
        """Wait for all nodes appended so far. Does not raise: see `error`."""
        wait(self.reach())

    def reach(self, last: bool = False) -> Future[None]:
        """A future that is done when all nodes appended so far are. last: none will follow."""
        reached: Future[None] = Future()
        self.stream.push(Mark(reached, last))
        return reached

    def text(self) -> str:
        """Wait for the whole text so far. Raises ProgramError if a part of it failed."""
        self._settle()
        return self.stream.prompt.text

    def messages(self) -> list[dict[str, str]]:
        """Wait for the finished turns, as role and content. Raises ProgramError."""
        self._settle()
        turns = self.stream.prompt.turns
        return [{"role": turn["role"], "content": turn["content"]} for turn in turns]

    def _settle(self) -> None:
        self.sync()
        if self.stream.error is not None:
            self._told = True
            raise self.stream.error

    def error(self) -> ProgramError | None:
        """The error so far, if any: of this state, or of a branch if no read has raised it."""
        untold = (branch.error() for branch in self._branches if not branch._told)
        return self.stream.error or next((error for error in untold if error is not None), None)

    def fail(self, error: Exception) -> None:
        """The program's body raised `error`: stop all running work."""
        self.failure = error
        self.stop(error)

    def stop(self, error: Exception | None = None) -> None:
        """Stop running work, here and in all branches."""
        self.stream.stop(error)
        for branch in self._branches:
            branch.stop(error)

    def finish(self) -> None:
        """Nothing more will be appended: wait until everything is done, here and in branches."""
        for branch in self._branches:
            branch.finish()
        wait(self.reach(last=True))

    def events(self, name: str | None = None) -> Iterator[Spoken]:
        """Yield text as it appears, with the variable it belongs to, until the program ends; with
        `name`, only that variable's, until its value is known. Raises ProgramError, and KeyError if
        nothing sets that variable."""
        pieces = self.stream.listen(name)
        try:
            while (piece := wait(spawn(_next(pieces)))) is not None:
                yield piece
        finally:
            wait(spawn(pieces.aclose()))
        if name is not None:
            self._value(name)

    async def async_events(self, name: str | None = None) -> AsyncGenerator[Spoken, None]:
        """`events` for coroutines, on any event loop."""
        pieces = self.stream.listen(name)
        try:
            while (piece := await asyncio.wrap_future(spawn(_next(pieces)))) is not None:
                yield piece
        finally:
            await asyncio.wrap_future(spawn(pieces.aclose()))
        if name is not None:
            self._value(name)

    def text_iter(self, var_name: str | None = None) -> Iterator[str]:
        """Yield text as it appears, all or one variable's. Raises as `events`."""
        for piece in self.events(var_name):
            yield piece.text

    async def text_async_iter(self, var_name: str | None = None) -> AsyncGenerator[str, None]:
        """`text_iter` for coroutines, on any event loop."""
        async for piece in self.async_events(var_name):
            yield piece.text

    # turns, scopes, branches

    def _turn(self, role: str, value: Any = None) -> Any:
        """Append a turn with this content; without a value, a context manager for the content."""
        if value is None:
            return self._around(ir.Open(role), ir.Close(role), program_line())
        self += ir.turn(role, value)
        return None

    system = partialmethod(_turn, "system")
    user = partialmethod(_turn, "user")
    assistant = partialmethod(_turn, "assistant")

    def var_scope(self, name: str) -> Any:
        """A context manager: the text appended inside becomes the variable `name`."""
        return self._around(ir.Begin(name), ir.End(name), program_line())

    @contextmanager
    def _around(self, begin: ir.Node, end: ir.Node, line: str) -> Iterator[None]:
        self._push(begin, line)
        yield
        self._push(end, line)

    def fork(self, size: int = 1) -> Group:
        """`size` states that continue from here, concurrently. This state may continue, too."""
        line = program_line()
        if size < 1:
            raise ValueError(f"{line}: a fork needs at least one branch, not {size}")
        children = [self.stream.branch() for _ in range(size)]
        self._push(Fork(children), line)
        branches = [type(self)(child, self.values) for child in children]
        self._branches += branches
        return Group(self, branches)

    def copy(self) -> AbstractContextManager[State]:
        """A context manager of a state that continues from here and is joined at the end."""
        return _only(self.fork())


@contextmanager
def _only(group: Group) -> Iterator[State]:
    with group as (one,):
        yield one


async def _next(pieces: AsyncGenerator[Spoken, None]) -> Spoken | None:
    return await anext(pieces, None)


class Group:
    """The branches of a fork."""

    def __init__(self, parent: State, states: list[State]):
        self.parent = parent
        self.states = states

    def join(self, mode: str = "gather_variable") -> None:
        """Make the parent wait until all nodes appended to the branches so far are done.

        Each variable that a branch set becomes a list in the parent, with an entry per branch. With
        mode "append" (SGLang's "concate_and_append") the branches' texts are appended to the
        parent, too.
        """
        line = program_line()
        appends = mode in ("append", "concate_and_append")
        if not appends and mode != "gather_variable":
            raise ValueError(f"{line}: mode is 'gather_variable' or 'append', not {mode!r}")
        made = [state.made() for state in self.states]
        names = {name: None for values in made for name in values}
        gathered = {name: [values.get(name) for values in made] for name in names}
        marks = [state.reach() for state in self.states]
        streams = [state.stream for state in self.states]
        self.parent._push(Join(streams, marks, gathered, appends), line)

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        self.join()

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[State]:
        return iter(self.states)

    def __getitem__(self, at: int) -> State:
        return self.states[at]

    def __setitem__(self, at: int, state: State) -> None:
        """Python calls this at the end of `branches[at] += ...`."""
        if self.states[at] is not state:
            raise TypeError("a branch cannot be replaced: append to it")

    def __iadd__(self, value: Any) -> Group:
        """Append to every branch: one value for all, a list with one for each, or what a function
        of the branch's index returns."""
        line = program_line()
        if callable(value) and not isinstance(value, ir.Node):
            values: Sequence[Any] = [value(i) for i in range(len(self.states))]
        elif isinstance(value, list | tuple):
            values = value
        else:
            values = [value] * len(self.states)
        if len(values) != len(self.states):
            raise ValueError(f"{line}: {len(values)} values for {len(self.states)} branches")
        for state, each in zip(self.states, values, strict=True):
            for node in ir.parts(each):
                state._push(node, line)
        return self
