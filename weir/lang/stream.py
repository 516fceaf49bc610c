"""A text that grows as its nodes run, one after another, on the event loop.

A stream knows its backend. The code that appends to it talks to `State`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

from weir.errors import BadRequest, EngineDead, WeirError
from weir.lang import ir
from weir.lang.backend.base import Backend, Piece, Prompt, Score, Turn, meta_of
from weir.lang.loop import loop
from weir.lang.scorers import SCORERS
from weir.text.thoughts import Thoughts, inside


class ProgramError(WeirError):
    """A program failed. The message names the line that appended the node that failed."""


@dataclass(slots=True)
class Answer:
    """The value of a variable, and its meta info."""

    value: Any
    meta: dict[str, Any] = field(default_factory=dict)


Value = Future[Answer]


@dataclass(slots=True, eq=False)
class Fork(ir.Node):
    """The children begin here, with a copy of the text so far."""

    children: list[Stream]


@dataclass(slots=True, eq=False)
class Join(ir.Node):
    """Wait until the children have reached their marks."""

    children: list[Stream]
    marks: list[Future[None]]  # one per child
    gathered: dict[str, list[Value | None]]  # variable → one per child, None where it has none
    appends: bool  # append the children's texts


@dataclass(slots=True, eq=False)
class Mark(ir.Node):
    """Sets `reached` once all nodes before it are done. last: no node follows."""

    reached: Future[None]
    last: bool = False


@dataclass(slots=True, eq=False)
class Item:
    """A queued node, the program's line that appended it, and the variables it must set."""

    node: ir.Node
    line: str
    fill: dict[str, Value]


@dataclass(slots=True)
class Spoken:
    """A piece of text, `name` if it belongs to a variable."""

    text: str
    name: str | None
    scopes: tuple[str, ...] = ()  # those open when it was appended


class Stream:
    """backend: generates the text. defaults: settings of every `gen`. waits: runs nothing before
    the `Fork` of its parent.

    `push` and `stop` may be called from any thread, everything else from the event loop only.
    """

    def __init__(self, backend: Backend, defaults: dict[str, Any], waits: bool = False):
        self.backend = backend
        self.defaults = defaults
        self.prompt = Prompt("", program=uuid4().hex[:16])
        self.inherited = 0, 0  # characters and turns that are its parent's
        self.error: ProgramError | None = None
        self.spoken: list[Spoken] = []
        self.ended = False
        self._after = ""  # text that ends the turn opened last
        self._scopes: dict[str, int] = {}  # name → where its text begins
        self._complete: set[str] = set()  # variables that have a value, or never will
        self.items: deque[Item] = deque()
        self._waits = waits
        self._branches = 0
        self._work: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    def push(self, node: ir.Node, line: str = "", fill: dict[str, Value] | None = None) -> None:
        """Append a node. Every future of `fill` will be done eventually, whatever happens."""
        loop().call_soon_threadsafe(self._take, Item(node, line, fill or {}))

    def branch(self) -> Stream:
        """A new stream to be a child in a `Fork` of this one."""
        return Stream(self.backend, self.defaults, waits=True)

    def hold(self) -> None:
        """Run nothing until `release`."""
        self._waits = True

    def need(self) -> None:
        """Called when the program is about to wait for a value."""

    def stop(self, error: Exception | None = None) -> None:
        """Cancel the running node and fail all that follow, with `error` if given."""
        loop().call_soon_threadsafe(self._stop, error)

    async def listen(self, name: str | None = None) -> AsyncGenerator[Spoken, None]:
        """Text as it appears; with `name`, that of one variable or scope until it is complete.
        Raises ProgramError."""
        at = 0
        while True:
            while at < len(self.spoken):
                piece = self.spoken[at]
                at += 1
                if name in (None, piece.name, *piece.scopes):
                    yield piece
            if self.error is not None:
                raise self.error
            if self.ended or name in self._complete:
                return
            await self._news.wait()

    def _take(self, item: Item) -> None:
        self.items.append(item)
        self._go()

    def _go(self) -> None:
        if self._work is None and self.items and not self._waits:
            self._work = loop().create_task(self._run())
            self._work.add_done_callback(self._rest)

    def _rest(self, work: asyncio.Task[None]) -> None:
        """Work ended: all was done, or it was cancelled before it began."""
        self._work = None
        self._go()

    def _stop(self, error: Exception | None) -> None:
        self._fail("", error or ProgramError("the program was stopped"))
        if self._work is not None:
            self._work.cancel()
        self.release()

    def release(self) -> None:
        self._waits = False
        self._go()

    async def _run(self) -> None:
        while self.items:
            item = self.items.popleft()
            try:
                if isinstance(item.node, Mark):
                    self.ended |= item.node.last
                    item.node.reached.set_result(None)
                elif isinstance(item.node, Fork):
                    self._fork(item.node)
                elif self.error is None:
                    await self._do(item)
            except asyncio.CancelledError:
                self._fail("", ProgramError("the program was stopped"))
            except Exception as error:
                self._fail(item.line, error)
            self._settle([item])

    def _settle(self, items: list[Item]) -> None:
        """Fail the variables that were not set."""
        for item in items:
            for name, value in item.fill.items():
                self._complete.add(name)
                if not value.done():
                    assert self.error is not None
                    value.set_exception(self.error)
        self._wake()

    def _fail(self, line: str, error: Exception) -> None:
        """Keep the first error; no node runs after it."""
        if self.error is None:
            known = isinstance(error, WeirError)
            what = str(error) if known else f"{type(error).__name__}: {error}"
            at = f"{line}: " if line and not isinstance(error, ProgramError) else ""
            self.error = ProgramError(at + what)
            self.error.__cause__ = error

    async def _do(self, item: Item) -> None:
        match item.node:
            case ir.Text(value=text):
                if self.backend.chats and self.prompt.role is None and text.strip():
                    raise BadRequest("a chat service reads turns alone: put text into weir.user")
                self._say(text)
            case ir.Gen():
                await self._gen(item.node, item.fill)
            case ir.Select():
                await self._select(item.node, item.fill)
            case ir.Open(role=role):
                self._open(role)
            case ir.Close(role=role):
                self._close(role)
            case ir.Begin(name=name):
                if name in self._scopes:
                    raise BadRequest(f"the scope {name!r} begins inside itself")
                self._scopes[name] = len(self.prompt.text)
            case ir.End(name=name):
                text = self.prompt.text[self._scopes.pop(name) :]
                item.fill[name].set_result(Answer(text))
            case ir.Image(source=source):
                self.prompt.images.append(source)
            case Join():
                await self._join(item.node, item.fill)
            case node:
                raise TypeError(f"a {type(node).__name__} cannot be run")

    def _say(self, text: str, name: str | None = None) -> None:
        if text:
            self.prompt.text += text
            self.spoken.append(Spoken(text, name, tuple(self._scopes)))
            self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def _gen(self, node: ir.Gen, fill: dict[str, Value]) -> None:
        settings = self.defaults | node.settings
        choices: dict[int, list[Piece]] = {}
        if node.thought is not None and settings.get("n", 1) != 1:
            raise BadRequest("separate_reasoning reads one answer: n must be 1")
        thoughts = Thoughts(node.thinks or inside(self.prompt.text))
        thought = ""
        pieces = self._written(replace(self.prompt), settings)
        try:
            async for piece in pieces:
                if node.thought is not None:
                    more, said = thoughts.push(piece.text, piece.finish_reason is not None)
                    thought, piece = thought + more, replace(piece, text=said)
                choices.setdefault(piece.index, []).append(piece)
                if piece.index == 0:
                    self._say(piece.text, node.name)
        finally:
            await pieces.aclose()
        texts = ["".join(p.text for p in choices[i]) for i in sorted(choices)]
        metas = [meta_of(choices[i]) for i in sorted(choices)]
        if len(metas) < settings.get("n", 1) or not all(m["finish_reason"] for m in metas):
            raise EngineDead("the answer broke off before its end: run the program again")
        if node.thought is not None:
            fill[node.thought].set_result(Answer(thought))
        if node.name is not None:
            one = settings.get("n", 1) == 1
            meta = metas[0] if one else {"choices": metas}
            fill[node.name].set_result(Answer(texts[0] if one else texts, meta))

    def _written(self, prompt: Prompt, settings: dict[str, Any]) -> AsyncGenerator[Piece, None]:
        return self.backend.generate(prompt, settings)

    async def _select(self, node: ir.Select, fill: dict[str, Value]) -> None:
        prompt = replace(self.prompt)
        scores = await self.backend.score(prompt, node.choices)
        alone: list[Score] = []
        if node.scorer == "unconditional_likelihood_normalized":
            alone = await self.backend.score(Prompt("", program=prompt.program), node.choices)
        rated = SCORERS[node.scorer](scores, alone)
        best = max(range(len(rated)), key=rated.__getitem__)
        self._say(node.choices[best], node.name)
        if node.name is not None:
            logprobs = dict(zip(node.choices, (s.logprobs for s in scores), strict=True))
            meta = {"scores": dict(zip(node.choices, rated, strict=True)), "logprobs": logprobs}
            fill[node.name].set_result(Answer(node.choices[best], meta))

    def _open(self, role: str) -> None:
        if self.prompt.role is not None:
            raise BadRequest(f"a turn of {role!r} begins inside one of {self.prompt.role!r}")
        turn: Turn = self.backend.turn([*(turn["role"] for turn in self.prompt.turns), role])
        ended = self._after  # already said; the glue between two turns may begin with it
        self._say(turn.before.removeprefix(ended))
        self._after = turn.after
        self.prompt.role, self.prompt.turn_start = role, len(self.prompt.text)

    def _close(self, role: str) -> None:
        if self.prompt.role != role:
            raise BadRequest(f"a turn of {role!r} ends that did not begin")
        content = self.prompt.text[self.prompt.turn_start :]
        said = {"role": role, "content": content, "images": self.prompt.images}
        self.prompt.turns = [*self.prompt.turns, said]
        self.prompt.role, self.prompt.images = None, []
        self._say(self._after)

    def _fork(self, fork: Fork) -> None:
        """Release the children, after a hint to cache the prefix they share."""
        if self.error is None and len(fork.children) > 1 and self.prompt.text:
            hint(self.backend, self.prompt)
        for number, child in enumerate(fork.children, self._branches):
            self._begin(child, f"{self.prompt.program}/{number}")
        self._branches += len(fork.children)

    def _begin(self, child: Stream, program: str) -> None:
        child.prompt = replace(self.prompt, images=list(self.prompt.images), program=program)
        child.inherited = len(self.prompt.text), len(self.prompt.turns)
        child.error = self.error
        child._after, child._scopes = self._after, dict(self._scopes)
        child.release()

    async def _join(self, join: Join, fill: dict[str, Value]) -> None:
        for mark in join.marks:
            await asyncio.wrap_future(mark)
        for child in join.children:
            if child.error is not None:
                raise child.error
        for name, values in join.gathered.items():
            got = [None if value is None else value.result().value for value in values]
            fill[name].set_result(Answer(got))
        if join.appends:
            for child in join.children:
                text, turns = child.inherited
                self._say(child.prompt.text[text:])
                self.prompt.turns = [*self.prompt.turns, *child.prompt.turns[turns:]]
                self._after = child._after


_hints: set[asyncio.Task[None]] = set()  # an event loop does not keep its tasks


def hint(backend: Backend, prompt: Prompt) -> None:
    """Start to cache a prefix that several streams share. Nothing waits for it: streams that come
    meanwhile share the work under way, and meet any error themselves, with the line that said
    it."""

    async def cache(prompt: Prompt) -> None:
        with suppress(WeirError):
            await backend.cache(prompt)

    task = loop().create_task(cache(replace(prompt)))
    _hints.add(task)
    task.add_done_callback(_hints.discard)
